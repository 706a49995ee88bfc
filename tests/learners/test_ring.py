"""The learner's ring: contents follow keys under concurrency, waiting ends when it should, and resume restores rows."""

import json
import threading

import numpy as np
import pytest
import torch

from forebay.learners.ring import Ring, frames_of, memory_bytes, ring_specs
from forebay.pipeline.buffer import make_buffer
from forebay.pipeline.records import Block, Field, Outcome, Parameter, Schema, SolveRecord

SPECS = {"u": ((3, 4), torch.float32), "parameters": ((2,), torch.float32)}
POLICIES = ("fifo", "firo", "reservoir")
LONG_S = 20.0
"""Longer than any wait that ends as it should; a test that reaches it has failed."""


def make_ring(policy="reservoir", capacity=16, threshold=0, **options):
    return Ring(SPECS, make_buffer(policy, capacity=capacity, threshold=threshold, seed=23), **options)


def frames(keys):
    """Arrays whose every entry tells the key."""
    keys = np.asarray(keys, np.float64)
    u = np.broadcast_to(keys[:, None, None], (len(keys), 3, 4)) + np.arange(4) / 8
    return {"u": u.astype(np.float32), "parameters": np.stack([keys, -keys], axis=1)}


def put(ring, keys, **options):
    return ring.put(np.asarray(keys), frames(keys), **options)


def assert_contents(batch):
    expected = frames(batch.keys)
    assert torch.equal(batch.arrays["u"], torch.from_numpy(expected["u"]))
    assert torch.equal(batch.arrays["parameters"], torch.from_numpy(expected["parameters"]).float())


def drained(ring, n=5):
    keys = []
    while (batch := ring.draw(n, timeout=LONG_S)) is not None:
        assert_contents(batch)
        keys += batch.keys.tolist()
    return keys


def in_thread(work):
    """Start it; `join` returns its result, or fails when it does not come."""
    result = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()

    def join():
        thread.join(LONG_S)
        assert result, "the thread is still waiting"
        return result[0]

    return join


@pytest.mark.parametrize("policy", POLICIES)
def test_batches_hold_the_rows_of_their_keys_while_blocks_arrive(policy):
    ring = make_ring(policy, capacity=24)
    blocks = [range(start, start + 10) for start in range(0, 1500, 10)]

    def produce():
        accepted = sum(put(ring, block, timeout=LONG_S) for block in blocks)
        ring.close()
        return accepted

    join = in_thread(produce)
    keys = drained(ring, n=7)
    assert join() == 1500
    assert set(keys) == set(range(1500))
    assert ring.exhausted
    statistics = ring.statistics()
    assert (statistics.put, statistics.drawn) == (1500, len(keys))
    assert statistics.draw_s > 0
    assert statistics.ingest_s > 0


def test_two_producers_and_repeated_blocks_lose_and_repeat_nothing():
    ring = make_ring("firo", capacity=20)

    def produce(starts):
        return sum(put(ring, range(start, start + 6), timeout=LONG_S) for start in starts)

    joins = [in_thread(lambda: produce(range(0, 300, 6))), in_thread(lambda: produce(range(0, 420, 6)))]
    closer = in_thread(lambda: (sum(join() for join in joins), ring.close()))
    assert sorted(drained(ring)) == list(range(420))
    assert closer()[0] == 420
    assert ring.statistics().duplicates == 300


@pytest.mark.parametrize("policy", ["fifo", "reservoir"])
def test_put_waits_while_full_and_goes_on_after_draws(policy):
    ring = make_ring(policy, capacity=8)
    assert put(ring, range(20), timeout=0.2) == 8
    assert not ring.wait_room(timeout=0.0)
    assert ring.statistics().wait_room_s > 0.1
    join = in_thread(lambda: put(ring, range(8, 20)))
    while ring.statistics(with_uses=False).put < 20:
        ring.draw(2, timeout=0.0)
    assert join() == 12
    ring.close()
    assert set(drained(ring)) <= set(range(20))
    assert len(ring.statistics().uses) > 1
    assert ring.statistics().uses[0] == 0


