"""Compute the confidence interval of an accuracy, test whether two accuracies differ, and find wrong labels."""

from collections.abc import Sequence
from math import atan2, pi, sqrt
from statistics import NormalDist, mean, variance

import numpy as np


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


def student_t_p_value(t: float, degrees: int) -> float:
    """Return the two-sided p-value of Student's t: its density becomes sin(x) ** (degrees - 1) on 0 to pi / 2."""
    middles, end = (np.arange(10_000) + 0.5) / 10_000, atan2(sqrt(degrees), abs(t))
    tail, half = ((np.sin(middles * x) ** (degrees - 1)).mean() * x for x in (end, pi / 2))
    return float(tail / half)


def corrected_t_p_value(differences: Sequence[float], test_share: float) -> float:
    """Return the two-sided p-value of the corrected resampled t-test (Nadeau and Bengio 2003).

    ``differences`` are those of two accuracies, for two or more folds. A fold tests ``test_share`` of all samples. The
    variance is corrected for the training samples that folds have in common. If it is 0, the p-value is 1 or 0.
    """
    error = sqrt((1 / len(differences) + test_share / (1 - test_share)) * variance(differences))
    average = mean(differences)
    return student_t_p_value(average / error, len(differences) - 1) if error else float(average == 0)


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
