"""`NAME:key=value,...`: read back as written, typed by who takes it, refused where nobody does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ground.errors import InvalidInput, UnknownName
from ground.spec import Settings, argument_names, split_spec

names = st.from_regex(r"[a-z][a-z0-9_+]{0,8}", fullmatch=True)
values = st.from_regex(r"[A-Za-z0-9_.+-]{1,8}", fullmatch=True)


@given(names, st.dictionaries(names, values, max_size=4))
def test_a_spec_is_read_as_it_was_written(name, settings):
    text = name + (":" if settings else "") + ",".join(f"{key}={value}" for key, value in settings.items())
    assert split_spec(text) == (name, settings)


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
