import json

import numpy as np
import pytest

from forebay.solvers.rom.classifier import RULES, Classifier, classify, fit

PLANE = np.array([2.0, -1.0])


def half_planes(seed, count=60):
    """Features of unlike units, cut by a plane in scaled features; medoids far from the middle of their cluster."""
    rng = np.random.default_rng(seed)
    scaled = rng.uniform(-1, 1, (count, 2))
    labels = (scaled @ PLANE > 0.3).astype(int)
    medoids = tuple(int(np.flatnonzero(labels == c)[0]) for c in range(2))
    return scaled * [1e5, 1e-3] + [3e5, 0.0], labels, medoids


def rings(seed, count=120):
    """A disc inside a ring: no plane and no two centres tell them apart."""
    rng = np.random.default_rng(seed)
    radius, angle = np.repeat([0.3, 1.0], count // 2), rng.uniform(0, 2 * np.pi, count)
    labels = np.repeat([0, 1], count // 2)
    return radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]), labels, (0, count // 2)


def islands(seed, count=30):
    """Three far groups around their medoids."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    features = centres[labels] + rng.normal(size=(count, 2)) * 0.5
    return features, labels, (0, 1, 2)


def share_of_hits(classifier, features, labels):
    return np.mean([classifier.choose(x).cluster == label for x, label in zip(features, labels, strict=True)])


@pytest.mark.parametrize(
    ("make", "method"), [(islands, "nearest medoid"), (half_planes, "logistic"), (rings, "3 neighbours")]
)
def test_the_rule_that_fits_the_boundary_is_chosen_and_holds_on_new_samples(make, method):
    classifier = classify(*make(7))
    assert classifier.method == method
    assert classifier.accuracies[method] == max(classifier.accuracies.values())
    features, labels, _ = make(11, 300) if make is not rings else make(11)
    assert share_of_hits(classifier, features, labels) > 0.93


def test_accuracies_are_those_of_leaving_each_sample_out():
    features, labels, medoids = half_planes(13, 25)
    found = classify(features, labels, medoids).accuracies
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    hits = []
    for i in range(25):
        others = np.arange(25) != i
        nearest = np.argsort(np.linalg.norm(scaled[others] - scaled[i], axis=1))[:3]
        hits.append(np.sum(labels[others][nearest]) * 2 > 3)
    assert found["3 neighbours"] == pytest.approx(np.mean(np.array(hits) == labels))
    assert set(found) == set(RULES)


def test_a_medoid_does_not_vouch_for_itself():
    """The sample at 10 is nearest to itself, but without it the other cluster is much nearer."""
    features = np.array([[0.0], [10.0], [12.0], [13.0]])
    accuracies = classify(features, np.array([0, 0, 1, 1]), (1, 2)).accuracies
    assert accuracies["nearest medoid"] == 0.75


def test_equally_good_rules_yield_to_the_simplest():
    classifier = classify(*islands(7))
    assert set(classifier.accuracies.values()) == {1.0}
    assert classifier.method == "nearest medoid"


def test_confidence_falls_towards_the_boundary():
    features, labels, medoids = half_planes(7)
    for method in ("logistic", "nearest medoid"):
        classifier = fit(method, features, labels, medoids)
        centres = features[list(medoids)]
        line = [classifier.choose(centres[0] + s * (centres[1] - centres[0])) for s in np.linspace(0, 1, 21)]
        turn = next(i for i, choice in enumerate(line) if choice.cluster == 1)
        assert [choice.cluster for choice in line] == [0] * turn + [1] * (21 - turn)
        confidences = [choice.confidence for choice in line]
        assert confidences[:turn] == sorted(confidences[:turn], reverse=True)
        assert confidences[turn:] == sorted(confidences[turn:])
        assert 0.5 <= min(confidences) < 0.75 < confidences[0] <= 1.0


def test_logistic_probabilities_are_those_of_the_noise():
    rng = np.random.default_rng(7)
    features = rng.normal(size=(3000, 1))
    chances = 1 / (1 + np.exp(-2 * features[:, 0]))
    labels = (rng.uniform(size=3000) < chances).astype(int)
    classifier = fit("logistic", features, labels, (int(np.argmin(labels)), int(np.argmax(labels))))
    for x in (-1.5, -0.5, 0.5, 1.5):
        choice = classifier.choose(np.array([x]))
        assert choice.cluster == int(x > 0)
        assert choice.confidence == pytest.approx(1 / (1 + np.exp(-2 * abs(x))), abs=0.03)


def test_without_information_the_probability_is_the_frequency():
    labels = np.repeat([0, 1], [27, 3])
    choice = fit("logistic", np.full((30, 1), 0.7), labels, (0, 27)).choose(np.array([0.7]))
    assert (choice.cluster, choice.confidence) == (0, pytest.approx(0.9, abs=1e-4))


def test_equal_votes_go_to_the_nearest_neighbour():
    features = np.array([[0.0], [1.0], [2.1], [9.0], [9.5]])
    classifier = fit("3 neighbours", features, np.array([0, 1, 2, 2, 2]), (0, 1, 3))
    choice = classifier.choose(np.array([1.1]))
    assert (choice.cluster, choice.confidence) == (1, pytest.approx(1 / 3))
    choice = classifier.choose(np.array([9.2]))
    assert (choice.cluster, choice.confidence) == (2, 1.0)


def test_a_point_between_two_medoids_goes_to_the_first_without_confidence():
    features = np.array([[0.0], [2.0], [4.0]])
    classifier = fit("nearest medoid", features, np.array([0, 0, 1]), (0, 2))
    choice = classifier.choose(np.array([2.0]))
    assert (choice.cluster, choice.confidence) == (0, pytest.approx(0.5))
    twins = fit("nearest medoid", np.zeros((2, 1)), np.array([0, 1]), (0, 1)).choose(np.zeros(1))
    assert (twins.cluster, twins.confidence) == (0, 0.5)


@pytest.mark.parametrize("method", RULES)
def test_one_cluster_is_always_right(method):
    classifier = fit(method, np.array([[1.0], [2.0], [5.0]]), np.zeros(3, int), (1,))
    choice = classifier.choose(np.array([-70.0]))
    assert (choice.cluster, choice.confidence) == (0, 1.0)


@pytest.mark.parametrize("method", RULES)
def test_units_of_the_features_do_not_matter_and_constant_ones_do_no_harm(method):
    features, labels, medoids = half_planes(7)
    other = np.column_stack([features * [1e-7, 50.0] + 3.0, np.full(len(features), 0.1)])
    first, second = fit(method, features, labels, medoids), fit(method, other, labels, medoids)
    for x in half_planes(11)[0]:
        one, two = first.choose(x), second.choose(np.append(x * [1e-7, 50.0] + 3.0, 0.1))
        assert one.cluster == two.cluster
        assert one.confidence == pytest.approx(two.confidence, abs=1e-3)


def test_features_scaled_together_keep_their_proportions():
    rng = np.random.default_rng(7)
    features = np.column_stack([rng.normal(size=50), 3 * rng.normal(size=50), 1e-6 * rng.normal(size=50)])
    classifier = fit("nearest medoid", features, np.arange(50) % 2, (0, 1), together=2)
    deviations = features.std(axis=0)
    joint = np.hypot(deviations[1], deviations[2])
    np.testing.assert_allclose(classifier.scale, [deviations[0], joint, joint])


@pytest.mark.parametrize("method", RULES)
def test_a_classifier_survives_json(method):
    features, labels, medoids = half_planes(7)
    classifier = fit(method, features, labels, medoids, accuracies={method: 0.75})
    again = Classifier.from_dict(json.loads(json.dumps(classifier.to_dict(), allow_nan=False)))
    assert (again.method, again.accuracies) == (method, {method: 0.75})
    for x in half_planes(11)[0]:
        assert again.choose(x) == classifier.choose(x)


@pytest.mark.parametrize("features", [np.ones(3), np.ones((1, 2)), np.array([1.0, np.nan]), np.array([np.inf, 1.0])])
def test_samples_with_other_features_are_refused(features):
    with pytest.raises(ValueError, match="trained with 2 finite numbers"):
        classify(*half_planes(7)).choose(features)


def test_training_features_must_fit_and_be_finite():
    features, labels, medoids = half_planes(7)
    with pytest.raises(ValueError, match=r"features of shape \(60, 2\) for \(59,\) labels"):
        classify(features, labels[:-1], medoids)
    features[8, 1] = np.nan
    with pytest.raises(ValueError, match="features of sample 8 hold NaN or inf"):
        classify(features, labels, medoids)


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="no classifier 'oracle'; choose nearest medoid, logistic"):
        fit("oracle", *half_planes(7))
    content = classify(*half_planes(7)).to_dict() | {"method": "tree"}
    with pytest.raises(ValueError, match="no classifier 'tree'"):
        Classifier.from_dict(content)
