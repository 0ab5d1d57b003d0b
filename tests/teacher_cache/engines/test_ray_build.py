"""Which options of `--engine ray` mean something together, and what may be shared by several machines."""

from __future__ import annotations

import sys

import pytest

from ground.errors import InvalidInput
from ground.ray_cluster import Node, Share
from teacher_cache.engines.ray_build import RayEngine
from tests.conftest import run_command


class Nodes:
    """A cluster, as far as sharing it out needs one."""

    def __init__(self, *nodes: tuple[float, float]) -> None:
        self._nodes = [Node(id=str(place), host="a", cpus=cpus, gpus=gpus) for place, (cpus, gpus) in enumerate(nodes)]
        self.gpus = sum(node.gpus for node in self._nodes)

    def capacity(self, share: Share) -> int:
        return sum(share.fits_in(node) for node in self._nodes)


@pytest.mark.parametrize(
    ("said", "device", "gpus"),
    [(None, "auto", 1.0), (None, "cpu", 0.0), (0.5, "auto", 0.5), (0.0, "auto", 0.0)],
)
def test_each_builder_has_a_gpu_unless_something_else_is_said(said, device, gpus):
    assert RayEngine(workers=2, gpus=said).share(Nodes((4, 1), (4, 1)), device) == Share(gpus=gpus)


def test_more_builders_than_the_cluster_holds_are_refused():
    with pytest.raises(InvalidInput, match="holds 2 builders of a CPU and 1 GPUs each, and --workers is 3"):
        RayEngine(workers=3).share(Nodes((4, 1), (4, 1)), "auto")
    assert RayEngine(workers=4, gpus=0.5).share(Nodes((4, 1), (4, 1)), "auto").gpus == 0.5
    with pytest.raises(InvalidInput, match="--device cuda needs a GPU for each builder"):
        RayEngine(workers=1).share(Nodes((4, 0)), "cuda")


ENGINE = ("--engine", "ray", "--workers", 2)


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("--workers", 2), {}, "--workers is for --engine ray, which is not asked for; add it"),
        (("--gpus-per-worker", 1), {}, "--gpus-per-worker is for --engine ray"),
        (("--engine", "ray"), {}, "say how many, with --workers N"),
        ((*ENGINE, "--device", "cuda:1"), {}, "--device cuda:1 is for work on this machine"),
        ((*ENGINE, "--device", "cpu", "--gpus-per-worker", 1), {}, "and --device cpu exclude each other"),
        ((*ENGINE, "--gpus-per-worker", 1.5), {}, "--gpus-per-worker must be at most 1, or a whole number of GPUs"),
        (ENGINE, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "torchrun starts 2 builders already; leave out"),
    ],
)
def test_options_that_mean_nothing_are_refused_before_anything_is_looked_at(tmp_path, arguments, environment, said):
    words = ("--teacher", "resnet8", "--dataset", "digits", "--n", 40, "--store", tmp_path / "store")
    refused = run_command("ckd-cache", "build", *words, *arguments, env=environment)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert said in refused.stderr
    assert not (tmp_path / "store").exists()


def test_a_teacher_behind_a_network_needs_no_cluster(tmp_path):
    words = ("--teacher", "v2:http://127.0.0.1:1/model", "--n", 40, "--store", tmp_path / "store", *ENGINE)
    refused = run_command("ckd-cache", "build", *words)
    assert refused.returncode == 2
    assert "answers over a network, and one builder asks it as much at once as --in-flight says" in refused.stderr


def test_a_build_without_ray_is_refused_with_what_to_install(tmp_path, weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ("--teacher", "resnet8", "--weights", weights, "--dataset", "digits", "--n", 40, "--device", "cpu")
    refused = run_command("ckd-cache", "build", *words, "--store", tmp_path / "store", *ENGINE)
    assert refused.returncode == 2
    assert "install it with: pip install 'teacher-cache[ray]'" in refused.stderr
    assert not (tmp_path / "store").exists()
