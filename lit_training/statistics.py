"""Intervals and tests for accuracies, calibration of probabilities, and sets of classes with a stated coverage."""

from collections.abc import Callable
from fractions import Fraction
from math import ceil, exp, inf, log, sqrt
from statistics import NormalDist

import numpy as np

REPEATS = 200  # resamples
PRIOR_SAMPLES = 10
"""Samples that :func:`fit_temperature` adds. They keep the temperature finite if all labels are right or wrong."""


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return both ends of the confidence interval of a proportion (Wilson 1927). Without trials it is (0, 1)."""
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    proportion, z2 = successes / trials, z * z / trials
    center = (proportion + z2 / 2) / (1 + z2)
    half_width = z * sqrt(proportion * (1 - proportion) / trials + z2 / (4 * trials)) / (1 + z2)
    # without successes low is exactly 0, without failures high is exactly 1; the formula has rounding errors
    low = center - half_width if successes > 0 else 0.0
    high = center + half_width if successes < trials else 1.0
    return low, high


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test for the samples that only one classifier has right."""
    n, smaller = only_first + only_second, min(only_first, only_second)
    tail, coefficient = 0, 1  # tail: number of outcomes on one side that are at least as extreme
    for k in range(smaller + 1):
        tail += coefficient
        coefficient = coefficient * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


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
    gaps = np.bincount(np.ceil(confidences * bins).astype(int), confidences.astype(np.float64) - right)
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
