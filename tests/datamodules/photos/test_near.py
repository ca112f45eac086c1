"""The search for near duplicates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.photos import near
from datamodules.photos.near import MAX_HASH_DISTANCE


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.data())
@settings(deadline=None)
def test_near_pairs_finds_all_near_pairs(hashes: list[int], data: st.DataObject) -> None:
    for value in list(hashes):  # because two random hashes are never near
        bits = data.draw(st.sets(st.integers(0, 63), max_size=5))
        hashes.append(value ^ sum(1 << bit for bit in bits))
    one, other = near._find_near_pairs(np.array(hashes, np.uint64))
    found = {frozenset(pair) for pair in zip(one.tolist(), other.tolist(), strict=True)}
    assert found == {
        frozenset((i, j))
        for i in range(len(hashes))
        for j in range(i)
        if (hashes[i] ^ hashes[j]).bit_count() <= MAX_HASH_DISTANCE
    }


def test_near_pairs_compares_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    count_bits = near._count_bits

    def counted(values: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(values)
        return count_bits(values)

    monkeypatch.setattr(near, "_count_bits", counted)
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, np.uint64)
    hashes[-1] = hashes[0] ^ np.uint64(0b101)
    one, other = near._find_near_pairs(hashes)
    assert compared < 1_000_000  # all pairs are 5,000,000,000
    assert (one.tolist(), other.tolist()) in (([0] * 3, [99_999] * 3), ([99_999] * 3, [0] * 3))


def test_many_similar_hashes_are_compared_with_few_neighbors_and_stay_one_group() -> None:
    """All pairs of 3,000 frames of a static camera would need 4.5 million comparisons in each of four bands."""
    frames = np.uint64(0x0F0F_F0F0_3C3C_C3C3) ^ (np.uint64(1) << np.arange(3000, dtype=np.uint64) % np.uint64(64))
    assert near._find_near_pairs(frames).shape[1] <= 4 * near.MAX_NEIGHBORS * len(frames)
    assert set(near.group_near_duplicates(frames, np.arange(3000))) == {0}
