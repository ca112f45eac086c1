"""Splits: stratified, or from a split.csv."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.files import write_csv
from datamodules.photos import near
from datamodules.photos.find import SPLITS, LeftOut, Listing, find_photos
from datamodules.photos.scan import scan_photos
from datamodules.photos.split import (
    SPLIT_FILE_COLUMNS,
    choose_validation_pictures,
    find_scored_pictures,
    split_lines,
)
from tests.support.photos import (
    JPEG,
    content,
    examine_leniently,
    refusal_of,
    write_cats_and_dogs,
    write_file,
    write_pictures,
)


@st.composite
def folders(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw labels, content groups and ranks of pictures in any order."""
    sizes = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=1, max_size=5))
    rows = [(label, (label, i)) for label, groups in enumerate(sizes) for i, n in enumerate(groups) for _ in range(n)]
    rows = draw(st.permutations(rows))
    first: dict[tuple[int, int], int] = {}
    groups = np.array([first.setdefault(group, i) for i, (_, group) in enumerate(rows)])
    ranks = np.array(draw(st.permutations(range(len(rows)))))
    return np.array([label for label, _ in rows]), groups, ranks


@given(folders(), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_split_is_stratified_and_keeps_copies_together(
    folder: tuple[np.ndarray, np.ndarray, np.ndarray], val_size: float
) -> None:
    labels, groups, ranks = folder
    val = choose_validation_pictures(labels, groups, ranks, val_size)
    assert (val == val[groups]).all()
    for label in np.unique(labels):
        own = labels == label
        chosen, count = int(val[own].sum()), int(own.sum())
        group_sizes = np.bincount(groups[own])
        group_sizes = group_sizes[group_sizes > 0]
        if len(group_sizes) == 1:
            assert chosen == 0
            continue
        assert 0 < chosen < count
        if group_sizes.max() == 1:
            assert chosen == min(max(int(val_size * count + 0.5), 1), count - 1)
        else:
            assert abs(chosen - val_size * count) <= max(group_sizes.max(), 1)


@pytest.mark.parametrize(("count", "val"), [(1, 0), (2, 1), (3, 1), (10, 2), (100, 20)])
def test_split_sizes(count: int, val: int) -> None:
    rows = np.arange(count)
    assert choose_validation_pictures(np.zeros(count, int), rows, rows, 0.2).sum() == val


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 4, 4, 4]),  # the first group has the only picture of class 1
        ([0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 4, 4, 4]),  # the second group is smaller
        ([0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 5, 5, 5]),
    ],
)
def test_if_each_group_is_too_large_the_smallest_that_leaves_each_class_is_chosen(
    labels: list[int], groups: list[int]
) -> None:
    val = choose_validation_pictures(np.array(labels), np.array(groups), np.arange(len(labels)), 0.1)
    assert np.flatnonzero(val).tolist() == list(range(len(labels)))[-3:]


