"""Find problems in a folder of photos before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from datamodules.photos.decode import MISNAMED, ROTATED
from datamodules.photos.find import SPLITS, TRAIN, Listing
from datamodules.photos.folder import IMBALANCE
from datamodules.photos.scan import scan_photos
from datamodules.photos.split import copies_across

DISTANCE = 3  # the perceptual hashes of near duplicates differ in at most this many of 64 bits
OUTLIER = 4  # an unusual picture is this many times larger or smaller than the median, by the root of its area
ADVICE = {
    "truncated": "copy them again or delete them",
    "empty": "copy them again or delete them",
    "damaged": "copy them again or delete them",
    "not a picture": "delete them, or convert them to .jpg",
    "too large": "make them smaller: the network sees a few hundred pixels",
    "no file": "move them out: pipes, sockets and devices are not pictures",
    "unreadable": "repair the permission (chmod u+r) or the link",
    "not a format we read": "convert them to .jpg",
    "not a picture by its name": "add the suffix of its format, or move it out",
    "in no class folder": "move them into the folder of their class",
    "folder passed over": "fill it, rename it or delete it",
    "wrong suffix": "give them the right suffix; they are still used",
    "exact duplicates": "keep one of each",
    "near duplicates": "compare them, keep one of each",
    "exact duplicates across splits": "delete one side: the score would be too good",
    "near duplicates across splits": "compare them, delete one side: the score would be too good",
    "same picture under two classes": "choose one class; training leaves all of them out",
    "classes differ between splits": "move pictures so that each split has every class",
    "one class only": "add a folder for a second class",
    "turned by EXIF": "nothing, if other programs show them upright, as training does",
    "unusual size": "check that they belong here",
    "uneven classes": "add pictures to the small ones, or use --data.balance loss",
}


class Finding(NamedTuple):
    """A possible problem: `kind` is a key of ADVICE, each of `items` contains file names (or texts) that belong
    together."""

    kind: str
    items: list[tuple[str, ...]]


def find_problems(
    listing: Listing, *, num_workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[Listing, list[Finding]]:
    """Return the pictures that training would use, and all findings in the order of ADVICE.

    The arguments are those of :func:`~datamodules.photos.scan.scan_photos`.
    """
    found: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in ADVICE}
    listing, verdicts, copies, bad = scan_photos(listing, num_workers=num_workers, progress=progress)
    for path, kind, _ in [*bad, *listing.left_out]:
        if kind != "class not in train":  # reported below, once for each class
            found[kind].append((path,))
    found["folder passed over"] = [(note,) for note in listing.notes if note.endswith(": ignored")]

    def names(chosen: np.ndarray) -> list[tuple[str, ...]]:
        return [(listing.paths[row],) for row in np.flatnonzero(chosen)]

    found["wrong suffix"] = names(verdicts["flags"] & MISNAMED)
    found["turned by EXIF"] = names(verdicts["flags"] & ROTATED)
    sides = np.sqrt(verdicts["width"].astype(float) * verdicts["height"])
    median = np.median(sides) if len(sides) else 0
    found["unusual size"] = names((sides > OUTLIER * median) | (sides * OUTLIER < median))

    alike = near_groups(verdicts["dhash"], copies)
    two_classes = copies_across(listing.labels, copies)
    across, near_across = copies_across(listing.splits, copies), copies_across(listing.splits, alike)
    found["same picture under two classes"] = _together(listing, copies, two_classes)
    found["exact duplicates across splits"] = _together(listing, copies, across & ~two_classes)
    found["exact duplicates"] = _together(listing, copies, ~across & ~two_classes)
    lookalike = copies_across(copies, alike)  # in a group that contains more than exact copies
    found["near duplicates across splits"] = _together(listing, alike, lookalike & near_across)
    found["near duplicates"] = _together(listing, alike, lookalike & ~near_across)

    counts = listing.counts()
    for split, label in np.argwhere((counts == 0) & counts.any(axis=1, keepdims=True)).tolist():
        found["classes differ between splits"].append((f"{listing.class_names[label]} is not in {SPLITS[split]}",))
    only_elsewhere = sorted({file.reason for file in listing.left_out if file.kind == "class not in train"})
    found["classes differ between splits"] += [(reason.removeprefix("class "),) for reason in only_elsewhere]
    if len(listing.class_names) == 1:
        found["one class only"] = [listing.class_names]
    train = counts[TRAIN]
    if train.max() >= IMBALANCE * max(train.min(), 1):
        least, most = listing.class_names[train.argmin()], listing.class_names[train.argmax()]
        found["uneven classes"] = [(f"{least}: {train.min()}", f"{most}: {train.max()}")]
    used = listing.take(np.flatnonzero(~two_classes))
    return used, [Finding(kind, items) for kind, items in found.items() if items]


def to_document(used: Listing, found: list[Finding]) -> dict[str, object]:
    """Convert the result of :func:`find_problems` to plain values for JSON."""
    return {
        "root": str(used.root),
        "pictures": len(used.paths),
        "classes": list(used.class_names),
        "counts": dict(zip(SPLITS, used.counts().tolist(), strict=True)),
        "findings": [
            {"kind": f.kind, "count": len(f.items), "items": f.items, "advice": ADVICE[f.kind]} for f in found
        ],
    }


def near_groups(hashes: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Group pictures that are connected by perceptual hashes that differ in at most DISTANCE bits.

    Args:
        hashes: uint64 array (n,).
        copies: int array (n,), as from :func:`~datamodules.photos.scan.content_groups`.

    Returns:
        int array (n,): for each picture, the index of the first one of its group.
    """
    # Pictures of one color or an even gradient have almost only 0 bits or 1 bits, so all of them would look alike.
    bits = _count_bits(hashes)
    usable = np.flatnonzero((copies == np.arange(len(copies))) & (bits > DISTANCE) & (bits < 64 - DISTANCE))
    one, other = usable[_near_pairs(hashes[usable])]
    group = np.arange(len(hashes))
    while True:  # each round passes the lowest index on to the neighbors
        lower = group.copy()
        least = np.minimum(group[one], group[other])
        np.minimum.at(lower, one, least)
        np.minimum.at(lower, other, least)
        if (lower == group).all():
            return group[copies]
        group = lower


