"""Parse a command line of fit.py and train, in this process."""

import csv
import shlex
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

from lit_training.cli.parser import FitCLI

SHAPES = "--data.train_size 24 --data.val_size 8"
"""Flags for 6 training batches per epoch."""
QUIET = "--accelerator cpu --enable_progress_bar false --log_every_n_steps 2 --dashboard false"
SMALL_NET = "--model.backbone shufflenet_v2_x0_5 --model.weights none --data.batch_size 4"


class SharedParserCLI(FitCLI):
    """A FitCLI that shares its parser with all other instances, because building a parser is slow."""

    shared: "ArgumentParser | None" = None

    def setup_parser(self, *arguments: Any, **options: Any) -> None:
        if SharedParserCLI.shared is None:
            super().setup_parser(*arguments, **options)
            SharedParserCLI.shared = self.parser
        self.parser: Any = SharedParserCLI.shared


def parse(line: str) -> FitCLI:
    """Parse arguments like ``--max_epochs 3``; build model, data and Trainer."""
    return SharedParserCLI(shlex.split(line))


class Killed(BaseException):
    """Simulates a kill within the process."""


class KillAt(Callback):
    """Ends the run during batch ``step``, counted over all epochs."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.fit_loop.total_batch_idx >= self.step:
            raise Killed


def fit(line: str, kill_at: int | None = None) -> FitCLI:
    """Train on the CPU without a progress bar, to the end or until batch ``kill_at``; ``line`` overrides QUIET."""
    cli = parse(f"{QUIET} {line}")
    if kill_at is not None:
        cli.trainer.callbacks.append(KillAt(kill_at))  # type: ignore[attr-defined]
    killed = False
    try:
        cli.trainer.fit(cli.model, cli.datamodule, weights_only=True)
    except Killed:
        killed = True
    except SystemExit as stop:
        if stop.code:
            raise
    assert killed == (kill_at is not None), "the run ended before the kill"
    return cli


def fit_run(line: str, kill_at: int | None = None) -> Path:
    """Train like :func:`fit`; return the run's folder."""
    return run_of(fit(line, kill_at))


def run_of(cli: FitCLI) -> Path:
    """Return the folder of a started run."""
    assert cli.run.start is not None
    return cli.run.start.folder


def kill_and_resume(line: str, *batches: int) -> tuple[Path, Path]:
    """Train without interruption, and again with kills in these batches; return the folders of both runs."""
    uninterrupted = fit_run(f"{line} --default_root_dir uninterrupted")
    line += " --default_root_dir killed --resume auto"
    for batch in batches:
        fit(line, kill_at=batch)
    return uninterrupted, fit_run(line)


def last(run: Path) -> dict[str, Any]:
    """Load the run's newest resume point."""
    return torch.load(run / "checkpoints" / "resume" / "last.ckpt", weights_only=True)


def rows(run: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without empty cells and without the column that depends on time."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v and k != "samples_per_second"} for row in csv.DictReader(file)]


def assert_same_weights(run: Path, other: Path, name: str = "last.ckpt") -> None:
    """Assert that two runs have bit-equal weights after the same number of steps."""
    one, two = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (run, other))
    assert one["global_step"] == two["global_step"]
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for key, weight in one["state_dict"].items():
        assert torch.equal(weight, two["state_dict"][key]), f"{name}: {key}"


def assert_same_end(run: Path, other: Path) -> None:
    """Assert that two runs have equal weights, counters, schedules, optimizers, best score and metrics."""
    for name in ("last.ckpt", "best.ckpt"):
        assert_same_weights(run, other, name)
        a, b = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (run, other))
        assert a["epoch"] == b["epoch"]
        assert a["lr_schedulers"] == b["lr_schedulers"]
        assert [o["param_groups"] for o in a["optimizer_states"]] == [o["param_groups"] for o in b["optimizer_states"]]
    scores = [
        [state["best_model_score"] for state in last(folder)["callbacks"].values() if "best_model_score" in state]
        for folder in (run, other)
    ]
    assert scores[0] == scores[1]
    assert rows(run) == rows(other)
