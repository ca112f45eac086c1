"""The layout of a folder gives classes and splits. Every file that is not used is listed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from datamodules.photos.find import (
    PICTURE_SUFFIXES,
    TEST,
    TRAIN,
    VAL,
    LeftOut,
    find_files_below,
    find_photos,
)
from tests.support.photos import (
    JPEG,
    encoded,
    examine_leniently,
    names,
    refusal_of,
    write_cats_and_dogs,
    write_file,
    write_pictures,
)

# --- files that are left out ------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["gif", "svg", "GIF"])
def test_other_formats_count_as_bad(tmp_path: Path, suffix: str) -> None:
    write_file(write_cats_and_dogs(tmp_path) / "cat" / f"x.{suffix}", b"placeholder")
    assert examine_leniently(tmp_path).left_out == [
        LeftOut(f"cat/x.{suffix}", "not a format we read", f".{suffix.lower()}: convert to .jpg")
    ]
    assert refusal_of(tmp_path, max_bad_fraction=0.05).startswith("1 of 13 pictures cannot be read, more than 5%")


def test_raw_files_are_not_read_as_tiff(tmp_path: Path) -> None:
    """A raw file begins with a small preview, which Pillow reads as a TIFF."""
    write_file(write_cats_and_dogs(tmp_path) / "cat" / "x.NEF", encoded(1, "TIFF"))
    assert [file.path for file in examine_leniently(tmp_path).left_out] == ["cat/x.NEF"]


def test_files_without_a_suffix_are_read_if_they_are_pictures(tmp_path: Path) -> None:
    root = write_cats_and_dogs(tmp_path / "root")
    for number, form in enumerate(("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")):
        write_file(root / "new" / form, encoded(50 + number, form))
    write_file(root / "new" / "2021.05.03 Berlin", encoded(70))
    write_file(root / "cat" / "README", b"about cats")
    write_file(root / "cat" / "BMW", b"BMW is a car")
    write_file(root / "cat" / "moving", encoded(71, "GIF"))
    os.mkfifo(root / "cat" / "pipe")
    photos = examine_leniently(root)
    assert photos.class_names == ("cat", "dog", "new")
    assert [file[:2] for file in photos.left_out] == [
        *[(f"cat/{name}", "not a picture by its name") for name in ("BMW", "README", "pipe")],
        ("cat/moving", "not a format we read"),
    ]
    assert [Path(file).name for file in find_files_below(root / "new", PICTURE_SUFFIXES)] == sorted(
        ["2021.05.03 Berlin", "JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM"]
    )


def test_text_files_and_loose_pictures_are_left_out(tmp_path: Path) -> None:
    write_file(write_cats_and_dogs(tmp_path) / "cat" / "labels.txt", b"x")
    write_file(tmp_path / "loose.jpg", JPEG)
    assert examine_leniently(tmp_path).left_out == [
        LeftOut("cat/labels.txt", "not a picture by its name", ".txt is not a picture suffix"),
        LeftOut("loose.jpg", "in no class folder", "directly in the main folder, not in a class folder"),
    ]


def test_files_and_folders_without_read_permission() -> None:
    """Root can read every file, so this test runs as the user nobody."""
    code = (
        "import os, sys; from datamodules.photos.folder import examine\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "photos = examine(sys.argv[1], max_bad_fraction=0.9)\n"
        "print([tuple(file) for file in photos.left_out])\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to nobody
        root = write_cats_and_dogs(Path(folder))
        root.chmod(0o755)
        (root / "cat" / "0.jpg").chmod(0)
        closed = write_pictures(root, {"dog/closed": 1}, seed=50) / "dog" / "closed"
        closed.chmod(0)
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
        closed.chmod(0o755)
    assert done.stdout.strip() == str(
        [
            ("dog/closed", "unreadable", "folder cannot be read: allow it with chmod u+rx"),
            ("cat/0.jpg", "unreadable", "Permission denied"),
        ]
    ), done.stderr


def test_missing_and_special_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cats_and_dogs(tmp_path)
    (tmp_path / "cat" / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "cat" / "null.jpg").symlink_to("/dev/null")
    (tmp_path / "cat" / "self.jpg").symlink_to(tmp_path / "cat" / "self.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path / "cat")  # the path of a socket must be short
        listener.bind("socket.jpg")
    assert examine_leniently(tmp_path).left_out == [
        LeftOut("cat/dangling.jpg", "unreadable", "No such file or directory"),
        LeftOut("cat/null.jpg", "no file", "a device: move it out of the folder"),
        LeftOut("cat/pipe.jpg", "no file", "a named pipe: move it out of the folder"),
        LeftOut("cat/self.jpg", "unreadable", "Too many levels of symbolic links"),
        LeftOut("cat/socket.jpg", "no file", "a socket: move it out of the folder"),
    ]


def test_hidden_and_system_files_are_ignored(tmp_path: Path) -> None:
    write_cats_and_dogs(tmp_path)
    for path in (".x/0.jpg", ".ipynb_checkpoints/0.jpg", "__MACOSX/0.jpg", "cat/.ipynb_checkpoints/0.jpg"):
        write_file(tmp_path / path, JPEG)
    for path in ("cat/._0.jpg", "cat/.DS_Store", "cat/Thumbs.db"):
        write_file(tmp_path / path, b"x")
    photos = examine_leniently(tmp_path)
    assert (len(photos.paths), photos.class_names, photos.left_out) == (12, ("cat", "dog"), [])


# --- layouts ------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_give_the_splits(tmp_path: Path, val: str) -> None:
    write_pictures(tmp_path, {"train/a": 3, "train/b": 2, f"{val}/a": 1, f"{val}/b": 1, "test/a": 1, "test/b": 2})
    photos = examine_leniently(tmp_path)
    assert photos.class_names == ("a", "b")
    assert photos.counts().tolist() == [[3, 2], [1, 1], [1, 2]]
    assert photos.notes == []
    assert all(path.startswith(val) for path in names(photos, VAL))


def test_class_only_in_val_and_class_missing_from_val(tmp_path: Path) -> None:
    write_pictures(
        tmp_path, {"train/a": 3, "train/b": 3, "train/c": 3, "val/a": 1, "val/aa": 2, "val/c": 1, "test/aa": 1}
    )
    photos = examine_leniently(tmp_path)
    assert photos.class_names == ("a", "b", "c")
    assert photos.counts()[VAL].tolist() == [1, 0, 1]
    assert [file.path for file in photos.left_out] == ["test/aa/0.jpg", "val/aa/0.jpg", "val/aa/1.jpg"]
    assert {file[1:] for file in photos.left_out} == {("class not in train", "class aa is only in val and test")}
    assert photos.notes == [
        "class aa is only in val and test: it cannot be learned, 3 pictures left out",
        "accuracy is not measured for 1 class without pictures in val: b",
    ]


def test_empty_class_folder_is_a_note(tmp_path: Path) -> None:
    (write_cats_and_dogs(tmp_path) / "empty").mkdir()
    photos = examine_leniently(tmp_path)
    assert photos.class_names == ("cat", "dog")
    assert "empty/ contains no pictures: ignored" in photos.notes


def test_nested_folders_belong_to_the_class(tmp_path: Path) -> None:
    write_file(write_cats_and_dogs(tmp_path) / "cat" / "2019" / "may" / "x.jpg", JPEG)
    assert "cat/2019/may/x.jpg" in list(examine_leniently(tmp_path).paths)


def test_a_class_called_train(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train": 3, "plane": 3})
    photos = examine_leniently(tmp_path)
    assert (photos.class_names, photos.left_out) == (("plane", "train"), [])


def test_links_are_followed_once_and_loops_ignored(tmp_path: Path) -> None:
    root = write_cats_and_dogs(tmp_path / "root", 2)
    write_pictures(tmp_path, {"elsewhere": 3}, seed=50)
    write_pictures(root, {"cat/sub": 1}, seed=60)
    links = {
        "cat/loop": root / "cat",
        "cat/up": root,
        "cat/higher": tmp_path,
        "cat/aaa": root / "cat" / "sub",  # sorts before what it links to
        "cat/far": tmp_path / "elsewhere",
        "cat/farther": tmp_path / "elsewhere",
        "dog/cats": root / "cat",
        "dog/self": root / "dog" / "self",
    }
    for link, target in links.items():
        (root / link).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    assert list(find_photos(root).paths) == [
        *("cat/0.jpg", "cat/1.jpg", "cat/sub/0.jpg"),
        *("cat/far/0.jpg", "cat/far/1.jpg", "cat/far/2.jpg"),
        *("dog/0.jpg", "dog/1.jpg"),
    ]


def test_a_link_does_not_lead_to_test_pictures(tmp_path: Path) -> None:
    """``test/`` is a split although it has no class folders."""
    for path in ("train/a/x.jpg", "train/b/y.jpg", "test/z.jpg"):
        write_file(tmp_path / path, JPEG)
    (tmp_path / "train/a/link").symlink_to("../../test")
    assert list(find_photos(tmp_path).paths) == ["train/a/x.jpg", "train/b/y.jpg"]


def test_links_to_class_folders_are_followed(tmp_path: Path) -> None:
    write_cats_and_dogs(tmp_path / "store", 3)
    (tmp_path / "root").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "store" / name)
    assert len(examine_leniently(tmp_path / "root").paths) == 6


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    assert refusal_of(tmp_path / "x") == "DIR does not exist: give the folder that contains your class folders"
    write_file(tmp_path / "file", b"")
    assert refusal_of(tmp_path / "file") == "DIR is not a folder: give the folder that contains your class folders"
    (tmp_path / "no").mkdir()
    no_folders = "DIR has no class folders: make one for each class, DIR/<class>/<picture>.jpg"
    assert refusal_of(tmp_path / "no") == no_folders
    write_file(tmp_path / "no" / "x.jpg", JPEG)
    assert refusal_of(tmp_path / "no") == no_folders
    (tmp_path / "bare" / "cat").mkdir(parents=True)
    assert refusal_of(tmp_path / "bare") == "no pictures to train on in DIR: put some in DIR/cat/"
    write_pictures(tmp_path / "val", {"val/a": 1})
    assert refusal_of(tmp_path / "val") == (
        "DIR has val but no train: make DIR/train/<class>/, or, if all are classes, --data.layout classes"
    )
    write_pictures(tmp_path / "twice", {"train/a": 1, "val/a": 1, "valid/a": 1})
    assert refusal_of(tmp_path / "twice") == (
        "DIR has val and valid, which mean the same: make one folder of them, or, if all are classes, --data.layout "
        "classes"
    )
    write_file(tmp_path / "flat" / "train" / "x.jpg", JPEG)
    write_file(tmp_path / "flat" / "val" / "x.jpg", JPEG)
    assert refusal_of(tmp_path / "flat") == no_folders.replace("<class>", "train/<class>")


def test_constants_are_indices_of_counts() -> None:
    assert (TRAIN, VAL, TEST) == (0, 1, 2)
