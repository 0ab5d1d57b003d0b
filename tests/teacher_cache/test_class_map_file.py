"""A class map says for every class of the data which of the teacher's mean it, or is refused by the line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ground.errors import InvalidInput
from teacher_cache.class_map_file import Classes, match_names, read_class_map

TEACHER = Classes(
    "teacher",
    5,
    (("n01", "tench", "Tinca tinca"), ("n02", "crane"), ("n03", "lorry"), ("n04", "crane"), ("n05", "cab")),
)
UNNAMED = Classes("teacher", 5, None)
DATA = Classes("data", 3, (("fish",), ("bird",), ("car",)))
WHOLE = "teacher,data\n0,fish\n1,bird\n2,car\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "map.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


MAPS = {
    "indices and names": (WHOLE, ((0,), (1,), (2,))),
    "names and indices": ("teacher,data\ntench,0\nn04,1\nlorry,2\n", ((0,), (3,), (2,))),
    "in any order": ("teacher,data\n2,car\n0,fish\n1,bird\n", ((0,), (1,), (2,))),
    "several to one": ("teacher,data\n4,car\n0,fish\n2,car\n3,bird\n1,bird\n", ((0,), (1, 3), (2, 4))),
    "said twice": (WHOLE + "0,fish\n", ((0,), (1,), (2,))),
    "from a spreadsheet": (
        '\ufeffteacher,data\r\n"Tinca tinca",fish\r\nn02, bird\r\nlorry ,car\r\n\r\n',
        ((0,), (1,), (2,)),
    ),
    "by another header": ("teacher:index,data:name\n0,fish\n1,bird\n2,car\n", ((0,), (1,), (2,))),
}


@pytest.mark.parametrize("case", MAPS)
def test_either_column_names_classes_or_numbers_them(tmp_path, case):
    text, expected = MAPS[case]
    assert read_class_map(written(tmp_path, text), TEACHER, DATA)[0] == expected


def test_whether_the_teachers_names_were_used_is_known(tmp_path):
    assert not read_class_map(written(tmp_path, WHOLE), TEACHER, DATA)[1]
    assert read_class_map(written(tmp_path, MAPS["names and indices"][0]), TEACHER, DATA)[1]


REFUSED = {
    "nothing": ("", "map.csv is empty; give a CSV with the header teacher,data"),
    "blank lines": ("\n\n", "is empty"),
    "no header": ("0,fish\n1,bird\n2,car\n", r"line 1: the header is 0,fish, and has to be teacher,data"),
    "another header": ("data,teacher\nfish,0\n", "line 1: the header is data,teacher"),
    "an unknown kind": ("teacher:id,data\n0,fish\n", "line 1: the header is teacher:id,data"),
    "no rows": ("teacher,data\n", r"leaves out fish \(0\), bird \(1\), car \(2\)"),
    "a gap": ("teacher,data\n0,fish\n2,car\n", r"leaves out bird \(1\); every class of the data set needs one"),
    "an unknown class of the data": (
        "teacher,data\n0,fish\n1,brid\n2,car\n",
        "line 3: no class of the data set is called 'brid'; did you mean bird",
    ),
    "an unknown class of the teacher": (
        "teacher,data\ntenc,fish\nn02,bird\nlorry,car\n",
        "line 2: no class of the teacher is called 'tenc'; did you mean tench",
    ),
    "a name of two classes": (
        "teacher,data\ntench,fish\ncrane,bird\nlorry,car\n",
        r"line 3: 2 classes of the teacher are called crane \(1 and 3\); give indices",
    ),
    "no such index": ("teacher,data\n0,fish\n5,bird\n2,car\n", "line 3: the teacher has no class 5; .* 0 to 4"),
    "a negative index": (
        "teacher,data\n0,fish\n-1,bird\n2,car\n",
        "line 3: '-1' under teacher is no index; give 0 to 4",
    ),
    "an index beyond counting": (f"teacher,data\n{'9' * 5000},fish\n", "line 2: no class of the teacher is called"),
    "one of the teacher's for two": (
        WHOLE + "0,bird\n",
        r"line 5: the teacher's class n01 \(0\) means bird \(1\), and fish \(0\) by line 2; leave one of them out",
    ),
    "three values": ("teacher,data\n0,fish,1\n", "line 2: 3 values are there"),
    "one value": ("teacher,data\n0\n", "line 2: 1 values are there"),
    "an open quote": ('teacher,data\n0,"fish\n', "it is no CSV"),
    "not text": (b"teacher,data\n\xff\xfe,fish\n", "is not UTF-8"),
    "a null": (b"teacher,data\n0,fi\0sh\n", "line 2: no class of the data set is called"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_map_is_refused_by_its_line(tmp_path, case):
    text, message = REFUSED[case]
    with pytest.raises(InvalidInput, match=message) as refused:
        read_class_map(written(tmp_path, text), TEACHER, DATA)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400


def test_a_teacher_whose_classes_have_no_names_is_mapped_by_index(tmp_path):
    assert read_class_map(written(tmp_path, WHOLE), UNNAMED, DATA)[0] == ((0,), (1,), (2,))
    with pytest.raises(InvalidInput, match=r"line 2: 'tench' under teacher is no index \(nothing says what .* 0 to 4"):
        read_class_map(written(tmp_path, "teacher,data\ntench,fish\n"), UNNAMED, DATA)
    with pytest.raises(InvalidInput, match="line 2: nothing says what the classes of the teacher are called"):
        read_class_map(written(tmp_path, "teacher:name,data\ntench,fish\n"), UNNAMED, DATA)


NUMBERED = Classes("data", 3, (("1",), ("2",), ("10",)))


def test_names_that_are_numbers_are_not_taken_for_indices(tmp_path):
    with pytest.raises(
        InvalidInput, match=r"line 2: 1 under data is the name of a class, 1 \(0\), and the index of an"
    ):
        read_class_map(written(tmp_path, "teacher,data\n0,1\n1,2\n"), TEACHER, NUMBERED)
    by_name = "teacher,data:name\n0,1\n1,2\n2,10\n"
    assert read_class_map(written(tmp_path, by_name), TEACHER, NUMBERED)[0] == ((0,), (1,), (2,))
    by_index = "teacher,data:index\n0,1\n1,2\n2,0\n"
    assert read_class_map(written(tmp_path, by_index), TEACHER, NUMBERED)[0] == ((2,), (0,), (1,))


def test_numbers_of_which_some_are_no_names_are_indices(tmp_path):
    assert read_class_map(written(tmp_path, "teacher,data\n0,1\n1,2\n2,0\n"), TEACHER, NUMBERED)[0] == (
        (2,),
        (0,),
        (1,),
    )


def test_names_that_are_their_own_indices_need_no_word(tmp_path):
    digits = Classes("data", 3, (("0",), ("1",), ("2",)))
    assert read_class_map(written(tmp_path, "teacher,data\n4,0\n1,1\n2,2\n"), TEACHER, digits)[0] == ((4,), (1,), (2,))


def test_a_map_that_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, what in {"nowhere.csv": "there is no such file", "pipe": "no ordinary file", ".": "no ordinary"}.items():
        with pytest.raises(InvalidInput, match=what):
            read_class_map(tmp_path / name, TEACHER, DATA)


def test_a_map_of_any_size_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "huge.csv").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidInput, match="is larger than 16 MiB"):
        read_class_map(tmp_path / "huge.csv", TEACHER, DATA)


def test_classes_are_matched_by_any_of_their_names():
    assert match_names(TEACHER, Classes("data", 2, (("lorry",), ("n01",)))) == ((2,), (0,))


def test_names_that_do_not_match_are_refused():
    with pytest.raises(InvalidInput, match=r"2 of the teacher's classes are called crane \(1 and 3\)"):
        match_names(TEACHER, Classes("data", 1, (("crane",),)))
    with pytest.raises(InvalidInput, match=r"none is called as this of the data set: bird \(1\)"):
        match_names(TEACHER, Classes("data", 2, (("cab",), ("bird",))))
    with pytest.raises(InvalidInput, match="nothing says what the teacher's classes are called"):
        match_names(UNNAMED, DATA)
