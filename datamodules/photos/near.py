"""Find near duplicates (changed copies of a picture, frames of a burst), and group the pictures that stay together.

Candidates are two pictures of which each is one of the 20 nearest of the other, by the low frequencies of their gray
thumbnails, whole or only the middle, in any of the eight turns and mirror images. An affine change (shift, zoom, small
turn) then aligns the two. They are near if the distance, 1 - correlation of the fine structure, is small, also compared
with the distance to the 20th neighbor of both (of fewer than 60 pictures, to the neighbor at a third of them): in a
folder of scans, digits or objects cut out on one background, where all pictures look alike, only copies stand out.
"""

from __future__ import annotations

import contextlib
import hashlib

import numpy as np

from datamodules.errors import DataError
from datamodules.files import atomic_write
from datamodules.machine import cache_folder
from datamodules.photos.decode import THUMBNAIL_SIZE as SIZE
from datamodules.photos.find import Listing
from datamodules.text import plural, printable

GROUPS = ("near", "exact", "none")
NEIGHBORS, FAR = 20, 0.5  # distances above FAR count as FAR, so that a folder of few pictures has a 20th neighbor
MAX_DISTANCE, MAX_SHARE, SURE = 0.2, 0.25, 0.02  # near: < MAX_DISTANCE, and < MAX_SHARE of the 20th's or < SURE
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
            who = f"{plural(int(sizes[cell]), 'picture')}, {shares[cell]:.0%} of class {printable(names[label])},"
            problem = f"{who} are a chain: each looks like the next ({printable(listing.paths[chain])}, ...)"
            notes.append(f"{problem}: only exact copies stay together; if they belong together, use --data.group_by")
    return connect(copies, pairs), notes


