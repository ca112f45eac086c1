"""Intervals and tests for accuracies, calibration of probabilities, sets of classes, and wrong labels."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import atan2, ceil, exp, inf, log, pi, sqrt
from statistics import NormalDist, fmean, mean, variance

import numpy as np

REPEATS = 200  # resamples
PRIOR_SAMPLES = 10
"""Samples that :func:`fit_temperature` adds. They keep the temperature finite if all labels are right or wrong."""


def wilson_interval(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return both ends of the confidence interval of a proportion (Wilson 1927). Without trials it is (0, 1)."""
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    proportion, z2 = successes / trials, z * z / trials
    center = (proportion + z2 / 2) / (1 + z2)
    half_width = z * sqrt(proportion * (1 - proportion) / trials + z2 / (4 * trials)) / (1 + z2)
    # without successes low is exactly 0, without failures high is exactly 1; the formula has rounding errors
    return center - half_width if successes > 0 else 0.0, center + half_width if successes < trials else 1.0


def folds_interval(accuracies: Sequence[float], folds: int, samples: int) -> tuple[float, float]:
    """Return both ends of the 95 % interval of the accuracy from repeated cross-validation.

    ``accuracies`` are those of all folds of all repeats. The interval is that of Wilson for the number of independent
    samples with the variance of their mean, at most ``samples``: so it is never empty, also if each fold is perfect.
    """
    mean, spread = fmean(accuracies), _variance_of_mean(accuracies, 1 / folds)
    size = min(samples, mean * (1 - mean) / spread) if spread > 0 else samples
    return wilson_interval(mean * size, size)


def _variance_of_mean(values: Sequence[float], test_share: float) -> float:
    """Return the variance of the mean of J folds that test ``test_share`` of all samples (Nadeau and Bengio 2003).

    It is larger than 1/J times the variance of the values, because the training sets overlap.
    """
    return variance(values) * (1 / len(values) + test_share / (1 - test_share))


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test for the samples that only one classifier has right."""
    n, smaller = only_first + only_second, min(only_first, only_second)
    tail, coefficient = 0, 1  # tail: number of outcomes on one side that are at least as extreme
    for k in range(smaller + 1):
        tail += coefficient
        coefficient = coefficient * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def difference_interval(both: int, only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """Return both ends of the 95 % interval of accuracy 2 - accuracy 1 on the same ``n`` samples.

    The counts are those of samples that both, or only one, have right. Source: Newcombe 1998, paired data, method 10.
    """
    a, b = both + only_first, both + only_second
    (a_low, a_high), (b_low, b_high) = wilson_interval(a, n), wilson_interval(b, n)
    shared = both * (n - a - only_second) - only_first * only_second
    r = min(shared, max(shared - n / 2, 0)) / sqrt(max(1, a * (n - a) * b * (n - b)))  # correlation of the answers
    ends = (b / n - b_low, a_high - a / n), (b_high - b / n, a / n - a_low)
    low, high = (sqrt(x * x - 2 * r * x * y + y * y) for x, y in ends)
    return (b - a) / n - low, (b - a) / n + high


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the number by which logits (N, K) are divided so that the log loss of ``labels`` (N,) is lowest.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks". The result is from 0.05 to 20.
    :data:`PRIOR_SAMPLES` samples with labels from the network's own probabilities, which fit the temperature 1, are
    added. Rows that are not finite are left out; the log of 0 counts as finite.
    """
    logits = np.asarray(logits, np.float64)
    logits = np.maximum(logits, logits.max(1, keepdims=True, initial=-inf) - 100)
    is_finite = np.isfinite(logits).all(1)
    logits, labels = logits[is_finite], np.asarray(labels)[is_finite]
    logits = logits - logits.max(1, keepdims=True, initial=-inf)
    if not logits.any():  # there are no rows, or the logits of each row are equal
        return 1.0

    def mean_logit(factor: float) -> float:  # under the probabilities for logits * factor
        weights = np.exp(logits * factor)
        return float(((weights * logits).sum(1) / weights.sum(1)).mean())

    observed, count = logits[np.arange(len(labels)), labels].mean(), len(labels)
    target = (count * observed + PRIOR_SAMPLES * mean_logit(1.0)) / (count + PRIOR_SAMPLES)
    low, high = -log(20.0), log(20.0)  # the loss is convex in the factor 1 / temperature: its slope is 0 once
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_logit(exp(middle)) < target else (low, middle)
    return exp(-(low + high) / 2)


def samples_for_coverage(coverage: float) -> int:
    """Return the smallest number of scores for which :func:`conformal_threshold` is finite."""
    share = Fraction(str(coverage))
    return ceil(share / (1 - share))


def conformal_threshold(scores: np.ndarray, coverage: float) -> float:
    """Return the score that a new sample's true class does not exceed with probability ``coverage`` or more.

    It is the ceil((n + 1) * coverage)-th of the n sorted ``scores``, infinite if n is too small. The n samples and the
    new one must be exchangeable. Source: Vovk et al. 2005, "Algorithmic Learning in a Random World".
    """
    rank = ceil((len(scores) + 1) * Fraction(str(coverage)))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else inf


