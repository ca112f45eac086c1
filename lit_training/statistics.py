"""Compute the confidence interval of an accuracy, and test whether two accuracies differ."""

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist, fmean, variance


def wilson_interval(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
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


def folds_interval(
    accuracies: Sequence[float], folds: int, samples: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return both ends of the confidence interval of the accuracy from repeated cross-validation.

    ``accuracies`` are those of all J folds of all repeats. Their training sets overlap, so the variance of their mean
    is (1/J + 1/(folds - 1)) times theirs (Nadeau and Bengio 2003). The interval is that of Wilson for the number of
    independent samples with this variance, at most ``samples``: so it is never empty, also if each fold is perfect.
    """
    mean = fmean(accuracies)
    spread = variance(accuracies) * (1 / len(accuracies) + 1 / (folds - 1))
    size = min(samples, mean * (1 - mean) / spread) if spread > 0 else samples
    return wilson_interval(mean * size, size, confidence)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test for the samples that only one classifier has right."""
    n, smaller = only_first + only_second, min(only_first, only_second)
    tail, coefficient = 0, 1  # tail: number of outcomes on one side that are at least as extreme
    for k in range(smaller + 1):
        tail += coefficient
        coefficient = coefficient * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)
