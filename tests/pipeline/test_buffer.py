"""The training buffer: the eight properties of the design notes, and a naive model that it follows draw for draw."""

import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scipy.stats import chi2, chi2_contingency, chisquare

from forebay.pipeline.agreement import Agreement, Readiness, agree, readiness
from forebay.pipeline.buffer import UNBOUNDED, Buffer, make_buffer
from forebay.pipeline.buffer_state import pack, unpack
from forebay.pipeline.slots import KEY_LIMIT, KeySet

POLICIES = ("fifo", "firo", "reservoir")
P_BOUND = 1e-3
"""A correct buffer fails a chi-square test with this probability per seed; the seeds are fixed, so it does not."""

quick = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def put(buffer, keys):
    """Reserve and publish at once; the number of keys dealt with."""
    placement = buffer.reserve(np.asarray(keys))
    buffer.publish(placement.slots)
    return placement.done


def through_json(buffer):
    return Buffer.from_dict(json.loads(json.dumps(buffer.to_dict(), allow_nan=False)))


def drain(buffer):
    keys, n = [], min(3, buffer.largest_draw)
    while not buffer.exhausted:
        keys += buffer.draw(n).keys.tolist()
    return keys


class NaiveModel:
    """The semantics written with lists of keys, one frame at a time, on the same stream of random numbers."""

    def __init__(self, policy, capacity, threshold, seed):
        self.policy, self.capacity, self.threshold = policy, capacity, threshold
        self.rng = np.random.Generator(np.random.Philox(seed))
        self.live, self.seen, self.reserved = [], [], []
        self.ever, self.uses, self.evicted, self.over = set(), Counter(), [], False

    def unseen(self):
        return [k for k in self.live if k not in self.seen]

    def reserve(self, keys):
        accepted, done = [], 0
        for key in keys:
            if key not in self.ever:
                if len(self.unseen()) + len(self.reserved) + len(accepted) == self.capacity:
                    break
                accepted.append(key)
                self.ever.add(key)
            done += 1
        victims = []
        while len(self.live) - len(victims) + len(self.reserved) + len(accepted) > self.capacity:
            victims.append(self.remove(self.seen))
        left = len(self.live) - len(victims)
        movers = [k for k in self.live[left:] if k not in victims]
        for gap in [i for i in map(self.live.index, victims) if i < left]:
            self.live[gap] = movers.pop(0)
        del self.live[left:]
        self.evicted += victims
        self.reserved += accepted
        return accepted, victims, done

    def publish(self, keys):
        self.reserved = [k for k in self.reserved if k not in keys]
        self.live += keys

    def cancel(self, keys):
        self.reserved = [k for k in self.reserved if k not in keys]
        self.ever -= set(keys)

    def remove(self, members):
        i = int(self.rng.random() * len(members))
        key, members[i] = members[i], members[-1]
        members.pop()
        return key

    def would_wait(self):
        return not self.live if self.over else len(self.live) <= self.threshold

    def get(self):
        if self.policy == "fifo":
            key = self.live.pop(0)
        elif self.policy == "firo" or self.over:
            key = self.remove(self.live)
            self.seen = [k for k in self.seen if k != key]
        else:
            key = self.live[int(self.rng.random() * len(self.live))]
            if key not in self.seen:
                self.seen.append(key)
        self.uses[key] += 1
        return key


