import itertools

import numpy as np
import pytest

from forebay.solvers.rom.medoids import assigned, k_medoids, merged, most_distinct, silhouettes

GROUPS = np.repeat([0, 1, 2], [9, 6, 12])


def distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=2)


def planted(seed, spread=0.3):
    """Three groups on a triangle of side 4, their members shuffled; and which group each is in."""
    rng = np.random.default_rng(seed)
    centres = 4.0 * np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
    groups = rng.permutation(GROUPS)
    return distances(centres[groups] + spread * rng.normal(size=(len(groups), 2))), groups


def random_dissimilarity(kind, rng):
    count = int(rng.integers(5, 10))
    if kind == "plane":
        return distances(rng.normal(size=(count, 2)))
    if kind == "lines":
        directions = rng.normal(size=(count, 5))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        sines = np.sqrt(np.clip(1 - (directions @ directions.T) ** 2, 0, None))
    else:
        sines = rng.uniform(size=(count, count))
    sines = sines + sines.T
    np.fill_diagonal(sines, 0)
    return sines


def same_partition(first, second):
    return (
        len({*zip(first.tolist(), second.tolist(), strict=True)}) == len({*first.tolist()}) == len({*second.tolist()})
    )


@pytest.mark.parametrize("seed", [7, 11, 13])
def test_planted_groups_are_found_exactly(seed):
    matrix, groups = planted(seed)
    partition = k_medoids(matrix, 3)
    assert same_partition(partition.labels, groups)
    assert sorted(partition.sizes) == [6, 9, 12]
    for cluster, medoid in enumerate(partition.medoids):
        members = partition.members(cluster)
        assert medoid == members[np.argmin(matrix[np.ix_(members, members)].sum(axis=1))]


@pytest.mark.parametrize("kind", ["plane", "lines", "no metric"])
def test_small_sets_are_solved_to_the_optimum(kind):
    rng = np.random.default_rng(2026)
    for _ in range(60):
        matrix = random_dissimilarity(kind, rng)
        clusters = int(rng.integers(1, 5))
        costs = [matrix[list(m)].min(axis=0).sum() for m in itertools.combinations(range(len(matrix)), clusters)]
        partition = k_medoids(matrix, clusters)
        assert partition.clusters == clusters
        assert partition.cost == pytest.approx(min(costs), rel=1e-9)
        np.testing.assert_array_equal(partition.labels[list(partition.medoids)], np.arange(clusters))
        own = matrix[np.arange(len(matrix)), np.array(partition.medoids)[partition.labels]]
        np.testing.assert_allclose(own, matrix[list(partition.medoids)].min(axis=0))
        assert own.sum() == pytest.approx(partition.cost)


def test_the_order_and_the_units_do_not_matter():
    matrix, _ = planted(7)
    partition = k_medoids(matrix, 4)
    order = np.random.default_rng(11).permutation(len(matrix))
    shuffled = k_medoids(1e-9 * matrix[np.ix_(order, order)], 4)
    assert {int(order[m]) for m in shuffled.medoids} == set(partition.medoids)
    assert same_partition(shuffled.labels, partition.labels[order])
    assert shuffled.cost == pytest.approx(1e-9 * partition.cost)


def test_every_member_its_own_medoid_costs_nothing():
    matrix, _ = planted(7)
    partition = k_medoids(matrix, len(matrix))
    assert partition.cost == 0.0
    assert partition.sizes == (1,) * len(matrix)


def test_identical_members_still_make_as_many_clusters():
    partition = k_medoids(np.zeros((5, 5)), 3)
    assert partition.clusters == 3
    assert min(partition.sizes) == 1


def test_ties_within_rounding_go_to_the_first():
    corners = distances(np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))
    noise = 1e-15 * np.array([[0, 3, 1, 2], [3, 0, 2, 1], [1, 2, 0, 0], [2, 1, 0, 0]])
    assert k_medoids(corners, 1).medoids == k_medoids(corners + noise, 1).medoids == (0,)
    # Every pair of corners costs the same, so BUILD's first pair stays.
    assert k_medoids(corners, 2).medoids == k_medoids(corners + noise, 2).medoids == (0, 1)


