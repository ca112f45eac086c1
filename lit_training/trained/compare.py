"""Compare the settings and the results of runs. Test whether the difference in accuracy is significant."""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from datamodules.files import read_csv
from datamodules.photos.split import read_split_file
from datamodules.text import command, first_names
from lit_training import figures
from lit_training.errors import UsageError
from lit_training.runs.best_epoch import MODES, best_epoch
from lit_training.runs.folder import find_checkpoint, newest_usable_run, run_folder
from lit_training.runs.layout import CONFIG, EVALUATION, METRICS, OUT_OF_FOLD, PREDICTIONS, SPLIT
from lit_training.runs.out_of_fold import OutOfFold, read_out_of_fold
from lit_training.statistics import corrected_t_test, difference_interval, mcnemar_p_value, wilson_interval
from lit_training.text import print_table

SAMPLE_SETTINGS = [f"data.{name}" for name in ("class_path", "seed", "val_size", "channels", "length", "target")]
"""Settings that decide which samples are evaluated, for data modules without files."""
SIGNIFICANCE_LEVEL = 0.05


@dataclass(frozen=True)
class ComparedRun:
    """The settings and results of a run."""

    name: str
    folder: Path
    settings: dict[str, Any]  # name with dots -> value, for example model.lr -> 0.001
    rows: list[dict[str, str]]  # of metrics.csv; there may be several validations per epoch
    answers: dict[str, tuple[str, bool]] | None
    """Path of an evaluated sample -> (true class, True if predicted correctly); None without an evaluation."""
    hashes: dict[str, str] = field(default_factory=dict)  # path of a photo -> SHA-256; empty in older runs
    folds: OutOfFold | None = None

    @property
    def modes(self) -> dict[str, str]:
        """Metric -> ``max`` or ``min``: that of ``--monitor`` first, then ``MODES``."""
        name, _, mode = str(self.settings.get("monitor") or "val_acc:max").rpartition(":")
        return {name: mode} | MODES | {name: mode}

    @cached_property
    def curves(self) -> dict[str, dict[int, float]]:
        """Metric -> epoch (from 1) -> its last value, for the logged metrics of :attr:`modes`."""
        rows = [row for row in self.rows if row.get("epoch")]
        curves = {n: {int(row["epoch"]) + 1: float(row[n]) for row in rows if row.get(n)} for n in self.modes}
        return {name: curve for name, curve in curves.items() if curve}

    @property
    def best(self) -> dict[str, float]:
        """Metric -> value at the best validation. Empty if there is none: no metric was logged, or all are NaN."""
        monitor = next((name for name in self.modes if name in self.curves), "")
        rows = [row for row in self.rows if row.get(monitor) and row.get("epoch")]
        logged = {n: {name: float(row[name]) for name in self.modes if row.get(name)} for n, row in enumerate(rows)}
        best = best_epoch(logged, monitor, self.modes.get(monitor, "min"))
        if best is None:
            return {}
        epoch = int(rows[best]["epoch"]) + 1
        return {name: curve[epoch] for name, curve in self.curves.items() if epoch in curve} | logged[best]