@settings(max_examples=40, stateful_step_count=30, deadline=None, derandomize=True, database=None)
class FollowsTheNaiveModel(RuleBasedStateMachine):
    """Random puts, publications out of order, cancellations, draws, repeats, checkpoints and the end of production."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        capacity=st.integers(1, 12),
        fraction=st.floats(0, 0.99),
        seed=st.integers(3, 99),
    )
    def start(self, policy, capacity, fraction, seed):
        threshold = 0 if policy == "fifo" else int(fraction * capacity)
        self.buffer = make_buffer(policy, capacity=capacity, threshold=threshold, seed=seed)
        self.model = NaiveModel(policy, capacity, threshold, seed)
        self.pending, self.next_key, self.drawn = [], 0, Counter()

    @precondition(lambda self: not self.model.over)
    @rule(count=st.integers(0, 9), repeats=st.lists(st.integers(0, 60), max_size=4), shuffle=st.randoms())
    def reserve(self, count, repeats, shuffle):
        keys = list(range(self.next_key, self.next_key + count)) + [k for k in repeats if k < self.next_key]
        keys += keys[:1]
        shuffle.shuffle(keys)
        self.next_key += count
        accepted, victims, done = self.model.reserve(keys)
        placement = self.buffer.reserve(np.array(keys, np.int64))
        assert np.array(keys)[placement.accepted].tolist() == accepted
        assert placement.evicted_keys.tolist() == victims
        assert placement.done == done
        assert all(self.drawn[k] for k in victims), "an unseen frame was evicted"
        if accepted:
            self.pending.append((accepted, placement.slots))

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 9), keep=st.booleans() | st.just(True))
    def settle(self, which, keep):
        keys, slots = self.pending.pop(which % len(self.pending))
        if keep:
            self.model.publish(keys)
            self.buffer.publish(slots)
        else:
            self.model.cancel(keys)
            self.buffer.cancel(slots)

    @rule(n=st.integers(1, 6))
    def draw(self, n):
        n = min(n, self.buffer.largest_draw)
        expected = []
        if self.buffer.can_draw(n):
            while len(expected) < n and not self.model.would_wait():
                expected.append(self.model.get())
            assert len(expected) == n or (self.model.over and not self.model.reserved)
            assert self.buffer.draw(n).keys.tolist() == expected
        else:
            trial = through_json(self.buffer)
            assert len(self.model.live) - self.model.threshold * (not self.model.over) < n
            with pytest.raises(RuntimeError, match="would wait"):
                self.buffer.draw(n)
            assert trial.to_dict()["generator"] == self.buffer.to_dict()["generator"]
        self.drawn.update(expected)

    @rule()
    def end_production(self):
        if self.next_key > 30:
            self.model.over = True
            self.buffer.close()

    @precondition(lambda self: not self.pending)
    @rule()
    def checkpoint(self):
        restored = through_json(self.buffer)
        assert restored.to_dict() == self.buffer.to_dict()
        self.buffer = restored

    @invariant()
    def agrees(self):
        if not hasattr(self, "buffer"):
            return
        self.buffer.validate()
        statistics = self.buffer.statistics()
        assert statistics.unseen == len(self.model.unseen())
        assert statistics.seen == len(self.model.seen)
        assert statistics.reserved == len(self.model.reserved)
        assert statistics.unseen + statistics.seen + statistics.reserved <= self.model.capacity
        assert statistics.put == len(self.model.ever)
        assert statistics.drawn == self.model.uses.total()
        assert statistics.evicted == len(self.model.evicted)
        published = self.model.ever - set(self.model.reserved)
        counts = Counter(self.model.uses[k] for k in published)
        assert list(statistics.uses) == [counts[u] for u in range(max(counts, default=-1) + 1)]
        assert self.buffer.room() == self.model.capacity - len(self.model.unseen()) - len(self.model.reserved)
        assert self.buffer.exhausted == (self.model.over and not self.model.live and not self.model.reserved)


TestFollowsTheNaiveModel = FollowsTheNaiveModel.TestCase


events = st.lists(st.tuples(st.sampled_from(["put", "get"]), st.integers(1, 7)), min_size=5, max_size=60)


@quick
@given(policy=st.sampled_from(POLICIES), capacity=st.integers(2, 20), events=events, seed=st.integers(3, 999))
def test_every_accepted_frame_is_used_at_least_once_and_the_size_is_bounded(policy, capacity, events, seed):
    buffer = make_buffer(policy, capacity=capacity, threshold=0, seed=seed)
    used, offered, next_key = Counter(), 0, 0
    for event, count in events:
        if event == "put":
            offered += put(buffer, range(next_key, next_key + count))
            next_key = offered
        elif buffer.can_draw(min(count, capacity)):
            used.update(buffer.draw(min(count, capacity)).keys.tolist())
        assert len(buffer.live()[0]) <= capacity
    buffer.close()
    used.update(drain(buffer))
    assert set(used) == set(range(offered))
    if policy != "reservoir":
        assert set(used.values()) <= {1}


@quick
@given(policy=st.sampled_from(["firo", "reservoir"]), capacity=st.integers(2, 20), data=st.data())
def test_a_get_waits_up_to_the_threshold_and_never_above_it(policy, capacity, data):
    threshold = data.draw(st.integers(0, capacity - 1))
    buffer = make_buffer(policy, capacity=capacity, threshold=threshold, seed=17)
    for size in range(1, capacity + 1):
        put(buffer, [size])
        assert buffer.can_draw(1) == (size > threshold)
    while buffer.can_draw(1) and buffer.statistics().drawn < 3 * capacity:
        buffer.draw(1)
    sizes = len(buffer.live()[0])
    assert sizes == (capacity if policy == "reservoir" else threshold)
    buffer.close()
    assert buffer.can_draw(1)


def test_fifo_waits_only_when_empty_and_keeps_the_order_of_publication():
    buffer = make_buffer("fifo", capacity=5, seed=7)
    assert not buffer.can_draw(1)
    assert put(buffer, [10, 11, 12]) == 3
    late, early = buffer.reserve(np.array([20])), buffer.reserve(np.array([21]))
    buffer.publish(early.slots)
    buffer.publish(late.slots)
    assert buffer.draw(4).keys.tolist() == [10, 11, 12, 21]
    assert put(buffer, [30, 31, 32, 33, 34]) == 4
    buffer.close()
    assert drain(buffer) == [20, 30, 31, 32, 33]


@pytest.mark.parametrize("seed", [7, 19, 31])
def test_reservoir_draws_are_uniform_over_unseen_and_seen_frames(seed):
    buffer = make_buffer("reservoir", capacity=40, threshold=9, seed=seed)
    put(buffer, range(30))
    buffer.draw(25)
    put(buffer, range(30, 50))
    keys, _ = buffer.live()
    before = buffer.statistics()
    assert before.unseen > 20
    assert before.seen > 3
    counts = Counter(np.concatenate([buffer.draw(20).keys for _ in range(500)]).tolist())
    assert set(counts) == set(keys.tolist())
    assert chisquare([counts[k] for k in keys.tolist()]).pvalue > P_BOUND


@pytest.mark.parametrize("policy", ["firo", "reservoir"])
def test_removing_draws_are_uniform_at_every_position(policy):
    frames, trials = 6, 900
    table = np.zeros((frames, frames))
    for trial in range(trials):
        buffer = make_buffer(policy, capacity=frames, seed=2 * trial + 3)
        put(buffer, range(frames))
        buffer.close()
        order = np.concatenate([buffer.draw(4).keys, buffer.draw(4).keys])
        table[np.arange(frames), order] += 1
    # Rows and columns sum to `trials`, so of the 36 cells 25 are free; a chi-square over all of them has that many.
    assert chisquare(table.ravel(), ddof=frames * frames - 1 - 25).pvalue > P_BOUND


@pytest.mark.parametrize("seed", [5, 23])
def test_evictions_are_uniform_over_the_seen_frames(seed):
    prepared = make_buffer("reservoir", capacity=20, seed=seed)
    put(prepared, range(20))
    seen = set(prepared.draw(16).keys.tolist())
    state, counts = prepared.to_dict(), Counter()
    for trial in range(400):
        generator = make_buffer("reservoir", capacity=1, seed=4 * trial + 7).to_dict()["generator"]
        buffer = Buffer.from_dict(state | {"generator": generator})
        victims = buffer.reserve(np.array([100, 101, 102, 103])).evicted_keys
        assert len(set(victims.tolist())) == 4
        counts.update(victims.tolist())
    assert set(counts) == seen
    # Four of m without replacement: the counts vary less than independent ones by (m - 4)/(m - 1).
    statistic = chisquare(list(counts.values())).statistic * (len(seen) - 1) / (len(seen) - 4)
    assert chi2.sf(statistic, len(seen) - 1) > P_BOUND


def test_blocks_put_at_once_are_distributed_like_frames_put_one_by_one():
    """Who survives a block of puts, against the textbook algorithm on Python's own generator."""
    trials, table = 700, np.zeros((2, 12))
    for trial in range(trials):
        buffer = make_buffer("reservoir", capacity=6, seed=2 * trial + 5)
        put(buffer, range(6))
        buffer.draw(5)
        done = put(buffer, range(6, 9))
        put(buffer, range(6 + done, 9))
        buffer.draw(6)
        put(buffer, [9, 10, 11])
        table[0, buffer.live()[0]] += 1
        table[1, _textbook(random.Random(10_007 + trial))] += 1
    assert table[0].sum() == pytest.approx(table[1].sum(), rel=0.05)
    assert chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue > P_BOUND


