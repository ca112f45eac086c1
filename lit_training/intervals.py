"""What a measured accuracy says about the true one."""

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
