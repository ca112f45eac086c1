"""Draw random numbers that depend only on a seed and on keys (integers), not on earlier random numbers."""

import os

import numpy as np
import torch
from torch import Tensor


def combine_seeds(*numbers: int) -> int:
    """Hash all ``numbers`` to one seed in [0, 2**63) with splitmix64 (Steele et al. 2014)."""
    state = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        state = _splitmix(state ^ np.uint64(number % 2**64))
    return int(state[0] >> np.uint64(1))


def draw_uniform(seed: int, keys: Tensor, count: int) -> Tensor:
    """Draw ``count`` uniform numbers in [0, 1) for each key: (B, count) float32. ``keys`` is (B,) int64."""
    counters = keys.numpy().astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    bits = _splitmix(_splitmix(counters) ^ np.uint64(combine_seeds(seed)))
    return torch.from_numpy((bits >> np.uint64(40)).astype(np.float32) / np.float32(2**24))


def _splitmix(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def combine_with_run_seed(seed: int) -> int:
    """Combine ``seed`` with the seed of the run. The order and the augmentation use the result.

    Splits and generated data use only ``seed``, so that runs with different seeds use the same data.
    """
    return combine_seeds(seed, int(os.environ.get("PL_GLOBAL_SEED", 0)))
