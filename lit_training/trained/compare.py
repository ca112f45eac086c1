"""How runs differ: in their settings, in what they reached, and whether chance alone would do that."""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from datamodules.files import read_csv
from lit_training import figures
from lit_training.errors import UsageError
from lit_training.runs.best_epoch import MODES, best_epoch
from lit_training.runs.folder import find_checkpoint, latest, run_folder
from lit_training.runs.layout import CONFIG, EVALUATION, METRICS, PREDICTIONS
from lit_training.statistics import mcnemar, wilson
from lit_training.text import print_table

WHICH_SAMPLES = ("class_path", "seed", "val_size", "channels", "length", "target")
"""Settings of a data module that decide what it evaluates on, where samples are numbers and not files."""
LEVEL = 0.05
"""A difference is called one when chance alone would show it, or a larger one, less often than this."""


@dataclass(frozen=True)
class ComparedRun:
    """A run as its folder tells of it."""

    name: str
    folder: Path
    settings: dict[str, Any]
    """The configuration, flattened: ``model.init_args.lr`` -> 0.001."""
    curves: dict[str, dict[int, float]]
    """For each of :data:`~lit_training.runs.best_epoch.MODES` that was logged, its value after each epoch, from 1."""
    answers: dict[str, tuple[str, bool]] | None
    """For each sample of the evaluation, by path: its label, and whether the answer was right. None: not evaluated."""

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the best epoch; empty where none was logged, or never was a number."""
        decides = next((name for name in MODES if name in self.curves), None)
        if decides is None:
            return {}
        epochs = {
            n: {name: curve[n] for name, curve in self.curves.items() if n in curve} for n in self.curves[decides]
        }
        best = best_epoch(epochs, decides, MODES[decides])
        return {} if best is None else epochs[best]

    @property
    def right(self) -> int:
        """How many samples of the evaluation were answered right."""
        return sum(right for _, right in (self.answers or {}).values())


def read_run(run: str) -> ComparedRun:
    """Read a run.

    Args:
        run: its folder, one of its checkpoints, or ``latest``.

    Raises:
        CheckpointError: there is no such run.
        UsageError: the folder holds no run, or one that cannot be read.
    """
    if run == "latest":
        folder = latest(".", lambda folder: (folder / METRICS).is_file(), METRICS)
    elif not ((folder := Path(run).expanduser()) / METRICS).is_file():
        folder = run_folder(find_checkpoint(run))
    try:
        settings = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        rows = read_csv(folder / METRICS)
        curves = {name: _curve(rows, name) for name in MODES}
        predictions = folder / EVALUATION / PREDICTIONS
        answers = None
        if predictions.is_file():
            answers = {row["path"]: (row["label"], row["right"] == "1") for row in read_csv(predictions)}
    except FileNotFoundError as error:
        raise UsageError(f"{run} is not the folder of a run: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, yaml.YAMLError, csv.Error) as error:
        raise UsageError(f"{run} holds a run that cannot be read ({type(error).__name__}: {error})") from error
    curves = {name: curve for name, curve in curves.items() if curve}
    return ComparedRun(folder.name, folder, dict(_flat(settings or {})), curves, answers)


def _curve(rows: list[dict[str, str]], name: str) -> dict[int, float]:
    return {int(row["epoch"]) + 1: float(row[name]) for row in rows if row.get(name) and row.get("epoch")}


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs, with the value in each; ``-`` where a run has no such setting."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [str(run.settings.get(name, "-")) for run in runs] for name in names}
    told = {name: each for name, each in values.items() if len(set(each)) > 1 and not set(each) <= {"None", "-"}}
    return {name.replace(".init_args", ""): each for name, each in told.items()}


def describe_difference(first: ComparedRun, second: ComparedRun) -> str:
    """What the predictions of two runs on the same samples say, in a sentence."""
    for run in (first, second):
        if "val_acc" not in run.curves and "val_loss" in run.curves:
            return f"{run.name} is no classifier, so no accuracies are tested: see the losses"
        if run.answers is None:
            return f"{run.name} has no predictions yet, so nothing is tested: python scripts/evaluate.py {run.folder}"
    ones, others = first.answers or {}, second.answers or {}
    same = {path: label for path, (label, _) in ones.items()} == {path: label for path, (label, _) in others.items()}
    if not same or (all(path.isdecimal() for path in ones) and _data(first) != _data(second)):
        return f"{first.name} and {second.name} were not evaluated on the same samples: they cannot be tested in pairs"
    pairs = [(ones[path][1], others[path][1]) for path in ones]
    only_first = sum(one and not other for one, other in pairs)
    only_second = sum(other and not one for one, other in pairs)
    p, points = mcnemar(only_first, only_second), 100 * (only_second - only_first) / len(pairs)
    how = f"McNemar's exact test, p = {p:.2g}, the same {len(pairs)} samples, {only_first + only_second} told apart"
    if p >= LEVEL:
        return f"no difference shown: {second.name} is {points:+.1f} points from {first.name} ({how})"
    better = second if points > 0 else first
    return f"{better.name} is better by {abs(points):.1f} points ({how})"


def _data(run: ComparedRun) -> dict[str, Any]:
    settings = {name.replace(".init_args", ""): value for name, value in run.settings.items()}
    return {name: settings.get(f"data.{name}") for name in WHICH_SAMPLES}


def format_metric(metric: str, value: float) -> str:
    """A metric's value: accuracies with four places, losses, which may be tiny, with four digits."""
    return f"{value:.4f}" if metric.endswith("acc") else f"{value:.4g}"


