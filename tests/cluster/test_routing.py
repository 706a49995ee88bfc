"""Which learner a block goes to."""

from __future__ import annotations

from forebay.cluster.routing import SLACK, Router


def test_a_block_stays_on_its_node_and_shards_stay_even():
    router = Router(["a", "b"], [0, 0])
    assert [router.choose("a") for _ in range(SLACK + 3)] == [0] * SLACK + [1, 0, 1]
    assert router.counts == [3, 2]


def test_blocks_of_both_nodes_all_stay_where_they_were_made():
    router = Router(["a", "b"], [0, 0])
    assert [router.choose(home) for home in "abbaab"] == [0, 1, 1, 0, 0, 1]
    assert router.local == 6


def test_of_two_learners_on_a_node_the_one_with_less_gets_it():
    router = Router(["a", "a", "b"], [1, 0, 0])
    assert router.choose("a") == 1
    assert router.choose("c") == 2, "from elsewhere it goes where least is"
    assert router.choose(None) in (0, 1, 2)
    assert sum(router.counts) == 4


def test_after_a_resume_the_shard_with_less_catches_up_first():
    router = Router(["a", "b"], [9, 2])
    assert [router.choose("a") for _ in range(6)] == [1] * 6
    assert router.local == 0
