"""Intervals and tests of accuracies, compared with published values, SciPy and simulations."""

from itertools import product
from math import comb
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, t

from datamodules.loading.folds import assign_folds
from lit_training.statistics import (
    corrected_t_test,
    difference_interval,
    find_label_issues,
    folds_interval,
    mcnemar_p_value,
    student_t_p_value,
    wilson_interval,
)
from lit_training.trained.compare import SIGNIFICANCE_LEVEL


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(right: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(right, total) == pytest.approx((low, high), abs=5e-5)


def test_interval_without_samples_is_0_to_1() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 10_000), st.data())
def test_interval_contains_the_share_and_is_symmetric(total: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, total))
    low, high = wilson_interval(right, total)
    assert 0 <= low <= right / total <= high <= 1
    assert wilson_interval(total - right, total) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(right, total, 0.5)[1] <= high


@pytest.mark.parametrize(("share", "n"), [*product([0.02, 0.5, 0.83, 0.99], [50, 1000])])
def test_coverage_of_the_interval_by_simulation(share: float, n: int) -> None:
    random = np.random.default_rng(0)
    hits = [low <= share <= high for low, high in (wilson_interval(int(k), n) for k in random.binomial(n, share, 4000))]
    # Near 0 and 1 the coverage varies around 95 %, but is at least 0.91 here (Brown, Cai and DasGupta 2001).
    assert 0.91 < np.mean(hits) < 0.99


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [  # Newcombe 1998, "Improved confidence intervals ... based on paired data", table III, method 10
        ((36, 2, 12, 0), 0.0569, 0.3404),
        ((43, 0, 7, 0), 0.0397, 0.2619),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((80, 0, 15, 5), 0.0796, 0.2317),  # by hand: the correlation is (80 * 5 - 50) / sqrt(80 * 20 * 95 * 5)
    ],
)
def test_interval_of_a_difference(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    both, only_first, only_second, _ = counts
    assert difference_interval(both, only_first, only_second, sum(counts)) == pytest.approx((low, high), abs=5e-5)
    assert difference_interval(both, only_second, only_first, sum(counts)) == pytest.approx((-high, -low), abs=5e-5)


@pytest.mark.parametrize("shares", [(0.7, 0.1, 0.15, 0.05), (0.85, 0.05, 0.05, 0.05), (0.2, 0.4, 0.3, 0.1)])
@pytest.mark.parametrize("n", [38, 153, 1000])
def test_coverage_of_the_difference_by_simulation(n: int, shares: tuple[float, ...]) -> None:
    draws = np.random.default_rng(0).multinomial(n, shares, 3000).tolist()
    ends = [difference_interval(both, one, other, n) for both, one, other, _ in draws]
    assert 0.93 < np.mean([low <= shares[2] - shares[1] <= high for low, high in ends]) < 0.995


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_binomial_test(one: int, other: int) -> None:
    expected = binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar_p_value(one, other) == pytest.approx(expected)
    assert mcnemar_p_value(one, other) == mcnemar_p_value(other, one)


def test_mcnemar_of_many_samples() -> None:
    assert mcnemar_p_value(5000, 5300) == pytest.approx(binomtest(5000, 10300).pvalue)


@pytest.mark.parametrize("apart", [5, 20, 60, 200])
def test_false_positive_rate_is_at_most_the_level(apart: int) -> None:
    """Sum over all outcomes of two equally good networks that differ on ``apart`` samples."""
    share = (
        sum(comb(apart, k) for k in range(apart + 1) if mcnemar_p_value(k, apart - k) < SIGNIFICANCE_LEVEL) / 2**apart
    )
    assert share <= SIGNIFICANCE_LEVEL


def test_false_positives_by_simulation() -> None:
    """2,000 pairs of equally good networks on 300 samples of different difficulty."""
    random = np.random.default_rng(0)
    found = 0
    for _ in range(2000):
        easy = random.beta(4, 1, 300)
        one, other = random.random(300) < easy, random.random(300) < easy
        found += mcnemar_p_value(int((one & ~other).sum()), int((other & ~one).sum())) < SIGNIFICANCE_LEVEL
    assert 0.01 < found / 2000 <= 0.05


# --- folds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 14, 29, 299])
def test_student_t_equals_scipy(degrees: int) -> None:
    for value in (0.0, 0.1, -1.0, 2.2, 5.0, 40.0):
        assert student_t_p_value(value, degrees) == pytest.approx(2 * t.sf(abs(value), degrees), rel=1e-5, abs=1e-12)


def test_corrected_t_test_by_hand() -> None:
    """Five folds: the variance is 0.025 and its factor 1/5 + 1/4, so t = 0.2 / sqrt(0.45 * 0.025)."""
    differences = [0.0, 0.1, 0.2, 0.3, 0.4]
    expected = 2 * t.sf(0.2 / (0.45 * 0.025) ** 0.5, 4)
    assert corrected_t_test(differences, 1 / 5)[0] == pytest.approx(expected, rel=1e-5)
    assert corrected_t_test([-value for value in differences], 1 / 5)[0] == pytest.approx(expected, rel=1e-5)
    assert corrected_t_test(differences, 1 / 5)[1] == pytest.approx(t.ppf(0.975, 4) * (0.45 * 0.025) ** 0.5, rel=1e-4)
    assert corrected_t_test([0.0, 1.0], 1 / 2)[1] == pytest.approx(t.ppf(0.975, 1) * 0.75**0.5, rel=1e-4)
    assert [corrected_t_test([value] * 5, 1 / 5) for value in (0.0, 0.5)] == [(1.0, 0.0), (0.0, 0.0)]


def nearest_mean_accuracies(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> list[float]:
    """Return the accuracy in each fold of a classifier that chooses the class with the nearest mean."""
    found = []
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        means = np.stack([x[train & (y == label)].mean(0) for label in (0, 1)])
        found.append(float((((x[test, None] - means) ** 2).sum(2).argmin(1) == y[test]).mean()))
    return found


def test_false_positives_of_folds_by_simulation() -> None:
    """Two learners that are equally good: each sees half of the features. 5 folds, 3 repeats, 100 samples."""
    random, y = np.random.default_rng(0), np.arange(100) % 2
    corrected, plain, runs = 0, 0, 400
    for _ in range(runs):
        x = random.normal(size=(100, 8)) + 0.5 * y[:, None]
        differences: list[float] = []
        for _ in range(3):
            folds = random.permutation(np.arange(100) % 5)
            one, other = (nearest_mean_accuracies(half, y, folds) for half in (x[:, :4], x[:, 4:]))
            differences += np.subtract(one, other).tolist()
        corrected += corrected_t_test(differences, 1 / 5)[0] < SIGNIFICANCE_LEVEL
        plain += corrected_t_test(differences, 0.0)[0] < SIGNIFICANCE_LEVEL
    assert 0.02 <= corrected / runs <= 0.08
    assert plain / runs > 0.15  # the t-test without the correction


# --- wrong labels -----------------------------------------------------------------------------------------------------


def noisy_labels(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (n,) with about 10 % wrong ones, and probabilities (n, K), as of a network of any strength."""
    random = np.random.default_rng(seed)
    classes, n = int(random.integers(2, 12)), int(random.integers(60, 600))
    true = np.concatenate([np.arange(classes), random.integers(0, classes, n)])
    logits = random.normal(size=(len(true), classes))
    logits[np.arange(len(true)), true] += random.uniform(1, 5)
    logits *= random.uniform(0.3, 3)
    logits[:, -1] -= 4 * (seed % 2)  # a class that is rarely predicted
    labels = np.where(random.random(len(true)) < 0.1, random.integers(0, classes, len(true)), true)
    labels[:classes] = np.arange(classes)
    return labels, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_wrong_labels_are_those_of_cleanlab() -> None:
    """The order too. Equal remainders are rounded up in any order, so that one sample may differ."""
    cleanlab = pytest.importorskip("cleanlab.filter")
    equal = 0
    for seed in range(100):
        labels, probabilities = noisy_labels(seed)
        options = {"return_indices_ranked_by": "self_confidence", "n_jobs": 1}
        expected = cleanlab.find_label_issues(labels, probabilities, **options).tolist()
        found = find_label_issues(labels, probabilities).tolist()
        equal += found == expected
        assert len(set(found) ^ set(expected)) <= 1
    assert equal >= 90


def test_a_class_without_samples_and_no_samples() -> None:
    labels, probabilities = noisy_labels(0)
    wider = np.concatenate([probabilities, np.zeros((len(labels), 1))], axis=1)
    with np.errstate(all="raise"):
        found = find_label_issues(labels, wider).tolist()
    assert found == find_label_issues(labels, probabilities).tolist() != []
    assert find_label_issues(np.zeros(0, int), np.zeros((0, 3))).tolist() == []


def test_the_interval_from_folds_is_nadeau_and_bengios_variance_in_wilsons_interval() -> None:
    accuracies = [0.8, 0.9, 0.7, 0.85, 0.75, 0.8]
    variance = (1 / 6 + 1 / 2) * 0.005  # of the mean; the sample variance is 0.005
    size = 0.8 * 0.2 / variance
    assert folds_interval(accuracies, 3, 60) == pytest.approx(wilson_interval(0.8 * size, size))
    assert folds_interval(accuracies, 3, 40) == pytest.approx(wilson_interval(32, 40)), "never of more samples"
    assert folds_interval([1.0] * 6, 3, 40) == wilson_interval(40, 40), "not empty if each fold is perfect"


def test_the_interval_from_folds_covers_the_accuracy_of_the_model_trained_on_all() -> None:
    """Of 200 data sets with 200 samples. The model is a nearest mean classifier; its true accuracy is known exactly."""
    random, covered, center, cdf = np.random.default_rng(0), 0, np.full(10, 0.2), NormalDist().cdf
    y = np.arange(200) % 2
    divisions = [assign_folds(y, np.arange(200), 5, seed) for seed in range(30)]
    for number in range(200):
        x = random.normal(size=(200, 10)) + np.where(y, 1, -1)[:, None] * center
        found = []
        for fold_of in divisions[number % 10 * 3 :][:3]:
            for part in (fold_of == fold for fold in range(5)):
                slope, middle = nearest_mean(x[~part], y[~part])
                found.append(float((((x[part] - middle) @ slope > 0) == y[part]).mean()))
        slope, middle = nearest_mean(x, y)
        distances = [side * float((side * center - middle) @ slope) / float(np.sqrt(slope @ slope)) for side in (1, -1)]
        low, high = folds_interval(found, 5, 200)
        covered += low <= sum(map(cdf, distances)) / 2 <= high
    assert covered / 200 >= 0.93


def nearest_mean(x: Any, y: Any) -> Any:
    """Return slope and middle: the class is 1 if (x - middle) @ slope > 0."""
    means = [x[y == label].mean(0) for label in (0, 1)]
    return means[1] - means[0], (means[0] + means[1]) / 2
