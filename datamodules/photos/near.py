"""Find near duplicates (changed copies of a picture, frames of a burst), and group the pictures that stay together.

Candidates are two pictures of which each is one of the 20 nearest of the other, by the low frequencies of their gray
thumbnails in any of the eight turns and mirror images. An affine change (shift, zoom, small turn) then aligns the two.
They are near if the distance, 1 - correlation of the fine structure, is small, also compared with the distance to the
20th neighbor of both: in a folder of scans or digits, where all pictures look alike, only copies stand out.
"""

from __future__ import annotations

import contextlib
import hashlib
import re

import numpy as np

from datamodules.errors import DataError
from datamodules.files import atomic_write
from datamodules.machine import cache_folder
from datamodules.photos.decode import THUMBNAIL_SIZE as SIZE
from datamodules.photos.find import Listing
from datamodules.text import plural, printable

GROUPS = ("near", "exact", "none")
NEIGHBORS, FAR = 20, 0.5  # distances above FAR count as FAR, so that a folder of few pictures has a 20th neighbor
MAX_DISTANCE, MAX_SHARE, SURE = 0.2, 0.25, 0.03  # near: < MAX_DISTANCE, and < MAX_SHARE of the 20th's or < SURE
MAX_BLURRED, MAX_SHARE_BLURRED = 0.4, 0.1  # or, for blurred copies: < MAX_BLURRED, and this share before the alignment
MAX_CHAIN, SAME = 0.2, 0.01  # of a class; nearly equal: < SAME before the alignment
MAX_IN_ONE_CELL = 20_000  # more pictures are sorted into cells; each is compared with those of the nearest cells
MIN_CACHED = 2_000  # pictures; comparing fewer takes about a second
_CELL_SIZE, _PROBES, _BLOCK = 5_000, 4, 256
_FREQUENCIES = np.arange(7)
_CENTER = np.float32((SIZE - 1) / 2)
_SMOOTH = (2 * np.eye(SIZE) + np.eye(SIZE, k=1) + np.eye(SIZE, k=-1)).astype(np.float32) / 4
_SMOOTH[[0, -1], [0, -1]] = 0.75