def read_run(run: str) -> ComparedRun:
    """Read the settings and results of a run. ``run`` is its folder, a checkpoint in its folder, or ``latest``."""
    if run == "latest":
        folder = newest_usable_run(".", lambda folder: (folder / METRICS).is_file(), METRICS)
    elif not ((folder := Path(run).expanduser()) / METRICS).is_file():
        folder = run_folder(find_checkpoint(run))
    try:
        settings = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        rows = read_csv(folder / METRICS)
        answers, hashes = None, {}
        if (predictions := folder / EVALUATION / PREDICTIONS).is_file():
            cells = [(row["path"], row["label"], row["right"]) for row in read_csv(predictions)]
            answers = {path.removeprefix("'"): (label.removeprefix("'"), right == "1") for path, label, right in cells}
        if (split := folder / SPLIT).is_file():
            hashes = {path: line.sha256 for path, line in read_split_file(str(split)).items() if line.sha256}
        folds = read_out_of_fold(folder / OUT_OF_FOLD) if (folder / OUT_OF_FOLD).is_file() else None
    except FileNotFoundError as error:
        raise UsageError(f"{run} is not the folder of a run: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, yaml.YAMLError, csv.Error) as error:
        raise UsageError(f"the run {run} cannot be read ({type(error).__name__}: {error})") from error
    return ComparedRun(folder.name, folder, dict(_flatten(settings or {})), rows, answers, hashes, folds)


def _flatten(settings: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield (name with dots, value) of nested settings. ``model.init_args.lr`` becomes ``model.lr``."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Return setting -> its value in each run, for the settings that differ. ``-``: the run does not have it."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [str(run.settings.get(name, "-")) for run in runs] for name in names}
    return {name: texts for name, texts in values.items() if len(set(texts)) > 1 and not set(texts) <= {"None", "-"}}


def describe_difference(first: ComparedRun, second: ComparedRun) -> str:
    """Test whether the accuracies of two runs differ: in folds if both runs have them. Return a sentence."""
    folds = [run.folds for run in (first, second) if run.folds is not None]
    if len(folds) == 2:
        first, second = (replace(run, answers=_answers(fold)) for run, fold in zip((first, second), folds, strict=True))
    for run in (first, second):
        if "val_acc" not in run.curves and "val_loss" in run.curves:
            return f"{run.name} is not a classifier, so no test of the accuracies: compare the losses"
        if run.answers is None:
            return f"{run.name} has no predictions yet, so no test: {command('evaluate.py', run.folder)}"
    ones, others = first.answers or {}, second.answers or {}
    if reason := _other_samples(first, second):
        return f"{first.name} and {second.name} were not evaluated on the same samples, so no test: {reason}"
    pairs = [(ones[path][1], others[path][1]) for path in ones]
    both, only_first, only_second = map(pairs.count, ((True, True), (True, False), (False, True)))
    p, points = mcnemar_p_value(only_first, only_second), 100 * (only_second - only_first) / len(pairs)
    low, high = (100 * end for end in difference_interval(both, only_first, only_second, len(pairs)))
    counts = f"the same {len(pairs)} samples, {only_first + only_second} of them right in one run only"
    details = f"McNemar's exact test, p = {p:.2g}, {counts}"
    if len(folds) == 2:
        if not _have_same_folds(*folds):
            fix = "train both with the same --folds (2 or more), --repeats and --seed"
            return f"{first.name} and {second.name} have other folds, so no test: {fix}"
        differences = (100 * (folds[1].accuracies - folds[0].accuracies)).tolist()
        (p_of_folds, margin), points = corrected_t_test(differences, 1 / folds[0].folds.max()), mean(differences)
        test = "corrected resampled t-test" if p_of_folds >= p else "McNemar's exact test"
        # few folds can agree by chance, so the result is never surer than that of one repeat
        p, low, high = max(p, p_of_folds), min(low, points - margin), max(high, points + margin)
        details = f"{test}, p = {p:.2g}, {len(differences)} folds of the same {len(pairs)} samples"
    if points < 0:
        first, second, points, low, high = second, first, -points, -high, -low
    start, how = ("", "better") if p < SIGNIFICANCE_LEVEL else ("no significant difference: ", "higher")
    return f"{start}{second.name} is {how} by {points:.1f} points (95 % interval {low:.1f} to {high:.1f}; {details})"


def _answers(folds: OutOfFold) -> dict[str, tuple[str, bool]]:
    """Return the answers of a ComparedRun, from the first repeat."""
    one = folds.take(folds.repeats == 1)
    cells = zip(one.paths, one.labels, one.correct.tolist(), strict=True)
    return {path: (one.class_names[label], is_right) for path, label, is_right in cells}


def _have_same_folds(*runs: OutOfFold) -> bool:
    """Return True if the samples are in the same folds in both runs, and there are two folds or more."""
    first, second = (sorted(zip(run.repeats, run.folds, run.paths, strict=True)) for run in runs)
    return first == second and runs[0].folds.max() > 1


def _other_samples(first: ComparedRun, second: ComparedRun) -> str:
    """Return why two runs were not evaluated on the same samples, or "" if they were."""
    one, other = ({path: label for path, (label, _) in (run.answers or {}).items()} for run in (first, second))
    if one != other:
        return "their paths or classes differ"
    if all(path.isdecimal() for path in one):  # if the data differ, the same number is another sample
        names = set(SAMPLE_SETTINGS)
        if not str(first.settings.get("data.class_path")).startswith("datamodules."):  # any setting may choose samples
            names = {name for name in first.settings if name.startswith("data.") and name != "data.batch_size"}
        same = all(first.settings.get(name) == second.settings.get(name) for name in names)
        return "" if same else "they have other settings of --data"
    if one.keys() <= first.hashes.keys() & second.hashes.keys():  # the same photos may have moved to another folder
        changed = [path for path in one if first.hashes[path] != second.hashes[path]]
        return f"the contents of {first_names(changed, 3)} differ" if changed else ""
    places = [run.folder / "../.." / str(run.settings.get("data.root")) for run in (first, second)]
    roots = [str(place.resolve()) for place in places]  # a relative path starts where fit.py was started
    text = f"the photos were in {' and '.join(roots)}, and {SPLIT} does not show if they are the same"
    return "" if roots[0] == roots[1] else text


def format_metric(metric: str, value: float) -> str:
    """Format an accuracy with 4 decimal places, or a loss with 4 significant digits, because a loss can be tiny."""
    return f"{value:.4f}" if metric.endswith("acc") else f"{value:.4g}"


def compare(names: Sequence[str], picture: str | None = None) -> None:
    """Print the settings that differ and the results of runs, and draw their curves into the PNG file ``picture``."""
    runs = [read_run(name) for name in names]
    if len({run.name for run in runs}) < len(runs):  # equal names in different folders: use the paths
        runs = [replace(run, name=os.path.relpath(run.folder)) for run in runs]
    differing = differences(runs)
    body = [[name, *values] for name, values in differing.items()]
    metrics = dict.fromkeys(metric for run in runs for metric in run.modes)
    for metric in metrics:
        body.append([metric, *(format_metric(metric, run.best[metric]) if metric in run.best else "-" for run in runs)])
    body.append(["accuracy", *(_format_accuracy(run) if run.answers else "-" for run in runs)])
    print_table(["", *(run.name for run in runs)], [row for row in body if set(row[1:]) != {"-"}])
    print(f"\n{', '.join(metrics)}: best epoch; accuracy: from evaluate.py, with 95 % interval")
    if len(runs) == 2:
        print(describe_difference(*runs))
    charts: dict[str, Any] = {metric: {} for metric in metrics if any(metric in run.curves for run in runs)}
    for place, run in enumerate(runs):
        settings = [f"{name.rpartition('.')[2]} = {values[place]}" for name, values in differing.items()]
        for metric, curve in run.curves.items():
            charts[metric][", ".join([run.name, *settings])] = list(curve), list(curve.values())
    if not charts:
        print(f"no curves: none of {', '.join(metrics)} was logged")
        return
    target = Path(picture) if picture else runs[0].folder.parent / "comparison.png"
    try:
        figures.draw_curves(charts).savefig(target, dpi=100)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {target} ({error}): choose another file with --png FILE.png") from error
    print(f"curves      {os.path.relpath(target)}")


def _format_accuracy(run: ComparedRun) -> str:
    answers = run.answers or {}
    if run.folds is not None and answers.keys() == {*run.folds.paths}:  # evaluate.py has shown the first repeat
        return f"{run.folds.accuracies.mean():.4f} ({run.folds.interval()})"
    right, n = sum(is_right for _, is_right in answers.values()), len(answers)
    low, high = wilson_interval(right, n)
    return f"{right / n:.4f} ({low:.3f} to {high:.3f}, n = {n})"


def summarize_seeds(runs: Sequence[ComparedRun]) -> list[str]:
    """Return one line of text per metric: mean and sample standard deviation over the best epochs of the runs."""
    lines = []
    for metric in dict.fromkeys(metric for run in runs for metric in run.modes):
        values = [run.best[metric] for run in runs if metric in run.best]
        if len(values) > 1:
            middle, deviation = format_metric(metric, mean(values)), format_metric(metric, stdev(values))
            lines.append(f"{metric:<10}  {middle} +- {deviation}  (n = {len(values)} seeds)")
    return lines