def test_split_file_gives_the_same_split(tmp_path: Path) -> None:
    root = write_cats_and_dogs(tmp_path / "root")
    photos = examine_leniently(root, seed=5)
    photos.write_split(tmp_path / "split.csv")
    with (tmp_path / "split.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "label", "split", "sha256", "group"]
    assert rows[1][:2] == ["cat/0.jpg", "cat"]
    assert Counter(row[2] for row in rows[1:]) == {"train": 10, "val": 2}
    split_file = str(tmp_path / "split.csv")
    assert content(examine_leniently(root, split_file=split_file)) == content(photos)
    write_file(root / "cat" / "new.jpg", JPEG)
    again = examine_leniently(root, split_file=split_file)
    assert content(again) == content(photos)
    assert again.notes == [f"1 picture left out: not in {split_file}"]
    assert again.left_out == [LeftOut("cat/new.jpg", "not in the split file", split_file)]


def test_wrong_split_files_are_refused(tmp_path: Path) -> None:
    root, split_file = write_cats_and_dogs(tmp_path / "root"), tmp_path / "s.csv"

    def message(text: str) -> str:
        split_file.write_text(text)
        return refusal_of(root, split_file=str(split_file)).replace(str(split_file), "CSV")

    head = "path,label,split\n"
    assert message("a,b\n") == "CSV needs the columns path,label,split: give a run's split.csv"
    assert message(head + "cat/0.jpg,cat,trian\n") == (
        "CSV, line 2: must be path,label,split; split is train, val or test"
    )
    assert message(head + "cat/gone.jpg,cat,val\n") == (
        "DIR does not contain 1 picture of CSV (cat/gone.jpg): restore the missing files, or leave out "
        "--data.split_file"
    )
    assert message(head + "cat/0.jpg,dog,train\n") == (
        "CSV: cat/0.jpg has the class dog, but is in the folder of class cat: move the file, correct the line, "
        "or give the --data.fixes of the run"
    )
    assert message(head) == "CSV has no line with split train: give a run's split.csv"
    assert message(head + "cat/0.jpg,cat,train\ncat/1.jpg,cat,val\ncat/0.jpg,cat,val\n") == (
        "CSV has more than one line for cat/0.jpg: keep one of them"
    )
    assert message(head + "x" * 200_000 + ",cat,train\n") == (
        "CSV cannot be read (field larger than field limit (131072)): give a run's split.csv"
    )
    split_file.unlink()
    assert refusal_of(root, split_file="x.csv") == (
        "x.csv cannot be read (No such file or directory): give a run's split.csv"
    )


def test_copies_that_were_moved_are_scored_one_by_one(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"photos/a": 4, "photos/b": 4})
    (tmp_path / "photos/a/3.jpg").write_bytes((tmp_path / "photos/a/2.jpg").read_bytes())

    def scan() -> Listing:
        return scan_photos(find_photos(tmp_path / "photos")).listing

    listing, split_file = scan(), tmp_path / "split.csv"
    rows = [(path, *line._replace(split="val" if path[2] in "23" else "train")) for path, line in split_lines(listing)]
    write_csv(split_file, [SPLIT_FILE_COLUMNS, *rows])
    for number in range(4):
        (tmp_path / f"photos/a/{number}.jpg").rename(tmp_path / f"photos/a/new{number}.jpg")
    scored, split, notes = find_scored_pictures(scan(), str(split_file))
    assert (scored.paths.tolist(), SPLITS[split], notes) == (
        ["a/new2.jpg", "a/new3.jpg", "b/2.jpg", "b/3.jpg"],
        "val",
        [],
    )


def test_a_resumed_run_keeps_the_splits_and_groups_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, file = write_cats_and_dogs(tmp_path / "photos", 8), tmp_path / "split.csv"
    pairs = np.array([[1, 4], [9, 12]])
    with monkeypatch.context() as patch:  # another version may find other near duplicates
        patch.setattr(near, "find_near_pairs", lambda _: (pairs, np.zeros(2, bool)))
        begun = examine_leniently(root)
        begun.write_split(file)
    assert [len(np.unique(begun.groups)), begun.groups[9], begun.groups[12]] == [14, 1, 4]
    (root / "cat" / "0.jpg").rename(root / "cat" / "zebra.jpg")  # another order of the pictures
    now, fresh = examine_leniently(root, began=str(file)), examine_leniently(root)
    rows = {path: row for row, path in enumerate(now.paths)}
    for path, split, group in zip(begun.paths[1:], begun.splits[1:], begun.groups[1:], strict=True):
        assert now.splits[rows[path]] == split
        assert now.groups[rows[path]] == rows[begun.paths[group]]
    assert now.groups[rows["cat/zebra.jpg"]] == rows["cat/zebra.jpg"]
    assert len(np.unique(fresh.groups)) == 16
    assert fresh.splits.tolist() != now.splits.tolist()
    older = "".join(",".join(line.split(",")[:3]) + "\n" for line in file.read_text().splitlines())
    file.write_text(older)  # without groups
    now = examine_leniently(root, began=str(file))
    assert [now.splits[rows[path]] for path in begun.paths[1:]] == begun.splits[1:].tolist()
    assert now.groups.tolist() == fresh.groups.tolist()
