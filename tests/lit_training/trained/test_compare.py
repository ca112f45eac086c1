"""Compare runs: settings, results and the significance test."""

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from datamodules.files import write_csv
from lit_training.errors import UsageError
from lit_training.statistics import mcnemar_p_value
from lit_training.trained.compare import (
    ComparedRun,
    compare,
    describe_difference,
    differences,
    read_run,
    summarize_seeds,
)


def make_run(folder: Path, lr: float, accuracy: list[float], right: list[int] | None = None) -> Path:
    """Write a run's folder as fit.py and evaluate.py do."""
    folder.mkdir(parents=True)
    config = {"model": {"class_path": "lit_models.LitCNN", "init_args": {"lr": lr}}, "seed_everything": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "lr-SGD", "step", "train_loss", "val_acc", "val_loss"])
        for epoch, value in enumerate(accuracy):
            rows.writerow(["", lr, epoch, "", "", ""])
            rows.writerow([epoch, "", epoch, "", value, 1 - value])
            rows.writerow([epoch, "", epoch, 2 - value, "", ""])
    if right is not None:
        (folder / "evaluation").mkdir()
        with (folder / "evaluation" / "predictions.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label", "predicted", "probability", "right"])
            rows.writerows(
                [index, "a", "a" if is_right else "b", 0.9, is_right] for index, is_right in enumerate(right)
            )
    return folder


def rows_of(curves: dict[str, dict[int, float]]) -> list[dict[str, str]]:
    return [{"epoch": str(n - 1), name: str(value)} for name, curve in curves.items() for n, value in curve.items()]


def compared_run(name: str, right: list[bool]) -> ComparedRun:
    answers = {str(index): ("a", is_right) for index, is_right in enumerate(right)}
    return ComparedRun(name, Path(name), {}, [], answers)


def test_run_with_only_nan_has_no_best_epoch() -> None:
    assert ComparedRun("a", Path("a"), {}, rows_of({"val_loss": {1: float("nan"), 2: float("nan")}}), None).best == {}


@pytest.mark.parametrize("decides", ["val_loss", "train_loss"])
def test_the_best_epoch_of_a_regression_has_the_lowest_loss(decides: str) -> None:
    curves = {decides: {1: 3.0, 2: 1.0, 3: 2.0}}
    assert ComparedRun("a", Path("a"), {}, rows_of(curves), None).best == {decides: 1.0}


def test_real_difference_is_reported() -> None:
    random = np.random.default_rng(0)
    one, other = random.random(1000) < 0.80, random.random(1000) < 0.88
    sentence = describe_difference(compared_run("A", one.tolist()), compared_run("B", other.tolist()))
    assert sentence.startswith(f"B is better by {(other.mean() - one.mean()) * 100:.1f} points")


def test_sentence_about_two_runs() -> None:
    right = [True] * 90 + [False] * 10
    same = describe_difference(compared_run("A", right), compared_run("B", right))
    assert same.startswith("no significant difference: B is higher by 0.0 points (95 % interval -")
    assert "p = 1, the same 100 samples" in same
    for more, start in ((5, "no significant difference: B is higher by 5.0 points"), (6, "B is better by 6.0 points")):
        other = [True] * (90 + more) + [False] * (10 - more)  # p = 0.5 ** (more - 1): 0.0625 and 0.03125
        assert describe_difference(compared_run("A", right), compared_run("B", other)).startswith(start)
    assert "not evaluated on the same samples" in describe_difference(
        compared_run("A", right), compared_run("B", right[:50])
    )
    unknown = ComparedRun("B", Path("B"), {}, [], None)
    assert "scripts/evaluate.py B" in describe_difference(compared_run("A", right), unknown)


def test_numbered_samples_of_different_data_are_not_paired() -> None:
    """Sample 7 of seed 0 is a different image than sample 7 of seed 1, even if both have the same label."""
    right = [True] * 90 + [False] * 10
    one, other = compared_run("A", right), compared_run("B", right)
    one.settings.update({"data.class_path": "datamodules.ShapesDataModule", "data.seed": 0})
    other.settings.update({"data.class_path": "datamodules.ShapesDataModule", "data.seed": 1})
    assert "not evaluated on the same samples" in describe_difference(one, other)
    other.settings.update({"data.seed": 0, "data.batch_size": 8})
    assert describe_difference(one, other).startswith("no significant difference")