def _textbook(rng):
    unseen, seen = list(range(6)), []

    def get():
        i = rng.randrange(len(unseen) + len(seen))
        if i < len(unseen):
            seen.append(unseen.pop(i))

    def offer(key):
        if len(unseen) == 6:
            return False
        if len(unseen) + len(seen) == 6:
            seen.pop(rng.randrange(len(seen)))
        unseen.append(key)
        return True

    waiting = [6, 7, 8]
    for _ in range(5):
        get()
    while waiting and offer(waiting[0]):
        waiting.pop(0)
    for _ in range(6):
        get()
    for key in (9, 10, 11):
        offer(key)
    return unseen + seen


def test_mean_uses_are_about_consumed_over_produced():
    buffer = make_buffer("reservoir", capacity=200, threshold=50, seed=11)
    uses, next_key, evicted = Counter(), 0, []
    for _ in range(1500):
        placement = buffer.reserve(np.arange(next_key, next_key + 4))
        next_key += placement.done
        evicted += placement.evicted_keys.tolist()
        buffer.publish(placement.slots)
        if buffer.can_draw(10):
            uses.update(buffer.draw(10).keys.tolist())
    ratio = uses.total() / next_key
    assert ratio == pytest.approx(10 / 4, rel=0.02)
    assert np.mean([uses[k] for k in evicted]) == pytest.approx(ratio, rel=0.05)
    assert buffer.statistics().mean_uses == ratio


