"""check.py --labels, --apply and --undo, and runs with --data.fixes: training, evaluation and resume agree."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from lit_training import figures
from lit_training.runs.hashes import find_changed_files, write_hashes
from lit_training.runs.out_of_fold import OutOfFold
from lit_training.trained import labels
from tests.support.commands import run, run_well

RUN = Path("lightning_logs/version_0")
FIT = "fit.py --data photos --model LitCNN --data.image_size 32 --dashboard false --accelerator cpu --max_epochs 1"


def write_folds(photos: Path, sure: dict[str, float]) -> None:
    """Write the run's out_of_fold.csv: 2 repeats. ``sure``: path -> mean probability of its class; 0.9 for others."""
    paths = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    is_bee = np.array(["bees" in path for path in paths], int)
    own = np.array([sure.get(path, 0.9) for path in paths])
    shares = np.concatenate([own - 0.05, own + 0.05])  # of the first and the second repeat
    twice = np.tile(is_bee, 2)
    probabilities = np.where(np.arange(2) == twice[:, None], shares[:, None], 1 - shares[:, None])
    repeats, folds = np.repeat([1, 2], len(paths)), np.tile(np.arange(len(paths)) % 3 + 1, 2)
    names = np.array(paths * 2, object)
    OutOfFold(("ants", "bees"), names, repeats, folds, twice, probabilities).write(RUN / "out_of_fold.csv")


def rows_of(file: str | Path) -> list[dict[str, str]]:
    with Path(file).open(newline="", encoding="utf-8-sig") as opened:
        return list(csv.DictReader(opened))


def write_fixes(actions: dict[str, str]) -> None:
    """Write fixes.csv: path -> action. The suggested class is the other one."""
    classes = {path: ("ants", "bees")[:: -1 if "bees" in path else 1] for path in actions}
    lines = [f"{path},{','.join(classes[path])},0.9,{action}\n" for path, action in actions.items()]
    Path("fixes.csv").write_text("path,label,suggested,confidence,action\n" + "".join(lines))


