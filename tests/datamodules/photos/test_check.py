"""Every kind of finding about a folder of photos, and the search for near duplicates."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.photos.check import find_problems, to_document
from datamodules.photos.find import find_photos
from tests.support.photos import examine_leniently, exif_with_orientation, scene


def save(picture: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A folder without problems."""
    folders = ("train/cat", "train/dog", "val/cat", "val/dog")
    for number, folder in enumerate(f for f in folders for _ in range(4)):
        save(scene(number), tmp_path / "photos" / folder / f"{number}.jpg", quality=90)
    return tmp_path / "photos"


def document(folder: Path) -> dict[str, Any]:
    """Return the document that ``check.py --json`` prints."""
    return json.loads(json.dumps(to_document(*find_problems(find_photos(folder), num_workers=0))))


def found(folder: Path) -> dict[str, list[list[str]]]:
    """Return the items of each kind of finding."""
    every = document(folder)["findings"]
    for finding in every:
        assert finding["count"] == len(finding["items"])
        assert finding["advice"]
    return {finding["kind"]: finding["items"] for finding in every}


def test_a_folder_without_problems_has_no_findings(clean: Path) -> None:
    assert found(clean) == {}
    assert document(clean)["pictures"] == 16


def test_each_bad_file_is_a_finding(clean: Path) -> None:
    whole = (clean / "train/cat/0.jpg").read_bytes()
    (clean / "train/cat/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (clean / "train/cat/empty.jpg").write_bytes(b"")
    (clean / "train/dog/text.jpg").write_text("text")
    (clean / "train/dog/moving.gif").write_bytes(b"GIF89a")
    (clean / "train/dog/notes.txt").write_text("text")
    (clean / "train/loose.jpg").write_bytes(whole)
    (clean / "train/hollow").mkdir()
    assert found(clean) == {
        "truncated": [["train/cat/cut.jpg"]],
        "empty": [["train/cat/empty.jpg"]],
        "not a picture": [["train/dog/text.jpg"]],
        "not a format we read": [["train/dog/moving.gif"]],
        "not a picture by its name": [["train/dog/notes.txt"]],
        "in no class folder": [["train/loose.jpg"]],
        "folder passed over": [["train/hollow/ contains no pictures: ignored"]],
    }


def test_unusual_pictures_are_findings(clean: Path) -> None:
    save(scene(50), clean / "val/cat/phone.jpg", exif=exif_with_orientation(8))
    save(scene(51), clean / "val/cat/named.jpg", format="PNG")
    save(scene(52, (1600, 1200)), clean / "val/cat/huge.jpg")
    save(scene(54, (720, 540)), clean / "val/cat/large.jpg")  # 4.5 times the median, less than 4 times the mean
    save(scene(55, (560, 420)), clean / "val/cat/wide.jpg")  # 3.5 times
    save(scene(53, (16, 12)), clean / "val/dog/tiny.png")
    empty = Image.new("RGB", (160, 120), "gray")
    empty.paste(scene(56).crop((0, 0, 15, 120)))
    save(empty, clean / "val/dog/edge.png")  # its center has one color
    save(scene(57), clean / "val/dog/two.webp", save_all=True, append_images=[scene(58)], lossless=True)
    assert found(clean) == {
        "blank or nearly blank": [["val/dog/edge.png"]],
        "several pages": [["val/dog/two.webp"]],
        "wrong suffix": [["val/cat/named.jpg"]],
        "turned by EXIF": [["val/cat/phone.jpg"]],
        "unusual size": [["val/cat/huge.jpg"], ["val/cat/large.jpg"], ["val/dog/tiny.png"]],
    }


def test_duplicates_are_findings(clean: Path) -> None:
    for number, copy in enumerate(("train/cat/copy.jpg", "val/cat/copy.jpg", "train/dog/copy.jpg", "train/cat/d.jpg")):
        (clean / copy).write_bytes((clean / f"train/cat/{number}.jpg").read_bytes())
    save(scene(8), clean / "train/dog/other.png")
    save(scene(4), clean / "train/dog/near.png")
    save(scene(6), clean / "train/cat/other.png")
    save(scene(5).resize((320, 240)), clean / "val/dog/near.jpg", quality=70)
    assert found(clean) == {
        "exact duplicates": [["train/cat/0.jpg", "train/cat/copy.jpg"], ["train/cat/3.jpg", "train/cat/d.jpg"]],
        "exact duplicates across splits": [["train/cat/1.jpg", "val/cat/copy.jpg"]],
        "same picture under two classes": [["train/cat/2.jpg", "train/dog/copy.jpg"]],
        "near duplicates": [["train/dog/4.jpg", "train/dog/near.png"]],
        "near duplicates under two classes": [
            ["train/cat/other.png", "train/dog/6.jpg"],
            ["train/dog/other.png", "val/cat/8.jpg"],
        ],
        "near duplicates across splits": [
            ["train/dog/5.jpg", "val/dog/near.jpg"],
            ["train/dog/other.png", "val/cat/8.jpg"],
        ],
    }


def test_pictures_of_one_color_are_not_near_duplicates(clean: Path) -> None:
    for colour in ("red", "blue", "white"):
        save(Image.new("RGB", (160, 120), colour), clean / f"val/cat/{colour}.jpg")
    assert found(clean).keys() == {"blank or nearly blank"}


def test_class_problems_are_findings(clean: Path) -> None:
    for number in range(40):
        save(scene(100 + number), clean / f"train/bird/{number}.jpg")
    save(scene(200), clean / "val/fish/0.jpg")
    assert found(clean) == {
        "classes differ between splits": [["bird is not in val"], ["fish is only in val"]],
        "uneven classes": [["cat: 4", "bird: 40"]],
    }


def test_a_single_class_is_a_finding(tmp_path: Path) -> None:
    save(scene(0), tmp_path / "cat" / "0.jpg")
    assert found(tmp_path) == {"one class only": [["cat"]]}


def test_all_files_are_broken(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"")
    assert found(tmp_path)["empty"] == [["cat/x.jpg"], ["dog/x.jpg"]]


def test_check_counts_the_pictures_that_training_uses(clean: Path) -> None:
    (clean / "train/cat/empty.jpg").write_bytes(b"")
    os.mkfifo(clean / "train/cat/pipe.jpg")
    (clean / "train/dog/twin.jpg").write_bytes((clean / "train/cat/0.jpg").read_bytes())
    trained_on, checked = examine_leniently(clean), document(clean)
    assert checked["pictures"] == len(trained_on.paths) == 15
    assert list(checked["counts"].values()) == trained_on.counts().tolist() == [[3, 4], [4, 4], [0, 0]]
    assert found(clean) == {
        "empty": [["train/cat/empty.jpg"]],
        "no file": [["train/cat/pipe.jpg"]],
        "same picture under two classes": [["train/cat/0.jpg", "train/dog/twin.jpg"]],
    }