def _cached_near_pairs(thumbnails: np.ndarray) -> np.ndarray:
    """Return the pairs of :func:`find_near_pairs`. Those of many pictures are kept in the user's cache folder."""
    file = None
    if len(thumbnails) >= MIN_CACHED:
        digest = hashlib.blake2b(np.ascontiguousarray(thumbnails).data, digest_size=16).hexdigest()
        with contextlib.suppress(DataError):  # there is no cache folder
            file = cache_folder() / f"near-2-{digest}.npy"  # increase the 2 if find_near_pairs() changes its results
    if file:
        with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged
            return np.load(file, allow_pickle=False)
    pairs, _ = find_near_pairs(thumbnails)
    if file:
        with contextlib.suppress(OSError), atomic_write(file) as out:
            np.save(out, pairs)
    return pairs


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
    parts = [thumbnails[start : start + _BLOCK] for start in range(0, len(rows) + 1, _BLOCK)]
    low = np.concatenate([_low_frequencies(part) for part in parts])
    middle = np.concatenate([_low_frequencies(part[:, 2:-2, 2:-2]) for part in parts])  # also without a frame
    distances, others = _find_neighbors(low, middle)
    farthest = distances[:, -1]
    is_mutual = (distances <= farthest[others]) | (distances < SAME)  # of many copies, each may be near 20 others
    one, place = np.nonzero((distances < FAR) & is_mutual)
    other = others[one, place]
    _, first = np.unique(np.minimum(one, other) * len(rows) + np.maximum(one, other), return_index=True)
    one, other, before = one[first], other[first], distances[one, place][first]
    reference = distances[:, min(NEIGHBORS, max(len(rows) // 3, 2), len(rows) - 1) - 1]
    limit, after = np.minimum(reference[one], reference[other]), np.ones(len(one))
    slices = [slice(start, start + _BLOCK) for start in range(0, len(one) + 1, _BLOCK)]
    likeness = np.concatenate([_turns(low[one[b]], middle[one[b]], low[other[b]]) for b in slices])
    second, best = likeness.argsort(axis=1)[:, -2:].T
    is_unsure = np.sort(likeness, axis=1)[:, -2] > np.maximum(likeness.max(axis=1) - 0.1, 0.75)  # symmetric pictures
    tries = np.concatenate([np.arange(len(one)), np.flatnonzero(is_unsure)])
    turns = np.concatenate([best, second[is_unsure]])
    for start in range(0, len(tries), _BLOCK):
        pair, turn = tries[start : start + _BLOCK], turns[start : start + _BLOCK]
        a, b = thumbnails[one[pair]], thumbnails[other[pair]]
        a = _eight_turns([a, a[:, ::-1], a[:, :, ::-1], a[:, ::-1, ::-1]])[turn, np.arange(len(a))]
        found = _align(a, b)
        again = found < FAR
        found[again] = np.minimum(found[again], _align(b[again], a[again]))  # better if b is a part of a
        np.minimum.at(after, pair, found)
    is_near = (after < MAX_DISTANCE) & (after < np.maximum(MAX_SHARE * limit, SURE))
    is_near |= (after < MAX_BLURRED) & (before < MAX_SHARE_BLURRED * limit)
    return rows[np.stack([one, other])[:, is_near]], before[is_near] < SAME


def _find_neighbors(low: np.ndarray, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances to the nearest others, ascending, and their indices: both (n, NEIGHBORS)."""
    n, cells = len(low), np.zeros((len(low), 1), int)
    distances, others = np.full((n, NEIGHBORS), FAR, "f4"), np.zeros((n, NEIGHBORS), int)
    if n > MAX_IN_ONE_CELL:  # turns and mirror images exchange rows and columns or change signs: their cell is the same
        whole = np.hypot(low, low.transpose(0, 2, 1)).reshape(n, -1)
        centers = whole[:: n // (n // _CELL_SIZE)].T
        near_cells = [(-whole[i : i + _BLOCK] @ centers).argsort(axis=1)[:, :_PROBES] for i in range(0, n, _BLOCK)]
        cells = np.concatenate(near_cells)
    for cell in np.unique(cells[:, 0]):
        members, queries = np.flatnonzero(cells[:, 0] == cell), np.flatnonzero((cells == cell).any(axis=1))
        of_members = low[members].reshape(len(members), -1).T
        for block in np.split(queries, range(_BLOCK, len(queries), _BLOCK)):
            best, likeness = np.full((2, len(block), len(members)), 1 - FAR, "f4")
            for look in _looks(low[block], middle[block]):
                np.maximum(best, np.matmul(look, of_members, out=likeness), out=best)
            best[block[:, None] == members] = 1 - FAR  # the picture itself
            np.subtract(1, best, out=best)
            nearest = np.argpartition(best, min(NEIGHBORS, len(members)) - 1, axis=1)[:, :NEIGHBORS]
            values = np.hstack([np.take_along_axis(best, nearest, 1), distances[block]])
            indices, order = np.hstack([members[nearest], others[block]]), values.argsort(axis=1)[:, :NEIGHBORS]
            distances[block], others[block] = (np.take_along_axis(value, order, 1) for value in (values, indices))
    return distances, others


def _low_frequencies(pictures: np.ndarray) -> np.ndarray:
    """Return the low frequencies (discrete cosine transform) of square pictures as vectors of length 1, (n, 7, 7)."""
    side = pictures.shape[1]
    place = (np.arange(side) + 0.5) * np.pi / side
    weights = np.outer(np.sin(place), np.sin(place)) ** 0.35  # the border counts less: a turn leaves black corners
    means = pictures.reshape(-1, side**2) @ weights.ravel() / weights.sum()
    cosines = np.cos(_FREQUENCIES[:, None] * place) / np.where(_FREQUENCIES, 1, np.sqrt(2))[:, None]
    low = cosines @ ((pictures - means[:, None, None]) * weights) @ cosines.T
    low[:, np.add.outer(_FREQUENCIES**2, _FREQUENCIES**2) > 42] = low[:, 0, 0] = 0
    return (low / np.linalg.norm(low, axis=(1, 2), keepdims=True).clip(1e-9)).astype(np.float32)


def _looks(low: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Return the low frequencies of the pictures and of their middle in all eight turns, (16, n, 49)."""
    sign = np.float32(-1) ** _FREQUENCIES
    looks = [_eight_turns([a, a * sign[:, None], a * sign, a * np.outer(sign, sign)]) for a in (low, middle)]
    return np.concatenate(looks).reshape(16, -1, _FREQUENCIES.size**2)


def _turns(low: np.ndarray, middle: np.ndarray, of_others: np.ndarray) -> np.ndarray:
    """Return how much the pictures look like the others in each of the eight turns, (n, 8)."""
    looks = _looks(low, middle) * of_others.reshape(-1, _FREQUENCIES.size**2)
    return looks.sum(axis=2).reshape(2, 8, -1).max(axis=0).T


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
    for prepare, step, times, enough in ((_soft, 3, 2, 0.6), (_soft, 2, 2, 0.85), (_fine, 1, 5, -1)):
        x, y = prepare(a[rows]), prepare(b[rows]).ravel()
        down, right = np.mgrid[3 : SIZE - 3 : step, 3 : SIZE - 3 : step].reshape(2, -1)  # without the border
        grid = np.stack([down / _CENTER - 1, right / _CENTER - 1, np.ones(len(down))]).astype(np.float32)
        target = x[:, down, right]
        moves = [slope[:, down, right] * _CENTER * weight for slope in np.gradient(x, axis=(1, 2)) for weight in grid]
        for _ in range(times):
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
        rows, change, likeness = rows[likeness > enough], change[likeness > enough], likeness[likeness > enough]
    distances[rows] = 1 - likeness
    return distances
