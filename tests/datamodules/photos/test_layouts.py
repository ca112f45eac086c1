"""The names of the folders decide which are splits and which are classes. Names that allow two layouts are refused."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from datamodules.image_folder import ImageFolderDataModule
from datamodules.photos.folder import Photos
from tests.support.photos import examine_leniently, refusal_of, write_pictures


def examined(root: Path, layout: str | None = None) -> Photos:
    """Examine a folder. The data module must find the same classes without opening a picture."""
    photos = examine_leniently(root, layout=layout)
    assert ImageFolderDataModule(str(root), layout=layout).class_names == photos.class_names  # type: ignore[arg-type]
    return photos


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Validation", "Testing"),
        ("train_images", "val_images", "test_images"),
        ("seg_train", "dev", "seg_test"),
        ("TrainSet", "eval", "TestData"),
        ("train2017", "VALID", "Test 1"),
        ("fruits-train", "fruits-val", "fruits-test"),
        ("asl_alphabet_train", "validation set", "test"),
    ],
)
def test_names_that_say_a_split(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for name, count in zip(names, (4, 2, 1), strict=True):
        write_pictures(tmp_path, {f"{name}/a": count, f"{name}/b": count}, seed=10 * count)
    photos = examined(tmp_path)
    assert photos.class_names == ("a", "b")
    assert photos.counts().tolist() == [[4, 4], [2, 2], [1, 1]]


@pytest.mark.parametrize(
    "names",
    [("test_tube", "train_station"), ("trains", "testament"), ("latest", "contest"), ("train_test", "val_test")],
)
def test_names_of_classes_that_contain_the_name_of_a_split(tmp_path: Path, names: tuple[str, str]) -> None:
    write_pictures(tmp_path, dict.fromkeys(names, 3))
    assert examined(tmp_path).class_names == tuple(sorted(names))


def test_a_folder_of_a_split_without_class_folders_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train/a": 5, "train/b": 5, "test1": 3})
    report = examined(tmp_path).report()
    assert "  3 in no class folder\n    test1/0.jpg: directly in test1, not in a class folder\n" in report


@pytest.mark.parametrize(
    ("folders", "tops", "classes"),
    [
        (("cats/indoor", "cats/outdoor", "dogs/indoor", "dogs/outdoor"), "cats, dogs", "indoor, outdoor"),
        (("2021/cats", "2021/dogs", "2022/birds", "2022/Cats", "2022/dogs"), "2021, 2022", "cats, dogs"),
    ],
)
def test_two_possible_layouts_are_refused(tmp_path: Path, folders: tuple[str, ...], tops: str, classes: str) -> None:
    write_pictures(tmp_path, dict.fromkeys(folders, 2))
    assert refusal_of(tmp_path) == (
        f"DIR can be read in two ways. If {tops} are the classes: --data.layout classes. If they are splits of the "
        f"classes {classes}: --data.layout split"
    )
    photos = examined(tmp_path, "classes")
    assert photos.class_names == tuple(tops.split(", "))
    photos.write_split(tmp_path / "split.csv")  # its classes show the layout
    assert examine_leniently(tmp_path, split_file=str(tmp_path / "split.csv")).class_names == photos.class_names
    assert refusal_of(tmp_path, layout="split") == (
        f"DIR: for --data.layout split, rename {tops} to train, val and test; train is needed"
    )


@pytest.mark.parametrize(
    "folders",
    [
        ("cats/images", "dogs/images"),
        ("cats/2019", "cats/2020", "dogs"),
        ("birds", "cats/2019", "cats/2020", "dogs/2019", "dogs/2020"),
        ("Aves/Parus", "Aves/Corvus", "Mammalia/Canis", "Mammalia/Felis"),
    ],
)
def test_subfolders_are_merged_with_a_note(tmp_path: Path, folders: tuple[str, ...]) -> None:
    write_pictures(tmp_path, dict.fromkeys(folders, 2))
    photos = examined(tmp_path)
    assert photos.class_names == tuple(dict.fromkeys(folder.partition("/")[0] for folder in folders))
    nested = sorted(folder for folder in folders if "/" in folder)
    names = ", ".join(nested[:3]) + ", ..." * (len(nested) > 3)
    assert f"the pictures of {len(nested)} subfolders count as the class above them ({names})" in photos.notes


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ("cats/train", "cats/test", "dogs/train", "dogs/test"),
            "DIR can be read in two ways: move the splits test, train out of cats, dogs, as in train/<class>/",
        ),
        (
            ("cats_train", "cats_test", "dogs_train", "dogs_test"),
            "DIR has cats_train and dogs_train, which mean the same: make one folder of them, or, if all are classes, "
            "--data.layout classes",
        ),
        (
            ("cats", "dogs", "test"),
            "DIR has test but no train: make DIR/train/<class>/, or, if all are classes, --data.layout classes",
        ),
        (
            ("train/a", "Training/a"),
            "DIR has Training and train, which mean the same: make one folder of them, or, if all are classes, "
            "--data.layout classes",
        ),
    ],
)
def test_splits_in_other_places_are_refused(tmp_path: Path, folders: tuple[str, ...], message: str) -> None:
    write_pictures(tmp_path, dict.fromkeys(folders, 2))
    assert refusal_of(tmp_path) == message


def test_class_names_that_look_alike_are_one_class_across_splits(tmp_path: Path) -> None:
    bird = "Vögel"
    write_pictures(tmp_path, {"train/Cat": 3, "train/dog": 3, f"train/{unicodedata.normalize('NFC', bird)}": 3})
    write_pictures(tmp_path, {"val/cat ": 1, "val/DOG": 2, f"val/{unicodedata.normalize('NFD', bird)}": 3}, seed=50)
    photos = examined(tmp_path)
    assert photos.class_names == ("Cat", unicodedata.normalize("NFC", bird), "dog")
    assert photos.counts()[:2].tolist() == [[3, 3, 3], [1, 3, 2]]
    assert "'val/cat ' is read as the class 'Cat'" in photos.notes


def test_class_names_that_look_alike_in_one_split_are_two_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"train/Cat": 3, "train/cat": 2, "val/CAT": 1, "val/cat": 1})
    photos = examined(tmp_path)
    assert photos.counts()[:2].tolist() == [[3, 2], [0, 1]]
    text = "are different classes, but their names look alike: join the folders if they are one"
    assert [note for note in photos.notes if text in note] == [
        f"'train/Cat' and 'train/cat' {text}",
        f"'val/CAT' and 'val/cat' {text}",
    ]
