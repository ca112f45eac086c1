"""``evaluate.py RUN --verify`` on honest runs, and on runs whose files or figures someone has changed."""

import csv
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lit_training import load
from lit_training.runs.hashes import find_changed_files, write_hashes
from lit_training.trained.audit import _check_tables
from lit_training.trained.outputs import write_evaluation
from tests.lit_training.runs.test_hashes import flip_a_byte
from tests.support.commands import Ended, run, run_well
from tests.support.photos import write_cats_and_dogs

FIT = "fit.py --accelerator cpu --devices 1 --dashboard false --quiet --max_epochs 2"
SHAPES = f"{FIT} --data.train_size 400 --data.val_size 97 --data.batch_size 16 --model.lr 0.03"
PHOTOS = f"{FIT} --data photos --model LitCNN --data.image_size 32 --data.val_size 0.4 --seed 3"
RUNS = {"shapes": Path("shapes/lightning_logs/version_0"), "photos": Path("pets/lightning_logs/version_0")}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An evaluated run on shapes and one on photos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("verify"))
        write_cats_and_dogs(Path("photos"), 10)
        run_well(f"{SHAPES} --default_root_dir shapes")
        run_well(f"{PHOTOS} --default_root_dir pets")
        for name in RUNS.values():
            run_well(f"evaluate.py {name}")
        yield folder


@pytest.fixture(autouse=True)
def runs(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)


def verify(name: str, flags: str = "") -> Ended:
    """Verify a run; check that this changes no file."""
    before = {path: path.read_bytes() for path in RUNS[name].rglob("*") if path.is_file()}
    ended = run(f"evaluate.py {RUNS[name]} --verify --accelerator cpu {flags}")
    assert before == {path: path.read_bytes() for path in RUNS[name].rglob("*") if path.is_file()}
    return ended


@pytest.mark.parametrize("name", RUNS)
def test_an_honest_run_agrees_also_in_another_place(name: str) -> None:
    assert verify(name)[:2] == (0, f"{RUNS[name]}: all files and figures agree\n")
    moved = Path(shutil.move(RUNS[name], "moved"))
    assert run_well(f"evaluate.py {moved} --verify") == "moved: all files and figures agree\n"


