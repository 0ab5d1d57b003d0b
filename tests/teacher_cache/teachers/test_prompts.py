"""A file of prompts is one or several for each class of the data set, whatever its order, or it is refused."""

from __future__ import annotations

import pytest

from ground.errors import InvalidInput
from teacher_cache.teachers.prompts import read_prompts

CLASSES = ("cat", "dog", "owl")


def test_prompts_come_in_the_order_of_the_classes(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text(
        '\ufeffclass,prompt\nowl,an owl\ncat,"a cat, asleep"\n\ndog,a dog\ncat,two cats\n', encoding="utf-8"
    )
    assert read_prompts(path, CLASSES) == (
        ("cat", "a cat, asleep"), ("cat", "two cats"), ("dog", "a dog"), ("owl", "an owl"),
    )  # fmt: skip
    assert [label for label, _ in read_prompts(path)] == ["owl", "cat", "cat", "dog"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"class,prompt\ncat,a cat\nowl,an owl\n", "has no prompt for dog; give one or several for each class"),
        (b"class,prompt\n", "has no prompt for cat, dog, owl;"),
        (b"class,prompt\ncta,a cat\n", "line 2 of .*: no class of the data set is called 'cta'; did you mean cat?"),
        (b"cat,a cat\n", "does not begin with the line class,prompt"),
        (b"", "does not begin with the line class,prompt"),
        (b"class,prompt\ncat,a cat, asleep\n", "line 2 of .* has 3 fields .* double quotes"),
        (b"class,prompt\ncat, \n", "line 2 of .* has no prompt for cat"),
        (b'class,prompt\ncat,"a cat\n', "are no CSV in UTF-8"),
        (b"class,prompt\ncat,a \xff\n", "are no CSV in UTF-8"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, content, says):
    path = tmp_path / "prompts.csv"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=says):
        read_prompts(path, CLASSES)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="none.csv cannot be read .*; give another --prompts"):
        read_prompts(tmp_path / "none.csv", CLASSES)
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_prompts(tmp_path, CLASSES)
