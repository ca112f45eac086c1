"""A user's checkpoint callbacks, arguments and callback states: nothing is overwritten, and resumed runs are exact."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.text import print_once
from lit_training.callbacks.resume import ResumePoint
from lit_training.errors import CheckpointError
from lit_training.runs.plain import create
from tests.support import printed
from tests.support.commands import run, run_well
from tests.support.fits import QUIET, SHAPES, assert_same_end, fit, fit_run, last
from tests.support.own_classes import remember_imports

RUN = Path("lightning_logs/version_0")
OWN = """
import enum
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lit_models import LitCNN


class Act(enum.Enum):
    RELU = "relu"
    TANH = "tanh"


class Net(LightningModule):
    def __init__(
        self, act=Act.RELU, notes: Path | None = None, dirs: list[Path] | None = None, lr: float = np.float64(0.05)
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.save_hyperparameters({"scale": np.float64(0.1)})
        layer = torch.nn.ReLU() if act is Act.RELU else torch.nn.Tanh()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 16), layer, torch.nn.Linear(16, 10))

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams["lr"], np.float64(0.9))


class Shaped(Net):
    \"\"\"It has an argument that no checkpoint can hold.\"\"\"
    def __init__(self, head: type = torch.nn.Identity) -> None:
        super().__init__()
        self.save_hyperparameters()


class Steps(LitCNN):
    \"\"\"It counts no samples.\"\"\"
    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())
        self.log("val_loss", 1.0)


class Batches(Callback):
    def __init__(self) -> None:
        self.counts = np.zeros(2)

    def state_dict(self):
        return {"counts": self.counts, "most": np.float64(self.counts.max()), "where": Path("x")}

    def load_state_dict(self, state):
        self.counts = np.asarray(state["counts"])

    def on_train_batch_end(self, trainer, model, *_):
        self.counts[0] += 1
        model.batches_seen = self.counts[0]


class Odd(Batches):
    def state_dict(self):
        return super().state_dict() | {"call": lambda: 1}
"""
LINE = f"--model mine.Net --data ShapesDataModule {SHAPES} --max_epochs 3"
SAVER = "--callbacks+ ModelCheckpoint --callbacks.save_last true --callbacks.filename best --callbacks.every_n_epochs 2"


@pytest.fixture(autouse=True)
def own_classes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", 1e9)  # a resume point before each step
    Path("mine.py").write_text(OWN)
    print_once.cache_clear()
    with remember_imports():
        sys.path.append(str(Path.cwd()))
        yield


def opened(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_checkpoints_of_the_user_and_of_fit_do_not_overwrite_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    uninterrupted = fit_run(f"{LINE} {SAVER} --default_root_dir uninterrupted")
    assert "note: ModelCheckpoint writes best-v1.ckpt, because fit.py writes best.ckpt" in capsys.readouterr().err
    for step in (4, 11, None):
        fit(f"{LINE} {SAVER} --resume auto", kill_at=step)
    assert_same_end(uninterrupted, RUN)
    for folder in (uninterrupted / "checkpoints", RUN / "checkpoints"):
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.ckpt"))
        assert files == ["best-v1.ckpt", "best.ckpt", "last.ckpt", "resume/last.ckpt", "resume/previous.ckpt"]
        theirs, ours = opened(folder / "last.ckpt"), opened(folder / "resume" / "last.ckpt")
        assert "ResumePoint" not in theirs["callbacks"]
        assert (theirs["global_step"], ours["global_step"]) == (12, 18)


def test_last_is_the_end_of_an_epoch_and_survives_a_kill_inside_the_next() -> None:
    fit(LINE, kill_at=15)
    between, point = opened(RUN / "checkpoints/last.ckpt"), last(RUN)
    assert (between["global_step"], point["global_step"]) == (12, 15)
    fit("--resume latest")
    assert (RUN / "checkpoints/last.ckpt").read_bytes() == (RUN / "checkpoints/resume/last.ckpt").read_bytes()


def test_a_last_that_something_else_wrote_is_kept() -> None:
    fit(LINE, kill_at=3)
    torch.save({"mine": 1}, RUN / "checkpoints/last.ckpt")
    fit("--resume latest")
    assert opened(RUN / "checkpoints/last.ckpt") == {"mine": 1}
    assert last(RUN)["global_step"] == 18


def test_a_run_of_an_older_version_is_resumed_from_beside_best() -> None:
    uninterrupted = fit_run(f"{LINE} --default_root_dir uninterrupted")
    fit(LINE, kill_at=9)
    for path in (RUN / "checkpoints/resume").iterdir():
        path.replace(RUN / "checkpoints" / path.name)
    (RUN / "checkpoints/resume").rmdir()
    fit("--resume latest", kill_at=9)
    fit("--resume latest")
    assert_same_end(uninterrupted, RUN)


def test_a_checkpoint_of_the_user_is_no_resume_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed before its first resume point starts again."""
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", 1e-9)
    fit(f"{LINE} --resume auto", kill_at=0)
    (RUN / "checkpoints").mkdir()
    torch.save({"callbacks": {}}, RUN / "checkpoints/last.ckpt")
    start = fit(f"{LINE} --resume auto").run.start
    assert start is not None
    assert (start.folder, start.checkpoint) == (RUN, None)


