"""Find near duplicates: pictures whose perceptual hashes differ in few bits."""

from __future__ import annotations

import numpy as np

MAX_HASH_DISTANCE = 3  # bits; the perceptual hashes (64 bits) of near duplicates differ in at most this many
MAX_NEIGHBORS = 100  # hashes with an equal part are compared with this many of them, so that 60,000 take seconds


def group_near_duplicates(hashes: np.ndarray, first_copies: np.ndarray) -> np.ndarray:
    """Return, for each picture, the index of the first picture of its group of near duplicates: int array (n,).

    Two pictures are in the same group if their `hashes` (uint64) differ in at most MAX_HASH_DISTANCE bits, or if a
    chain of such pairs connects them. `first_copies` is from :func:`~datamodules.photos.scan.first_with_same_content`.
    """
    bits = _count_bits(hashes)
    # Pictures of one color or an even gradient have almost only 0 bits or only 1 bits, and would all be in one group.
    is_usable = (bits > MAX_HASH_DISTANCE) & (bits < 64 - MAX_HASH_DISTANCE)
    usable = np.flatnonzero((first_copies == np.arange(len(first_copies))) & is_usable)
    pairs = usable[_find_near_pairs(hashes[usable])]
    left, right = np.concatenate([pairs, pairs[::-1]], axis=1)
    group = np.arange(len(hashes))
    while True:  # in each round, a picture gets the lowest group index of its near duplicates, until nothing changes
        lower = group.copy()
        np.minimum.at(lower, left, group[right])
        if (lower == group).all():
            return group[first_copies]
        group = lower


def _find_near_pairs(hashes: np.ndarray) -> np.ndarray:
    """Return the indices, (2, pairs), of all pairs of hashes that differ in at most MAX_HASH_DISTANCE bits."""
    # Such a pair has equal bits in at least one of MAX_HASH_DISTANCE + 1 bands, so other pairs are not compared.
    width = 64 // (MAX_HASH_DISTANCE + 1)
    pairs = [np.empty((2, 0), np.int64)]
    for band in range(MAX_HASH_DISTANCE + 1):
        values = hashes >> np.uint64(width * band) & np.uint64((1 << width) - 1)
        order = np.argsort(values, kind="stable")
        values = values[order]
        left, step = np.arange(len(order)), 1
        while len(left := left[left + step < len(order)]) and step <= MAX_NEIGHBORS:
            left = left[values[left] == values[left + step]]
            pair = order[np.stack([left, left + step])]
            pairs.append(pair[:, _count_bits(hashes[pair[0]] ^ hashes[pair[1]]) <= MAX_HASH_DISTANCE])
            step += 1
    return np.concatenate(pairs, axis=1)


def _count_bits(values: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)
