"""CIFAR and Stanford Cars, from small trees in the published layout."""

import errno
import hashlib
import pickle
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100, StanfordCars
from torchvision.transforms import Resize

from ground.errors import DatasetMissing, DiskFull, InvalidInput
from ground.geometry import Normalisation, ViewGeometry
from teacher_cache.datasets import open_dataset

SOURCES = {"cifar10": CIFAR10, "cifar100": CIFAR100}


def python2_pickle(content):
    """Pickle as Python 2 and its NumPy did, which is how the published files are written."""
    data = pickle.dumps(content, protocol=2)
    data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    return data.replace(b"\x89\x88\x87", b"K\x00K\x01\x87")  # dtype('u1', 0, 1), not (False, True)


def pixels(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request, tmp_path, monkeypatch):
    """(name, root): three images a file; torchvision is told the MD5 sums of these files."""
    source = SOURCES[request.param]
    folder = tmp_path / "root" / source.base_folder
    folder.mkdir(parents=True)
    label_key = "labels" if source is CIFAR10 else "fine_labels"

    def write(name, content):
        data = python2_pickle(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name, seed):
        rows = pixels(seed, 3).reshape(3, -1)
        return [name, write(name, {"data": rows, label_key: [seed, 0, 1]})]

    trains = [batch(name, seed) for seed, (name, _) in enumerate(source.train_list)]
    tests = [batch(name, 50 + seed) for seed, (name, _) in enumerate(source.test_list)]
    names = [f"class {number}" for number in range(60)]
    meta = dict(source.meta, md5=write(source.meta["filename"], {source.meta["key"]: names}))
    monkeypatch.setattr(source, "train_list", trains)
    monkeypatch.setattr(source, "test_list", tests)
    monkeypatch.setattr(source, "meta", meta)
    return request.param, tmp_path / "root"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The address of a local web server, and the folder that it serves."""
    monkeypatch.setenv("no_proxy", "*")
    served = tmp_path / "served"
    served.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", served
        server.shutdown()
        thread.join()


@pytest.fixture
def archive(cifar, site, monkeypatch):
    """The files of `cifar`, taken away and put into an archive at the address torchvision asks."""
    name, root = cifar
    address, served = site
    source = SOURCES[name]
    archive = served / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / source.base_folder, source.base_folder)
    monkeypatch.setattr(source, "url", f"{address}/{source.filename}")
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    shutil.rmtree(root / source.base_folder)
    return archive


def test_cifar_has_the_published_pixels_and_labels(cifar):
    name, root = cifar
    data = open_dataset(name, data_root=root)
    num_files = len(SOURCES[name].train_list)
    assert data.name == name
    assert data.classes[:2] == ("class 0", "class 1")
    assert (len(data.train), len(data.test)) == (3 * num_files, 3)
    assert data.train.labels.tolist()[:3] == [0, 0, 1]
    assert data.test.labels.tolist() == [50, 0, 1]
    assert data.train.labels.dtype == np.int64
    expected = pixels(num_files - 1, 3)[2]
    image = data.train.read(np.array([3 * num_files - 1]))[0]
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], expected[channel])


def test_cifar_has_the_papers_geometry_and_constants(cifar):
    name, root = cifar
    data = open_dataset(name, data_root=root)
    mean, std = {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    }[name]
    assert data.normalisation == Normalisation(mean=mean, std=std)
    assert data.geometry == ViewGeometry(image_size=32, crop_size=32, padding=4)


def test_missing_cifar_says_which_archive_goes_where(cifar, tmp_path):
    name, _ = cifar
    archive = SOURCES[name].filename
    message = rf"{name} is not in .*empty: .*; it takes {archive} unpacked under .*empty, or pass --download"
    with pytest.raises(DatasetMissing, match=message):
        open_dataset(name, data_root=tmp_path / "empty")


def test_cifar_without_one_file_names_it(cifar):
    name, root = cifar
    source = SOURCES[name]
    (root / source.base_folder / source.meta["filename"]).unlink()
    with pytest.raises(DatasetMissing, match=rf"there is no {source.base_folder}/{source.meta['filename']}"):
        open_dataset(name, data_root=root)


class RunsCode:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("which", ["train", "test", "meta"])
def test_cifar_file_with_another_md5_is_named_and_never_unpickled(cifar, which):
    name, root = cifar
    source = SOURCES[name]
    file = {
        "train": source.train_list[0][0],
        "test": source.test_list[0][0],
        "meta": source.meta["filename"],
    }[which]
    (root / source.base_folder / file).write_bytes(pickle.dumps(RunsCode()))
    message = rf"{source.base_folder}/{file} is not the published file \(its MD5 differs\)"
    with pytest.raises(InvalidInput, match=message):
        open_dataset(name, data_root=root)


@pytest.mark.parametrize("state", ["absent", "damaged"])
def test_download_fetches_and_unpacks(cifar, archive, state):
    name, root = cifar
    if state == "damaged":
        (root / SOURCES[name].base_folder).mkdir()
        (root / SOURCES[name].base_folder / SOURCES[name].meta["filename"]).write_bytes(b"half")
    data = open_dataset(name, data_root=root, download=True)
    assert data.test.labels.tolist() == [50, 0, 1]


def test_nothing_is_downloaded_unless_asked_for(cifar, archive):
    name, root = cifar
    with pytest.raises(DatasetMissing, match=rf"{name} is not in"):
        open_dataset(name, data_root=root)


def test_download_leaves_files_that_are_whole_alone(cifar, monkeypatch):
    name, root = cifar
    monkeypatch.setattr(SOURCES[name], "url", "http://127.0.0.1:9/unreachable")
    assert len(open_dataset(name, data_root=root, download=True).test) == 3


def test_archive_fetched_by_other_means_is_used_without_the_network(cifar, archive):
    name, root = cifar
    archive.rename(root / archive.name)
    assert len(open_dataset(name, data_root=root, download=True).test) == 3


def test_file_missing_on_the_server_says_how_to_go_on(cifar, archive):
    name, root = cifar
    archive.unlink()
    message = rf"could not download {name} from http://.*: .*404.*; fetch {archive.name} by other means"
    with pytest.raises(DatasetMissing, match=message):
        open_dataset(name, data_root=root, download=True)


def test_unreachable_server_says_how_to_go_on(cifar, archive, monkeypatch):
    name, root = cifar
    monkeypatch.setattr(SOURCES[name], "url", "http://127.0.0.1:9/archive")
    message = rf"could not download {name} from http://.*refused.*; fetch {archive.name} by other means"
    with pytest.raises(DatasetMissing, match=message):
        open_dataset(name, data_root=root, download=True)


def test_archive_with_another_md5_is_refused(cifar, archive):
    name, root = cifar
    archive.write_bytes(b"an error page")
    with pytest.raises(DatasetMissing, match=rf"could not download {name} from .*corrupted"):
        open_dataset(name, data_root=root, download=True)


def test_full_disk_while_downloading_is_told_apart(cifar, archive, monkeypatch):
    name, root = cifar

    def no_room(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", no_room)
    with pytest.raises(DiskFull, match=rf"no room for {name} in .*root; free some"):
        open_dataset(name, data_root=root, download=True)


# Stanford Cars


def save_annotations(path, rows):
    """Boxes, class from 1 and file name, as the devkit's .mat files hold them."""
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    table = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for number, (label, name) in enumerate(rows):
        table[0, number] = (1, 1, 9, 9, np.uint8(label), name)
    scipy.io.savemat(path, {"annotations": table})


