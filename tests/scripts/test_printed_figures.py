"""Every number that evaluate.py, predict.py, compare.py and ``fit.py --seeds`` print or write, computed by hand.

By hand means with the checkpoint, the data and plain loops. The classes of the shapes are not in alphabetical order,
the network confuses many classes, and the confusion matrix is not symmetric.
"""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from PIL import Image

from datamodules import RandomDataModule, ShapesDataModule
from lit_models import LitCNN, LitMLP
from tests.support import by_hand, printed, seen
from tests.support.commands import run_well, series_in_this_process

LOGS = Path("lightning_logs")
RUN = LOGS / "version_0"
FIT = "fit.py --accelerator cpu --devices 1 --dashboard false --quiet --data.batch_size 16 --data.train_size 800"
NAMES = ShapesDataModule.class_names
SAMPLES = 97


class Results(NamedTuple):
    """The outputs and the figures of the scripts."""

    out: str
    drawn: list[seen.Drawn]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Results]]:
    """Two evaluated runs, and the output of the first evaluation."""
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_well(f"{FIT} --data.val_size {SAMPLES} --max_epochs 3 --model.lr 0.03")
        run_well(f"{FIT} --data.val_size {SAMPLES} --max_epochs 2 --model.lr 0.02 --seed 1")
        drawn = seen.watch(patch)
        out = run_well("evaluate.py lightning_logs/version_0")
        run_well("evaluate.py lightning_logs/version_1")
        yield folder, Results(out, drawn)


@pytest.fixture
def results(workspace: tuple[Path, Results], tmp_path: Path) -> Results:
    shutil.copytree(workspace[0], tmp_path, dirs_exist_ok=True)
    return workspace[1]


class Answers:
    """The outputs of a run's network for the test images, as plain lists."""

    def __init__(self, run: Path, split: str = "test") -> None:
        data = ShapesDataModule(train_size=800, val_size=SAMPLES, batch_size=16)
        data.setup("fit" if split == "val" else "test")
        pictures, labels = data.dataset(split).__getitems__(list(range(SAMPLES)))  # type: ignore[attr-defined]
        model = by_hand.opened(run / "checkpoints/best.ckpt", LitCNN)
        with torch.no_grad():
            output = model(pictures)
        self.loss = float(F.cross_entropy(output, labels))
        self.labels, self.taken_for = labels.tolist(), output.argmax(1).tolist()
        record = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["lit"]
        self.probabilities = (output / record.get("calibration", {"temperature": 1})["temperature"]).softmax(1).tolist()
        self.sure = [max(row) for row in self.probabilities]
        self.right = [label == taken for label, taken in zip(self.labels, self.taken_for, strict=True)]
        self.matrix = [[0] * 10 for _ in NAMES]
        for label, taken in zip(self.labels, self.taken_for, strict=True):
            self.matrix[label][taken] += 1
        wrong = [workspace for workspace in range(SAMPLES) if not self.right[workspace]]
        self.worst = sorted(wrong, key=lambda workspace: -self.sure[workspace])[:12]


def test_the_answers_make_different_mistakes_visible(results: Results) -> None:
    one = Answers(RUN)
    columns = [sum(row[k] for row in one.matrix) for k in range(10)]
    assert list(NAMES) != sorted(NAMES)
    assert one.matrix != [list(column) for column in zip(*one.matrix, strict=True)]
    assert sum(sum(row) != column for row, column in zip(one.matrix, columns, strict=True)) > 5
    assert len({sum(row) for row in one.matrix}) == 2
    assert len(one.worst) == 12
    assert Answers(RUN, "val").right != one.right


def test_evaluation_as_printed(results: Results) -> None:
    one, figures = Answers(RUN), printed.result(results.out)
    right = sum(one.right)
    assert figures["checkpoint"] == "lightning_logs/version_0/checkpoints/best.ckpt"
    assert f"ShapesDataModule, test: {SAMPLES} samples" in results.out
    assert f", {right} of {SAMPLES} right)" in results.out
    expected = (right / SAMPLES, *by_hand.wilson(right, SAMPLES))
    assert printed.interval(results.out, "test_acc") == pytest.approx(expected, abs=6e-4)
    assert float(figures["test_acc"]) == pytest.approx(right / SAMPLES, abs=6e-5)
    assert float(figures["test_loss"]) == pytest.approx(one.loss, rel=1e-3)
    recalls = [row[k] / sum(row) for k, row in enumerate(one.matrix)]
    assert float(figures["balanced"]) == pytest.approx(mean(recalls), abs=6e-5)
    assert abs(mean(recalls) - right / SAMPLES) > 1e-4

    rows = printed.table(results.out, "class", "precision", "recall", "F1", "support")
    assert [row[0] for row in rows] == list(NAMES)
    for k, (_, *shares, support) in enumerate(rows):
        hit, true, taken = one.matrix[k][k], sum(one.matrix[k]), sum(row[k] for row in one.matrix)
        assert int(support) == true
        for share, over in zip(shares, (taken, true, (true + taken) / 2), strict=True):
            assert share == "-" if over == 0 else float(share) == pytest.approx(hit / over, abs=6e-5)

    assert "rows: true class, columns: predicted class" in results.out
    rows = printed.table(results.out, *NAMES)
    assert [row[0] for row in rows] == list(NAMES)
    assert [[int(cell) for cell in row[1:]] for row in rows] == one.matrix

    rows = printed.table(results.out, "path", "label", "predicted", "probability")
    assert [row[:3] for row in rows] == [[str(i), NAMES[one.labels[i]], NAMES[one.taken_for[i]]] for i in one.worst]
    assert [float(row[3]) for row in rows] == pytest.approx([one.sure[i] for i in one.worst], abs=2e-6)


