"""Draw random numbers that depend only on a seed and on keys (integers), not on earlier random numbers."""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor


def combine_seeds(*numbers: int) -> int:
    """Hash all ``numbers`` to one seed in [0, 2**63) with splitmix64 (Steele et al. 2014)."""
    state = np.zeros(1, dtype=np.int64)
    for number in numbers:
        state = _splitmix(state ^ np.array(number % 2**64, np.uint64).astype(np.int64))
    return int(_shift_right(state, 1)[0])


def draw_uniform(seed: int, keys: Tensor, count: int) -> Tensor:
    """Draw ``count`` uniform numbers in [0, 1) for each key: (B, count) float32, on the device of the keys.

    ``keys`` is (B,) int64. All devices draw the same numbers.
    """
    counters = keys[:, None] * count + torch.arange(count, device=keys.device)
    bits = _splitmix(_splitmix(counters) ^ combine_seeds(seed))
    return _shift_right(bits, 40).float() / 2**24


def _splitmix(x: Any) -> Any:
    """Hash each number of an int64 array or tensor. The signed constants have the bits of the published ones."""
    x = x - 0x61C8864680B583EB
    x = (x ^ _shift_right(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift_right(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift_right(x, 31)


def _shift_right(x: Any, bits: int) -> Any:
    """Shift int64 numbers as if they had no sign: torch cannot compute with uint64."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def combine_with_run_seed(seed: int) -> int:
    """Combine ``seed`` with the seed of the run. The order and the augmentation use the result.

    Splits and generated data use only ``seed``, so that runs with different seeds use the same data.
    """
    return combine_seeds(seed, int(os.environ.get("PL_GLOBAL_SEED", 0)))