class Rank:
    """A learner rank: a buffer of its own and what it does between two meetings."""

    def __init__(self, buffer):
        self.buffer, self.batches, self.used = buffer, 0, Counter()

    def train(self, count, n):
        for _ in range(count):
            self.batches += 1
            if not self.buffer.exhausted:
                self.used.update(self.buffer.draw(n).keys.tolist())


@quick
@given(
    policy=st.sampled_from(POLICIES),
    count=st.integers(1, 4),
    frames=st.integers(0, 120),
    bursts=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    delays=st.lists(st.integers(0, 6), min_size=4, max_size=4),
    n=st.integers(1, 5),
)
def test_all_ranks_stop_on_the_same_batch_and_use_every_frame(policy, count, frames, bursts, delays, n):
    threshold = 0 if policy == "fifo" else 3
    ranks = [Rank(make_buffer(policy, capacity=8, threshold=threshold, seed=2 * r + 5)) for r in range(count)]
    fed = closing = 0
    for meeting in range(600):
        for r, rank in enumerate(ranks):
            # One coordinator serves unevenly, never waits for a full rank, and its "no more" comes at different times.
            burst = min(bursts[(meeting + r) % len(bursts)] + (meeting > 20), frames - fed)
            fed += put(rank.buffer, fed + np.arange(burst)) if burst else 0
            if closing > delays[r]:
                rank.buffer.close()
        closing += fed == frames
        decision = agree([readiness(rank.buffer, n) for rank in ranks], limit=7)
        for rank in ranks:
            rank.train(decision.batches, n)
        assert len({rank.batches for rank in ranks}) == 1
        if decision.stop:
            break
    else:
        pytest.fail("the ranks never stopped")
    assert {key for rank in ranks for key in rank.used} == set(range(frames))


def test_an_agreement_follows_the_fed_ranks_first_and_the_longest_drain_last():
    assert agree([Readiness(5, False), Readiness(3, False)]) == Agreement(3, False)
    assert agree([Readiness(0, True), Readiness(3, False)]) == Agreement(3, False)
    assert agree([Readiness(2, True), Readiness(0, False)]) == Agreement(0, False)
    assert agree([Readiness(2, True), Readiness(5, True)]) == Agreement(5, False)
    assert agree([Readiness(UNBOUNDED, False)], limit=9) == Agreement(9, False)
    assert agree([Readiness(0, True), Readiness(0, True)]) == Agreement(0, True)
    with pytest.raises(ValueError, match="0 ranks were to agree on at most 64 batches; both must be at least 1"):
        agree([])