def test_evaluation_in_files_and_figures(results: Results) -> None:
    one, folder = Answers(RUN), RUN / "evaluation"
    rows = printed.read_csv(folder / "predictions.csv")
    assert list(rows[0]) == ["path", "label", "predicted", "probability", "right"]
    assert [row["path"] for row in rows] == [str(number) for number in range(SAMPLES)]
    assert [row["label"] for row in rows] == [NAMES[label] for label in one.labels]
    assert [row["predicted"] for row in rows] == [NAMES[taken] for taken in one.taken_for]
    assert [float(row["probability"]) for row in rows] == pytest.approx(one.sure, abs=2e-6)
    assert [row["right"] for row in rows] == [str(int(right)) for right in one.right]
    with (folder / "confusion_matrix.csv").open(newline="") as file:
        head, *body = csv.reader(file)
    assert head == ["label", *NAMES]
    assert body == [[name, *map(str, row)] for name, row in zip(NAMES, one.matrix, strict=True)]

    matrix, worst = [one for one in results.drawn if "reliability" not in one.name][:2]
    files = [str(folder / name) for name in ("confusion_matrix.png", "worst.png")]
    assert matrix.name.endswith(files[0])
    assert worst.name.endswith(files[1])
    assert matrix.counts() == {
        (NAMES[true], NAMES[taken]): number
        for true, row in enumerate(one.matrix)
        for taken, number in enumerate(row)
        if number
    }
    assert worst.titles() == [
        f"{one.sure[i]:.0%} {NAMES[one.taken_for[i]]}\nis {NAMES[one.labels[i]]}" for i in one.worst
    ]


def test_regression_is_evaluated_with_r2_and_mean_error() -> None:
    sizes = "--data.in_features 6 --data.out_features 2 --data.length 40 --data.steps 0 --data.target linear"
    run_well(f"fit.py --model LitMLP {sizes} --max_epochs 30 --model.lr 0.001 --quiet --dashboard false")
    figures = printed.result(run_well("evaluate.py latest"))
    data = RandomDataModule(6, 2, length=40, steps=0, target="linear")
    data.setup("test")
    output, target = by_hand.answers(by_hand.opened(RUN / "checkpoints/best.ckpt", LitMLP), data.test_dataloader())
    rest = ((output - target) ** 2).sum(0) / ((target - target.mean(0)) ** 2).sum(0)
    assert float(figures["R2"]) == pytest.approx(1 - float(rest.mean()), abs=6e-5)
    assert float(figures["MAE"]) == pytest.approx(float((output - target).abs().mean()), rel=1e-3)
    assert float(figures["test_loss"]) == pytest.approx(float(((output - target) ** 2).sum()), rel=1e-3)
    assert 0.2 < float(figures["R2"]) < 0.999


