"""Confidence intervals and tests of accuracies."""

from math import sqrt
from statistics import NormalDist


def wilson_interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of a proportion (Wilson 1927), which is also accurate near 0 and 1.

    Args:
        right: number of successes.
        total: number of trials; the interval is (0, 1) for 0 trials.
    """
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, z2 = right / total, z * z / total
    centre = (share + z2 / 2) / (1 + z2)
    half = z * sqrt(share * (1 - share) / total + z2 / (4 * total)) / (1 + z2)
    # At the ends the formula gives 0 and 1 except for rounding.
    return (centre - half if right > 0 else 0.0), (centre + half if right < total else 1.0)


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the p-value of McNemar's exact test (1947): are two classifiers equally good?

    Args:
        only_first: number of samples that only the first classifier got right.
        only_second: number of samples that only the second classifier got right.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    tail, ways = 0, 1  # tail: how many of the 2**n outcomes are at least as extreme, on one side
    for k in range(least + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)
