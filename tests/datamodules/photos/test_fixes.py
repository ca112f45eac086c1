"""A fixes.csv: every wrong line has an answer, training uses the new labels, and files are moved and moved back."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import DataError
from datamodules.files import write_spreadsheet
from datamodules.photos import fixes
from datamodules.photos.find import find_photos
from datamodules.photos.fixes import FIX_COLUMNS, move_files, read_fixes, undo_move
from datamodules.photos.folder import Photos, examine
from tests.support.photos import write_pictures

HEAD = ",".join(FIX_COLUMNS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """``cat`` and ``dog`` with three pictures each, and one in a subfolder of ``cat``."""
    return write_pictures(tmp_path / "root", {"cat": 3, "dog": 3, "cat/sub": 1})


def write(text: str, encoding: str = "utf-8") -> str:
    Path("f.csv").write_text(text, encoding=encoding, newline="")
    return "f.csv"


def files(root: Path) -> dict[str, bytes]:
    """Return the content of each file that is not hidden."""
    paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def used(photos: Photos) -> dict[str, str]:
    return {path: photos.class_names[label] for path, label in zip(photos.paths, photos.labels, strict=True)}


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", f" needs the columns {HEAD}: give a fixes.csv that check.py --labels wrote"),
        ("", f" needs the columns {HEAD}: give a fixes.csv that check.py --labels wrote"),
        (f"{HEAD}\ncat/0.jpg,cat,dog,0.9\n", f", line 2: must be {HEAD}"),
        (f"{HEAD}\ncat/0.jpg,cat,dog,0.9,mov\n", ", line 2: the action is mov, but must be move, keep or leave_out"),
        (f"{HEAD}\ncat/0.jpg,cat,dog,0.9,\n", ", line 2: the action is , but must be move, keep or leave_out"),
        (
            f"{HEAD}\n\ncat/9.jpg,cat,dog,0.9,keep\n",
            ", line 3: cat/9.jpg is not a picture in DIR: correct or delete the line",
        ),
        (
            f"{HEAD}\r\ncat/0.jpg,cat,dog,0.9,keep\r\ncat/0.jpg,cat,dog,0.9,move\r\n",
            ", line 3: an earlier line has cat/0.jpg too: delete one of them",
        ),
        (
            f"{HEAD}\ncat/0.jpg,dog,cat,0.9,keep\n",
            ", line 2: the class of cat/0.jpg is cat, not dog: correct or delete the line",
        ),
        (f"{HEAD}\ncat/0.jpg,cat,\x1bcow,0.9,move\n", r", line 2: \x1bcow is not one of the classes cat, dog"),
        (f"{HEAD}\n{'x' * 200_000},cat,dog,1,keep\n", " cannot be read (field larger than field limit (131072)): give"),
    ],
)
def test_each_wrong_line_has_an_answer(root: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_fixes(find_photos(root), write(text))
    assert str(caught.value).replace(str(root), "DIR").startswith(f"f.csv{message}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_has_an_answer(root: Path) -> None:
    for name in ("no.csv", "root"):
        with pytest.raises(DataError, match=f"^{name} cannot be read"):
            read_fixes(find_photos(root), name)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_a_spreadsheet_saves_is_read(root: Path, delimiter: str, encoding: str) -> None:
    rows = [
        FIX_COLUMNS,
        ("cat/0.jpg", "cat", "dog", "0.9", " Move"),
        ("",) * 5,
        ("dog/1.jpg", "dog", "", "", "leave_out"),
    ]
    file = write("".join(delimiter.join(row) + "\r\n" for row in rows), encoding)
    listing = find_photos(root)
    assert {listing.paths[row]: name for row, name in read_fixes(listing, file).items()} == {
        "cat/0.jpg": "dog",
        "dog/1.jpg": "",
    }


def test_columns_may_have_another_order_and_there_may_be_others(root: Path) -> None:
    expected = read_fixes(find_photos(root), write(f"{HEAD}\ncat/0.jpg,cat,dog,0.9,move\n"))
    text = "Notes;Action;LABEL;path ;suggested;confidence\r\nlook;move;cat;cat/0.jpg;dog;0,9\r\n"
    assert read_fixes(find_photos(root), write(text)) == expected
    with pytest.raises(DataError, match=r"needs the columns path,label,.*: give a fixes.csv"):
        read_fixes(find_photos(root), write(text.replace("path", "file")))


def test_odd_names_are_found(tmp_path: Path) -> None:
    """Names with a comma, a line break, bytes that are not UTF-8, and beginnings that could be a formula."""
    names = ["=a, b.jpg", "'q.jpg", "x\ny;z.jpg", os.fsdecode(b"\xff.jpg")]
    for name in names:
        write_pictures(tmp_path / "odd", {"+c": 1, "@d": 1}, seed=9)
        (tmp_path / "odd/+c/0.jpg").rename(tmp_path / "odd/+c" / name)
    rows = [(f"+c/{name}", "+c", "@d", "0.9", "move") for name in names]
    write_spreadsheet("f.csv", [FIX_COLUMNS, *rows], numbers="confidence")
    listing = find_photos(tmp_path / "odd")
    assert len(read_fixes(listing, "f.csv")) == 4
    assert move_files("odd", "f.csv") == 4
    assert set(find_photos(tmp_path / "odd", "classes").paths) >= {f"@d/{name}" for name in names}
    assert undo_move("odd") == 4
    assert list(find_photos(tmp_path / "odd").paths) == list(listing.paths)


# --- training ---------------------------------------------------------------------------------------------------------

LINES = f"{HEAD}\ncat/0.jpg,cat,dog,0.9,move\ndog/1.jpg,dog,cat,0.9,leave_out\ncat/2.jpg,cat,dog,0.9,keep\n"


def test_training_uses_the_fixes(root: Path) -> None:
    before, plain = files(root), examine(root)
    photos = examine(root, fixes=write(LINES))
    assert used(photos) == {path: name for path, name in used(plain).items() if path != "dog/1.jpg"} | {
        "cat/0.jpg": "dog"
    }
    assert photos.notes[1] == "1 label changed and 1 picture left out by f.csv"
    assert [tuple(file) for file in photos.left_out] == [("dog/1.jpg", "left out by fixes", "f.csv")]
    assert files(root) == before


@pytest.mark.parametrize("made_with_fixes", [False, True])
def test_a_split_file_of_either_labels_can_be_used_with_fixes(root: Path, made_with_fixes: bool) -> None:
    file = write(LINES)
    old = examine(root, fixes=file if made_with_fixes else None, seed=3)
    old.write_split("split.csv")
    photos = examine(root, fixes=file, split_file="split.csv")
    assert used(photos) == used(examine(root, fixes=file))
    splits = dict(zip(old.paths, old.splits, strict=True))
    assert [splits[path] for path in photos.paths] == photos.splits.tolist()
    (root / "cat/1.jpg").unlink()
    with pytest.raises(DataError, match=r"does not contain 1 picture of split.csv \(cat/1.jpg\)"):
        examine(root, fixes=file, split_file="split.csv")
    if made_with_fixes:
        with pytest.raises(DataError, match=r"cat/0.jpg has the class dog, .* or give the --data.fixes"):
            examine(root, split_file="split.csv")


# --- moving files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "train/{}"])
def test_files_are_moved_and_moved_back(tmp_path: Path, form: str) -> None:
    root = write_pictures(tmp_path / "r", {form.format(name): 2 for name in ("cat", "dog", "cat/sub")})
    if form != "{}":
        write_pictures(root, {"val/Dog": 2, "test/cat": 1, "test/dog": 1}, seed=50)
    before, cat, dog = files(root), form.format("cat"), form.format("dog")
    lines = [f"{cat}/0.jpg,cat,dog,1,keep", f"{cat}/sub/1.jpg,cat,dog,1,move", f"{dog}/1.jpg,dog,cat,1,leave_out"]
    moves = {f"{cat}/sub/1.jpg": f"{dog}/sub/1.jpg", f"{dog}/1.jpg": None}
    if form != "{}":  # val has no folder of the class cat
        lines += ["val/Dog/1.jpg,dog,cat,1,move", "test/cat/0.jpg,cat,dog,1,leave_out"]
        moves |= {"val/Dog/1.jpg": "val/cat/1.jpg", "test/cat/0.jpg": None}
    file = write("\n".join([HEAD, *lines, ""]))
    assert move_files("r", file) == len(moves)
    expected = {moves.get(path, path): content for path, content in before.items()}
    out = {f".left_out/{path}": before[path] for path, target in moves.items() if target is None}
    del expected[None]
    assert files(root) == expected | out
    assert set(find_photos(root).paths) == set(expected)  # training does not read .left_out
    with pytest.raises(DataError, match=r"is not a picture in r \(if --apply has moved it, .*--undo"):
        move_files("r", file)
    assert undo_move("r") == len(moves)
    assert files(root) == before
    with pytest.raises(DataError, match="r has nothing to undo"):
        undo_move("r")


def test_the_last_move_is_undone_first(root: Path, tmp_path: Path) -> None:
    before = files(root)
    move_files("root", write(f"{HEAD}\ncat/sub/0.jpg,cat,dog,1,move\n"))
    between = files(root)
    move_files("root", write(f"{HEAD}\ndog/sub/0.jpg,dog,cat,1,leave_out\n"))
    (root / ".moved_0001.csv").rename(tmp_path / "kept.csv")  # the next journal must not replace the second one
    move_files("root", write(f"{HEAD}\ncat/1.jpg,cat,dog,1,leave_out\n"))
    assert undo_move("root") == 1
    (tmp_path / "kept.csv").rename(root / ".moved_0001.csv")
    assert undo_move("root") == 1
    assert files(root) == between
    assert undo_move("root") == 1
    assert files(root) == before


def refused(root: Path, lines: str, message: str) -> None:
    """Assert that nothing is moved and no journal is left."""
    before = files(root)
    with pytest.raises(DataError, match=message):
        move_files("root", write(f"{HEAD}\n{lines}"))
    assert files(root) == before
    assert not list(root.glob(".moved*"))


def test_nothing_is_overwritten(root: Path) -> None:
    first = "cat/sub/0.jpg,cat,dog,1,move\n"
    numbered, before = write(f"{HEAD}\n{first}cat/0.jpg,cat,dog,1,move\n"), files(root)
    move_files("root", numbered)  # files of both classes are numbered
    assert files(root)["dog/0_cat.jpg"] == before["cat/0.jpg"]
    assert files(root)["dog/0.jpg"] == before["dog/0.jpg"]
    undo_move("root")
    assert files(root) == before
    (root / "dog/0_CAT.jpg").write_bytes(before["dog/0.jpg"])
    (root / "dog/0_cat.jpg").write_bytes(before["dog/0.jpg"])
    refused(root, f"{first}cat/0.jpg,cat,dog,1,move\n", "cat/0.jpg: dog/0_cat.jpg exists already: rename one of")
    write_pictures(root, {"cow": 4}, seed=70)
    (root / "dog/3_cow.jpg").write_bytes(b"")
    (root / "cat/0.jpg").rename(root / "cat/3.JPG")
    clash = "cat/3.JPG,cat,dog,1,move\ncow/3.jpg,cow,dog,1,move\n"
    refused(root, f"{first}{clash}", "cow/3.jpg: dog/3_cow.jpg exists already")
    (root / "cat/3.JPG").rename(root / "cat/caf\u00e9.jpg")
    (root / "cow/3.jpg").rename(root / "cow/cafe\u0301.jpg")  # one name on macOS
    move_files("root", write(f"{HEAD}\ncat/caf\u00e9.jpg,cat,dog,1,move\ncow/cafe\u0301.jpg,cow,dog,1,move\n"))
    assert {"dog/caf\u00e9.jpg", "dog/cafe\u0301_cow.jpg"} <= files(root).keys()
    undo_move("root")
    refused(
        root, "cat/caf\u00e9.jpg,cat,dog,1,keep\n", "f.csv has no new class and nothing to leave out: edit its column"
    )


def test_links_are_not_moved(root: Path, tmp_path: Path) -> None:
    other = write_pictures(tmp_path / "other", {"in": 5}, seed=90)
    (root / "cow").symlink_to(other / "in")
    (root / "cat/link.jpg").symlink_to(other / "in/0.jpg")
    refused(
        root,
        "cat/sub/0.jpg,cat,dog,1,move\ncow/3.jpg,cow,cat,1,leave_out\n",
        "cow/3.jpg: it or its new folder is a link",
    )
    refused(root, "cat/link.jpg,cat,dog,1,move\n", "cat/link.jpg: it or its new folder is a link: use --data.fixes")
    refused(root, "cat/sub/0.jpg,cat,cow,1,move\n", "cat/sub/0.jpg: it or its new folder is a link")
    assert used(examine(root, fixes="f.csv"))["cat/sub/0.jpg"] == "cow"


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_move_is_undone(root: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> None:
    before, done, move = files(root), [], fixes._move
    lines = "cat/sub/0.jpg,cat,dog,1,move\ncat/1.jpg,cat,dog,1,leave_out\ndog/1.jpg,dog,cat,1,leave_out\n"

    def fail_at(*arguments: object) -> None:
        done.append(arguments)
        if len(done) == at + 1:
            raise error
        move(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fixes, "_move", fail_at)
    with pytest.raises(type(error)):
        move_files("root", write(f"{HEAD}\n{lines}"))
    assert files(root) == before
    assert not list(root.glob(".moved*"))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_killed_move_can_be_undone(root: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    before, lines = files(root), "cat/1.jpg,cat,dog,1,leave_out\ncat/sub/0.jpg,cat,dog,1,move\n"
    move_files("root", write(f"{HEAD}\n{lines}"))
    for path, target in [("cat/1.jpg", ".left_out/cat/1.jpg"), ("cat/sub/0.jpg", "dog/sub/0.jpg")][at:]:
        (root / target).rename(root / path)  # the state after a kill behind `at` moves
    assert undo_move("root") == at
    assert files(root) == before


@pytest.mark.parametrize("line", ["cat/0.jpg,/tmp/0.jpg", "../0.jpg,dog/0.jpg", "cat/0.jpg", "cat/0.jpg,dog/0.jpg,x"])
def test_a_damaged_journal_moves_nothing(root: Path, line: str) -> None:
    (root / ".moved_0001.csv").write_text(f"cat/9.jpg,dog/0.jpg\n{line}\n")
    before = files(root)
    with pytest.raises(DataError, match=r"moved_0001.csv is damaged: move the files back by hand, then delete it"):
        undo_move("root")
    assert files(root) == before


def test_undo_overwrites_nothing(root: Path) -> None:
    move_files("root", write(f"{HEAD}\ncat/1.jpg,cat,dog,1,leave_out\ncat/sub/0.jpg,cat,dog,1,move\n"))
    (root / "cat/1.jpg").write_bytes(b"new")
    after = files(root)
    with pytest.raises(DataError, match=r"cat/1.jpg would be overwritten: rename these files, then repeat --undo"):
        undo_move("root")
    assert files(root) == after
    (root / "cat/1.jpg").rename(root / "cat/5.jpg")
    assert undo_move("root") == 2


def test_a_note_counts_only_real_changes(root: Path) -> None:
    same = examine(root, fixes=write(f"{HEAD}\ncat/0.jpg,cat,cat,1,move\ncat/1.jpg,cat,dog,1,keep\n"))
    assert same.notes[1] == "0 labels changed and 0 pictures left out by f.csv"
    assert np.array_equal(same.labels, examine(root).labels)


def folders(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir()}


def test_undo_removes_only_empty_folders_that_apply_has_made(root: Path) -> None:
    (root / "dog/sub").mkdir()
    before = folders(root)
    move_files("root", write(f"{HEAD}\ncat/sub/0.jpg,cat,dog,1,move\ncat/0.jpg,cat,dog,1,leave_out\n"))
    assert folders(root) == before | {".left_out", ".left_out/cat"}
    assert undo_move("root") == 2
    assert folders(root) == before, "dog/sub was there before"
    (root / "dog/sub").rmdir()
    before = folders(root)
    move_files("root", write(f"{HEAD}\ncat/sub/0.jpg,cat,dog,1,move\n"))
    move_files("root", write(f"{HEAD}\ncat/0.jpg,cat,dog,1,leave_out\ndog/1.jpg,dog,cat,1,leave_out\n"))
    (root / "dog/sub/.hidden").touch()
    (root / ".left_out/cat/new").touch()
    assert undo_move("root") == 2
    assert folders(root) == before | {"dog/sub", ".left_out", ".left_out/cat"}, "they hold files"
    assert undo_move("root") == 1
    assert (root / "dog/sub/.hidden").exists()