def compare(names: Sequence[str], picture: str | None = None) -> None:
    """Print what differs between runs; draw their curves over one another.

    Args:
        names: see :func:`read_run`; two or more.
        picture: where the PNG goes; beside the first run when not given.

    Raises:
        CheckpointError, UsageError: naming what cannot be read or written.
    """
    runs = [read_run(name) for name in names]
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise UsageError("the same run is named twice: name different ones")
    if len({run.name for run in runs}) < len(runs):  # of different roots
        runs = [ComparedRun(**{**vars(run), "name": os.path.relpath(run.folder)}) for run in runs]
    body = [[name, *values] for name, values in differences(runs).items()]
    for metric in MODES:
        body.append([metric, *(format_metric(metric, run.best[metric]) if metric in run.best else "-" for run in runs)])
    body.append(["accuracy", *map(_accuracy, runs)])
    print_table(["", *(run.name for run in runs)], [row for row in body if set(row[1:]) != {"-"}])
    print("\nval_acc, val_loss, train_loss: of the best epoch; accuracy: of evaluate.py, with its 95 % interval")
    for run in runs:
        if run.answers is None and len(runs) > 2:
            print(f"{run.name} has no predictions yet: python scripts/evaluate.py {run.folder}")
    if len(runs) == 2:
        print(describe_difference(*runs))
    charts = {
        metric: {run.name: (list(curve), list(curve.values())) for run in runs if (curve := run.curves.get(metric))}
        for metric in MODES
    }
    target = Path(picture) if picture else runs[0].folder.parent / "comparison.png"
    try:
        figures.curves({metric: lines for metric, lines in charts.items() if lines}).savefig(target, dpi=100)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {target} ({error}): --png FILE.png") from error
    print(f"curves      {os.path.relpath(target)}")


def _accuracy(run: ComparedRun) -> str:
    if not run.answers:
        return "-"
    low, high = wilson(run.right, len(run.answers))
    return f"{run.right / len(run.answers):.4f} ({low:.3f} to {high:.3f}, n = {len(run.answers)})"


def summarize_seeds(runs: Sequence[ComparedRun]) -> list[str]:
    """A line for each metric of repeated runs: mean and sample standard deviation of their best epochs."""
    lines = []
    for metric in MODES:
        values = [run.best[metric] for run in runs if metric in run.best]
        if len(values) > 1:
            middle, deviation = format_metric(metric, mean(values)), format_metric(metric, stdev(values))
            lines.append(f"{metric:<10}  {middle} +- {deviation}  (n = {len(values)} seeds)")
    return lines
