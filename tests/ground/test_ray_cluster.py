"""What can be said of a Ray cluster without one: shares of nodes, and what Ray's sentences become."""

from __future__ import annotations

import sys

import pytest

from ground.errors import InvalidInput
from ground.ray_cluster import Node, Share, joined, why_died


@pytest.mark.parametrize(
    ("share", "cpus", "gpus", "count"),
    [
        (Share(), 4, 0, 4),
        (Share(cpus=0.1), 1, 0, 10),
        (Share(cpus=1, gpus=0.25), 64, 2, 8),
        (Share(cpus=1, gpus=0.3), 64, 2, 6),  # three to a GPU: none is split over two
        (Share(cpus=0, gpus=2), 1, 5, 2),
        (Share(cpus=2, gpus=1), 2, 8, 1),
        (Share(gpus=1), 8, 0, 0),
    ],
)
def test_a_node_holds_as_many_as_fit_by_cpu_and_by_gpu(share, cpus, gpus, count):
    assert share.fits_in(Node(id="1", host="a", cpus=cpus, gpus=gpus)) == count


def test_a_share_of_several_gpus_is_whole():
    Share(gpus=2.0).check("auto", "--gpus-per-run")
    with pytest.raises(InvalidInput, match=r"--gpus-per-run must be at most 1, or a whole number of GPUs, got 1\.5"):
        Share(gpus=1.5).check("auto", "--gpus-per-run")


def test_without_ray_a_command_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InvalidInput, match=r"needs Ray, .* install it with: pip install 'teacher-cache\[ray\]'"),
        joined(None),
    ):
        pass


def test_an_address_of_rays_client_is_refused():
    pytest.importorskip("ray")
    with (
        pytest.raises(InvalidInput, match="run it on a node of the cluster, with --ray-address auto"),
        joined("ray://a:1"),
    ):
        pass


def test_of_what_ray_says_of_a_death_the_reason_is_kept():
    said = "The actor died unexpectedly.\n\tpid: 7\nThe actor is dead because its worker process has died. Worker exit"
    assert why_died(RuntimeError(said)) == "its worker process has died"
    assert why_died(RuntimeError("Out of memory.\nMore")) == "Out of memory"
