"""What measured accuracies say about the true ones."""

from math import sqrt
from statistics import NormalDist


def wilson(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927): unlike the normal approximation it keeps its promise near 0 and 1.

    Args:
        right: successes, 0 to ``total``.
        total: trials; with 0 nothing is known: (0, 1).
    """
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, z2 = right / total, z * z / total
    centre = (share + z2 / 2) / (1 + z2)
    half = z * sqrt(share * (1 - share) / total + z2 / (4 * total)) / (1 + z2)
    # At the ends the formula is 0 and 1 but for rounding.
    return (centre - half if right > 0 else 0.0), (centre + half if right < total else 1.0)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact p-value of two classifiers being equally good (McNemar 1947; binomial form).

    Args:
        only_first: samples that the first alone answered right.
        only_second: samples that the second alone answered right.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    tail, ways = 0, 1  # how many of the 2**n ways to share n samples out are at least as uneven on this side
    for k in range(least + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)
