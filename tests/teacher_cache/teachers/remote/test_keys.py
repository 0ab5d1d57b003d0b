"""A key appears nowhere but in the header of a request, whatever the server does with it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import traceback

import pytest

from benchmarks.stand_ins.faulty_server import FAULTS, Behaviour, running
from ground.errors import CKDError, InvalidInput
from models.names import canonical_name, identity_name
from teacher_cache.teachers.elsewhere import RemoteOptions
from teacher_cache.teachers.remote.keys import Key, refuse_secrets
from tests.conftest import run_command
from tests.running import begin_command
from tests.teacher_cache.teachers.remote.asking import noise, opened, said_by, teacher_of

KEY = "k3yThatNobodyMaySee0123456789"
PROTOCOLS = ("v2", "openai", "http")


@pytest.fixture
def key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("CKD_API_KEY", KEY)
    return KEY


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_answer_failure_or_log_repeats_it_even_where_the_server_does(tmp_path, key, protocol, caplog):
    caplog.set_level(logging.DEBUG)
    faults = ("", *FAULTS)
    with running(Behaviour(key=key, repeats_key=True, first=faults, hang=0.3)) as server:
        teacher = teacher_of(protocol, server.url, tmp_path)
        said = [said_by(teacher, noise(), deadline=2.0)[0] for _ in faults]
        assert server.counts.requests == len(faults)
        assert set(server.counts.faults) == set(FAULTS)
    everything = "\n".join([repr(said), *(f"{vars_of(one)}" for one in said), repr(teacher.card), caplog.text])
    assert key not in everything
    assert key not in repr(teacher.__dict__)


def vars_of(said: object) -> list[object]:
    return [getattr(said, name) for name in said.__slots__]  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_wrong_key_is_final_and_not_named(tmp_path, key, protocol):
    with running(Behaviour(key="another")) as server:
        failure = said_by(teacher_of(protocol, server.url, tmp_path), noise())[0]
    assert failure.is_final
    assert "401" in failure.why
    assert key not in repr(failure)


def test_the_card_names_the_variable(tmp_path, key, monkeypatch):
    monkeypatch.setenv("MINE", "an0therKey")
    with running(Behaviour(key="an0therKey")) as server:
        assert said_by(teacher_of("http", server.url, tmp_path, key="MINE"), noise())[0].values


@pytest.mark.parametrize(
    "name",
    [
        f"v2:http://user:{KEY}@127.0.0.1/model",
        f"http:https://host/path?api_key={KEY}",
        f"http:https://host/path#{KEY}",
        f"v2:http://host/model?{KEY}",
        f"http:{KEY}",
        "v2:ftp://host/model",
        "v2:http://host",
        "openai:",
        f"openai:https://user:{KEY}@host/v1",
    ],
)
def test_names_that_could_hold_one_are_refused_without_repeating_it(name):
    with pytest.raises(CKDError) as refused:
        canonical_name(name)
    assert KEY not in "".join(traceback.format_exception(refused.value))


def test_stores_know_a_teacher_without_its_path():
    assert identity_name("v2:http://host:8080/a/secret/path/model") == "v2:host-8080-model"
    assert identity_name("http:https://host/secret/path") == "http:host"
    assert identity_name("openai:owner/model") == "openai:owner-model"


@pytest.mark.parametrize(
    "card",
    [
        {"query": {"api_key": "short"}},
        {"query": {"version": KEY}},
        {"query": {"key": "short"}},
        {"query": {"subscription_key": "short"}},
        {"send": "json", "json": {"image": "{image}", "key": "short"}},
        {"query": {"input_tokens": "short"}},
        {"key": "MINE", "query": {"version": "my0wnKey"}},
        {"send": "json", "json": {"image": "{image}", "auth": {"secret": "x"}}},
        {"send": "json", "json": {"image": "{image}", "note": "Bearer abcdefghijklmnop"}},
        {"send": "json", "json": {"image": "{image}", "note": "Basic dXNlcjpwYXNzd29yZA=="}},
        {"classes": ["cat", "sk-abcdefghijklmnopqrstuvwx"]},
    ],
)
def test_a_key_in_a_card_is_refused_without_repeating_it(tmp_path, key, card, monkeypatch):
    monkeypatch.setenv("MINE", "my0wnKey")
    with pytest.raises(InvalidInput, match="looks like a key") as refused:
        teacher_of("http", "http://127.0.0.1:1", tmp_path, **card)
    assert key not in str(refused.value)


def test_words_that_are_no_key_are_taken():
    refuse_secrets("Which is the most basic classification of it?\n{classes}", "the prompt")


def test_a_key_in_the_base_url_is_refused(key):
    with pytest.raises(InvalidInput) as refused:
        opened("openai:seer", RemoteOptions(base_url=f"http://x:{key}@127.0.0.1/v1"))
    assert key not in str(refused.value)


def test_a_key_that_no_header_takes_is_refused_without_repeating_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CKD_API_KEY", "two\nlines")
    with pytest.raises(InvalidInput, match="characters that no header takes") as refused:
        teacher_of("http", "http://127.0.0.1:1", tmp_path)
    assert "two" not in str(refused.value)


def test_a_prefix_that_no_header_takes_is_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(InvalidInput, match="key_prefix has characters that no header takes"):
        teacher_of("http", "http://127.0.0.1:1", tmp_path, key_prefix="Träger ")


def test_a_key_prints_as_its_variable():
    assert repr(Key(KEY, "MINE")) == str(Key(KEY, "MINE")) == "Key($MINE)"


@pytest.mark.slow
@pytest.mark.parametrize(("faults", "apart"), [(("",), True), (("400",), False), (("invalid-json",), False)])
def test_a_command_prints_and_writes_it_nowhere_with_debug_too(tmp_path, key, faults, apart):
    behaviour = Behaviour(key=key, repeats_key=True, classes=tuple("0123456789"), first=faults * 400)
    with running(behaviour) as server:
        outputs = []
        for arguments in (
            ["teacher", f"v2:{server.url}/any"],
            ["build", "--teacher", f"v2:{server.url}/any", "--dataset", "digits", "--n", "20", "--store", "store"],
        ):
            words = ("ckd-cache", "--debug", *arguments)
            done = begin_command(*words, cwd=tmp_path).completed() if apart else run_command(*words, cwd=tmp_path)
            outputs += [done.stdout, done.stderr]
    assert key not in "".join(outputs)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


def test_what_is_not_installed_is_a_sentence_with_the_command():
    program = (
        "import sys; sys.modules['httpx'] = None\n"
        "from teacher_cache.teachers.elsewhere import require_client\n"
        "try:\n    require_client('openai:seer')\nexcept Exception as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "openai:seer needs the package httpx; install it with: pip install 'teacher-cache[remote]'"
    )


def test_students_are_refused_with_a_sentence():
    from models import create_model

    with pytest.raises(InvalidInput, match="a teacher alone"):
        create_model("v2:http://host/model", 10)


def test_a_card_says_nothing_unknown(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps({"answer": "logits", "scores_at": "a", "run": "code"}))
    with pytest.raises(InvalidInput, match="'run', which nothing is known of"):
        opened("http:http://127.0.0.1:1/x", RemoteOptions(card=tmp_path / "card.json"))
