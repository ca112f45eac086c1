"""run.json, split.csv and left_out.csv record how a run was started."""

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from datamodules import ShapesDataModule
from datamodules.files import read_csv
from datamodules.photos.find import SPLITS
from lit_training.callbacks import records
from lit_training.callbacks.records import fingerprint
from tests.support.fits import SHAPES, fit, fit_run, parse, run_of


@pytest.mark.usefixtures("at_every_step")
def test_run_json_has_an_entry_for_each_start(copy_run: Callable[..., Path]) -> None:
    line = f"{SHAPES} --max_epochs 1 --seed 7"
    run = copy_run(line, kill_at=3)
    fit(f"{line} --resume auto")
    starts = json.loads((run / "run.json").read_text())
    assert [start["from_step"] for start in starts] == [0, 3]
    assert starts[0]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert starts[0]["seed"] == 7
    assert starts[0]["data"] == starts[1]["data"]


def test_run_json_contains_the_machine() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        run = fit_run(f"{SHAPES} --max_epochs 1 --limit_train_batches 1")
    finally:
        torch.set_num_threads(threads)
    [start] = json.loads((run / "run.json").read_text())
    machine = start["machine"]
    assert machine["system"] == platform.platform()
    assert machine["cpus"] == os.cpu_count()
    assert machine["threads"] == threads + 1
    assert (machine["device"], machine["processes"]) == ("cpu", 1)
    assert start["python"] == sys.version.split()[0]
    assert start["packages"] == {name: importlib.metadata.version(name) for name in records.RECORDED_PACKAGES}
    assert start["command"] == shlex.join(sys.argv)


def test_run_json_contains_the_commit_and_the_changed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit is that of the code, not that of the current folder."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # git sets these in a hook
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    code = tmp_path / "code" / "lit_training"
    code.mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(code / "records.py"))

    def git(*arguments: str) -> str:
        author = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
        command = ["git", *author, *arguments]
        return subprocess.run(command, cwd=code.parent, check=True, capture_output=True, text=True).stdout.strip()

    def recorded() -> Any:
        run = fit_run(f"{SHAPES} --max_epochs 1 --limit_train_batches 1 --limit_val_batches 0 --dashboard false")
        return json.loads((run / "run.json").read_text())[0]["git"]

    assert recorded() is None  # no repository
    (code / "records.py").write_text("first")
    (code / "other.py").write_text("first")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    assert recorded() == {"commit": git("rev-parse", "HEAD"), "changed": []}
    (code / "records.py").write_text("second")
    (code / "new.py").write_text("not tracked")
    first = git("rev-parse", "HEAD")
    assert recorded() == {"commit": first, "changed": ["lit_training/records.py"]}
    git("commit", "--quiet", "--all", "--message", "second")
    assert git("rev-parse", "HEAD") != first
    assert recorded() == {"commit": git("rev-parse", "HEAD"), "changed": []}


def test_a_broken_run_json_is_replaced(tmp_path: Path) -> None:
    cli = parse(f"{SHAPES} --max_epochs 1 --accelerator cpu")
    assert cli.run.start is not None
    (cli.run.start.folder / "run.json").write_text("[{")
    cli.trainer.fit(cli.model, cli.datamodule)
    assert len(json.loads((cli.run.start.folder / "run.json").read_text())) == 1


def train_loader(**arguments: Any) -> DataLoader:
    data = ShapesDataModule(**{"train_size": 12, "val_size": 4, **arguments})
    trainer: Any = parse("--logger false --accelerator cpu --devices 1").trainer
    data.trainer = trainer
    data.setup("fit")
    return data.train_dataloader()


def test_different_data_has_different_fingerprints() -> None:
    prints = [fingerprint(train_loader(**arguments)) for arguments in ({}, {}, {"train_size": 13}, {"channels": 1})]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_changed_label_or_sample_changes_the_fingerprint() -> None:
    loader: Any = train_loader()
    before = fingerprint(loader)
    loader.dataset.labels[5] = (loader.dataset.labels[5] + 1) % 10
    found = {before, fingerprint(loader)}
    for row in (0, 1, len(loader.dataset) // 2, len(loader.dataset) - 1):  # of the second one only the label counts
        loader.dataset.images[row] += 1
        found.add(fingerprint(loader))
    assert len(found) == 5


def test_for_a_loader_from_outside_this_project_only_the_length_counts() -> None:
    assert fingerprint(DataLoader(TensorDataset(torch.zeros(3)))) == fingerprint(
        DataLoader(TensorDataset(torch.ones(3)))
    )
    assert fingerprint(DataLoader(TensorDataset(torch.zeros(3)))) != fingerprint(
        DataLoader(TensorDataset(torch.zeros(4)))
    )
    assert fingerprint(None) == fingerprint(object())


# --- photos -----------------------------------------------------------------------------------------------------------

PHOTOS = "--data photos --model LitCNN --data.image_size 32 --max_epochs 1 --dashboard false"


def test_the_split_of_a_folder_is_written(photo_folder: Path) -> None:
    (photo_folder / "train").rename("photos/all")
    shutil.rmtree(photo_folder / "val")
    cli = fit(PHOTOS.replace("photos", "photos/all", 1))
    run, photos = run_of(cli), cli.datamodule.photos  # type: ignore[attr-defined]
    rows = read_csv(run / "split.csv")
    assert [row["path"] for row in rows] == list(photos.paths)
    assert [row["label"] for row in rows] == [photos.class_names[label] for label in photos.labels]
    assert [row["split"] for row in rows] == [SPLITS[split] for split in photos.splits]
    assert {row["split"] for row in rows} == {"train", "val"}
    assert not (run / "left_out.csv").exists()


def test_photos_left_out_are_written_with_the_reason(photo_folder: Path) -> None:
    (photo_folder / "train" / "ants" / "empty.jpg").touch()
    run = fit_run(PHOTOS)
    assert read_csv(run / "left_out.csv") == [{"path": "train/ants/empty.jpg", "kind": "empty", "reason": "0 bytes"}]
    assert "train/ants/empty.jpg" not in [row["path"] for row in read_csv(run / "split.csv")]


def test_data_without_photos_has_no_such_files() -> None:
    run = fit_run(f"{SHAPES} --max_epochs 1 --limit_train_batches 1 --limit_val_batches 0 --dashboard false")
    assert not {"split.csv", "left_out.csv"} & {path.name for path in run.iterdir()}


def test_a_run_without_a_folder_writes_no_records(photo_folder: Path, tmp_path: Path) -> None:
    fit(f"{PHOTOS} --logger false --enable_checkpointing false")
    assert list(tmp_path.rglob("split.csv")) == []
