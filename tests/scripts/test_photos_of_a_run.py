"""Scripts on the photos of an earlier run: the same photos, in a new place, or changed since the run began."""

import csv
import hashlib
import shutil
from pathlib import Path

import pytest

from datamodules.photos import folder
from tests.support.commands import run, run_well
from tests.support.photos import scene, write_cats_and_dogs, write_file

RUN = Path("lightning_logs/version_0")
FIT = "fit.py --data photos --model LitCNN --data.image_size 32 --dashboard false --accelerator cpu --data.val_size 0.4"


@pytest.fixture
def photos() -> Path:
    """A trained run on 10 photos; 2 of each class are validation data."""
    root = write_cats_and_dogs(Path("photos"), 5)
    run_well(f"{FIT} --max_epochs 1")
    return root


def split() -> list[dict[str, str]]:
    with (RUN / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def paths(split_name: str) -> list[str]:
    return [row["path"] for row in split() if row["split"] == split_name]


def scored(name: str = "") -> list[str]:
    with (RUN / "evaluation" / name / "predictions.csv").open(newline="", encoding="utf-8-sig") as file:
        return [row["path"] for row in csv.DictReader(file)]


def remove_hashes() -> None:
    """Make split.csv as older versions wrote it."""
    lines = [",".join(line.split(",")[:3]) for line in (RUN / "split.csv").read_text().splitlines()]
    (RUN / "split.csv").write_text("\n".join([*lines, ""]))


def state_of_run() -> dict[str, tuple[int, bytes]]:
    files = [file for file in RUN.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def test_split_csv_has_the_hash_of_each_photo(photos: Path) -> None:
    hashes = {row["path"]: row["sha256"] for row in split()}
    assert hashes == {path: hashlib.sha256((photos / path).read_bytes()).hexdigest() for path in hashes}


def test_photos_that_were_trained_on_are_not_scored(photos: Path) -> None:
    trained = paths("train")
    copy = Path(shutil.copytree(photos, "copy"))
    (copy / trained[0]).rename(copy / "cat" / "renamed.jpg")
    ended = run("evaluate.py latest --data copy")
    assert "note: 6 of 10 pictures were trained on: left out (--all scores them too)" in ended.err
    assert scored("copy") == paths("val")
    ended = run("evaluate.py latest --data copy --all")
    assert "note: 6 of 10 pictures were trained on: scored too" in ended.err
    assert len(scored("copy")) == 10
    for path in paths("val"):
        (copy / path).unlink()
    code, _, err = run("evaluate.py latest --data copy")
    assert (code, err.count("\n")) == (2, 2)  # a note and the error
    assert "6 of 6 pictures were trained on: give other photos, or add --all" in err


def test_a_photo_edited_in_place_is_still_one_that_was_trained_on(photos: Path) -> None:
    with (photos / paths("train")[0]).open("ab") as file:
        file.write(b"a tag")
    assert "6 of 10 pictures were trained on: left out" in run("evaluate.py latest --data photos").err


def test_a_run_without_hashes_compares_paths(photos: Path) -> None:
    remove_hashes()
    shutil.copytree(photos, "copy")
    ended = run("evaluate.py latest --data copy")
    assert "6 of 10 pictures were trained on (found by path" in ended.err
    assert scored("copy") == paths("val")
    (RUN / "split.csv").unlink()
    assert "it is unknown which of these pictures it was trained on" in run("evaluate.py latest --data copy").err
    assert len(scored("copy")) == 10


def test_small_changes_of_the_photos_are_named(photos: Path) -> None:
    gone, moved, edited, same = paths("val")
    (photos / gone).unlink()
    (photos / moved).rename(photos / "dog" / "moved.jpg")
    with (photos / edited).open("ab") as file:
        file.write(b"a tag")
    shutil.copy(photos / paths("train")[0], photos / "dog" / "copy of a training photo.jpg")
    write_file(photos / "cat" / "new.jpg", (photos / same).read_bytes()[:-2] + b"\xff\xd9 new")
    code, _, err = run("evaluate.py latest")
    assert code == 0, err
    assert f"1 picture left out: missing, unreadable, or not in the folder of a trained class ({gone})" in err
    assert "1 picture in another class" in err
    assert f"(dog/moved.jpg, was {moved.partition('/')[0]})" in err
    assert f"1 picture whose content has changed since the run began: scored as they are now ({edited})" in err
    assert f"1 picture not in {RUN}/split.csv: left out" in err
    assert sorted(scored()) == sorted(["dog/moved.jpg", edited, same])


def test_evaluate_finds_moved_photos_with_a_flag(photos: Path) -> None:
    photos.rename("new place")
    code, _, err = run("evaluate.py latest")
    assert (code, err) == (
        2,
        "evaluate.py: error: the photos of the run are not in photos: give the folder with --photos DIR\n",
    )
    run_well("evaluate.py latest --photos 'new place'")
    assert scored() == paths("val")
    assert "--all needs a folder" in run("evaluate.py latest --all").err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda photos: scene(7).save(photos / "cat" / "new.jpg"), ": 1 more (cat/new.jpg): restore"),
        (lambda photos: (photos / "cat" / "0.jpg").unlink(), ": 1 fewer (cat/0.jpg): restore"),
        (lambda photos: scene(7).save(photos / "cat" / "0.jpg"), ": 1 changed (cat/0.jpg): restore"),
        (shutil.rmtree, "the photos of the run are not in photos: give their folder with --photos DIR"),
        (lambda photos: None, "use the same --devices, --data.batch_size and --accumulate_grad_batches"),
    ],
)
def test_a_refused_resume_changes_nothing(photos: Path, change: object, message: str) -> None:
    before, whole = state_of_run(), Path(shutil.copytree(photos, "whole"))
    change(photos)  # type: ignore[operator]
    limit = "--limit_train_batches 1" if "--devices" in message else ""
    code, _, err = run(f"fit.py --resume latest --max_epochs 2 {limit}")
    assert code == 2
    assert message in err
    assert state_of_run() == before
    ended = run_well(f"fit.py --resume latest --max_epochs 2 --photos {whole}")  # restored, in a new place
    assert "epoch 2/2" in ended or "after step" in ended
    assert f"root: {whole}" in (RUN / "config.yaml").read_text()
    shutil.rmtree(photos, ignore_errors=True)
    assert "has finished" in run_well("fit.py --resume latest")


