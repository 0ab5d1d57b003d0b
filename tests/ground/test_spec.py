"""`NAME:key=value,...`: read back as written, typed by who takes it, refused where nobody does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput, UnknownName
from ground.spec import Settings, argument_names, joined_spec, spelled_settings, split_spec

names = st.from_regex(r"[a-z][a-z0-9_+]{0,8}", fullmatch=True)
values = st.from_regex(r"[A-Za-z0-9_.+-]{1,8}", fullmatch=True)


@given(names, st.dictionaries(names, values, max_size=4))
def test_a_spec_is_read_as_it_was_written(name, settings):
    text = name + (":" if settings else "") + ",".join(f"{key}={value}" for key, value in settings.items())
    assert split_spec(text) == (name, settings)
    assert joined_spec(name, settings) == text


def test_a_class_is_a_name_and_what_follows_are_settings():
    assert split_spec("my_losses:Huber:delta=2,soft=yes") == ("my_losses:Huber", {"delta": "2", "soft": "yes"})


@pytest.mark.parametrize("text", ["kd:temperature", "kd:=4", "kd:temperature=", "kd:a=1,a=2"])
def test_a_setting_without_a_name_or_value_or_said_twice_is_refused(text):
    with pytest.raises(InvalidInput, match="write NAME:key=value"):
        split_spec(text)


def thing(count: int = 1, rate: float = 0.5, on: bool = False, name: str = "x", most: int | None = 3) -> tuple:
    return count, rate, on, name, most


def test_settings_take_the_types_of_who_takes_them():
    settings = Settings("loss", "thing", {"count": "7", "rate": "1e-3", "on": "yes", "name": "7", "most": "none"})
    assert settings.build(thing) == (7, 1e-3, True, "7", None)
    settings.finish()
    assert argument_names(thing) == ["count", "rate", "on", "name", "most"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("count", "1.5", "count as int"), ("rate", "nan", "rate as float"), ("on", "maybe", "on as bool")],
)
def test_a_value_of_another_type_is_refused(key, value, said):
    with pytest.raises(InvalidInput, match=said):
        Settings("loss", "thing", {key: value}).build(thing)


def test_a_setting_that_nobody_takes_is_answered_with_the_nearest():
    settings = Settings("loss", "thing", {"cuont": "1"})
    settings.build(thing)
    with pytest.raises(UnknownName, match="no setting of loss thing is called 'cuont'; did you mean count"):
        settings.finish()


@given(
    st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), values, st.none() | st.integers()
)
def test_settings_are_spelled_as_what_reads_as_the_same_and_as_nothing_else(count, rate, on, name, most):
    given_ = {"most": str(most), "name": name, "on": str(on), "rate": repr(rate), "count": f"{count:+d}"}
    spelled = spelled_settings(thing, given_)
    assert Settings("loss", "thing", spelled).build(thing) == (count, rate, on, name, most)
    assert spelled_settings(thing, spelled) == spelled
    assert list(spelled) == [key for key in argument_names(thing) if key in spelled]
    defaults = {"count": 1, "rate": 0.5, "on": False, "name": "x", "most": 3}
    asked = {"count": count, "rate": rate, "on": on, "name": name, "most": most}
    assert set(spelled) == {key for key, value in asked.items() if value != defaults[key]}


def test_what_nobody_takes_is_spelled_as_it_is():
    assert spelled_settings(thing, {"other": "1.0", "count": "many"}) == {"count": "many", "other": "1.0"}


def test_where_nothing_is_set_nobody_asks_of_what_type_it_would_be():
    def odd(value: Nowhere = 1):  # noqa: F821
        """Of a type that is only known to who checks types."""

    assert spelled_settings(odd, {}) == {}
    with pytest.raises(InvalidInput, match="an annotation of its arguments cannot be resolved"):
        spelled_settings(odd, {"value": "2"})


def test_a_setting_of_which_nothing_says_its_type_is_refused():
    def odd(value=None):
        """Anything."""

    with pytest.raises(InvalidInput, match="value cannot be given as text; annotate it"):
        Settings("loss", "odd", {"value": "2"}).build(odd)


def test_settings_know_the_defaults_of_what_was_asked_for():
    settings = Settings("loss", "thing", {"rate": "2"})
    settings.build(thing, count=5)
    settings.take("share", 0.25)
    assert settings.defaults == {"count": 5, "rate": 0.5, "on": False, "name": "x", "most": 3, "share": 0.25}
