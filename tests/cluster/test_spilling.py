"""What the object stores have moved to disk: asked of every node that answers, warned of once."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import grpc
import pytest

from forebay.cluster import spilling
from forebay.cluster.spilling import SpillWatch

MIB = 2**20


@pytest.fixture
def cluster(monkeypatch):
    """Bytes by node; None for one that dies while it is asked, and "dead" for one that Ray knows to be."""
    spilled: dict[str, int | str | None] = {}

    def nodes():
        return [
            {"NodeID": name, "Alive": value != "dead", "NodeManagerAddress": name, "NodeManagerPort": 7}
            for name, value in spilled.items()
        ]

    def stats(address, port, *, include_memory_info):
        assert spilled[address] != "dead"
        if spilled[address] is None:
            raise grpc.RpcError("unavailable")
        return SimpleNamespace(store_stats=SimpleNamespace(spilled_bytes_total=spilled[address]))

    monkeypatch.setattr(spilling.ray, "nodes", nodes)
    monkeypatch.setattr(spilling, "node_stats", stats)
    return spilled


def test_nodes_add_up_and_one_that_dies_hides_none_that_comes_after_it(cluster):
    watch = SpillWatch()
    cluster.update(a=None, b=3 * MIB, c="dead", d=5 * MIB)
    watch.look()
    assert watch.bytes == 8 * MIB


def test_what_a_node_had_spilled_before_it_died_still_counts(cluster):
    watch = SpillWatch()
    cluster.update(a=2 * MIB, b=3 * MIB)
    watch.look()
    cluster.update(a="dead", b=4 * MIB)
    watch.look()
    assert watch.bytes == 6 * MIB


def test_the_first_bytes_are_warned_of_and_none_after_them(cluster, caplog):
    watch = SpillWatch()
    cluster.update(a=0)
    with caplog.at_level(logging.WARNING):
        for spilled in (0, 3 * MIB, 7 * MIB):
            cluster["a"] = spilled
            watch.look()
    (warning,) = caplog.messages
    assert "move blocks from memory to disk (3 MiB so far)" in warning
    assert "lower run.blocks_in_flight or dataset.block_mib, or start Ray with a larger object store" in warning


def test_a_watch_that_is_stopped_asks_no_more_nodes(cluster):
    watch = SpillWatch()
    cluster.update(a=MIB)
    watch.stop()
    watch.look()
    assert watch.bytes == 0


def test_the_thread_looks_again_and_again_and_ends_when_ray_is_gone(cluster, monkeypatch, caplog):
    monkeypatch.setattr(spilling, "EVERY_S", 0.01)
    looks = []

    def nodes():
        looks.append(1)
        if len(looks) > 2:
            raise ConnectionError("Ray is shut down")
        return []

    monkeypatch.setattr(spilling.ray, "nodes", nodes)
    watch = SpillWatch()
    with caplog.at_level(logging.INFO):
        watch.start()
        watch._thread.join(timeout=10)
    assert len(looks) == 3
    assert "nobody is left to be asked about spilling: Ray is shut down" in caplog.text
    watch.stop()
    watch.stop()
