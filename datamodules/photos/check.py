"""Find problems in a folder of photos before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from datamodules.photos.decode import BLANK, CENTER_BLANK, HAS_PAGES, MISNAMED, ROTATED
from datamodules.photos.find import SPLITS, TRAIN, Listing
from datamodules.photos.folder import UNEVEN_CLASS_RATIO
from datamodules.photos.near import group_look_alikes
from datamodules.photos.scan import scan_photos
from datamodules.photos.split import check_pattern, group_by_path, is_in_mixed_group

UNUSUAL_SIZE_FACTOR = 4  # unusual: sqrt(width * height) is this many times larger or smaller than the median
ADVICE = {
    **dict.fromkeys(("truncated", "empty", "damaged"), "copy them again or delete them"),
    "not a picture": "delete them, or convert them to .jpg",
    "too large": "make them smaller: the network sees a few hundred pixels",
    "no file": "move them out of the folder: they are named pipes, sockets or devices",
    "unreadable": "allow reading (chmod u+r) or repair the link",
    "not a format we read": "convert them to .jpg; for HEIC also: pip install 'lit-classics[heif]'",
    "not a picture by its name": "move them out of the folder, or give them the suffix of a picture",
    "in no class folder": "move them into the folder of their class",
    "folder passed over": "add pictures, or rename or delete the folder",
    "wrong suffix": "give them the right suffix; they are still used",
    "exact duplicates": "keep one of each",
    "near duplicates": "compare them and keep one of each; a split that fit.py makes keeps them together",
    "exact duplicates across splits": "keep them in one split only: the score would be too good",
    "near duplicates across splits": "compare them and keep them in one split only: the score would be too good",
    "near duplicates under two classes": "compare them: one of the two labels may be wrong",
    "kept together": "nothing to do: --data.group_by joins them, and a split that fit.py makes keeps them together",
    "kept together, but across splits": "keep them in one split only: the score would be too good",
    "chains of look-alikes": "if they are frames of a video or of one object, use --data.group_by",
    "same picture under two classes": "keep them in the right class only; training leaves all of them out",
    "classes differ between splits": "move pictures so that each split has every class",
    "one class only": "add a folder for a second class",
    "blank or nearly blank": "look at them: they are still used, but the network sees one color (transparent is white)",
    "several pages": "nothing to do if the first page or frame shows the class: only that one is used",
    "turned by EXIF": "nothing to do if an image viewer shows them upright: training does the same",
    "unusual size": "check that they belong in this folder",
    "uneven classes": "add pictures to the small classes, or use --data.balance loss",
}


class Finding(NamedTuple):
    """A possible problem in the folder."""

    kind: str  # a key of ADVICE
    items: list[tuple[str, ...]]  # one tuple per case: file names (such as a picture and its copies), or texts


def find_problems(
    listing: Listing,
    *,
    group: str = "near",
    group_by: str | None = None,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Listing, list[Finding]]:
    """Return the pictures that training would use, and the findings.

    `group` and `group_by` are as in :func:`datamodules.photos.folder.examine`, the others as in :func:`scan_photos`.
    """
    check_pattern(group_by)
    items: dict[str, list[tuple[str, ...]]] = {kind: [] for kind in ADVICE}
    listing, inspections, first_copies, bad = scan_photos(listing, num_workers=num_workers, progress=progress)
    for path, kind, _ in [*bad, *listing.left_out]:
        if kind != "class not in train":  # reported below, once for each class
            items[kind].append((path,))
    items["folder passed over"] = [(note,) for note in listing.notes if note.endswith(": ignored")]
    flags = inspections["flags"]
    lengths = np.sqrt(inspections["width"].astype(float) * inspections["height"])
    median = np.median(lengths) if len(lengths) else 0
    is_unusual = (lengths > UNUSUAL_SIZE_FACTOR * median) | (lengths * UNUSUAL_SIZE_FACTOR < median)
    for kind, chosen in (
        ("wrong suffix", flags & MISNAMED),
        ("blank or nearly blank", flags & (BLANK | CENTER_BLANK)),
        ("several pages", flags & HAS_PAGES),
        ("turned by EXIF", flags & ROTATED),
        ("unusual size", is_unusual),
    ):
        items[kind] = [(path,) for path in listing.paths[chosen > 0]]

    in_two_classes = is_in_mixed_group(listing.labels, first_copies)
    in_two_splits = is_in_mixed_group(listing.splits, first_copies)
    items["same picture under two classes"] = _group_names(listing, first_copies, in_two_classes)
    items["exact duplicates across splits"] = _group_names(listing, first_copies, in_two_splits & ~in_two_classes)
    items["exact duplicates"] = _group_names(listing, first_copies, ~in_two_splits & ~in_two_classes)
    near_groups, chains = group_look_alikes(listing, inspections["thumbnail"], first_copies, group)
    items["chains of look-alikes"] = [(chain,) for chain in chains]
    has_near_duplicate = is_in_mixed_group(first_copies, near_groups)  # the group contains more than exact copies
    near_in_two_splits = is_in_mixed_group(listing.splits, near_groups)
    in_two = np.zeros(len(listing.paths), bool)
    in_two[~in_two_classes] = is_in_mixed_group(listing.labels[~in_two_classes], near_groups[~in_two_classes])
    items["near duplicates under two classes"] = _group_names(listing, near_groups, in_two)
    items["near duplicates across splits"] = _group_names(listing, near_groups, has_near_duplicate & near_in_two_splits)
    items["near duplicates"] = _group_names(listing, near_groups, has_near_duplicate & ~near_in_two_splits & ~in_two)

    if group_by is not None:
        groups = group_by_path(near_groups, listing.paths, group_by)
        is_joined, in_two_splits = is_in_mixed_group(near_groups, groups), is_in_mixed_group(listing.splits, groups)
        items["kept together"] = _group_names(listing, groups, is_joined & ~in_two_splits)
        items["kept together, but across splits"] = _group_names(listing, groups, is_joined & in_two_splits)

    counts = listing.counts()
    for split, label in np.argwhere((counts == 0) & counts.any(axis=1, keepdims=True)).tolist():
        items["classes differ between splits"].append((f"{listing.class_names[label]} is not in {SPLITS[split]}",))
    not_in_train = sorted({file.reason for file in listing.left_out if file.kind == "class not in train"})
    items["classes differ between splits"] += [(reason.removeprefix("class "),) for reason in not_in_train]
    if len(listing.class_names) == 1:
        items["one class only"] = [listing.class_names]
    train = counts[TRAIN]
    if train.max() >= UNEVEN_CLASS_RATIO * max(train.min(), 1):
        smallest, largest = listing.class_names[train.argmin()], listing.class_names[train.argmax()]
        items["uneven classes"] = [(f"{smallest}: {train.min()}", f"{largest}: {train.max()}")]
    used = listing.take(~in_two_classes)
    return used, [Finding(kind, cases) for kind, cases in items.items() if cases]


def to_document(used: Listing, findings: list[Finding]) -> dict[str, object]:
    """Convert the result of :func:`find_problems` to values that the json module can write."""
    return {
        "root": str(used.root),
        "pictures": len(used.paths),
        "classes": list(used.class_names),
        "counts": dict(zip(SPLITS, used.counts().tolist(), strict=True)),
        "findings": [
            {"kind": f.kind, "count": len(f.items), "items": f.items, "advice": ADVICE[f.kind]} for f in findings
        ],
    }


def _group_names(listing: Listing, groups: np.ndarray, chosen: np.ndarray) -> list[tuple[str, ...]]:
    """Return the file names of the `chosen` pictures (bool array): a tuple for each group of two or more pictures."""
    rows = np.flatnonzero(chosen & (np.bincount(groups, minlength=len(groups))[groups] > 1))
    rows = rows[np.argsort(groups[rows], kind="stable")]
    parts = np.split(rows, np.flatnonzero(np.diff(groups[rows])) + 1)
    return [tuple(listing.paths[row] for row in part) for part in parts if len(part)]