def test_silhouettes_are_those_of_the_definition():
    matrix, groups = planted(13, spread=1.5)
    expected = []
    for i, group in enumerate(groups):
        mates = [matrix[i, j] for j in range(len(groups)) if groups[j] == group and j != i]
        others = [np.mean(matrix[i, groups == other]) for other in range(3) if other != group]
        expected.append((min(others) - np.mean(mates)) / max(min(others), np.mean(mates)))
    np.testing.assert_allclose(silhouettes(matrix, groups), expected, rtol=1e-12)
    assert min(expected) < 0 < max(expected)


def test_single_members_and_single_clusters_have_silhouette_zero():
    matrix, groups = planted(7)
    assert not silhouettes(matrix, np.zeros(len(matrix), int)).any()
    alone = np.where(np.arange(len(groups)) == 4, 3, groups)
    values = silhouettes(matrix, alone)
    assert values[4] == 0.0
    assert np.delete(values, 4).all()
    assert not silhouettes(np.zeros((4, 4)), np.array([0, 0, 1, 1])).any()


@pytest.mark.parametrize("seed", [7, 11, 13])
def test_the_number_of_clusters_is_that_of_the_planted_groups(seed):
    matrix, groups = planted(seed)
    assert same_partition(most_distinct(matrix, 8).labels, groups)


def test_without_any_contrast_there_is_one_cluster():
    assert most_distinct(np.ones((9, 9)) - np.eye(9), 4).clusters == 1
    assert most_distinct(planted(7)[0], 1).clusters == 1


def test_small_clusters_are_dissolved_into_the_nearest():
    places = np.array([0.0, 0.1, 0.2, 5.0, 5.1, 9.0, 9.1, 9.2, 9.3])[:, None]
    matrix = distances(places)
    partition = k_medoids(matrix, 3)
    assert partition.sizes == (3, 2, 4)
    larger = merged(matrix, partition, lambda members: len(members) >= 3)
    assert larger.sizes == (3, 6)
    assert set(larger.medoids) < set(partition.medoids)
    np.testing.assert_array_equal(larger.labels[3:5], [1, 1])
    assert larger.cost > partition.cost


def test_the_smallest_of_several_small_clusters_is_dissolved_first():
    """It makes the other one large enough."""
    matrix = distances(np.array([0.0, 0.1, 0.2, 4.0, 4.1, 9.0, 9.1, 9.2, 9.3])[:, None])
    partition = k_medoids(matrix, 3)
    assert partition.sizes == (3, 2, 4)
    larger = merged(matrix, partition, lambda members: len(members) >= 4)
    assert larger.sizes == (5, 4)
    assert larger.medoids == (partition.medoids[0], partition.medoids[2])


def test_merging_begins_with_the_smallest_and_ends_with_one():
    matrix, _ = planted(7)
    partition = k_medoids(matrix, 3)
    seen = []

    def never(members):
        seen.append(len(members))
        return False

    assert merged(matrix, partition, never).sizes == (len(matrix),)
    assert seen[:3] == list(partition.sizes)
    assert len(seen) == 5
    assert min(seen[3:]) > 6
    assert merged(matrix, partition, lambda _: True) is partition


def test_assigned_gives_members_to_the_first_of_equal_medoids():
    matrix = distances(np.array([[0.0], [1.0], [2.0]]))
    assert assigned(matrix, [2, 0]).labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("clusters", [0, 28])
def test_impossible_numbers_of_clusters_are_refused(clusters):
    with pytest.raises(ValueError, match=f"clusters = {clusters} of 27 simulations; ask for 1 to 27"):
        k_medoids(planted(7)[0], clusters)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), r"of shape \(2, 3\); give one row"),
        (np.ones((0, 0)), r"of shape \(0, 0\); give one row"),
        (np.array([[0.0, np.nan], [np.nan, 0.0]]), "of 0 and 1 is nan; leave out"),
        (np.array([[0.0, 1.0], [2.0, 0.0]]), "must be symmetric and not negative"),
        (np.array([[0.0, -1.0], [-1.0, 0.0]]), "must be symmetric and not negative"),
        (np.array([[0.5, 1.0], [1.0, 0.0]]), "to itself must be 0"),
    ],
)
def test_what_is_no_dissimilarity_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        k_medoids(matrix, 1)
