"""Find what is wrong with a folder of photos before a network learns from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from datamodules.photos.decode import MISNAMED, ROTATED
from datamodules.photos.find import SPLITS, TRAIN, Listing, class_counts
from datamodules.photos.folder import IMBALANCE
from datamodules.photos.scan import scan_photos
from datamodules.photos.split import copies_across

DISTANCE = 3  # bits of 64 in which the perceptual hashes of near duplicates differ at most
OUTLIER = 4  # times longer or shorter than the usual picture, by the root of its area
ADVICE = {
    "truncated": "fetch them again or delete them",
    "empty": "fetch them again or delete them",
    "damaged": "fetch them again or delete them",
    "not a picture": "delete them, or convert them to .jpg",
    "too large": "make them smaller: the network sees a few hundred pixels",
    "no file": "move them out: a pipe, a socket or a device holds no picture",
    "unreadable": "mend the permission (chmod u+r) or the link",
    "not a format we read": "convert them to .jpg",
    "not a picture by its name": "add the suffix of its format, or move it out",
    "in no class folder": "move them into the folder of their class",
    "folder passed over": "fill it, rename it or delete it",
    "wrong suffix": "rename them to what they are; they are read all the same",
    "exact duplicates": "keep one of each",
    "near duplicates": "compare them, keep one of each",
    "exact duplicates across splits": "delete one side: the score would be too good",
    "near duplicates across splits": "compare them, delete one side: the score would be too good",
    "same picture under two classes": "decide for one class; training leaves all of them out",
    "classes differ between splits": "move pictures, so that each split has every class",
    "one class only": "add a folder for a second class",
    "turned by EXIF": "nothing, if they show upright elsewhere: they are used upright",
    "unusual size": "see whether they belong here",
    "uneven classes": "add to the small ones, or --data.balance loss",
}


@dataclass(frozen=True)
class Finding:
    """One thing to look into: `kind` is a key of ADVICE, each of `items` the file names (or words) that belong
    together."""

    kind: str
    items: list[tuple[str, ...]]


def findings(
    listing: Listing, *, num_workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[Listing, list[Finding]]:
    """Find the pictures that training would use, and everything that is worth a look, the gravest first; arguments as
    for `scan_photos`."""
    found: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in ADVICE}
    left_out, notes = listing.left_out, listing.notes
    listing, verdicts, copies, bad = scan_photos(listing, num_workers=num_workers, progress=progress)
    for path, kind, _ in [*bad, *left_out]:
        if kind != "class not in train":  # named once, as a class
            found[kind].append((path,))
    found["folder passed over"] = [(note,) for note in notes if note.endswith("passed over")]

    def names(chosen: np.ndarray) -> list[tuple[str, ...]]:
        return [(listing.paths[row],) for row in np.flatnonzero(chosen)]

    found["wrong suffix"] = names(verdicts["flags"] & MISNAMED)
    found["turned by EXIF"] = names(verdicts["flags"] & ROTATED)
    sides = np.sqrt(verdicts["width"].astype(float) * verdicts["height"])
    usual = np.median(sides) if len(sides) else 0
    found["unusual size"] = names((sides > OUTLIER * usual) | (sides * OUTLIER < usual))

    alike = near_groups(verdicts["dhash"], copies)
    torn = copies_across(listing.labels, copies)
    across, near_across = copies_across(listing.splits, copies), copies_across(listing.splits, alike)
    found["same picture under two classes"] = _together(listing, copies, torn)
    found["exact duplicates across splits"] = _together(listing, copies, across & ~torn)
    found["exact duplicates"] = _together(listing, copies, ~across & ~torn)
    unlike = alike != copies  # members of a group of look-alikes whose first is another picture
    lookalike = np.zeros(len(alike), bool)
    lookalike[alike[unlike]] = True
    lookalike = lookalike[alike]
    found["near duplicates across splits"] = _together(listing, alike, lookalike & near_across)
    found["near duplicates"] = _together(listing, alike, lookalike & ~near_across)

    counts = class_counts(listing.labels, listing.splits, len(listing.class_names))
    for split in np.flatnonzero(counts.any(axis=1)).tolist():
        for label in np.flatnonzero(counts[split] == 0).tolist():
            found["classes differ between splits"].append((f"{listing.class_names[label]} is not in {SPLITS[split]}",))
    only_elsewhere = sorted({file.reason for file in listing.left_out if file.kind == "class not in train"})
    found["classes differ between splits"] += [(reason.removeprefix("class "),) for reason in only_elsewhere]
    if len(listing.class_names) == 1:
        found["one class only"] = [listing.class_names]
    train = counts[TRAIN]
    if train.max() >= IMBALANCE * max(train.min(), 1):
        least, most = listing.class_names[train.argmin()], listing.class_names[train.argmax()]
        found["uneven classes"] = [(f"{least}: {train.min()}", f"{most}: {train.max()}")]
    used = listing.rows(np.flatnonzero(~torn))
    return used, [Finding(kind, items) for kind, items in found.items() if items]


def to_document(used: Listing, found: list[Finding]) -> dict[str, object]:
    """Plain values for JSON: what :func:`findings` returns, with every file's name."""
    counts = class_counts(used.labels, used.splits, len(used.class_names)).tolist()
    return {
        "root": str(used.root),
        "pictures": len(used.paths),
        "classes": list(used.class_names),
        "counts": dict(zip(SPLITS, counts, strict=True)),
        "findings": [
            {"kind": f.kind, "count": len(f.items), "items": f.items, "advice": ADVICE[f.kind]} for f in found
        ],
    }