def _near_pairs(hashes: np.ndarray) -> np.ndarray:
    """Return the indices, shape (2, pairs), of all pairs of hashes that differ in at most DISTANCE bits.

    Such a pair agrees in at least one of DISTANCE + 1 bands of bits, so only hashes that share a band are compared.
    """
    width = 64 // (DISTANCE + 1)
    pairs = [np.empty((2, 0), np.int64)]
    for band in range(DISTANCE + 1):
        values = hashes >> np.uint64(width * band) & np.uint64((1 << width) - 1)
        order = np.argsort(values, kind="stable")
        values = values[order]
        left, step = np.arange(len(order)), 1
        while len(left := left[left + step < len(order)]):
            left = left[values[left] == values[left + step]]
            pair = order[np.stack([left, left + step])]
            pairs.append(pair[:, _count_bits(hashes[pair[0]] ^ hashes[pair[1]]) <= DISTANCE])
            step += 1
    return np.concatenate(pairs, axis=1)


def _count_bits(values: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


def _together(listing: Listing, groups: np.ndarray, chosen: np.ndarray) -> list[tuple[str, ...]]:
    """Return the file names of each group with two or more members, for the `chosen` rows."""
    rows = np.flatnonzero(chosen & (np.bincount(groups, minlength=len(groups))[groups] > 1))
    rows = rows[np.argsort(groups[rows], kind="stable")]
    parts = np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1)
    return [tuple(listing.paths[row] for row in part) for part in parts if len(part)]