@quick
@given(policy=st.sampled_from(POLICIES), order=st.permutations(range(12)), repeat=st.integers(1, 12))
def test_a_resubmitted_solver_does_not_count_twice(policy, order, repeat):
    steps, buffer = 3, make_buffer(policy, capacity=64, seed=13)
    keys = np.array([sample * steps + step for sample in (4, 7, 2, 9) for step in range(steps)])
    put(buffer, keys[:repeat])
    buffer.draw(1)
    assert put(buffer, keys[list(order)]) == 12
    buffer.draw(3)
    assert put(buffer, keys[list(order)]) == 12
    statistics = buffer.statistics()
    assert (statistics.put, statistics.duplicates) == (12, repeat + 12)
    buffer.close()
    assert put(buffer, keys) == 12, "a block that comes back after the end is recognised as well"
    assert buffer.statistics().put == 12


@quick
@given(policy=st.sampled_from(POLICIES), cut=st.integers(0, 40), events=events, seed=st.integers(3, 999))
def test_a_checkpoint_through_json_continues_with_the_same_draws(policy, cut, events, seed):
    def play(restart):
        buffer = make_buffer(policy, capacity=9, threshold=0 if policy == "fifo" else 2, seed=seed)
        trace, next_key = [], 0
        for i, (event, count) in enumerate(events):
            if i == cut % len(events) and restart:
                buffer = through_json(buffer)
            if event == "put":
                next_key += put(buffer, range(next_key, next_key + count))
            elif buffer.can_draw(min(count, 7)):
                trace.append(buffer.draw(min(count, 7)).keys.tolist())
        buffer.close()
        return trace, drain(buffer), buffer.statistics()

    assert play(restart=True) == play(restart=False)


def test_a_checkpoint_between_reservation_and_publication_forgets_the_reservation_only():
    def prepared():
        buffer = make_buffer("reservoir", capacity=6, seed=29)
        put(buffer, range(6))
        buffer.draw(9)
        return buffer, buffer.reserve(np.array([50, 51]))

    straight, placement = prepared()
    straight.publish(placement.slots)
    restored = through_json(prepared()[0])
    assert restored.reserved == 0
    assert restored.statistics().put == 6
    assert put(restored, [50, 51]) == 2
    assert restored.draw(40).keys.tolist() == straight.draw(40).keys.tolist()


@pytest.mark.parametrize("policy", ["firo", "reservoir"])
def test_the_end_lifts_the_threshold_although_a_block_is_still_being_copied(policy):
    buffer = make_buffer(policy, capacity=12, threshold=8, seed=27)
    put(buffer, range(5))
    late = buffer.reserve(np.array([20, 21]))
    assert not buffer.can_draw(3)
    buffer.close()
    assert buffer.can_draw(3)
    buffer.draw(3)
    assert not buffer.can_draw(3), "two frames are left and two may still come"
    assert not buffer.exhausted
    buffer.publish(late.slots)
    assert len(buffer.draw(3).keys) == 3
    assert len(buffer.draw(3).keys) == 1
    assert len(buffer.draw(3).keys) == 0


def comparable(buffer):
    """The state; the order of the seen frames decides about evictions only, of which there are none after the end."""
    state = buffer.to_dict()
    return state | ({"seen": sorted(unpack(state["seen"], "<i8"))} if buffer.over else {})


@quick
@given(policy=st.sampled_from(POLICIES), seen=st.integers(0, 9), n=st.integers(1, 12), over=st.booleans())
def test_a_batch_is_that_many_single_gets_draw_for_draw(policy, seen, n, over):
    def prepared():
        buffer = make_buffer(policy, capacity=30, threshold=0 if policy == "fifo" else 4, seed=37)
        put(buffer, range(30))
        if seen:
            buffer.draw(seen)
        if over:
            buffer.close()
        return buffer

    batch, singles = prepared(), prepared()
    one_by_one = []
    while len(one_by_one) < n and singles.can_draw(1):
        one_by_one.append(int(singles.draw(1).keys[0]))
    assert batch.can_draw(n) == (len(one_by_one) == n)
    if len(one_by_one) == n:
        assert batch.draw(n).keys.tolist() == one_by_one
        assert comparable(batch) == comparable(singles)


def test_a_reservoir_gives_a_frame_twice_in_a_batch_and_counts_it_seen_once():
    buffer = make_buffer("reservoir", capacity=4, seed=9)
    put(buffer, [5, 6])
    assert sorted(set(buffer.draw(50).keys.tolist())) == [5, 6]
    statistics = buffer.statistics()
    assert (statistics.unseen, statistics.seen, statistics.drawn) == (0, 2, 50)
    assert sum(u * c for u, c in enumerate(statistics.uses)) == 50