def near_groups(hashes: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """Join pictures whose perceptual hashes differ in at most DISTANCE bits, and those joined to the same one.

    Args:
        hashes: uint64 array (n,).
        copies: int array (n,), the index of the first exact copy of each, as from `content_groups`.

    Returns:
        int array (n,): for each picture the index of the first of its group.
    """
    # A plain or evenly shaded picture has next to no bits, or all of them: it would resemble every other one.
    bits = _count_bits(hashes)
    telling = np.flatnonzero((copies == np.arange(len(copies))) & (bits > DISTANCE) & (bits < 64 - DISTANCE))
    one, other = (telling[side] for side in _near_pairs(hashes[telling]))
    group = np.arange(len(hashes))
    while True:  # each round hands the lowest index on to the neighbours
        lower = group.copy()
        least = np.minimum(group[one], group[other])
        np.minimum.at(lower, one, least)
        np.minimum.at(lower, other, least)
        if (lower == group).all():
            return group[copies]
        group = lower


def _near_pairs(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all pairs that differ in at most DISTANCE bits, without comparing each with each.

    Of DISTANCE + 1 bands of the hash at least one is the same in both: only pictures that share a band are compared.
    """
    width = 64 // (DISTANCE + 1)
    ones, others = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for band in range(DISTANCE + 1):
        values = hashes >> np.uint64(width * band) & np.uint64((1 << width) - 1)
        order = np.argsort(values, kind="stable")
        values = values[order]
        left, step = np.arange(len(order)), 1
        while len(left := left[left + step < len(order)]):
            left = left[values[left] == values[left + step]]
            one, other = order[left], order[left + step]
            near = _count_bits(hashes[one] ^ hashes[other]) <= DISTANCE
            ones.append(one[near])
            others.append(other[near])
            step += 1
    return np.concatenate(ones), np.concatenate(others)


def _count_bits(values: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


def _together(listing: Listing, groups: np.ndarray, chosen: np.ndarray) -> list[tuple[str, ...]]:
    """The file names of each group of two or more among the `chosen`."""
    rows = np.flatnonzero(chosen & (np.bincount(groups, minlength=len(groups))[groups] > 1))
    rows = rows[np.argsort(groups[rows], kind="stable")]
    parts = np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1)
    return [tuple(listing.paths[row] for row in part) for part in parts if len(part)]
