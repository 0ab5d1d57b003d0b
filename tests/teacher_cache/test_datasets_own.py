"""Images as their owners have them: flat folders, tables, Parquet, tar shards; each read alike, or refused by name."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ground.errors import DatasetMissing, InvalidInput
from teacher_cache.datasets import division, open_dataset, parquet_files, tar_shards
from teacher_cache.datasets.division import Division

CLASSES = ("ant", "bee", "cat")
PER_CLASS = 10


def encoded(seed, width=12, height=9, mode="RGB", **save):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, **{"format": "PNG", **save})
    return file.getvalue()


def turned(seed):
    """A JPEG on its side, in grey."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(seed, mode="L", format="JPEG", exif=exif)


IMAGES = {
    f"{name}/{number:02}.png": turned(100 * label + number) if number == 1 else encoded(100 * label + number)
    for label, name in enumerate(CLASSES)
    for number in range(PER_CLASS)
}


def class_of(name):
    return name.partition("/")[0]


def split_of(name):
    return "test" if name.endswith(("0.png", "1.png")) else "train"


@pytest.fixture
def flat(tmp_path):
    root = tmp_path / "photos"
    for name, data in IMAGES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture
def table(flat):
    """A table beside the images; the function writes other rows."""

    def write(rows=None, header="path,label,split"):
        own = [f"{name},{class_of(name)},{split_of(name)}" for name in IMAGES]
        path = flat / "photos.csv"
        path.write_text("\n".join([header, *(own if rows is None else rows)]) + "\n")
        return path

    return write


def write_shard(path, members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def key_of(name):
    return name.replace("/", "_").removesuffix(".png")


@pytest.fixture
def shards(tmp_path):
    root = tmp_path / "shards"
    for split in ("train", "test"):
        names = [name for name in IMAGES if split_of(name) == split]
        for number, part in enumerate((names[::2], names[1::2])):
            members = [
                member
                for name in part
                for member in ((f"{key_of(name)}.png", IMAGES[name]), (f"{key_of(name)}.cls", class_of(name).encode()))
            ]
            write_shard(root / f"{split}-{number:03}.tar", members)
    return root


def write_parquet(path, names, labels, *, features=None, column="image", **write):
    path.parent.mkdir(exist_ok=True)
    images = pa.array([{"bytes": IMAGES[name], "path": "/etc/passwd"} for name in names])
    columns = pa.table({column: images, "label": labels})
    if features is not None:
        columns = columns.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(columns, path, **{"row_group_size": 4, **write})


NAMED = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(CLASSES)}}


@pytest.fixture
def parquet(tmp_path):
    root = tmp_path / "hub"
    for split, said in (("train", "train"), ("test", "validation")):
        names = [name for name in IMAGES if split_of(name) == split]
        labels = pa.array([CLASSES.index(class_of(name)) for name in names])
        write_parquet(root / f"{said}-00000-of-00001.parquet", names, labels, features=NAMED)
    return root


def every(split):
    return split.read(np.arange(len(split)))


def by_class(data, split):
    """The images of each class, in an order of their own."""
    images = every(split)
    return {
        name: sorted(image.tobytes() for image in images[split.labels == label])
        for label, name in enumerate(data.classes)
    }


# All sources alike


def test_every_source_gives_the_same_images_and_classes(flat, table, shards, parquet):
    for name in IMAGES:
        target = flat.parent / "split" / split_of(name) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(flat / name, target)
    expected = open_dataset(f"imagefolder:{flat.parent / 'split'}", image_size=8)
    for spec in (f"csv:{table()}", f"tar:{shards}", f"parquet:{parquet}"):
        data = open_dataset(spec, image_size=8)
        assert data.classes == CLASSES
        for found, wanted in ((data.train, expected.train), (data.test, expected.test)):
            assert by_class(data, found) == by_class(expected, wanted)
        assert "/" not in data.name
        assert data.geometry == expected.geometry
        assert data.options == {"dataset": spec, "image_size": "8"}
        rows = np.array([17, 3, 3, 20, 0])
        np.testing.assert_array_equal(data.train.read(rows), every(data.train)[rows])