def test_predictions_list_the_most_probable_classes_in_order(results: Results) -> None:
    one, picked = Answers(RUN), (40, 3, 17, 8)
    data = ShapesDataModule(train_size=800, val_size=SAMPLES)
    data.setup("test")
    files = []
    for name, number in zip("dbca", picked, strict=True):
        pixels = (data.dataset("test")[number][0] * 127.5 + 127.5).round().to(torch.uint8)
        files.append(f"pictures/{name}.png")
        Path("pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(files[-1])
    ranked = {file: np.argsort([-p for p in one.probabilities[i]]) for file, i in zip(files, picked, strict=True)}
    places = dict(zip(files, picked, strict=True))
    assert len({NAMES[order[0]] for order in ranked.values()}) > 1
    run = "lightning_logs/version_0"
    for inputs, order in ((" ".join(files), files), ("pictures", sorted(files)), ("pictures/[ad].png", files[3::-3])):
        out = run_well(f"predict.py {run} {inputs} --batch_size 3 --output out.csv")
        head = ["path", "label", "probability", "label_2", "probability_2", "label_3", "probability_3"]
        rows = printed.table(out, *head)
        saved = printed.read_csv(Path("out.csv"))
        assert [row[0] for row in rows] == order == [row["path"] for row in saved]
        for row, cells in zip(rows, saved, strict=True):
            assert row == [cells[name] for name in head]
            best = ranked[row[0]][:3]
            assert row[1::2] == [NAMES[k] for k in best]
            expected = [one.probabilities[places[row[0]]][k] for k in best]
            assert [float(cell) for cell in row[2::2]] == pytest.approx(expected, abs=2e-6)
    run_well(f"predict.py {run} {files[0]} --top_k 2 --output out.json")
    [document] = json.loads(Path("out.json").read_text())
    best = ranked[files[0]][:2]
    assert (document["path"], document["label"]) == (files[0], NAMES[best[0]])
    assert [answer["label"] for answer in document["top"]] == [NAMES[k] for k in best]
    assert [answer["probability"] for answer in document["top"]] == pytest.approx(
        [one.probabilities[picked[0]][k] for k in best], abs=2e-6
    )


# --- comparisons ------------------------------------------------------------------------------------------------------

VERDICT = re.compile(
    r"(no significant difference: )?(\w+) is (?:higher|better) by ([\d.]+) points \(95 % interval (\S+) to (\S+); "
    r"McNemar's exact test, p = (\S+), the same (\d+) samples, (\d+) of them right in one run only\)"
)


def compared(first: str, second: str) -> tuple[Any, dict[str, list[str]], str]:
    """Return the verdict on two runs, the rows of the table, and the full output."""
    out = run_well(f"compare.py lightning_logs/{first} lightning_logs/{second}")
    found = VERDICT.search(out)
    assert found is not None, out
    # Values such as ``0.4 (0.3 to 0.5, n = 9)`` hold single blanks; two blanks separate columns.
    lines = [re.split(r"\s{2,}", line) for line in out.partition("\n\n")[0].splitlines()[1:]]
    assert out.splitlines()[0].split() == [first, second]
    return found, {line[0]: line[1:] for line in lines}, out


def answered(run: str, right: list[bool]) -> None:
    """Write a file with right and wrong predictions."""
    with (LOGS / run / "evaluation/predictions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "predicted", "probability", "right"])
        rows.writerows([workspace, "a", "b", 0.5, int(hit)] for workspace, hit in enumerate(right))


def check_verdict(first: str, second: str, ones: list[bool], others: list[bool]) -> Any:
    """Check the verdict of compare.py against the numbers counted here."""
    found, rows, _ = compared(first, second)
    pairs = list(zip(ones, others, strict=True))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    p, points = by_hand.mcnemar_p_value(only_first, only_second), 100 * (sum(others) - sum(ones)) / len(pairs)
    assert (int(found[7]), int(found[8])) == (len(pairs), only_first + only_second)
    assert float(found[6]) == pytest.approx(p, rel=0.06)
    assert (found[1] is not None) == (p >= 0.05)
    assert found[2] == (second if points >= 0 else first)
    assert float(found[3]) == pytest.approx(abs(points), abs=0.06)
    assert float(found[4]) < abs(points) < float(found[5])
    assert p >= 0.05 or float(found[4]) > 0
    for cell, right in zip(rows["accuracy"], (ones, others), strict=True):
        low, high = by_hand.wilson(sum(right), len(right))
        share, *between = map(float, re.findall(r"\d+\.\d+", cell))
        assert share == pytest.approx(sum(right) / len(right), abs=6e-5)
        assert between == pytest.approx([low, high], abs=6e-4)
        assert f"n = {len(right)})" in cell
    return found


def test_comparison_of_two_evaluations(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = seen.watch(monkeypatch)
    ones, others = Answers(RUN).right, Answers(LOGS / "version_1").right
    check_verdict("version_0", "version_1", ones, others)
    check_verdict("version_1", "version_0", others, ones)
    _, rows, _ = compared("version_0", "version_1")
    tables = [printed.read_csv(LOGS / run / "metrics.csv") for run in ("version_0", "version_1")]
    curves = {name: [printed.column(rows, name) for rows in tables] for name in ("val_acc", "val_loss", "train_loss")}
    for column in range(2):
        best = printed.best_row(tables[column])
        for name, digits in (("val_acc", ".4f"), ("val_loss", ".4g"), ("train_loss", ".4g")):
            assert rows[name][column] == f"{curves[name][column][best]:{digits}}"
    assert rows["model.lr"] == ["0.03", "0.02"]
    assert rows["seed_everything"] == ["0", "1"]
    assert rows["trainer.max_epochs"] == ["3", "2"]
    assert "data.batch_size" not in rows
    assert Path(drawn[-1].name) == LOGS / "comparison.png"
    for name, (one, other) in curves.items():
        assert drawn[-1].curves()[name] == {"version_0": ([1, 2, 3], one), "version_1": ([1, 2], other)}
    run_well("compare.py lightning_logs/version_0 lightning_logs/version_1 --png elsewhere.png")
    assert drawn[-1].name == "elsewhere.png"


@pytest.mark.parametrize(
    ("both", "only_first", "only_second", "neither", "verdict"),
    [
        (20, 30, 10, 7, "version_0 is better by"),
        (20, 10, 30, 7, "version_1 is better by"),
        (20, 9, 15, 7, "version_1 is higher by"),
        (20, 15, 9, 7, "version_0 is higher by"),
        (40, 6, 0, 9, "version_0 is better by"),  # p = 0.031
        (40, 5, 0, 9, "version_0 is higher by"),  # p = 0.062; the one-sided p is 0.031
    ],
)
def test_compare_reports_only_significant_differences(
    both: int,
    only_first: int,
    only_second: int,
    neither: int,
    verdict: str,
    results: Results,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)  # another test checks the curves
    ones = [True] * (both + only_first) + [False] * (only_second + neither)
    others = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    for run, right in (("version_0", ones), ("version_1", others)):
        answered(run, right)
    found = check_verdict("version_0", "version_1", ones, others)
    assert verdict in found[0]


# --- several seeds ----------------------------------------------------------------------------------------------------


def test_seeds_count_up_and_the_deviation_is_that_of_a_sample() -> None:
    line = "--seeds 3 --seed 5 --max_epochs 2 --data.train_size 40 --data.val_size 31 --model.lr 0.02 --dashboard false"
    with series_in_this_process() as seeds:
        out = run_well(f"fit.py {line}")
    assert seeds == ["5", "6", "7"]
    tables = [printed.read_csv(LOGS / f"version_{number}" / "metrics.csv") for number in range(3)]
    best: dict[str, list[float]] = {"val_acc": [], "val_loss": [], "train_loss": []}
    for rows in tables:
        for name, values in best.items():
            values.append(printed.column(rows, name)[printed.best_row(rows)])
    assert len(set(best["val_acc"])) > 1
    first, last = out.split("\n\n")
    for number, result in enumerate(first.splitlines()):
        shown = dict(re.findall(r"(\w+) (\d\S*)", result))
        assert result.startswith(f"seed {5 + number}  ")
        assert result.endswith(f"lightning_logs/version_{number}")
        for name, values in best.items():
            assert float(shown[name]) == pytest.approx(values[number], rel=1e-3)
    spread = re.findall(r"^(\w+) +(\S+) \+- (\S+)  \(n = (\d) seeds\)$", last, re.MULTILINE)
    assert [(name, n) for name, _, _, n in spread] == [(name, "3") for name in best]
    for name, middle, deviation, _ in spread:
        assert float(middle) == pytest.approx(mean(best[name]), rel=1e-3)
        assert float(deviation) == pytest.approx(stdev(best[name]), rel=1e-3, abs=6e-5)
    assert "all runs used the same validation data" in last
    typed = line.replace("--seeds 3 --seed 5 ", "")
    assert last.endswith(f"scripts/fit.py {typed} --seed 1 --data.seed 1\n")


# --- before the first step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        ("", ["1 x CPU, 1 thread each, precision 32-true; global batch = 4 (4 x 1 device x 1 accumulated)"]),
        (
            "--data.batch_size 5 --devices 3 --strategy ddp --accumulate_grad_batches 7 --precision bf16-mixed",
            ["3 x CPU, 1 thread each, precision bf16-mixed; global batch = 105 (5 x 3 devices x 7 accumulated)"],
        ),
        (
            "--model LitTransfer --data ShapesDataModule --model.weights none",
            ["LitTransfer: 5,130 trainable of 11,181,642 parameters, weights None", "samples of 3 x 32 x 32, 10 cl"],
        ),
        (
            "--data.channels 1",
            ["LitCNN: 61,706 trainable of 61,706 parameters\n", "ShapesDataModule: samples of 1 x 32 x 32, 10 classes"],
        ),
        ("--model LitMLP --data.in_features 7", ["RandomDataModule: samples of 7, regression", "1,810 trainable of"]),
    ],
)
def test_lines_printed_before_the_first_step(flags: str, lines: list[str]) -> None:
    with mock.patch.object(Trainer, "fit", side_effect=SystemExit(0)):
        out = run_well(f"fit.py --accelerator cpu {flags if 'devices' in flags else flags + ' --devices 1'}")
    for line in lines:
        assert line in out