def group_look_alikes(
    listing: Listing, thumbnails: np.ndarray, first_copies: np.ndarray, group: str
) -> tuple[np.ndarray, list[str]]:
    """Return for each picture the first of its group, (n,) int64, and a note for each chain that is not joined.

    `group` is one of GROUPS. A chain of near duplicates, in which no picture is near all others, is not joined if it
    has more than MAX_CHAIN of a class. `thumbnails` and `first_copies` are from :func:`scan_photos`.
    """
    rows, names, notes = np.arange(len(first_copies)), listing.class_names, list[str]()
    if group != "near":
        return (first_copies if group == "exact" else rows), notes
    unique, copies = np.flatnonzero(first_copies == rows), np.stack([rows, first_copies])
    pairs = unique[_cached_near_pairs(thumbnails[unique])]
    sizes = np.bincount(connect(copies, pairs)[unique], minlength=len(rows))
    first = np.flatnonzero(sizes > NEIGHBORS // 2)  # of more copies than neighbors: they can be in several groups
    if len(first) > 1:
        more, is_same = find_near_pairs(thumbnails[first])
        pairs = np.concatenate([pairs, first[more[:, is_same]]], axis=1)
    groups, near_counts = connect(copies, pairs), np.bincount(pairs.ravel(), minlength=len(rows))
    cells, sizes = np.unique(groups * len(names) + listing.labels, return_counts=True)
    shares = sizes / listing.counts().sum(axis=0)[cells % len(names)]
    for cell in np.flatnonzero((shares > MAX_CHAIN) & (sizes > 1)).tolist():
        chain, label = divmod(int(cells[cell]), len(names))
        members = unique[groups[unique] == chain]
        if near_counts[members].max() < min(len(members) - 1, NEIGHBORS):
            pairs = pairs[:, groups[pairs[0]] != chain]
            notes.append(
                f"{plural(int(sizes[cell]), 'picture')}, {shares[cell]:.0%} of class {printable(names[label])}, are a "
                f"chain: each looks like the next ({printable(listing.paths[chain])}, ...): only exact copies "
                "stay together; if they belong together, use --data.group_by"
            )
    return connect(copies, pairs), notes


def _cached_near_pairs(thumbnails: np.ndarray) -> np.ndarray:
    """Return the pairs of :func:`find_near_pairs`. Those of many pictures are kept in the user's cache folder."""
    file = None
    if len(thumbnails) >= MIN_CACHED:
        digest = hashlib.blake2b(np.ascontiguousarray(thumbnails).data, digest_size=16).hexdigest()
        with contextlib.suppress(DataError):  # there is no cache folder
            file = cache_folder() / f"near-1-{digest}.npy"  # increase the 1 if find_near_pairs() changes its results
    if file:
        with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged
            return np.load(file, allow_pickle=False)
    pairs, _ = find_near_pairs(thumbnails)
    if file:
        with contextlib.suppress(OSError), atomic_write(file) as out:
            np.save(out, pairs)
    return pairs


def group_by_path(groups: np.ndarray, paths: np.ndarray, pattern: str) -> np.ndarray:
    """Join the groups of all pictures whose paths have the same match of a pattern: its group 1, or the whole match."""
    matches, first = [re.search(pattern, path) for path in paths], dict[str, int]()
    keys = [match and match[min(1, match.re.groups)] for match in matches]
    if not any(keys):
        raise DataError(f"--data.group_by {pattern} matches no path such as {printable(paths[0])}: change the pattern")
    same_key = [first.setdefault(key, row) if key else row for row, key in enumerate(keys)]
    return connect(np.stack([np.arange(len(groups)), groups]), np.stack([np.arange(len(groups)), same_key]))


def connect(*pairs: np.ndarray) -> np.ndarray:
    """Return for each index the lowest that pairs, (2, m), connect with it. The first pairs contain every index."""
    left, right = np.concatenate(pairs, axis=1)
    lowest = np.arange(pairs[0].shape[1])
    while True:
        lower, both = lowest.copy(), np.minimum(lowest[left], lowest[right])
        for side in (left, right, lowest[left], lowest[right]):
            np.minimum.at(lower, side, both)
        lower = lower[lower]
        if (lower == lowest).all():
            return lowest
        lowest = lower


def find_near_pairs(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices, (2, pairs), of near duplicates among `thumbnails`, (n, SIZE, SIZE) uint8.

    Also return True for pairs that are nearly equal without an alignment, (pairs,) bool.
    """
    blocks = [thumbnails[start : start + _BLOCK] for start in range(0, len(thumbnails) + 1, _BLOCK)]
    details = np.concatenate([_fine(block)[:, 3:-3, 3:-3].std(axis=(1, 2)) for block in blocks])
    rows = np.flatnonzero(details > 0.5)  # gray levels; others are blank, or even gradients
    thumbnails = thumbnails[rows]
    distances, codes = _find_neighbors(thumbnails)
    farthest, (others, turns) = distances[:, -1], np.divmod(codes, 8)
    is_mutual = (distances <= farthest[others]) | (distances < SAME)  # of many copies, each may be near 20 others
    one, place = np.nonzero((distances < FAR) & is_mutual)
    other = others[one, place]
    _, first = np.unique(np.minimum(one, other) * len(rows) + np.maximum(one, other), return_index=True)
    one, other, before, turn = one[first], other[first], distances[one, place][first], turns[one, place][first]
    limit, after = np.minimum(farthest[one], farthest[other]), np.ones(len(one))
    for start in range(0, len(one), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(one)))
        a, b = thumbnails[one[block]], thumbnails[other[block]]
        a = _eight_turns([a, a[:, ::-1], a[:, :, ::-1], a[:, ::-1, ::-1]])[turn[block], np.arange(len(a))]
        after[block] = _align(a, b)
        again = after[block] < FAR
        after[block[again]] = np.minimum(after[block[again]], _align(b[again], a[again]))  # better if b is a part of a
    is_near = (after < MAX_DISTANCE) & (after < np.maximum(MAX_SHARE * limit, SURE))
    is_near |= (after < MAX_BLURRED) & (before < MAX_SHARE_BLURRED * limit)
    return rows[np.stack([one, other])[:, is_near]], before[is_near] < SAME


def _find_neighbors(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances to the nearest others, ascending, and 8 * their index + turn: both (n, NEIGHBORS)."""
    n, sign = len(thumbnails), np.float32(-1) ** _FREQUENCIES
    low = np.concatenate([_low_frequencies(thumbnails[i : i + _BLOCK]) for i in range(0, n + 1, _BLOCK)])
    distances, codes, cells = np.full((n, NEIGHBORS), FAR, "f4"), np.zeros((n, NEIGHBORS), int), np.zeros((n, 1), int)
    if n > MAX_IN_ONE_CELL:  # turns and mirror images exchange rows and columns or change signs: their cell is the same
        whole = np.hypot(low, low.transpose(0, 2, 1)).reshape(n, -1)
        centers = whole[:: n // (n // _CELL_SIZE)].T
        near_cells = [(-whole[i : i + _BLOCK] @ centers).argsort(axis=1)[:, :_PROBES] for i in range(0, n, _BLOCK)]
        cells = np.concatenate(near_cells)
    for cell in range(cells.max(initial=0) + 1):
        members, queries = np.flatnonzero(cells[:, 0] == cell), np.flatnonzero((cells == cell).any(axis=1))
        of_members = low[members].reshape(-1, _FREQUENCIES.size**2).T
        for block in np.split(queries, range(_BLOCK, len(queries), _BLOCK)):
            best, turns = np.full((len(block), len(members)), FAR, "f4"), np.zeros((len(block), len(members)), int)
            a = low[block]
            turned = _eight_turns([a, a * sign[:, None], a * sign, a * np.outer(sign, sign)])
            for turn, in_turn in enumerate(turned.reshape(8, -1, _FREQUENCIES.size**2)):
                found = 1 - in_turn @ of_members
                turns[found < best] = turn
                np.minimum(best, found, out=best)
            best[block[:, None] == members] = FAR  # the picture itself
            values = np.hstack([best, distances[block]]), np.hstack([8 * members + turns, codes[block]])
            nearest = np.argpartition(values[0], NEIGHBORS - 1, axis=1)[:, :NEIGHBORS]
            nearest = np.take_along_axis(nearest, np.take_along_axis(values[0], nearest, 1).argsort(axis=1), 1)
            distances[block], codes[block] = (np.take_along_axis(value, nearest, 1) for value in values)
    return distances, codes


def _low_frequencies(thumbnails: np.ndarray) -> np.ndarray:
    """Return the low frequencies (discrete cosine transform) as vectors of length 1, (n, 7, 7) float32."""
    place = (np.arange(SIZE) + 0.5) * np.pi / SIZE
    weights = np.outer(np.sin(place), np.sin(place)) ** 0.25  # the border counts less: a turn leaves black corners
    means = thumbnails.reshape(-1, SIZE * SIZE) @ weights.ravel() / weights.sum()
    cosines = np.cos(_FREQUENCIES[:, None] * place) / np.where(_FREQUENCIES, 1, np.sqrt(2))[:, None]
    low = cosines @ ((thumbnails - means[:, None, None]) * weights) @ cosines.T
    low[:, np.add.outer(_FREQUENCIES**2, _FREQUENCIES**2) > 42] = low[:, 0, 0] = 0
    return (low / np.linalg.norm(low, axis=(1, 2), keepdims=True).clip(1e-9)).astype(np.float32)


def _eight_turns(flips: list[np.ndarray]) -> np.ndarray:
    return np.stack([*flips, *(flip.transpose(0, 2, 1) for flip in flips)])


def _soft(pictures: np.ndarray, times: int = 3) -> np.ndarray:
    """Return the pictures smoothed with the filter 1 2 1 along both sides, (n, SIZE, SIZE) float32."""
    weights = np.linalg.matrix_power(_SMOOTH, times)
    return weights @ pictures.astype(np.float32) @ weights.T


def _fine(pictures: np.ndarray) -> np.ndarray:
    return _soft(pictures, 1) - _soft(pictures, 3)


def _align(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Change each picture of `b` so that it looks like that of `a`. Return 1 - correlation of fine structure, (n,).

    Gauss-Newton steps (Lucas and Kanade 1981) for six numbers of an affine change, contrast and brightness. They align
    first the smooth pictures; if these do not become alike, the distance is 1.
    """
    distances, rows = np.ones(len(a)), np.arange(len(a))
    identity = np.eye(2, 3, dtype=np.float32)
    change = np.repeat(identity[None], len(a), axis=0)
    for prepare, step in ((_soft, 2), (_fine, 1)):
        x, y = prepare(a[rows]), prepare(b[rows]).ravel()
        down, right = np.mgrid[3 : SIZE - 3 : step, 3 : SIZE - 3 : step].reshape(2, -1)  # without the border
        grid = np.stack([down / _CENTER - 1, right / _CENTER - 1, np.ones(len(down))]).astype(np.float32)
        target = x[:, down, right]
        moves = [slope[:, down, right] * _CENTER * weight for slope in np.gradient(x, axis=(1, 2)) for weight in grid]
        for _ in range(5):
            places = (change @ grid + 1) * _CENTER
            whole = places.astype(np.int32).clip(0, SIZE - 2)
            start = whole[:, 0] * SIZE + whole[:, 1] + np.arange(len(x))[:, None] * SIZE**2
            down, right = (places - whole).transpose(1, 0, 2)
            top, bottom = (y[row] * (1 - right) + y[row + 1] * right for row in (start, start + SIZE))
            inside = ((places > 1.5) & (places < SIZE - 2.5)).all(axis=1).astype(np.float32)
            wanted, values = (
                (v - (v * inside).sum(axis=1, keepdims=True) / inside.sum(axis=1, keepdims=True).clip(1)) * inside
                for v in (target, top * (1 - down) + bottom * down)
            )
            terms = np.stack([values, inside, *(move * inside for move in moves)], axis=1)
            squares = (terms @ terms.transpose(0, 2, 1)).astype(np.float64)
            products = (terms @ wanted[:, :, None]).astype(np.float64)
            likeness = products[:, 0, 0] / np.sqrt(squares[:, 0, 0] * (wanted**2).sum(axis=1)).clip(1e-9)
            squares += np.eye(8) * (1e-4 * squares + 1e-3)  # can always be inverted
            moved = np.linalg.solve(squares, products)[:, 2:].reshape(-1, 2, 3).clip(-0.15, 0.15).astype(np.float32)
            change = (change + moved).clip(identity - 0.25, identity + 0.25).astype(np.float32)
        if prepare is _soft:
            rows, change = rows[likeness > 0.85], change[likeness > 0.85]
    distances[rows] = 1 - likeness
    return distances