def test_a_run_that_split_its_photos_in_another_way_keeps_its_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a newer version had found other near duplicates."""
    write_cats_and_dogs(Path("photos"), 5)
    with monkeypatch.context() as patch:
        hash_paths = folder.hash_paths
        patch.setattr(folder, "hash_paths", lambda *arguments: ~hash_paths(*arguments))
        run_well(f"{FIT} --max_epochs 1")
    before = (RUN / "split.csv").read_bytes()
    assert "epoch 2/2" in run_well("fit.py --resume latest --max_epochs 2")
    assert (RUN / "split.csv").read_bytes() == before
    run_well(f"{FIT} --max_epochs 1 --resume never --default_root_dir other")
    assert next(Path("other").rglob("split.csv")).read_bytes() != before


def test_photos_needs_a_run_on_photos() -> None:
    write_cats_and_dogs(Path("photos"))
    assert "--photos photos needs a run on photos" in run(f"{FIT} --photos photos").err


def test_near_duplicates_in_two_splits_are_named() -> None:
    for name in ("cat", "dog"):
        for number in range(4):
            picture = scene(number + 10 * (name == "dog"))
            for quality in (60, 90):  # two frames of each scene
                path = write_file(
                    Path("photos", "train" if quality == 60 else "val", name, f"{number}-{quality}.jpg"), b""
                )
                picture.save(path, quality=quality)
    out = run_well(f"{FIT} --max_epochs 1")
    val = set(paths("val"))
    twins = [path for path in val if path.translate(str.maketrans("69", "96")) not in val]
    assert twins
    assert f"note: {len(twins)} picture" in out
    assert "look like a picture in another split" in out
    note = next(line for line in out.splitlines() if "look like" in line)
    assert sum(path in note for path in twins) == min(3, len(twins))


@pytest.mark.parametrize("change", ["no training photos", "an empty class", "a flat test folder", "a second val"])
def test_changes_outside_of_the_validation_photos_do_not_change_the_evaluation(change: str) -> None:
    flat = change == "a flat test folder"
    for top in ["photos"] if flat else ["photos/train", "photos/val"]:
        write_cats_and_dogs(Path(top), 4 if top.endswith("val") else 5)
    run_well(f"{FIT} --max_epochs 1")
    before = run_well("evaluate.py latest").split("data ")[1]
    if change == "no training photos":
        shutil.rmtree("photos/train")
    elif change == "an empty class":
        for file in Path("photos/train/cat").iterdir():
            file.unlink()
    else:
        new = write_cats_and_dogs(Path("new"), 3)
        new.rename("photos/test" if flat else "photos/valid")
    ended = run("evaluate.py latest")
    assert (ended.code, ended.out.split("data ")[1]) == (0, before), ended.err


def test_only_a_val_folder_can_be_evaluated(photos: Path) -> None:
    moved = [(photos / path).read_bytes() for path in paths("val")]
    for number, content in enumerate(moved):
        write_file(Path("other/val") / ("cat" if number < 2 else "dog") / f"{number}.jpg", content)
    assert ": 4 samples" in run_well("evaluate.py latest --data other")


def test_an_older_run_says_that_it_knows_photos_by_path_only(photos: Path) -> None:
    remove_hashes()
    shutil.copytree(photos, "copy/train")
    assert "0 of 10 pictures were trained on (found by path" in run("evaluate.py latest --data copy").err


def test_a_run_without_validation_has_no_photos_to_evaluate() -> None:
    write_cats_and_dogs(Path("photos/train"), 2)
    Path("all.csv").write_text(
        "path,label,split\n" + "".join(f"train/{c}/{n}.jpg,{c},train\n" for c in ("cat", "dog") for n in range(2))
    )
    run_well(f"{FIT} --data.split_file all.csv --limit_val_batches 0 --max_epochs 1")
    assert "photos has no test or val pictures of this run: --photos DIR" in run("evaluate.py latest").err
