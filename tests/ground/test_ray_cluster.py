"""What can be said of a Ray cluster without one: shares of nodes, and what Ray's sentences become."""

from __future__ import annotations

import socket
import sys
import time

import pytest

from ground.errors import InvalidInput
from ground.ray_cluster import Node, Share, carried_environment, joined, why_died


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


def test_an_address_where_nobody_answers_is_refused_at_once():
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = time.monotonic()
    with (
        pytest.raises(InvalidInput, match=rf"no Ray cluster can be used at 127\.0\.0\.1:{port} .*ray start --head"),
        joined(f"127.0.0.1:{port}"),
    ):
        pass
    assert time.monotonic() - started < 30, "Ray alone tries for minutes"


def test_local_is_a_cluster_of_this_machine_as_without_an_address(monkeypatch):
    pytest.importorskip("ray")
    asked = []
    monkeypatch.setattr("ground.ray_cluster._connect", lambda ray, address, cpus: asked.append(address))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address in ("local", None):
        with joined(address):
            pass
    assert asked == [None, None]


def test_keys_of_servers_and_passwords_of_databases_are_carried(monkeypatch):
    monkeypatch.setattr("os.environ", {"CKD_API_KEY": "a", "PGPASSWORD": "b", "OPENAI_API_KEY": "c", "HOME": "/"})
    assert carried_environment() == {"CKD_API_KEY": "a", "PGPASSWORD": "b", "OPENAI_API_KEY": "c"}


def test_of_what_ray_says_of_a_death_the_reason_is_kept():
    said = "The actor died unexpectedly.\n\tpid: 7\nThe actor is dead because its worker process has died. Worker exit"
    assert why_died(RuntimeError(said)) == "its worker process has died"
    assert why_died(RuntimeError("Out of memory.\nMore")) == "Out of memory"
