"""Most steps of a run are run without Lightning's work around a step. Nothing else changes."""

import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset

from datamodules.loading.device import TwoStageDataset
from datamodules.loading.loader import make_loader
from lit_models import LitMLP
from lit_training.errors import TrainingError
from lit_training.runs import lightning_internals
from lit_training.runs.lightning_internals import PlainSteps
from tests.support.commands import run
from tests.support.fits import Killed, assert_same_end, fit_run, last, parse, rows, run_of

SECONDS = PlainSteps.SECONDS
ROWS = "--model LitMLP --data.in_features 8 --data.length 60 --data.batch_size 2 --data.steps 0 --log_every_n_steps 10"

GAPS = "--model LitMLP --data tests.scripts.test_plain_steps.Gaps"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of the plain steps each time that some are run."""
    counts, run = [], PlainSteps._run

    def count(self: PlainSteps, trainer: Any, fetcher: Any) -> None:
        before = trainer.global_step
        run(self, trainer, fetcher)
        counts.append(trainer.global_step - before)

    monkeypatch.setattr(PlainSteps, "_run", count)
    monkeypatch.setattr(PlainSteps, "SECONDS", 60.0)
    return counts


class Noisy(LitMLP):
    """Draws random numbers of torch and numpy, logs in each step, and returns a dictionary. It has two schedules."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx) * (1 + 0.1 * torch.rand(())) * (1 + 0.1 * np.random.rand())
        self.log("noisy", loss, on_step=True, on_epoch=True)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.9, patience=1)
        plateau = {"scheduler": schedule, "monitor": "noisy_step", "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": plateau}