def test_offer_takes_what_fits_and_says_where_to_go_on():
    ring = make_ring("fifo", capacity=8)
    keys = np.arange(30, 42)
    assert ring.offer(keys[:3], frames(keys[:3])) == 3
    assert ring.offer(keys, frames(keys)) == 8
    assert ring.offer(keys[8:], frames(keys[8:])) == 0
    assert ring.draw(5).keys.tolist() == [30, 31, 32, 33, 34]
    assert ring.offer(keys[8:], frames(keys[8:])) == 4
    ring.close()
    assert drained(ring) == list(range(35, 42))
    assert ring.offer(keys, frames(keys)) == 12, "a block that comes back after the end is recognised"


def test_draw_waits_for_frames_above_the_threshold():
    ring = make_ring("reservoir", threshold=6)
    put(ring, range(6))
    assert ring.draw(4, timeout=0.2) is None
    assert ring.statistics().wait_data_s > 0.1
    assert not ring.can_draw(4)
    join = in_thread(lambda: ring.draw(4).keys.tolist())
    put(ring, [6])
    assert len(join()) == 4


def test_close_ends_waiting_with_a_short_batch_and_then_with_none():
    ring = make_ring("firo", threshold=9)
    put(ring, range(7))
    join = in_thread(lambda: len(ring.draw(5).keys))
    ring.close()
    assert join() == 5
    assert ring.closed
    batch = ring.draw(5)
    assert_contents(batch)
    assert len(batch.keys) == 2
    assert ring.draw(5) is None
    assert ring.exhausted
    with pytest.raises(RuntimeError, match="1 new frames were offered after `close`"):
        put(ring, [70])


def test_interrupt_lets_every_waiting_thread_return():
    full, empty = make_ring("fifo", capacity=4), make_ring()
    put(full, range(4))
    joins = [
        in_thread(lambda: put(full, [4, 5])),
        in_thread(lambda: full.wait_room()),
        in_thread(lambda: empty.draw(3)),
    ]
    full.interrupt()
    empty.interrupt()
    assert [join() for join in joins] == [0, False, None]
    assert full.interrupted
    assert full.draw(2) is None
    assert put(full, [9]) == 0


def test_a_batch_stays_valid_for_one_more_draw_and_its_memory_is_reused():
    ring = make_ring()
    put(ring, range(16))
    first, second = ring.draw(6), ring.draw(6)
    assert_contents(first)
    assert_contents(second)
    third = ring.draw(4)
    assert third.arrays["u"].data_ptr() == first.arrays["u"].data_ptr()
    assert second.arrays["u"].data_ptr() != first.arrays["u"].data_ptr()
    assert_contents(third)
    assert_contents(second)
    assert len(ring.draw(9).keys) == 9


def test_scattered_slots_get_the_right_rows():
    ring = make_ring("firo", capacity=12)
    put(ring, range(12))
    ring.draw(9)
    put(ring, range(40, 49))
    ring.close()
    assert set(drained(ring)) >= set(range(40, 49))


def test_read_only_arrays_are_taken_without_a_warning_or_a_change():
    arrays = {name: a.astype(np.float32) for name, a in frames([3, 5]).items()}
    for array in arrays.values():
        array.flags.writeable = False
    ring = make_ring()
    torch.set_warn_always(True)
    try:
        assert ring.put(np.array([3, 5]), arrays) == 2
    finally:
        torch.set_warn_always(False)
    assert_contents(ring.draw(4))
    assert not arrays["u"].flags.writeable