def test_statistics_can_leave_the_histogram_out():
    buffer = make_buffer("reservoir", capacity=4, seed=9)
    put(buffer, [5, 6])
    assert buffer.statistics().uses == (2,)
    assert buffer.statistics(with_uses=False).uses == ()
    assert make_buffer("firo", capacity=4, seed=9).statistics().uses == ()


@quick
@given(keys=st.lists(st.integers(0, 3000), max_size=60), others=st.lists(st.integers(0, 10**6), max_size=60))
def test_a_key_set_agrees_with_a_python_set(keys, others):
    members = KeySet()
    members.add(np.array(keys, np.int64))
    probe = np.array(keys + others, np.int64)
    assert members.contains(probe).tolist() == [k in set(keys) for k in probe.tolist()]
    gone = np.array(sorted(set(keys))[::2], np.int64)
    members.remove(gone)
    assert len(members) == len(set(keys)) - len(gone)
    assert not members.contains(gone).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "lifo"}, "buffer policy 'lifo' is unknown; choose one of fifo, firo, reservoir"),
        ({"capacity": 0}, "buffer capacity 0 is below 1; give room"),
        ({"threshold": 8}, "buffer threshold 8 must be at least 0 and below the capacity of 8 frames.* use at most 7"),
        ({"threshold": -1}, "buffer threshold -1 must be at least 0"),
        ({"policy": "fifo", "threshold": 3}, "threshold 3 has no meaning for fifo; leave it at 0, or use firo"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_buffer(**({"policy": "firo", "capacity": 8, "threshold": 0, "seed": 3} | arguments))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([[1, 2]], r"keys have shape \(1, 2\) and type int64; give a vector of integers"),
        ([0.5], "type float64; give a vector of integers"),
        ([3, -2], r"keys span -2 ... 3; sample id · steps \+ step must lie in"),
        ([KEY_LIMIT], f"must lie in .0, {KEY_LIMIT}"),
    ],
)
def test_bad_keys_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        make_buffer("fifo", capacity=8, seed=3).reserve(np.array(keys))


def test_draws_that_can_never_be_given_are_refused():
    buffer = make_buffer("firo", capacity=8, threshold=5, seed=3)
    with pytest.raises(
        ValueError, match="batch of 4 frames can never be drawn from firo with capacity 8 and threshold 5"
    ):
        buffer.can_draw(4)
    with pytest.raises(ValueError, match="batch of 0 frames was asked for; ask for at least 1"):
        buffer.draw(0)
    with pytest.raises(RuntimeError, match="drawing 3 frames from 0 with threshold 5 would wait"):
        buffer.draw(3)


def test_new_frames_after_the_end_and_slots_that_are_not_reserved_are_refused():
    buffer = make_buffer("firo", capacity=8, seed=3)
    placement = buffer.reserve(np.array([4, 5]))
    buffer.publish(placement.slots)
    with pytest.raises(ValueError, match="is not reserved; publish or cancel each slot of a placement once"):
        buffer.publish(placement.slots)
    with pytest.raises(ValueError, match="is not reserved"):
        buffer.cancel(placement.slots)
    buffer.close()
    with pytest.raises(RuntimeError, match="1 new frames were offered after `close`"):
        buffer.reserve(np.array([5, 6]))


def test_foreign_or_damaged_states_are_refused():
    buffer = make_buffer("reservoir", capacity=8, seed=3)
    put(buffer, range(5))
    state = buffer.to_dict()
    with pytest.raises(ValueError, match=r"version 7, this program reads 1; resume with the release that wrote it"):
        Buffer.from_dict(state | {"version": 7})
    with pytest.raises(ValueError, match="inconsistent, this does not hold: keys are distinct and accepted"):
        Buffer.from_dict(state | {"put": 4})
    with pytest.raises(ValueError, match="lists free slots outside its capacity of 8"):
        Buffer.from_dict(state | {"free": pack(np.array([5, 6, 8]))})
    with pytest.raises(ValueError, match="'PCG64' generator; only Philox can be continued"):
        Buffer.from_dict(state | {"generator": state["generator"] | {"bit_generator": "PCG64"}})