def test_a_digest_depends_on_content_and_not_on_the_place(flat, table, shards, parquet, tmp_path):
    specs = [f"csv:{table()}", f"tar:{shards}", f"parquet:{parquet}"]
    before = [open_dataset(spec).digest for spec in specs]
    assert len(set(before)) == 3
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for folder in (flat, shards, parquet):
        shutil.move(folder, moved / folder.name)
    specs = [spec.replace(str(tmp_path), str(moved)) for spec in specs]
    assert [open_dataset(spec).digest for spec in specs] == before


@pytest.mark.parametrize("source", ["csv", "tar", "parquet"])
def test_an_image_that_does_not_decode_is_named(source, flat, table, shards, parquet):
    if source == "csv":
        spec, named = f"csv:{table()}", "bee/03.png"
        (flat / named).write_bytes(b"no image")
    elif source == "tar":
        write_shard(shards / "train-000.tar", [("x.png", b"no image"), ("x.cls", b"ant")])
        spec, named = f"tar:{shards}", "train-000.tar/x.png"
    else:
        images = pa.array([{"bytes": b"no image", "path": None}])
        file = parquet / "train-00001-of-00002.parquet"
        metadata = pq.read_schema(parquet / "train-00000-of-00001.parquet").metadata
        pq.write_table(pa.table({"image": images, "label": pa.array([0])}).replace_schema_metadata(metadata), file)
        spec, named = f"parquet:{parquet}", "train-00001-of-00002.parquet/0"
    with pytest.raises(InvalidInput, match=f"cannot decode {named}: not an image"):
        every(open_dataset(spec).train)


# Divisions


def test_a_flat_folder_without_a_division_is_refused_with_the_option(flat):
    with pytest.raises(DatasetMissing, match=r"--split 0\.8/0\.2, or by lists train\.txt and test\.txt"):
        open_dataset(f"imagefolder:{flat}")