def test_a_block_that_cannot_be_copied_leaves_no_reservation_behind():
    ring = make_ring("fifo", capacity=4)
    with pytest.raises(TypeError, match="can't convert"):
        ring.put(np.array([7, 8]), frames([7, 8]) | {"u": np.full((2, 3, 4), "text")})
    assert ring.statistics().reserved == 0
    assert put(ring, [7, 8, 9, 10]) == 4
    assert_contents(ring.draw(4))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_refilled_ring_draws_what_the_uninterrupted_one_draws(policy):
    def prepared():
        ring = make_ring(policy, capacity=12)
        put(ring, range(0, 24, 2), timeout=0.0)
        ring.draw(5)
        put(ring, [31, 33], timeout=0.0)
        return ring

    def fetch(keys):
        asked.append(keys.tolist())
        return frames(keys)

    straight, asked = prepared(), []
    state = json.loads(json.dumps(prepared().to_dict()))
    resumed = make_ring(policy, capacity=12)
    resumed.refill(state, fetch)
    assert asked[0] == sorted(asked[0])
    assert len(asked[0]) == resumed.statistics().unseen + resumed.statistics().seen
    for ring in (straight, resumed):
        put(ring, [50], timeout=0.0)
        ring.close()
    assert drained(resumed) == drained(straight)


def test_refilling_asks_for_bounded_portions(monkeypatch):
    monkeypatch.setattr("forebay.learners.ring._REFILL_ROWS", 5)
    ring, other, asked = make_ring(), make_ring(), []
    put(ring, range(13))
    other.refill(ring.to_dict(), lambda keys: (asked.append(len(keys)), frames(keys))[1])
    assert asked == [5, 5, 3]
    other.close()
    assert sorted(drained(other)) == list(range(13))


def test_refilling_the_wrong_ring_is_refused():
    ring = make_ring(capacity=16)
    put(ring, range(5))
    with pytest.raises(
        ValueError, match=r"reservoir of 16 frames, this run's is reservoir of 9; resume with the study"
    ):
        make_ring(capacity=9).refill(ring.to_dict(), frames)
    with pytest.raises(RuntimeError, match="holds frames already; refill a new one"):
        ring.refill(ring.to_dict(), frames)


def test_memory_is_what_the_rows_take():
    ring = make_ring(capacity=16)
    held = sum(rows.untyped_storage().nbytes() for rows in ring._rows.values())
    assert ring.statistics().nbytes == memory_bytes(SPECS, 16) == held == 16 * 4 * (12 + 2)


def test_bad_frames_and_rings_are_refused():
    ring = make_ring()
    good = frames([1, 2])
    with pytest.raises(ValueError, match=r"carry arrays \['u'\], the ring keeps \['parameters', 'u'\]"):
        ring.put(np.array([1, 2]), {"u": good["u"]})
    with pytest.raises(ValueError, match=r"array 'u' has shape \(2, 3, 4\) instead of \(3, 3, 4\)"):
        ring.put(np.array([1, 2, 3]), good)
    with pytest.raises(ValueError, match="batch of 17 frames can never be drawn from fifo with capacity 16"):
        make_ring("fifo").draw(17)
    with pytest.raises(ValueError, match="a ring needs at least one array"):
        Ring({}, make_buffer("fifo", capacity=3, seed=7))
    with pytest.raises(MemoryError, match=r"ring of 16 frames needs 6.71e[+]07 GiB on cpu, .*lower buffer.capacity"):
        Ring({"u": ((2**50,), torch.float32)}, make_buffer("fifo", capacity=16, seed=7))