@pytest.fixture
def cars(tmp_path):
    """A root with three training and two test images of two classes."""
    folder = tmp_path / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]], dtype=object)
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    rng = np.random.default_rng(0)
    for split, annotations, labels in [
        ("cars_train", "devkit/cars_train_annos.mat", [2, 1, 2]),
        ("cars_test", "cars_test_annos_withlabels.mat", [1, 2]),
    ]:
        (folder / split).mkdir()
        rows = [(label, f"{number:05}.jpg") for number, label in enumerate(labels, start=1)]
        save_annotations(folder / annotations, rows)
        for number, (_, name) in enumerate(rows):
            size = (60 + 30 * number, 100, 3)
            Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / split / name)
    return tmp_path


def test_cars_agree_with_torchvision(cars):
    data = open_dataset("stanford_cars", data_root=cars)
    for split, name in ((data.train, "train"), (data.test, "test")):
        reference = StanfordCars(cars, split=name, transform=Resize((64, 64)))
        images = split.read(np.arange(len(split)))
        assert images.shape == (len(reference), 64, 64, 3)
        for row, (image, label) in enumerate(reference):
            np.testing.assert_array_equal(images[row], np.asarray(image))
            assert split.labels[row] == label
    assert data.classes == ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")
    assert data.train.labels.tolist() == [1, 0, 1]
    assert data.train.labels.dtype == np.int64


def test_cars_geometry_follows_the_released_code(cars):
    data = open_dataset("stanford_cars", data_root=cars)
    assert (data.geometry.image_size, data.geometry.crop_size, data.geometry.padding) == (64, 56, 0)
    assert data.normalisation.mean == (0.485, 0.456, 0.406)
    assert data.normalisation.std == (0.229, 0.224, 0.225)


def test_cars_digest_follows_the_labels(cars):
    before = open_dataset("stanford_cars", data_root=cars).digest
    rows = [(1, "00001.jpg"), (1, "00002.jpg"), (2, "00003.jpg")]
    save_annotations(cars / "stanford_cars" / "devkit" / "cars_train_annos.mat", rows)
    assert open_dataset("stanford_cars", data_root=cars).digest != before


def test_missing_cars_name_what_is_expected(tmp_path):
    message = (
        r"not whole in .*stanford_cars: there is no devkit/cars_meta\.mat, devkit/cars_train_annos\.mat, "
        r"cars_test_annos_withlabels\.mat, cars_train, cars_test; .*original URL is gone"
    )
    with pytest.raises(DatasetMissing, match=message):
        open_dataset("stanford_cars", data_root=tmp_path, download=True)


def test_cars_without_the_test_labels_name_the_file(cars):
    (cars / "stanford_cars" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(DatasetMissing, match=r"there is no cars_test_annos_withlabels\.mat; get them"):
        open_dataset("stanford_cars", data_root=cars)


def test_cars_with_images_not_unpacked_are_counted(cars):
    (cars / "stanford_cars" / "cars_train" / "00002.jpg").unlink()
    with pytest.raises(DatasetMissing, match=r"lacks 1 of 3 images, the first cars_train/00002\.jpg"):
        open_dataset("stanford_cars", data_root=cars)


@pytest.mark.parametrize("content", [b"", b"not a mat file" * 40])
def test_damaged_cars_annotations_are_refused(cars, content):
    (cars / "stanford_cars" / "devkit" / "cars_train_annos.mat").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"cannot read the \.mat files in .*stanford_cars"):
        open_dataset("stanford_cars", data_root=cars)


def test_damaged_car_is_named(cars):
    (cars / "stanford_cars" / "cars_test" / "00001.jpg").write_bytes(b"\xff\xd8\xff")
    split = open_dataset("stanford_cars", data_root=cars).test
    with pytest.raises(InvalidInput, match=r"cannot decode cars_test/00001\.jpg: .*; replace it$"):
        split.read(np.array([0, 1]))