def calibration_error(confidences: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error (Naeini et al. 2015) of n predictions: 0 to 1, as in torchmetrics.

    ``confidences`` are the probabilities of the predicted classes, ``right`` is True where these are the true ones.
    """
    places = np.digitize(confidences, np.linspace(0, 1, bins + 1, dtype=np.float32))  # a confidence of 1 is apart
    gaps = np.bincount(places, confidences.astype(np.float64) - right)
    return float(np.abs(gaps).sum() / len(confidences))


def chance_error(confidences: np.ndarray) -> float:
    """Return the 95 % quantile of the calibration error if each confidence is exactly the probability to be right.

    Source: Vaicenavicius et al. 2019, "Evaluating model calibration in classification" (consistency resampling).
    """
    draw, n = np.random.default_rng(0).random, len(confidences)
    return float(np.quantile([calibration_error(confidences, draw(n) < confidences) for _ in range(REPEATS)], 0.95))


def bootstrap_interval(statistic: Callable[[np.ndarray], float], n: int) -> tuple[float, float]:
    """Return the 95 % percentile interval (Efron 1979) of a statistic of row numbers, from resamples of n rows."""
    random = np.random.default_rng(0)
    low, high = np.quantile([statistic(random.integers(n, size=n)) for _ in range(REPEATS)], (0.025, 0.975))
    return float(low), float(high)


def student_t_p_value(t: float, degrees: int) -> float:
    """Return the two-sided p-value of Student's t: its density becomes sin(x) ** (degrees - 1) on 0 to pi / 2."""
    middles, end = (np.arange(10_000) + 0.5) / 10_000, atan2(sqrt(degrees), abs(t))
    tail, half = ((np.sin(middles * x) ** (degrees - 1)).mean() * x for x in (end, pi / 2))
    return float(tail / half)


def student_t_limit(degrees: int) -> float:
    """Return the t whose two-sided p-value is 0.05, rounded up to five decimals; 12.70621 for one degree of freedom."""
    steps = range(1_300_000)  # the p-value falls from 1 to less than 0.05, so its negative rises
    return bisect_left(steps, -0.05, key=lambda step: -student_t_p_value(step / 1e5, degrees)) / 1e5


def corrected_t_test(differences: Sequence[float], test_share: float) -> tuple[float, float]:
    """Return the two-sided p-value of the corrected resampled t-test (Nadeau and Bengio 2003), and its margin.

    ``differences`` are those of two accuracies, for two or more folds. A fold tests ``test_share`` of all samples. If
    the variance is 0, the p-value is 1 or 0. The 95 % interval of the difference is their mean +- the margin.
    """
    average, error, degrees = mean(differences), sqrt(_variance_of_mean(differences, test_share)), len(differences) - 1
    p = student_t_p_value(average / error, degrees) if error else float(average == 0)
    return p, error * student_t_limit(degrees)


def find_label_issues(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the indices of samples whose label is probably wrong, the lowest probability of the label first.

    ``labels`` (N,) are int; ``probabilities`` (N, K) are from networks that were not trained on the sample. Confident
    learning, pruned by noise rate (Northcutt et al. 2021), with the details of cleanlab's function of this name.
    """
    classes, own = np.arange(probabilities.shape[1]), probabilities[np.arange(len(labels)), labels]
    is_class = labels[:, None] == classes
    counts = is_class.sum(0)
    thresholds = np.where(counts > 0, own @ is_class / counts.clip(1), np.inf).clip(2e-6)
    confident = probabilities >= thresholds - 1e-6
    guess = np.where(confident.sum(1) > 1, probabilities.argmax(1), confident.argmax(1))
    joint = is_class.T.astype(float) @ (confident.any(1, keepdims=True) & (guess[:, None] == classes))
    np.fill_diagonal(joint, joint.diagonal().clip(1))
    joint *= (counts / joint.sum(1))[:, None]  # the estimated number of samples by label and true class
    lost = (counts - np.rint(joint).sum(1))[:, None]  # rounding must not change the sum of a row
    place = (joint - np.rint(joint)).argsort(1).argsort(1)
    joint = np.rint(joint) + np.sign(lost) * (np.where(lost > 0, classes[::-1][place], place) < abs(lost))
    found = np.zeros(len(labels), bool)
    for label, other in np.argwhere((joint >= 1) & (counts[:, None] > 1) & (classes[:, None] != classes)):
        rows = np.flatnonzero(is_class[:, label])
        margin = probabilities[rows, label] - probabilities[rows, other]
        found[rows[margin.argsort()[: int(joint[label, other])]]] = True
    found &= probabilities.max(1) > own + 1e-6
    return np.flatnonzero(found)[own[found].argsort(kind="stable")]