@pytest.mark.skipif(torch.cuda.is_available(), reason="page-locked memory is there")
def test_page_locked_batches_need_a_gpu():
    with pytest.raises(ValueError, match=r"pin=True with rows on cpu and 0 GPUs: .* leave pin out"):
        make_ring(pin=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("options", [{"device": "cuda"}, {"pin": True}], ids=["rows on the GPU", "pinned batches"])
def test_rings_for_a_gpu_hold_the_rows_of_their_keys(options):
    ring = make_ring(capacity=24, **options)

    def produce():
        accepted = sum(put(ring, range(start, start + 10), timeout=LONG_S) for start in range(0, 900, 10))
        ring.close()
        return accepted

    join, seen = in_thread(produce), set()
    while (batch := ring.draw(7, timeout=LONG_S)) is not None:
        assert batch.arrays["u"].is_cuda or batch.arrays["u"].is_pinned()
        expected = torch.from_numpy(frames(batch.keys)["u"])
        assert torch.equal(batch.arrays["u"].cpu(), expected)
        seen.update(batch.keys.tolist())
    assert join() == 900
    assert seen == set(range(900))


STATIONARY = Schema(
    parameters=(Parameter("contrast", 1, 4),),
    inputs=(Field("a", ("y", "x"), (3, 4)),),
    outputs=(Field("u", ("y", "x"), (3, 4)),),
)
TRANSIENT = Schema(
    parameters=(Parameter("left", 100, 500), Parameter("right", 100, 500)),
    inputs=(Field("source", ("x",), (5,)),),
    outputs=(Field("u", ("x",), (5,)),),
    times=(0.25, 0.5, 0.75),
)


def make_block(schema, valid=(True, True, True), first=6):
    """Sample s has parameters s + i/10, inputs 100 s, outputs 1000 s + step."""
    ids = np.arange(first, first + len(valid))
    arrays = {"parameters": ids[:, None] + np.arange(len(schema.parameters)) / 10}
    for field in schema.inputs:
        arrays[field.name] = (100 * ids)[:, None].repeat(np.prod(field.shape), 1).reshape(-1, *field.shape)
    for field in schema.outputs:
        shape = (len(ids), *schema.sample_shape(field.name))
        steps = np.arange(schema.steps).reshape(-1, *[1] * len(field.shape)) if schema.times else 0
        arrays[field.name] = np.broadcast_to((1000 * ids).reshape(-1, *[1] * (len(shape) - 1)) + steps, shape)
    records = [
        SolveRecord(int(i), 7, Outcome.CONVERGED if ok else Outcome.DIVERGED, "cg", 3, 1e-9, 0.1)
        for i, ok in zip(ids, valid, strict=True)
    ]
    fields = {name: a.astype(np.float64 if name == "parameters" else np.float32) for name, a in arrays.items()}
    return Block("train", 2, ids, fields, records)


def test_a_stationary_block_gives_a_view_of_one_frame_a_sample():
    block = make_block(STATIONARY)
    keys, arrays = frames_of(block, STATIONARY)
    assert keys.tolist() == [6, 7, 8]
    assert set(arrays) == {"a", "u", "parameters"}
    assert np.shares_memory(arrays["u"], block.arrays["u"])
    assert np.shares_memory(arrays["a"], block.arrays["a"])
    assert arrays["parameters"].tolist() == [[6], [7], [8]]
    assert arrays["parameters"].dtype == np.float32


def test_frames_of_a_transient_block_carry_step_inputs_and_physical_time():
    keys, arrays = frames_of(make_block(TRANSIENT, (True, False, True)), TRANSIENT)
    assert keys.tolist() == [18, 19, 20, 24, 25, 26]
    assert arrays["u"][:, 0].tolist() == [6000, 6001, 6002, 8000, 8001, 8002]
    assert arrays["source"][:, 4].tolist() == [600, 600, 600, 800, 800, 800]
    assert arrays["time"].tolist() == [[0.25], [0.5], [0.75]] * 2
    np.testing.assert_allclose(arrays["parameters"][2:4], [[6, 6.1], [8, 8.1]], rtol=1e-6)


@pytest.mark.parametrize("schema", [STATIONARY, TRANSIENT, Schema((), (), STATIONARY.outputs)])
@pytest.mark.parametrize("valid", [(True, True), (False, True), (False, False)])
def test_frames_fit_a_ring_made_from_the_same_schema(schema, valid):
    keys, arrays = frames_of(make_block(schema, valid), schema)
    ring = Ring(ring_specs(schema), make_buffer("fifo", capacity=9, seed=7))
    assert ring.put(keys, arrays) == len(keys) == sum(valid) * schema.steps
    ring.close()
    batch = ring.draw(9)
    if not any(valid):
        assert batch is None
        return
    assert batch.keys.tolist() == keys.tolist()
    for name, (shape, dtype) in ring_specs(schema).items():
        assert batch.arrays[name].shape == (len(keys), *shape)
        assert batch.arrays[name].dtype == dtype
        assert torch.equal(batch.arrays[name], torch.from_numpy(np.array(arrays[name])))