def photo_run(folder: Path, root: str, hashes: list[str]) -> ComparedRun:
    """A run that was evaluated on the photos val/a/0.jpg, val/a/1.jpg, ...; ``hashes`` are in its split.csv."""
    make_run(folder, 0.1, [0.5])
    names = [f"val/a/{number}.jpg" for number in range(20)]
    config = {"data": {"class_path": "datamodules.ImageFolderDataModule", "init_args": {"root": root}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "evaluation").mkdir()
    write_csv(folder / "evaluation/predictions.csv", [("path", "label", "right"), *((name, "a", 1) for name in names)])
    rows = [(name, "a", "val", *hashes[k : k + 1]) for k, name in enumerate(names)]
    write_csv(folder / "split.csv", [("path", "label", "split", "sha256")[: 3 + bool(hashes)], *rows])
    return read_run(str(folder))


def test_photos_are_the_same_if_their_contents_are(tmp_path: Path) -> None:
    """Names and classes are equal in all runs. Runs of earlier versions have no hashes: then the folder decides."""
    hashes = [str(number) * 64 for number in range(20)]
    run = photo_run(tmp_path / "one/lightning_logs/version_0", "photos", hashes)
    moved = photo_run(tmp_path / "two/lightning_logs/version_1", "/elsewhere/photos", hashes)
    changed = photo_run(tmp_path / "one/lightning_logs/version_2", "photos", [*hashes[:19], "f" * 64])
    old = photo_run(tmp_path / "one/lightning_logs/version_3", str(tmp_path / "one/photos/"), [])
    other_old = photo_run(tmp_path / "two/lightning_logs/version_4", "photos", [])
    assert "the same 20 samples" in describe_difference(run, moved)
    assert describe_difference(run, changed).endswith("so no test: the contents of val/a/19.jpg differ")
    assert "the same 20 samples" in describe_difference(run, old)
    refusal = describe_difference(old, other_old)
    assert f"so no test: the photos were in {tmp_path}/one/photos and {tmp_path}/two/photos" in refusal
    assert "no test" in describe_difference(old, moved)


def test_regressions_are_not_tested() -> None:
    curves = {"val_loss": {1: 2e-6}, "train_loss": {1: 3e-6}}
    sentence = describe_difference(
        ComparedRun("A", Path("A"), {}, rows_of(curves), None), ComparedRun("B", Path("B"), {}, rows_of(curves), None)
    )
    assert sentence == "A is not a classifier, so no test of the accuracies: compare the losses"


def test_tiny_losses_are_not_rounded_to_zero() -> None:
    runs = [
        ComparedRun(name, Path(name), {}, rows_of({"val_loss": {1: loss}}), None)
        for name, loss in (("A", 2e-6), ("B", 4e-6))
    ]
    assert summarize_seeds(runs) == ["val_loss    3e-06 +- 1.414e-06  (n = 2 seeds)"]


def test_of_several_validations_in_an_epoch_the_last_one_is_drawn_and_the_best_one_counts() -> None:
    rows = [{"epoch": "0", "val_acc": accuracy} for accuracy in ("0.5", "0.75", "0.625")]
    run = ComparedRun("a", Path("a"), {}, rows, None)
    assert (run.curves, run.best) == ({"val_acc": {1: 0.625}}, {"val_acc": 0.75})


def test_only_different_settings_are_listed(tmp_path: Path) -> None:
    runs = [read_run(str(make_run(tmp_path / f"version_{i}", lr, [0.5, 0.7]))) for i, lr in enumerate([1, 2])]
    assert differences(runs) == {"model.lr": ["1", "2"]}


def test_best_epoch_is_used_and_nan_is_never_best(tmp_path: Path) -> None:
    run = read_run(str(make_run(tmp_path / "version_0", 0.1, [0.5, 0.75, float("nan"), 0.625])))
    assert run.best == {"val_acc": 0.75, "val_loss": 0.25, "train_loss": 1.25}
    assert run.curves["val_acc"][4] == 0.625


@pytest.mark.figures
def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make_run(tmp_path / "version_0", 0.1, [0.5, 0.75], [1] * 80 + [0] * 20)
    other = make_run(tmp_path / "version_1", 0.01, [0.5, 0.875], [1] * 95 + [0] * 5)
    compare([str(one), str(other)])
    shown = capsys.readouterr().out
    table = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line}
    assert table["model.lr"] == ["0.1", "0.01"]
    assert table["val_acc"] == ["0.7500", "0.8750"]
    assert table["accuracy"][0] == "0.8000"
    assert "(0.711 to 0.867, n = 100)" in shown
    assert "version_1 is better by 15.0 points (95 % interval 8.0 to 23.2; McNemar's" in shown
    assert f"exact test, p = {mcnemar_p_value(0, 15):.2g}, " in shown
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    one = make_run(tmp_path / "version_0", 0.1, [0.5])
    other = make_run(tmp_path / "version_1", 0.1, [0.5])
    with pytest.raises(UsageError, match="cannot write"):
        compare([str(one), str(other)], str(tmp_path / "no" / "such.png"))
    (other / "config.yaml").unlink()
    with pytest.raises(UsageError, match=r"config\.yaml is missing"):
        read_run(str(other))
    (other / "config.yaml").write_text("a: [")
    with pytest.raises(UsageError, match="cannot be read"):
        read_run(str(other))


def test_mean_and_sample_deviation_of_repeated_runs(tmp_path: Path) -> None:
    runs = [read_run(str(make_run(tmp_path / f"version_{i}", 0.1, [value]))) for i, value in enumerate([0.5, 0.75])]
    assert summarize_seeds(runs)[0] == f"val_acc     0.6250 +- {0.25 / 2**0.5:.4f}  (n = 2 seeds)"
    assert summarize_seeds(runs[:1]) == []


def test_latest_is_the_newest_run_with_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, value in enumerate([0.5, 0.75]):
        make_run(tmp_path / "lightning_logs" / f"version_{number}", 0.1, [value])
    (tmp_path / "lightning_logs" / "version_2").mkdir()
    assert read_run("latest").best["val_acc"] == 0.75
    assert capsys.readouterr().err == "note: latest is version_1, because version_2 has no metrics.csv\n"


def test_runs_with_the_same_number_are_named_by_their_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for root in ("one", "other"):
        make_run(tmp_path / root / "version_0", 0.1, [0.5])
    compare(["one/version_0", "other/version_0"])
    assert capsys.readouterr().out.split()[:2] == ["one/version_0", "other/version_0"]