def edit(path: Path, row: int, column: str, change: Callable[[str], str]) -> None:
    """Change a cell of a CSV file."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    place = rows[0].index(column)
    rows[row][place] = change(rows[row][place])
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def best_row(path: Path, column: str) -> int:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(
        (row for row in rows if row["val_acc"]), key=lambda row: (float(row["val_acc"]), -float(row["val_loss"]))
    )
    return rows.index(best) + 1


def other_class(name: str) -> str:
    return "ring" if name != "ring" else "disc"


FORGED: list[tuple[str, Callable[[str], str], str]] = [
    ("metrics.csv val_acc", lambda cell: str(float(cell) + 0.011), "metrics.csv: val_acc of the best epoch is "),
    ("metrics.csv val_loss", lambda cell: str(float(cell) * 0.98), "metrics.csv: val_loss of the best epoch is "),
    (
        "evaluation/predictions.csv probability",
        lambda cell: f"{float(cell) + 0.02:.6f}",
        "evaluation/predictions.csv: 1 row ",
    ),
    ("evaluation/predictions.csv predicted", other_class, "evaluation/predictions.csv: 1 row such as 4,"),
    (
        "evaluation/predictions.csv right",
        lambda cell: str(1 - int(cell)),
        "evaluation/predictions.csv: 1 row such as 4,",
    ),
    ("evaluation/predictions.csv label", other_class, "evaluation/predictions.csv: 1 row such as 4,"),
    (
        "evaluation/confusion_matrix.csv ring",
        lambda cell: str(int(cell) + 1),
        "evaluation/confusion_matrix.csv: 1 row ",
    ),
    (
        "evaluation/per_class.csv recall",
        lambda cell: f"{float(cell or 0) + 0.0001:.6f}",
        "evaluation/per_class.csv: 1 row ",
    ),
    ("evaluation/per_class.csv f1", lambda cell: "much", "evaluation/per_class.csv: 1 row "),
]


@pytest.mark.parametrize(
    ("cell", "change", "found"),
    [
        pytest.param(*case, id=case[0], marks=[pytest.mark.slow] * (number % 3 > 0))
        for number, case in enumerate(FORGED)
    ],
)
def test_a_forged_figure_is_found_although_the_list_was_updated(cell: str, change: Any, found: str) -> None:
    name, column = cell.split()
    path = RUNS["shapes"] / name
    edit(path, best_row(path, column) if name == "metrics.csv" else 5, column, change)
    assert verify("shapes").out.splitlines()[0] == f"{RUNS['shapes']}: changed {name}"
    write_hashes(RUNS["shapes"])
    code, out, _ = verify("shapes")
    assert (code, out.count("\n")) == (1, 1)
    assert out.startswith(f"{RUNS['shapes']}: {found}")


def test_forged_weights_and_a_better_earlier_epoch_are_found() -> None:
    path, metrics = RUNS["shapes"] / "checkpoints/best.ckpt", RUNS["shapes"] / "metrics.csv"
    original = path.read_bytes()
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["net.fc3.bias"][2] += 3
    torch.save(checkpoint, path)
    write_hashes(RUNS["shapes"])
    code, out, _ = verify("shapes")
    assert code == 1
    assert "metrics.csv: val_loss" in out
    assert "evaluation/predictions.csv:" in out
    path.write_bytes(original)
    best = best_row(metrics, "val_acc")
    other = next(row for row in range(1, 99) if row != best and is_validation(metrics, row))
    edit(metrics, other, "val_acc", lambda _: "0.99")
    write_hashes(RUNS["shapes"])
    assert "metrics.csv: val_acc of the best epoch is 0.99, computed " in verify("shapes").out


@pytest.mark.parametrize("name", RUNS)
def test_another_temperature_is_found(name: str) -> None:
    path = RUNS[name] / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lit"]["calibration"]["temperature"] *= 1.03
    torch.save(checkpoint, path)
    write_hashes(RUNS[name])
    code, out, _ = verify(name)
    assert code == 1
    assert "best.ckpt: the temperature is " in out


def test_other_scores_of_coverage_and_no_temperature_are_found() -> None:
    path = RUNS["photos"] / "checkpoints/best.ckpt"
    for name, factor in (("scores", 0.5), ("count", 2)):
        checkpoint = torch.load(path, weights_only=True)
        original = checkpoint["lit"]["calibration"][name]
        checkpoint["lit"]["calibration"][name] = original * factor
        torch.save(checkpoint, path)
        write_hashes(RUNS["photos"])
        said = "best.ckpt: the samples or the scores of the calibration differ"
        assert verify("photos").out == f"{RUNS['photos']}: {said}\n"
        checkpoint["lit"]["calibration"][name] = original
        torch.save(checkpoint, path)


@pytest.mark.slow
def test_a_run_with_folds() -> None:
    run_well(f"{PHOTOS} --folds 3 --default_root_dir folds")
    folder = Path("folds/lightning_logs/version_0")
    run_well(f"evaluate.py {folder}")
    assert run_well(f"evaluate.py {folder} --verify").endswith("all files and figures agree\n")
    with (folder / "out_of_fold.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    honest = [list(row) for row in rows]
    for row in rows[1:]:
        row[3] = row[4]  # each label is what was predicted
    with (folder / "out_of_fold.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    write_hashes(folder)
    assert "with another label (" in run(f"evaluate.py {folder} --verify").out
    rows = honest
    for row in rows[1:]:  # each answer is sure and right; the network knew nothing
        row[5:] = ["0.999", "0.001"] if row[3] == "cat" else ["0.001", "0.999"]
    with (folder / "out_of_fold.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    write_hashes(folder)
    code, out, _ = run(f"evaluate.py {folder} --verify")
    assert code == 1
    assert "the temperature is " in out
    wrong = sum(row[3] != row[4] for row in rows[1:])  # the stated prediction is another one
    assert re.search(rf"out_of_fold.csv: {wrong} rows? such as ", out)


def is_validation(path: Path, row: int) -> bool:
    with path.open(newline="") as file:
        return bool(list(csv.DictReader(file))[row - 1]["val_acc"])


def test_changed_and_missing_photos_are_named() -> None:
    flip_a_byte(Path("photos/cat/3.jpg"), random.Random(0))
    Path("photos/dog/4.jpg").unlink()
    code, out, _ = verify("photos")
    assert code == 1
    assert f"{RUNS['photos']}: split.csv: 2 photos missing or changed (photos/cat/3.jpg, photos/dog/4.jpg)\n" in out


def test_a_run_of_an_older_version_has_no_hashes_of_photos() -> None:
    edit(RUNS["photos"] / "split.csv", 3, "sha256", lambda _: "")
    write_hashes(RUNS["photos"])
    assert verify("photos").code == 0


def test_figures_that_cannot_be_computed_are_named() -> None:
    path, config = (RUNS["shapes"] / name for name in ("checkpoints/best.ckpt", "config.yaml"))
    checkpoint, settings = torch.load(path, weights_only=True), yaml.safe_load(config.read_text())
    checkpoint["callbacks"]["StochasticWeightAveraging{}"] = {}
    torch.save(checkpoint, path)
    for limit, name in ((None, "StochasticWeightAveraging{}"), (0.5, "limit_val_batches")):
        settings["trainer"]["limit_val_batches"] = limit
        config.write_text(yaml.safe_dump(settings))
        write_hashes(RUNS["shapes"])
        code, out, _ = verify("shapes")
        assert (code, out.count("\n"), f": not computed (with {name}, metrics.csv does not" in out) == (2, 1, True)


class Drawn(LightningDataModule):
    """Draws its samples in ``setup``."""

    def setup(self, stage: str) -> None:
        self.rows = TensorDataset(torch.randn(8, 4), torch.randn(8, 2))

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=4)

    val_dataloader = train_dataloader


def test_setup_draws_the_samples_of_the_run() -> None:
    data = "--data tests.scripts.test_verify.Drawn --model LitMLP --model.in_features 4 --model.out_features 2"
    run_well(f"{FIT} {data} --seed 3 --default_root_dir drawn")
    assert run_well("evaluate.py drawn/lightning_logs/version_0 --verify").endswith("all files and figures agree\n")


def test_another_class_is_accepted_only_if_its_probability_is_nearly_the_same() -> None:
    saved = load(RUNS["shapes"])
    for is_tie in (False, True):
        if is_tie:
            zeros = {name: 0 * weight for name, weight in saved.checkpoint["state_dict"].items()}
            torch.save({**saved.checkpoint, "state_dict": zeros}, saved.path)
            saved = load(RUNS["shapes"])
        evaluation = saved.evaluate(None, "cpu")
        shares = evaluation.outputs.softmax(1)
        row = int(shares.max(1).values.argmax())
        evaluation.predicted[row] = 9 - shares[row].flip(0).argmin()  # of a tie the last class
        write_evaluation(evaluation)
        assert (list(_check_tables(saved, "cpu", None)) == []) == is_tie


def test_moved_photos_need_a_flag() -> None:
    Path("photos").rename("album")
    code, out, _ = verify("photos")
    assert code == 1
    assert "photos in the folder" in out or "--photos DIR" in out
    assert verify("photos", "--photos album").out.endswith(": all files and figures agree\n")


def test_a_list_that_a_killed_run_did_not_write_is_written_by_a_resume_but_a_complete_one_is_kept() -> None:
    run_folder = RUNS["shapes"]
    (run_folder / "sha256.json").unlink()
    code, _, err = verify("shapes")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{run_folder} has no sha256.json" in err
    assert "has finished: nothing to do" in run_well(f"fit.py --resume {run_folder}")
    assert verify("shapes").code == 0
    edit(run_folder / "metrics.csv", 1, "lr-SGD", lambda _: "7")
    run_well(f"fit.py --resume {run_folder}")
    assert verify("shapes").out == f"{run_folder}: changed metrics.csv\n"


@pytest.mark.slow
def test_a_run_that_is_stopped_has_no_list_and_a_longer_run_names_its_old_evaluation() -> None:
    run_folder = RUNS["shapes"]
    run_well(f"fit.py --resume {run_folder} --max_epochs 4 --quiet")
    code, out, _ = verify("shapes")
    assert code == 1
    assert all("evaluation/" in line for line in out.splitlines())
    run_well(f"evaluate.py {run_folder}")
    assert verify("shapes").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_200_flipped_bytes_are_found(name: str) -> None:
    numbers, files = random.Random(name), json.loads((RUNS[name] / "sha256.json").read_text())
    for number in range(200):
        path = RUNS[name] / (file := numbers.choice([*files]))
        before = path.read_bytes()
        flip_a_byte(path, numbers)
        if number % 25:
            assert find_changed_files(RUNS[name]) == [f"changed {file}"]
        else:
            code, out, err = verify(name)
            assert (code, f"{RUNS[name]}: changed {file}" in out.splitlines(), err.count("Traceback")) == (1, True, 0)
        path.write_bytes(before)


@pytest.mark.parametrize("flags", ["--data photos", "--explain", "--devices 2"])
def test_other_flags_are_refused(flags: str) -> None:
    code, out, err = run(f"evaluate.py latest --verify {flags}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--verify checks the run as it is: leave --data, --all, --explain and --devices out" in err