@pytest.mark.parametrize("where", [str(RUN), "latest", f"{RUN}/checkpoints/best.ckpt"])
@pytest.mark.figures
def test_pictures_whose_label_is_contradicted(photo_folder: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (RUN / "checkpoints").mkdir(parents=True)
    (RUN / "checkpoints/best.ckpt").touch()
    drawn = mock.Mock(wraps=figures.draw_mistakes)
    monkeypatch.setattr(figures, "draw_mistakes", drawn)
    (photo_folder / "train/ants/0.jpg").rename(photo_folder / "train/ants/[=1]$x$.jpg")
    write_folds(photo_folder, {"train/ants/[=1]$x$.jpg": 0.1, "val/bees/2.jpg": 0.06, "train/bees/3.jpg": 0.45})
    (photo_folder / "train/ants/7.jpg").rename(photo_folder / "train/ants/new.jpg")
    for name in ("broken.gif", "broken.jpg", "broken.svg"):  # they do not count
        (photo_folder / "train/ants" / name).write_bytes(b"GIF89a\0\0")
    file = RUN / "out_of_fold.csv"  # as a run with --data.fixes writes it: the label of 5.jpg was bees
    file.write_text(re.sub(r"(train/ants/5.jpg,\d,\d,)ants", r"\1bees", file.read_text("utf-8-sig")))
    write_hashes(RUN)
    code, out, err = run(f"check.py photos --labels {where}")
    assert code == 1
    assert err == f"note: 2 pictures not judged: only in {RUN} or only in photos\n"
    assert out.splitlines()[0] == "2 of 23 labels may be wrong"  # at 0.45, the average class is not confident
    expected = [
        ["val/bees/2.jpg", "bees", "ants", "0.9400"],
        ["train/ants/[=1]$x$.jpg", "ants", "bees", "0.9000"],
    ]
    assert [line.split() for line in out.splitlines()[2:4]] == expected
    table = rows_of(RUN / "fixes.csv")
    assert [list(row.values()) for row in table] == [[*row, "keep"] for row in expected]
    with Image.open(RUN / "wrong_labels.png") as sheet:
        assert sheet.width > 400  # two pictures side by side
    assert drawn.call_args.args[0].mean((2, 3)).argmax(1).tolist() == [2, 0]  # a blue and a red one
    assert find_changed_files(RUN) == []
    (RUN / "fixes.csv").unlink()
    monkeypatch.setattr(labels, "MAX_SHOWN", 1)
    ended = run(f"check.py photos --labels {where}")
    assert ("val/bees/2.jpg" in ended.out, "train/ants/" in ended.out, len(rows_of(RUN / "fixes.csv"))) == (
        True,
        False,
        2,
    )
    assert drawn.call_args.args[0].mean((2, 3)).argmax(1).tolist() == [2]
    (RUN / "fixes.csv").write_text("edited")
    ended = run(f"check.py photos --labels {where}")
    assert "fixes.csv exists and stays as it is: rename it" in ended.err
    assert f"written     {RUN}/fixes.csv\n" in out
    assert f"written     {RUN}/fixes.csv\n" not in ended.out
    assert (RUN / "fixes.csv").read_text() == "edited"


def test_labels_without_contradiction_and_without_folds(photo_folder: Path) -> None:
    RUN.mkdir(parents=True)
    code, out, err = run(f"check.py photos --labels {RUN}")
    assert (code, out) == (2, "")
    assert err.startswith(f"check.py: error: {RUN} has no out_of_fold.csv, which folds write: ")
    assert err.endswith("fit.py --data photos --folds 5\n")
    assert "has a out_of_fold.csv (--folds 5)" in run("check.py photos --labels latest").err
    write_folds(photo_folder, {})
    assert run(f"check.py photos --labels {RUN}") == (0, "0 of 24 labels may be wrong\n", "")
    photo_folder.rename("elsewhere")
    shutil.copytree("elsewhere/val", "elsewhere/test")  # folds do not use it
    assert run(f"check.py elsewhere --labels {RUN}") == (0, "0 of 24 labels may be wrong\n", "")
    shutil.copytree("elsewhere/train", "others/train/train")
    shutil.copytree("elsewhere/val", "others/train/val")
    code, out, err = run(f"check.py others --labels {RUN}")
    assert (code, out) == (0, "0 of 0 labels may be wrong\n")
    assert "48 pictures not judged" in err


def test_a_photo_that_became_unreadable_is_not_judged(photo_folder: Path) -> None:
    RUN.mkdir(parents=True)
    write_folds(photo_folder, {"train/ants/0.jpg": 0.1, "train/bees/0.jpg": 0.1})
    (photo_folder / "train/ants/0.jpg").write_bytes(b"\xff\xd8\xff")
    code, out, err = run(f"check.py photos --labels {RUN} --workers 0")
    assert (code, out.splitlines()[0]) == (1, "1 of 23 labels may be wrong")
    assert err == f"note: 1 picture not judged: only in {RUN} or only in photos\n"


def test_files_are_moved_by_the_command(photo_folder: Path) -> None:
    write_fixes({"train/ants/0.jpg": "keep"})
    assert "fixes.csv has no new class and nothing to leave out" in run("check.py photos --apply fixes.csv").err
    shutil.move(photo_folder / "train/ants/0.jpg", photo_folder / "train/ants/x.jpg")
    write_fixes({"train/ants/x.jpg": "move", "val/bees/1.jpg": "leave_out"})
    assert run_well("check.py photos --apply fixes.csv") == "2 files moved\n"
    assert (photo_folder / "train/bees/x.jpg").exists()
    assert run_well("check.py photos") == "23 pictures in 2 classes: nothing found\n"
    assert run_well("check.py photos --undo") == "2 files moved back\n"
    code, _, err = run("check.py photos --undo")
    assert (code, err) == (2, "check.py: error: photos has nothing to undo: --apply has moved no file in it\n")
    assert "argument --undo: not allowed with argument --apply" in run("check.py photos --apply x --undo").err


def test_a_file_that_cannot_be_moved_is_named(photo_folder: Path) -> None:
    """A file has the name of the subfolder that is needed."""
    (photo_folder / "train/ants/sub").mkdir()
    (photo_folder / "train/ants/0.jpg").rename(photo_folder / "train/ants/sub/0.jpg")
    (photo_folder / "train/bees/sub").write_text("x")
    write_fixes({"val/ants/0.jpg": "leave_out", "train/ants/sub/0.jpg": "move"})
    code, out, err = run("check.py photos --apply fixes.csv")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "train/bees/sub" in err
    assert (photo_folder / "val/ants/0.jpg").exists()


def test_training_evaluation_and_resume_agree(photo_folder: Path) -> None:
    write_fixes({"val/ants/0.jpg": "move", "train/ants/1.jpg": "move", "val/bees/3.jpg": "leave_out"})
    said = run_well(f"{FIT} --data.fixes fixes.csv")
    assert "note: 2 labels changed and 1 picture left out by fixes.csv" in said
    split = {row["path"]: row["label"] for row in rows_of(RUN / "split.csv")}
    assert len(split) == 23
    assert (split["val/ants/0.jpg"], split["train/ants/1.jpg"], split["val/ants/1.jpg"]) == ("bees", "bees", "ants")
    [accuracy] = [line.split()[1] for line in said.splitlines() if line.startswith("val_acc")]
    code, out, err = run("evaluate.py latest")
    assert (code, err) == (0, f"note: 1 picture not in {RUN}/split.csv: left out\n")
    assert f"val_acc     {accuracy}" in out
    scored = {row["path"]: row["label"] for row in rows_of(RUN / "evaluation/predictions.csv")}
    assert scored == {path: label for path, label in split.items() if path.startswith("val")}
    text, trained = Path("fixes.csv").read_text(), f"the labels are those of the training, in split.csv\n{err}"
    Path("fixes.csv").write_text(text + "train/ants/2.jpg,ants,bees,0.9,keep\n")
    assert run("evaluate.py latest").err == f"note: fixes.csv has changed since the training: {trained}"
    Path("fixes.csv").unlink()
    assert run("evaluate.py latest").err == f"note: fixes.csv is missing: {trained}"
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    write_fixes({"val/ants/0.jpg": "move", "train/ants/1.jpg": "keep"})
    code, out, err = run("fit.py --resume latest --max_epochs 2")
    assert (code, err.count("\n")) == (2, 1)
    assert "started with other photos or fixes: 1 more (val/bees/3.jpg), 1 changed (train/ants/1.jpg): restore" in err
    Path("fixes.csv").unlink()
    assert "fixes.csv cannot be read (No such file or directory)" in run("fit.py --resume latest --max_epochs 2").err
    assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before
    write_fixes({"val/ants/0.jpg": "move", "train/ants/1.jpg": "move", "val/bees/3.jpg": "leave_out"})
    assert "epoch 2/2" in run_well("fit.py --resume latest --max_epochs 2")
    # after --apply, the folders have the labels of the run
    for name in ("train", "val"):
        (photo_folder / f"{name}/bees/{'10' if name == 'train' else '11'}.jpg").parent.mkdir(exist_ok=True)
    (photo_folder / "val/bees/0.jpg").rename(photo_folder / "val/bees/9.jpg")
    (photo_folder / "train/bees/1.jpg").rename(photo_folder / "train/bees/9.jpg")
    assert run_well("check.py photos --apply fixes.csv") == "3 files moved\n"
    code, out, err = run("evaluate.py latest")
    assert code == 0
    assert "in another class" not in err
    moved = {"val/ants/0.jpg": "val/bees/0.jpg", "val/bees/0.jpg": "val/bees/9.jpg"}
    again = {row["path"]: row["label"] for row in rows_of(RUN / "evaluation/predictions.csv")}
    assert again == {moved.get(path, path): label for path, label in scored.items()}


def test_photos_that_apply_has_moved_are_found_by_their_content(photo_folder: Path) -> None:
    run_well(f"{FIT} --folds 2")
    write_folds(photo_folder, {})
    before = {row["path"]: row for row in rows_of(RUN / "out_of_fold.csv")}
    write_fixes({"val/ants/0.jpg": "move", "train/bees/1.jpg": "move", "val/bees/3.jpg": "leave_out"})
    assert run_well("check.py photos --apply fixes.csv") == "3 files moved\n"
    moved = {"val/ants/0.jpg": "val/bees/0_ants.jpg", "train/bees/1.jpg": "train/ants/1_bees.jpg"}
    ended = run("evaluate.py latest")
    assert ended.code == 0
    assert ended.err == (
        "note: 1 picture left out: missing (val/bees/3.jpg)\n"
        "note: 2 pictures moved: scored with the class of the folder (train/bees/1.jpg, val/ants/0.jpg)\n"
    )
    shown = {row["path"]: row["label"] for row in rows_of(RUN / "evaluation/predictions.csv")}
    expected = {moved.get(path, path) for path in before} - {"val/bees/3.jpg"}
    assert shown == {path: path.split("/")[1] for path in expected}
    predicted = {row["path"]: row["predicted"] for row in rows_of(RUN / "evaluation/predictions.csv")}
    assert predicted == {moved.get(p, p): row["prediction"] for p, row in before.items() if p != "val/bees/3.jpg"}
    (photo_folder / "train/ants/new.jpg").write_bytes((photo_folder / "val/bees/2.jpg").read_bytes() + b"x")
    ended = run("check.py photos --labels latest")
    assert ended.err == "note: 2 pictures not judged: only in lightning_logs/version_0 or only in photos\n"
    assert "2 of 23 labels may be wrong" in ended.out
    assert {row["path"]: row["suggested"] for row in rows_of(RUN / "fixes.csv")} == {
        "val/bees/0_ants.jpg": "ants",
        "train/ants/1_bees.jpg": "bees",
    }
    photo_folder.rename("elsewhere")
    assert run("evaluate.py latest --photos elsewhere").err == (
        "note: 1 picture left out: missing (val/bees/3.jpg)\n"
        "note: 2 pictures moved: scored with the class of the folder (train/bees/1.jpg, val/ants/0.jpg)\n"
    )