@pytest.mark.parametrize("is_older", [False, True])
def test_an_extended_run_that_is_killed_at_once_goes_on(is_older: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    uninterrupted = fit_run(f"{LINE} --default_root_dir uninterrupted")
    fit(f"{LINE} --max_epochs 1")
    if is_older:  # older versions did not save for which limits a run was complete
        state = last(RUN)
        del state["callbacks"]["ResumePoint"]["limits"]
        torch.save(state, RUN / "checkpoints/resume/last.ckpt")
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", 1e-9)  # no new resume point
    for step in (8, 11, None):
        fit("--resume latest --max_epochs 3", kill_at=step)
    assert_same_end(uninterrupted, RUN)
    assert "has finished: nothing to do" in run_well("fit.py --resume latest --max_epochs 3")


@pytest.mark.parametrize(("first", "is_exact"), [(12, True), (9, False)])
def test_a_run_with_max_steps_is_extended(first: int, is_exact: bool) -> None:
    line = LINE.replace("--max_epochs 3", "")
    uninterrupted = fit_run(f"{line} --max_steps 18 --default_root_dir uninterrupted")
    fit(f"{line} --max_steps {first}")
    fit("--resume latest --max_steps 18")
    assert last(RUN)["global_step"] == 18
    if is_exact:
        assert_same_end(uninterrupted, RUN)


def test_arguments_and_states_are_saved_as_plain_values(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--model.act TANH --model.notes a/b --model.dirs [x,y] --callbacks+ mine.Batches"
    uninterrupted = fit(f"{LINE} {arguments} --default_root_dir uninterrupted")
    noted = re.findall(r"note: (.*): checkpoints hold it as plain values\n", capsys.readouterr().err)
    assert sorted(noted) == ["Batches (ndarray, PosixPath)", "act (Act)", "dirs (PosixPath)", "notes (PosixPath)"]
    for step in (4, 11):
        fit(f"{LINE} {arguments} --resume auto", kill_at=step)
    model = fit(f"{LINE} {arguments} --resume auto").model
    assert model.batches_seen == 18
    assert uninterrupted.run.start is not None
    assert_same_end(uninterrupted.run.start.folder, RUN)
    saved = opened(RUN / "checkpoints/best.ckpt")["hyper_parameters"]
    assert saved == {"act": "TANH", "notes": "a/b", "dirs": ["x", "y"], "lr": 0.05, "scale": 0.1}
    assert create(type(model), {name: saved[name] for name in ("act", "notes", "dirs", "lr")}).hparams == model.hparams


def test_what_no_checkpoint_can_hold_is_said_at_the_start_and_does_not_stop_a_resume() -> None:
    line = f"fit.py {QUIET} {LINE.replace('Net', 'Shaped')} --callbacks+ mine.Odd"
    ended = run(f"{line} --max_epochs 1")
    assert ended.code == 0
    _, first, second = ended.err.splitlines()  # the first is about act
    assert first.startswith("note: head (type): checkpoints do not hold it: --resume works, but not evaluate.py")
    assert second == "note: Odd (function): checkpoints do not hold its state: --resume starts it anew"
    assert "epoch 2/2" in run_well("fit.py --resume latest --max_epochs 2 --enable_progress_bar true")
    with pytest.raises(CheckpointError, match="head is not saved in this checkpoint: type"):
        create(Path, last(RUN)["hyper_parameters"])


def test_the_result_is_of_our_best_checkpoint() -> None:
    """The user's callbacks keep other epochs: the last, and the worst."""
    line = f"fit.py --model LitCNN {SHAPES} --accelerator cpu --max_epochs 4 --model.lr 0.05"
    plain = printed.result(run_well(f"{line} --default_root_dir plain"))
    worst = "--callbacks+ ModelCheckpoint --callbacks.monitor val_loss --callbacks.mode max --callbacks.filename worst"
    out = run_well(f"{line} --callbacks+ ModelCheckpoint --callbacks.save_last true {worst}")
    assert len(list((RUN / "checkpoints").glob("*.ckpt"))) == 4
    files = {"run": RUN, "checkpoint": RUN / "checkpoints/best.ckpt", "report": RUN / "report.html"}
    assert printed.result(out) == plain | {name: str(path) for name, path in files.items()}


def test_an_accuracy_without_a_number_of_samples_has_no_interval() -> None:
    line = f"fit.py --model mine.Steps {SHAPES} --accelerator cpu --max_epochs 1 --dashboard false"
    assert re.search(r"^val_acc +0\.\d{4}$", run_well(line), re.MULTILINE)
    assert "n = 8)" in run_well(line.replace("mine.Steps", "LitCNN"))
