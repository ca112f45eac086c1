"""Compare two runs with folds: the corrected t-test in the same folds, no test in other folds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import t

from datamodules.files import write_csv
from lit_training.runs.out_of_fold import OutOfFold
from lit_training.statistics import corrected_t_test, folds_interval
from lit_training.trained.compare import ComparedRun, compare, describe_difference, read_run


def folds_of(right: np.ndarray, seed: int = 0, order: np.ndarray | None = None, count: int = 4) -> OutOfFold:
    """Predictions in ``count`` folds, 3 repeats. ``right`` (3, 80) bool; ``order`` is that of the rows in the file."""
    folds = np.concatenate([np.random.default_rng(seed + repeat).permutation(80) % count + 1 for repeat in range(3)])
    paths, repeats = np.tile([f"{n}.jpg" for n in range(80)], 3).astype(object), np.repeat([1, 2, 3], 80)
    labels, order = np.tile(np.arange(80) % 2, 3), np.arange(240) if order is None else order
    shares = np.where((right.ravel() == (labels == 0))[:, None], [0.8, 0.2], [0.3, 0.7])
    columns = [column[order] for column in (paths, repeats, folds, labels, shares)]
    return OutOfFold(("a", "b"), *columns)


def run(name: str, folds: OutOfFold, hashes: str = "same") -> ComparedRun:
    return ComparedRun(name, Path(name), {}, [], None, {f"{n}.jpg": hashes for n in range(80)}, folds)


def test_the_same_folds_are_compared_by_the_corrected_t_test() -> None:
    random = np.random.default_rng(1)
    one, other = random.random((3, 80)) < 0.6, random.random((3, 80)) < 0.95
    first, second = folds_of(one), folds_of(other, order=random.permutation(240))
    differences = [
        float(other.ravel()[rows].mean() - one.ravel()[rows].mean())
        for repeat in (1, 2, 3)
        for fold in (1, 2, 3, 4)
        if (rows := (first.repeats == repeat) & (first.folds == fold)).any()
    ]
    p = corrected_t_test(differences, 1 / 4)[0]
    assert p < 0.01
    points, width = 100 * np.mean(differences), 100 * t.ppf(0.975, 11) * (np.var(differences, ddof=1) * 5 / 12) ** 0.5
    expected = f"points (95 % interval {points - width:.1f} to {points + width:.1f}; corrected resampled t-test, "
    expected = f"B is better by {points:.1f} {expected}p = {p:.2g}, 12 folds of the same 80 samples)"
    assert describe_difference(run("A", first), run("B", second)) == expected
    assert describe_difference(run("B", second), run("A", first)) == expected
    two = [run(name, folds_of(right, count=2)) for name, right in (("A", one), ("B", other))]
    assert describe_difference(*two).endswith(", 6 folds of the same 80 samples)")
    same = describe_difference(run("A", first), run("B", first))
    assert same.startswith("no significant difference: B is higher by 0.0 points (95 % interval -")
    assert "; corrected resampled t-test, p = 1, " in same


def test_folds_that_agree_by_chance_show_no_difference() -> None:
    """Each of the folds has one more right answer in B. Their variance is 0, but only 12 of 240 answers differ."""
    first = folds_of(np.zeros((3, 80), bool))
    is_new = np.unique(first.repeats * 10 + first.folds, return_index=True)[1]
    second = folds_of(np.isin(np.arange(240), is_new).reshape(3, 80))
    said = describe_difference(run("A", first), run("B", second))
    assert said.startswith("no significant difference: B is higher by 5.0 points (95 % interval -")
    assert "; McNemar's exact test, p = 0.12, 12 folds of the same 80 samples)" in said


def test_other_folds_are_not_compared() -> None:
    right = np.random.default_rng(1).random((3, 80)) < 0.6
    said = describe_difference(run("A", folds_of(right)), run("B", folds_of(right, seed=9)))
    assert said.startswith("A and B have other folds, so no test: train both with the same --folds")


def test_other_pictures_are_not_compared() -> None:
    folds = folds_of(np.ones((3, 80), bool))
    assert "so no test: the contents of 0.jpg, " in describe_difference(run("A", folds), run("B", folds, "new"))
    fewer = folds_of(np.ones((3, 80), bool), order=np.flatnonzero(folds.paths != "3.jpg"))
    assert "so no test: their paths or classes differ" in describe_difference(run("A", folds), run("B", fewer))
    single = ComparedRun("B", Path("B"), {}, [], None)
    assert describe_difference(run("A", folds), single).startswith("A has no predictions yet, so no test: ")


def test_folds_are_read_from_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"class_path": "lit_models.LitCNN"}}))
    (tmp_path / "metrics.csv").write_text("epoch,val_acc\n0,0.5\n")
    assert read_run(str(tmp_path)).folds is None
    folds_of(np.ones((3, 80), bool)).write(tmp_path / "out_of_fold.csv")
    read = read_run(str(tmp_path)).folds
    assert read is not None
    assert read.correct.all()
    rows = {name: getattr(read, name)[:80] for name in ("paths", "repeats", "labels", "probabilities")}
    single = replace(read, **rows, folds=np.ones(80, int))
    assert "so no test" in describe_difference(run("A", single), run("B", single)), "one fold has no variance"


def test_the_accuracy_of_folds_has_the_interval_of_the_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = folds_of(np.random.default_rng(1).random((3, 80)) < 0.9)
    first = folds.take(folds.repeats == 1)
    rows = [
        (path, "ab"[label], int(right))
        for path, label, right in zip(first.paths, first.labels, first.correct, strict=True)
    ]
    for name, own in (("version_0", rows), ("version_1", [("test.jpg", "a", 1)])):
        (tmp_path / name / "evaluation").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({"model": {"class_path": "lit_models.LitCNN"}}))
        (tmp_path / name / "metrics.csv").write_text("epoch,val_acc\n0,0.5\n")
        write_csv(tmp_path / name / "evaluation/predictions.csv", [("path", "label", "right"), *own])
        folds.write(tmp_path / name / "out_of_fold.csv")
    compare([str(tmp_path / "version_0"), str(tmp_path / "version_1")])
    low, high = folds_interval(folds.accuracies.tolist(), 4, 80)
    shown = capsys.readouterr().out
    assert f" {folds.accuracies.mean():.4f} ({low:.3f} to {high:.3f}, n = 80, 4 folds x 3 repeats)  1.0000 (" in shown
