"""Random numbers depend only on seed and key, and are uniform and independent."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.loading.seeds import combine_seeds, draw_uniform

SEEDS = st.integers(-(2**63), 2**64)


@given(SEEDS, st.lists(st.integers(-1, 2**62), min_size=1, max_size=20), st.integers(1, 6))
def test_uniform_numbers_depend_only_on_seed_and_key(seed: int, keys: list[int], count: int) -> None:
    numbers = draw_uniform(seed, torch.tensor(keys), count)
    assert numbers.shape == (len(keys), count)
    assert numbers.dtype == torch.float32
    assert ((numbers >= 0) & (numbers < 1)).all()
    for row, key in zip(numbers, keys, strict=True):  # not on the other keys
        assert torch.equal(row, draw_uniform(seed, torch.tensor([key]), count)[0])


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_uniform_numbers_are_uniform_and_independent() -> None:
    numbers = draw_uniform(7, torch.arange(20_000), 5).numpy()
    # 161.3 is the 99.99 % quantile of chi-square with 99 degrees of freedom.
    for column in range(5):
        assert chi_square(np.histogram(numbers[:, column], 100, (0, 1))[0]) < 161.3
    for column in range(4):
        pair = np.histogram2d(numbers[:, column], numbers[:, column + 1], 10, [(0, 1), (0, 1)])[0]
        assert chi_square(pair) < 161.3
    following = np.histogram2d(numbers[:-1, 0], numbers[1:, 0], 10, [(0, 1), (0, 1)])[0]
    other_seed = np.histogram2d(numbers[:, 0], draw_uniform(8, torch.arange(20_000), 5).numpy()[:, 0], 10)[0]
    assert max(chi_square(following), chi_square(other_seed)) < 161.3


@given(st.lists(SEEDS, min_size=1, max_size=4))
def test_combined_seeds_are_accepted_by_torch(numbers: list[int]) -> None:
    seed = combine_seeds(*numbers)
    assert 0 <= seed < 2**63
    assert combine_seeds(*numbers) == seed
    torch.Generator().manual_seed(seed)


def test_combined_seeds_differ_for_different_arguments() -> None:
    seeds = {combine_seeds(a, b) for a in range(100) for b in range(100)} | {combine_seeds(a) for a in range(100)}
    assert len(seeds) == 10_100