def test_a_division_keeps_the_share_of_each_class_and_is_told_again(flat):
    data = open_dataset(f"imagefolder:{flat}", split="0.8/0.2", split_seed=3)
    assert np.bincount(data.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert not set(data.train.files) & set(data.test.files)
    assert data.options == {"dataset": f"imagefolder:{flat}", "split": "0.8/0.2", "split_seed": "3"}
    assert "test images by 0.8/0.2 with seed 3, 3 classes of 8 to 8 training images" in data.listing
    assert open_dataset(f"imagefolder:{flat}", split="0.8/0.2", split_seed=3).digest == data.digest
    other = open_dataset(f"imagefolder:{flat}", split="0.8/0.2", split_seed=4)
    assert other.digest != data.digest


def test_a_division_does_not_depend_on_the_order_of_a_listing():
    names, labels = list(IMAGES), np.array([CLASSES.index(class_of(name)) for name in IMAGES])
    order = np.random.default_rng(0).permutation(len(names))
    chosen = Division("0.7/0.3", 5).is_test(names, labels)
    again = Division("0.7/0.3", 5).is_test([names[row] for row in order], labels[order])
    np.testing.assert_array_equal(again, chosen[order])


def test_the_only_image_of_a_class_is_for_training():
    assert not Division("0.1/0.9").is_test(["a"], np.array([0])).any()


@pytest.mark.parametrize("split", ["", "0.8", "0.8/0.3", "1/0", "1.0/0.0", "0.8/0.1/0.1", ".0/1.0", "a/b", "0.8 / 0.2"])
def test_shares_that_are_none_are_refused(split):
    with pytest.raises(InvalidInput, match=r"make 1 together, as 0\.8/0\.2; got"):
        Division(split)


@pytest.mark.parametrize("seed", [-1, division.MOST_SEED + 1])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(InvalidInput, match="--split-seed must be 0 to"):
        Division("0.8/0.2", seed)


def test_a_seed_alone_and_a_division_of_what_is_divided_are_refused(flat, table, shards, parquet):
    with pytest.raises(InvalidInput, match="give that too, or leave both out"):
        open_dataset(f"imagefolder:{flat}", split_seed=1)
    for spec in (f"csv:{table()}", f"tar:{shards}", f"parquet:{parquet}", "digits"):
        with pytest.raises(InvalidInput, match="has its own splits; leave out --split"):
            open_dataset(spec, split="0.8/0.2")


def test_files_of_training_images_alone_are_divided(table, shards, parquet):
    rows = [f"{name},{class_of(name)}" for name in IMAGES]
    for file in (*shards.glob("test-*"), *parquet.glob("validation-*")):
        file.unlink()
    for spec in (f"csv:{table(rows, 'path,label')}", f"tar:{shards}", f"parquet:{parquet}"):
        with pytest.raises(DatasetMissing, match=r"no test images; give --split 0\.8/0\.2"):
            open_dataset(spec)
        data = open_dataset(spec, split="0.5/0.5")
        assert len(set(np.bincount(data.test.labels))) == 1


@pytest.mark.parametrize("names", [("bus", "car", "train"), ("invalid", "valid")])
def test_classes_may_be_called_as_a_split_is(names, tmp_path):
    for name in names:
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.png").write_bytes(encoded(number))
    assert open_dataset(f"imagefolder:{tmp_path}", split="0.5/0.5").classes == names


# Lists


def write_lists(root, column="", held_out="test.txt"):
    for file, split in (("train.txt", "train"), (held_out, "test")):
        names = [name for name in IMAGES if split_of(name) == split]
        (root / file).write_text("\n".join(f"{name}{column}" for name in names) + "\n")


@pytest.mark.parametrize("held_out", ["test.txt", "val.txt"])
def test_lists_beside_the_classes_say_the_splits(flat, held_out):
    write_lists(flat, held_out=held_out)
    data = open_dataset(f"imagefolder:{flat}")
    assert data.classes == CLASSES
    assert set(data.test.files) == {name for name in IMAGES if split_of(name) == "test"}
    with pytest.raises(InvalidInput, match="has train.txt and .*, which say the splits; leave out --split"):
        open_dataset(f"imagefolder:{flat}", split="0.8/0.2")


def test_a_second_column_is_the_label_and_paths_may_hold_spaces(flat):
    (flat / "two words").mkdir()
    (flat / "two words" / "a b.png").write_bytes(encoded(7))
    for file in ("train.txt", "test.txt"):
        names = ["ant/00.png", "bee/00.png"] if file == "train.txt" else ["ant/01.png"]
        (flat / file).write_text("".join(f"{name}\t{10 if 'bee' in name else 9}\n" for name in names))
    with (flat / "train.txt").open("a") as file:
        file.write("two words/a b.png 9\n")
    data = open_dataset(f"imagefolder:{flat}")
    assert data.classes == ("9", "10")
    assert "two words/a b.png" in data.train.files


# Tables


def test_rows_and_columns_of_a_table_come_in_any_order(table, flat):
    before = open_dataset(f"csv:{table()}")
    rows = [f"{split_of(name).upper()},x,{class_of(name)},./{name}" for name in reversed(IMAGES)]
    after = open_dataset(f"csv:{table(rows, 'Split,more, Label ,path')}")
    assert after.digest == before.digest
    np.testing.assert_array_equal(after.train.labels, before.train.labels)
    assert after.train.files == before.train.files


def test_a_table_from_a_spreadsheet_is_read(table):
    path = table()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert open_dataset(f"csv:{path}").classes == CLASSES


def test_classes_that_are_numbers_are_in_the_order_of_their_values(table):
    rows = [f"{name},{ {'ant': 10, 'bee': 9, 'cat': 2}[class_of(name)] },{split_of(name)}" for name in IMAGES]
    assert open_dataset(f"csv:{table(rows)}").classes == ("2", "9", "10")


BAD_ROWS = {
    "/etc/hostname,ant,train": "line 2 of .* names '/etc/hostname', which leads out of",
    "../out.png,ant,train": r"line 2 of .* names '\.\./out\.png', which leads out of",
    "link.png,ant,train": "line 2 of .* names 'link.png', which leads out of",
    "away/out.png,ant,train": "line 2 of .* names 'away/out.png', which leads out of",
    "loop/x.png,ant,train": "line 2 of .* names",
    ",ant,train": "line 2 of .* names ''",
    "a\0b.png,ant,train": "line 2 of .* names",
    "ant/99.png,ant,train": "line 2 of .* names ant/99.png, and there is no such file",
    f"{'x' * 300}.png,ant,train": "and there is no such file",
    "ant,ant,train": "line 2 of .* names ant, and there is no such file",
    "ant/00.png,ant,dev": "line 2 of .* has the split dev, which is none of train, test and val",
    "ant/00.png,ant": "line 2 of .* has 2 cells, and the header 3",
    'ant/00.png,"ant,train': "of .* is not CSV",
    "ant/00.png,ant,train\nant/./00.png,bee,test": r"line 3 of .* names ant/00\.png again, after line 2 of",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_bad_row_is_refused_by_its_line(row, table, flat):
    (flat.parent / "out.png").write_bytes(encoded(1))
    (flat / "link.png").symlink_to(flat.parent / "out.png")
    (flat / "away").symlink_to(flat.parent)
    (flat / "loop").symlink_to(flat / "loop")
    with pytest.raises(InvalidInput, match=BAD_ROWS[row]):
        open_dataset(f"csv:{table([row])}")


@pytest.mark.parametrize("header", ["", "path", "path,label,label", "file,class", "ant/00.png,ant,train"])
def test_a_table_without_its_columns_is_refused(header, table):
    with pytest.raises(InvalidInput, match="line 1 of .* a table has the header path,label"):
        open_dataset(f"csv:{table(header=header)}")


def test_a_table_that_is_no_text_or_not_there_is_refused(flat, table):
    (flat / "photos.csv").write_bytes(b"path,label\n\xff\xfe,ant\n")
    with pytest.raises(InvalidInput, match="is not UTF-8 text"):
        open_dataset(f"csv:{flat / 'photos.csv'}")
    with pytest.raises(DatasetMissing, match="is not a file; write csv:FILE"):
        open_dataset(f"csv:{flat}")
    with pytest.raises(InvalidInput, match="csv needs a file; write csv:FILE"):
        open_dataset("csv:")


def test_a_class_of_test_images_alone_is_refused(table):
    rows = [f"{name},{class_of(name)},{'test' if 'cat' in name else split_of(name)}" for name in IMAGES]
    with pytest.raises(InvalidInput, match="test images of .* have cat, which no training image has"):
        open_dataset(f"csv:{table(rows)}")


# Tar


def test_labels_of_shards_are_numbers_names_or_json(tmp_path):
    root = tmp_path / "shards"
    labels = {"a": ("cls", b"10\n"), "b": ("json", b'{"label": 2, "caption": "x"}'), "c": ("json", b'{"label": "2"}')}
    members = [
        member
        for key, (suffix, said) in labels.items()
        for member in ((f"deep/{key}.jpg", encoded(3, format="JPEG")), (f"deep/{key}.{suffix}", said))
    ]
    write_shard(root / "set-train-0.tar", members)
    write_shard(root / "set-val-0.tar", members)
    data = open_dataset(f"tar:{root}")
    assert data.classes == ("2", "10")
    assert dict(zip(data.train.files, data.train.labels.tolist(), strict=True)) == {
        "set-train-0.tar/deep/a.jpg": 1,
        "set-train-0.tar/deep/b.jpg": 0,
        "set-train-0.tar/deep/c.jpg": 0,
    }


def test_a_hostile_shard_reads_nothing_outside(shards, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(999))
    with tarfile.open(shards / "train-001.tar", "w") as tar:
        for name, kind in (("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
        for name in ("../secret.png", str(secret)):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    data = open_dataset(f"tar:{shards}")
    assert not [name for name in data.train.files if name.startswith("train-001")]
    assert "3 links and other members that are no files" in data.listing
    assert "2 names that lead out" in data.listing


def raw_header(name, size, kind=b"0"):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


DAMAGED = {
    "not a tar": (b"x" * 2000, "uncompressed tar"),
    "empty": (b"", "uncompressed tar"),
    "huge member": (raw_header("a.png", 1 << 40) + bytes(1024), "cut short"),
    "huge name": (raw_header("a", 1 << 33, tarfile.GNUTYPE_LONGNAME) + bytes(4096), "a header is too long"),
    "names without end": (
        (raw_header("a", 4, tarfile.GNUTYPE_LONGNAME) + bytes(512)) * 3000 + bytes(1024),
        "uncompressed tar",
    ),
    "no end": (raw_header("a.png", 0), "it has no end"),
    "damaged header": (raw_header("a.png", 0) + b"\1" * 512 + bytes(1024), "damaged header"),
    "two archives": ((raw_header("a.png", 0) + bytes(10240 - 512)) * 2, "after its end"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_shard_is_refused_by_name(case, shards):
    data, reason = DAMAGED[case]
    (shards / "train-001.tar").write_bytes(data)
    with pytest.raises(InvalidInput, match=f"cannot read .*train-001.tar: .*{reason}"):
        open_dataset(f"tar:{shards}")


def test_a_member_that_is_too_large_is_refused_when_it_is_read(shards, monkeypatch):
    monkeypatch.setattr(tar_shards, "MOST_IMAGE_BYTES", 10)
    with pytest.raises(InvalidInput, match="bytes, above the most of 10"):
        every(open_dataset(f"tar:{shards}").test)


BAD_SAMPLES = {
    "two images": ([("a.png", b"1"), ("a.jpg", b"1")], "has more than one image of the sample of a.jpg"),
    "no text": ([("a.png", b"1"), ("a.cls", b"\xff")], "the label of .*a.png cannot be read"),
    "no json": ([("a.png", b"1"), ("a.json", b"{")], "the .json of .*a.png is no JSON"),
    "deep json": ([("a.png", b"1"), ("a.json", b"[" * 100000)], "the .json of .*a.png is no JSON"),
    "a list": ([("a.png", b"1"), ("a.json", b'{"label": [1]}')], "is neither a number nor a name"),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_is_refused_by_name(case, shards):
    members, reason = BAD_SAMPLES[case]
    write_shard(shards / "train-001.tar", members)
    with pytest.raises(InvalidInput, match=reason):
        open_dataset(f"tar:{shards}")


def test_a_folder_without_shards_and_one_with_compressed_ones_are_refused(tmp_path):
    with pytest.raises(DatasetMissing, match=r"has no \.tar files; a folder of shards has train-\*\.tar"):
        open_dataset(f"tar:{tmp_path}")
    (tmp_path / "train-000.tar.gz").write_bytes(b"")
    with pytest.raises(DatasetMissing, match=r"train-000\.tar\.gz is compressed: unpack that"):
        open_dataset(f"tar:{tmp_path}")
    with pytest.raises(DatasetMissing, match="is not a folder"):
        open_dataset(f"tar:{tmp_path / 'nowhere'}")


# Parquet


def test_row_groups_are_read_when_their_images_are_and_few_are_kept(parquet, monkeypatch):
    read = []
    own = parquet_files.read_group
    monkeypatch.setattr(parquet_files, "read_group", lambda *place: read.append(place[1]) or own(*place))
    data = open_dataset(f"parquet:{parquet}")
    assert not read
    data.train.read(np.array([0, 1, 9, 2, 8]))
    assert sorted(read) == [0, 2]
    every(data.train)
    assert sorted(read) == [0, 1, 2, 3, 4, 5]
    # Four are kept, of which the first is none any more.
    data.train.read(np.array([23]))
    assert len(read) == 6
    data.train.read(np.array([0]))
    assert read[6:] == [0]


def test_labels_in_parquet_may_be_names(parquet):
    for file in parquet.iterdir():
        file.unlink()
    names = list(IMAGES)
    for split in ("train", "test"):
        write_parquet(parquet / f"{split}.parquet", names, pa.array(list(map(class_of, names))), column="img")
    assert open_dataset(f"parquet:{parquet}").classes == CLASSES


def test_the_hubs_own_folder_is_read(parquet):
    (parquet / "data").mkdir()
    for file in list(parquet.glob("*.parquet")):
        shutil.move(file, parquet / "data" / file.name)
    assert len(open_dataset(f"parquet:{parquet}").test) == 6


BAD_FILES = {
    "label beyond": (pa.array([0, 3]), NAMED, "the label in row 1 of .* is 3, and there are 3 class names"),
    "label of another kind": (pa.array([0.5, 1.0]), NAMED, "is neither a number nor a name"),
    "names": (pa.array([0, 1]), {"label": {"_type": "ClassLabel", "names": ["a", "a"]}}, "are not a list of names"),
    "others": (pa.array([0, 1]), {"label": {"_type": "ClassLabel", "names": ["a"]}}, "has other columns or class"),
    "features": (pa.array([0, 1]), [], "under huggingface is damaged"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_labels_in_parquet_are_refused_by_name(case, parquet):
    labels, features, reason = BAD_FILES[case]
    write_parquet(parquet / "train-00001-of-00002.parquet", list(IMAGES)[:2], labels, features=features)
    with pytest.raises(InvalidInput, match=reason):
        open_dataset(f"parquet:{parquet}")


def test_parquet_without_an_image_column_or_that_is_none_is_refused(parquet):
    pq.write_table(pa.table({"label": [1]}), parquet / "train-00000-of-00001.parquet")
    with pytest.raises(InvalidInput, match="should have one image column and has none"):
        open_dataset(f"parquet:{parquet}")
    (parquet / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(InvalidInput, match=r"cannot read .*train-00000-of-00001\.parquet"):
        open_dataset(f"parquet:{parquet}")


def test_paths_in_parquet_are_not_opened(parquet, tmp_path):
    out = tmp_path / "out.png"
    out.write_bytes(encoded(1))
    images = pa.array([{"bytes": None, "path": str(out)}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    file = parquet / "train-00001-of-00002.parquet"
    metadata = pq.read_schema(parquet / "train-00000-of-00001.parquet").metadata
    pq.write_table(pa.table({"image": images, "label": [0]}).replace_schema_metadata(metadata), file)
    with pytest.raises(InvalidInput, match=re.escape(f"{file.name}/0: its row has no bytes of an image")):
        every(open_dataset(f"parquet:{parquet}").train)


# Images without a label


def without_labels(source, flat, table, shards, parquet):
    """A data set with two training images that have no label, and one test image."""
    names = ["u/0.png", "u/1.png"]
    (flat / "unlabelled").mkdir()
    for name in names:
        (flat / "unlabelled" / name[2:]).write_bytes(encoded(50))
    if source == "flat":
        return f"imagefolder:{flat}", {"split": "0.8/0.2"}
    if source == "csv":
        rows = [f"{name},{class_of(name)},{split_of(name)}" for name in IMAGES if name != "ant/00.png"]
        rows += [f"unlabelled/{name[2:]},," for name in names]
        return f"csv:{table([*rows, 'ant/00.png,,test'])}", {}
    if source == "tar":
        members = [("a.png", encoded(1)), ("b.png", encoded(2)), ("b.cls", b"-1")]
        write_shard(shards / "train-002.tar", members)
        write_shard(shards / "test-002.tar", members[:1])
        return f"tar:{shards}", {}
    for split, labels in (("train", [None, -1]), ("validation", [-1])):
        file = parquet / f"{split}-00001-of-00002.parquet"
        write_parquet(file, list(IMAGES)[: len(labels)], pa.array(labels, pa.int64()), features=NAMED)
    return f"parquet:{parquet}", {}


@pytest.mark.parametrize("source", ["flat", "csv", "tar", "parquet"])
def test_images_without_a_label_are_for_training_alone(source, flat, table, shards, parquet):
    spec, more = without_labels(source, flat, table, shards, parquet)
    data = open_dataset(spec, **more)
    assert data.classes == CLASSES
    assert (data.train.labels == -1).sum() == 2
    assert (data.test.labels >= 0).all()
    assert "2 training images without a label" in data.listing
    if source != "flat":
        assert "left out: 1 test images without a label" in data.listing
    assert len(every(data.train)) == len(data.train)
    assert np.count_nonzero(data.is_labelled) == len(data.train) - 2


def test_a_folder_with_splits_may_have_images_without_a_label(flat, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(flat, tmp_path / "set" / split)
    plain = open_dataset(f"imagefolder:{tmp_path / 'set'}")
    assert plain.is_labelled is None
    shutil.copytree(flat / "ant", tmp_path / "set" / "unlabelled" / "deep")
    data = open_dataset(f"imagefolder:{tmp_path / 'set'}")
    assert (data.train.labels == -1).sum() == PER_CLASS
    assert data.digest != plain.digest