class Gaps(LightningDataModule):
    """Batches in lists, and no batch in each fourth step."""

    def train_dataloader(self) -> Any:
        rows = torch.arange(80.0).view(20, 4) / 80
        batches = [[row.view(2, 2), row.view(2, 2)] if number % 4 else None for number, row in enumerate(rows)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "flags",
    [
        "--max_epochs 2",
        "--max_epochs 2 --gradient_clip_val 0.1",
        "--max_epochs 2 --val_check_interval 7",
        "--max_steps 47",
        "--max_epochs 2 --limit_train_batches 23",
        "--max_epochs 2 --optimizer LBFGS --optimizer.lr 1e-5 --optimizer.max_iter 3",
        "--max_epochs 2 --optimizer AdamW --lr_scheduler CosineAnnealingLR",
        "--max_epochs 2 --optimizer Adam --lr_scheduler OneCycleLR --log_every_n_steps 1",
        "--model LitDynamic --max_epochs 2",
        "--model tests.scripts.test_plain_steps.Noisy --max_epochs 2",
        f"{GAPS} --model.in_features 2 --model.out_features 2 --max_epochs 3 --log_every_n_steps 9",
    ],
)
def test_results_checkpoints_and_metrics_are_those_of_usual_steps(
    flags: str, plain: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = flags if "Gaps" in flags else f"{ROWS} {flags}"
    run = fit_run(f"{flags} --default_root_dir plain")
    assert sum(plain) > 25
    monkeypatch.setattr(PlainSteps, "_run", lambda *_: None)
    usual = fit_run(f"{flags} --default_root_dir usual")
    assert_same_end(run, usual)
    assert rows(run) == rows(usual)
    assert last(run)["loops"] == last(usual)["loops"]


class Kill(LitMLP):
    """Ends the run, stops it with a signal or makes the loss infinite in a step, but has no hook."""

    step, action = -1, ""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        if self.training and self.trainer.fit_loop.total_batch_idx == Kill.step:
            if Kill.action == "kill":
                raise Killed
            if Kill.action == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            return loss if Kill.action else loss * torch.inf
        return loss


KILL = f"{ROWS} --model tests.scripts.test_plain_steps.Kill --max_epochs 3"


def test_a_run_that_is_killed_in_plain_steps_resumes_bit_for_bit(
    plain: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = fit_run(f"{KILL} --default_root_dir uninterrupted")
    for step in (17, 44, 76):
        monkeypatch.setattr(Kill, "step", step)
        monkeypatch.setattr(Kill, "action", "kill")
        monkeypatch.setattr("lit_training.callbacks.resume.ResumePoint.TIME_SHARE", 1e9)  # save in each usual step
        cli = parse(f"--accelerator cpu --enable_progress_bar false {KILL} --default_root_dir killed --resume auto")
        with pytest.raises(Killed):
            cli.trainer.fit(cli.model, cli.datamodule, weights_only=True)
        assert last(run_of(cli))["global_step"] == step // 10 * 10 - 1
        assert rows(run_of(cli))[-1]["step"] == str(step // 10 * 10 - 1), "the last logged step is not in the file"
    monkeypatch.setattr(Kill, "step", -1)
    resumed = fit_run(f"{KILL} --default_root_dir killed --resume auto")
    assert_same_end(uninterrupted, resumed)
    assert rows(uninterrupted) == rows(resumed)


@pytest.mark.parametrize("step", [43, 49])  # the second is logged
def test_an_infinite_loss_in_a_plain_step_is_reported_with_its_step(
    step: int, plain: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kill, "step", step)
    cli = parse(f"--accelerator cpu --enable_progress_bar false {KILL}")
    with pytest.raises(
        TrainingError, match=rf"inf at step {step + 1} \(epoch 2, batch {step - 30}: samples \d+, \d+\)"
    ):
        cli.trainer.fit(cli.model, cli.datamodule)
    assert (plain, cli.trainer.global_step) == ([27], 50), "the check was not in the next logged step, a plain one"


def test_a_signal_ends_plain_steps_at_once(plain: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    cli = parse(f"--accelerator cpu --enable_progress_bar false {KILL}")
    monkeypatch.setattr(Kill, "step", 43)
    monkeypatch.setattr(Kill, "action", "signal")
    monkeypatch.setattr(os, "kill", lambda pid, signum: setattr(cli.run.watch, "signum", signum))
    with pytest.raises(SystemExit) as stop:
        cli.trainer.fit(cli.model, cli.datamodule)
    assert (stop.value.code, cli.trainer.global_step) == (128 + signal.SIGTERM, 44)


def test_lightning_runs_a_step_after_each_second(plain: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count(0, 0.25)  # each step takes a quarter of a second
    monkeypatch.setattr(lightning_internals, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(PlainSteps, "SECONDS", SECONDS)
    fit_run(f"{ROWS} --max_epochs 1")
    assert plain == [3] * 7


class Counted(LitMLP):
    """Gives its optimizer a hook in the 18th step, but has no hook that Lightning calls."""

    counts: ClassVar[list[int]] = []

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if self.training and self.trainer.global_step == 17:
            self.trainer.optimizers[0].register_step_post_hook(lambda *_: Counted.counts.append(self.global_step))
        return super().loss(output, target)


def test_a_hook_that_the_optimizer_gets_between_plain_steps_is_called_after_each_step(plain: list[int]) -> None:
    fit_run(f"{ROWS} --model tests.scripts.test_plain_steps.Counted --max_epochs 1 --default_root_dir counted")
    assert plain == [27]
    assert len(Counted.counts) in (12, 13)


class DrawnRows(TwoStageDataset):
    """Draws random numbers when it reads samples: 32 batches at a time."""

    samples_per_fetch = 64

    def __len__(self) -> int:
        return 180

    def read(self, keys: Tensor) -> tuple[Tensor, ...]:
        return torch.rand(len(keys), 8), torch.rand(len(keys), 10)


class DrawnData(LightningDataModule):
    def train_dataloader(self) -> Any:
        return make_loader(DrawnRows(), self.trainer, batch_size=2, seed=0, train=True)


class DrawWhenSaved(Callback):
    def __init__(self) -> None:
        self.drawn: dict[int, float] = {}

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.drawn[trainer.global_step] = float(torch.rand(()))


def test_code_of_the_user_draws_the_same_random_numbers_in_plain_steps(
    plain: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_training.callbacks.resume.ResumePoint.TIME_SHARE", 1e9)
    weights, drawn = [], []
    for name in ("plain", "usual"):
        data = "--model LitMLP --model.in_features 8 --data tests.scripts.test_plain_steps.DrawnData"
        line = f"--accelerator cpu --enable_progress_bar false {data} --max_epochs 2 --log_every_n_steps 10"
        cli = parse(f"{line} --default_root_dir {name}")
        cli.trainer.callbacks.append(callback := DrawWhenSaved())  # type: ignore[attr-defined]
        cli.trainer.fit(cli.model, cli.datamodule)
        weights.append(torch.cat([weight.flatten() for weight in cli.model.parameters()]))
        drawn.append(callback.drawn)
        monkeypatch.setattr(PlainSteps, "_run", lambda *_: None)
    assert sum(plain) == 174
    assert torch.equal(*weights)
    assert drawn[0].items() <= drawn[1].items()
    assert {9, 19, 169} <= drawn[0].keys()


class Hook(Callback):
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None: ...


class Scaled(LitMLP):
    def on_before_zero_grad(self, optimizer: Any) -> None: ...


class Clipped(LitMLP):
    def clip_gradients(self, *arguments: Any, **options: Any) -> None: ...


@pytest.mark.parametrize(
    ("flags", "callbacks"),
    [
        ("", [Hook()]),
        ("", [EMAWeightAveraging()]),
        ("--model tests.scripts.test_plain_steps.Scaled", []),
        ("--model tests.scripts.test_plain_steps.Clipped", []),
        ("--accumulate_grad_batches 2", []),
        ("--profiler simple", []),
        ("--precision bf16-mixed", []),
        ("--strategy ddp --devices 1", []),
    ],
)
def test_no_step_is_plain_if_more_happens_in_each_step(flags: str, callbacks: list[Any], plain: list[int]) -> None:
    cli = parse(f"--accelerator cpu --enable_progress_bar false {ROWS} --max_epochs 1 {flags}")
    cli.trainer.callbacks += callbacks  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, cli.datamodule)
    assert (cli.trainer.global_step, sum(plain)) == (15 if "accumulate" in flags else 30, 0)


def test_no_step_between_two_logged_ones_waits_for_the_device(
    plain: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, reading a number waits for all kernels. So count the numbers that are read from tensors per step."""
    reads: list[int] = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten._local_scalar_dense.default:
                reads.append(cli.trainer.fit_loop.total_batch_idx)
            return function(*args, **(kwargs or {}))

    data = "--data.train_size 120 --data.batch_size 4 --data.augment true --log_every_n_steps 10"
    cli = parse(f"--accelerator cpu {data} --max_epochs 1")
    advance = cli.trainer.fit_loop.epoch_loop.run

    def run(fetcher: Any) -> None:
        with Reads():
            advance(fetcher)

    monkeypatch.setattr(cli.trainer.fit_loop.epoch_loop, "run", run)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert sum(plain) == 27
    assert set(reads) == {9, 19, 29}


class KeywordSGD(torch.optim.SGD):
    def step(self, *, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(closure)


class Unusual(LitMLP):
    """Does what Lightning allows, in step 13: stop, accumulate, swap the optimizer, or change the batch."""

    what = ""
    seen: ClassVar[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.what == "list":
            batch[0] = 2 * batch[0]
        if self.global_step == 13:
            if self.what.startswith("stop"):
                self.trainer.should_stop = True
            if self.what == "accumulate":
                self.trainer.accumulate_grad_batches = 2
            if self.what == "optimizer":
                self.trainer.optimizers = [torch.optim.SGD(self.parameters(), 1e-3)]
        loss = super().training_step(batch, batch_idx)
        self.log("each", loss, on_step=True, on_epoch=True)
        return {"los": loss} if self.what == "wrong" and self.global_step == 13 else loss

    def configure_optimizers(self) -> Any:
        kind = KeywordSGD if self.what == "keyword" else torch.optim.SGD
        return kind(self.parameters(), lr=1e-4)

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        Unusual.seen.append(float(self.trainer.callback_metrics["each_step"]))


class Iterating(Unusual):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)

    def log(self, *arguments: Any, **options: Any) -> None:
        super().log(*arguments, **{"batch_size": 4, **options})


class Stored(LightningDataModule):
    """Batches in lists, which are the same objects in each epoch; with ``what = "stream"`` without a length."""

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        batches = [[torch.randn(4, 8, generator=generator), torch.ones(4, 10)] for _ in range(33)]
        if Unusual.what == "stream":
            return DataLoader(Stream(batches), batch_size=None)
        return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


class Stream(IterableDataset):
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.mark.parametrize(
    "what", ["list", "stop", "stop later", "accumulate", "optimizer", "keyword", "wrong", "stream", "iterator"]
)
def test_what_lightning_allows_in_a_step_has_the_same_effect(
    what: str, plain: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unusual, "what", what)
    kind = "Iterating" if what == "iterator" else "Unusual"
    model = f"--model tests.scripts.test_plain_steps.{kind} --model.in_features 8 --log_every_n_steps 20"
    limit = {"stream": "--limit_train_batches 50", "stop later": "--min_epochs 2"}.get(what, "")
    results = []
    for name in ("plain", "usual"):
        Unusual.seen.clear()
        line = f"fit.py {model} --data tests.scripts.test_plain_steps.Stored --max_epochs 2 {limit}"
        ended = run(f"{line} --accelerator cpu --default_root_dir {name}")
        checkpoint = Path(name, "lightning_logs/version_0/checkpoints/resume/last.ckpt")
        saved = torch.load(checkpoint, weights_only=True) if ended.code == 0 else {"state_dict": {}}
        weights = {key: value.tolist() for key, value in saved["state_dict"].items()}
        message = ended.err.splitlines()[-1:] if ended.code else []
        logged = rows(checkpoint.parents[2]) if ended.code == 0 else []
        results.append((ended.code, message, saved.get("global_step"), weights, [*Unusual.seen], logged))
        if name == "plain":
            assert what == "wrong" or (sum(plain) > 0) == (what not in ("stream", "iterator"))
            monkeypatch.setattr(PlainSteps, "_run", lambda *_: None)
    assert results[0] == results[1]
    assert results[0][0] == (2 if what == "wrong" else 0)


def test_a_finder_trains_without_callbacks() -> None:
    ended = run(
        "fit.py --model LitMLP --data.length 100 --data.steps 20 --callbacks BatchSizeFinder --max_epochs 1 "
        "--model.lr 1e-9 --callbacks.max_trials 2 --callbacks.steps_per_trial 10 --accelerator cpu"
    )
    assert (ended.code, ended.err.count("AttributeError")) == (0, 0)
