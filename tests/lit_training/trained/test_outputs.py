"""Printed and written results of evaluate.py and predict.py."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from datamodules.files import OUTPUT_MARKER
from lit_training import figures, load
from lit_training.errors import UsageError
from lit_training.trained.calibrate import Calibration
from lit_training.trained.outputs import (
    check_output_path,
    draw_worst,
    prediction_table,
    worst_inputs,
    write_evaluation,
    write_predictions,
)
from lit_training.trained.predict import Prediction
from tests.support import by_hand, printed
from tests.support.answers import make_evaluation
from tests.support.training import Trained

# --- evaluations ------------------------------------------------------------------------------------------------------


@pytest.mark.figures
def test_report_and_files(photo_run: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    path, validated = photo_run
    evaluation = load(path).evaluate()
    write_evaluation(evaluation)
    printed_text = capsys.readouterr().out
    right = round(8 * validated["val_acc"])
    assert printed.interval(printed_text, "val_acc") == pytest.approx((right / 8, *by_hand.wilson(right, 8)), abs=6e-4)
    assert f"{right} of 8 right)" in printed_text
    assert "checkpoint  run/checkpoints/best.ckpt" in printed_text
    assert "run/evaluation/: predictions.csv" in printed_text
    folder = path.parents[1] / "evaluation"
    with (folder / "predictions.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "predicted", "probability", "right"]
    assert [row["label"] for row in rows] == ["ants"] * 4 + ["bees"] * 4
    assert sum(int(row["right"]) for row in rows) == right
    assert all((row["label"] == row["predicted"]) == (row["right"] == "1") for row in rows)
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    with (folder / "confusion_matrix.csv").open(newline="") as file:
        matrix = list(csv.reader(file))
    assert matrix[0] == ["label", "ants", "bees"]
    assert [[int(count) for count in row[1:]] for row in matrix[1:]] == evaluation.confusion().tolist()
    for name in ("confusion_matrix.png", "worst.png"):
        Image.open(folder / name).load()


def test_report_of_regression(rows_run: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = load(rows_run.path).evaluate()
    write_evaluation(evaluation)
    printed_text = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    error = evaluation.outputs - evaluation.targets
    spread = evaluation.targets - evaluation.targets.mean(0)
    assert float(printed_text["test_loss"]) == pytest.approx(float(error.square().sum()), rel=1e-3)
    assert float(printed_text["MAE"]) == pytest.approx(float(error.abs().mean()), rel=1e-3)
    r2 = (1 - error.square().sum(0) / spread.square().sum(0)).mean()
    assert float(printed_text["R2"]) == pytest.approx(float(r2), abs=1e-3)


def test_report_of_many_classes_shows_the_lowest_f1(capsys: pytest.CaptureFixture[str]) -> None:
    classes = 40
    outputs = torch.eye(classes - 1, classes)
    outputs[7] = outputs[8]
    names = tuple(f"class{k:02}" for k in range(classes))  # the last has no sample
    write_evaluation(make_evaluation(outputs.tolist(), list(range(classes - 1)), names))
    printed_text = capsys.readouterr().out
    assert "the 12 of 40 classes with the lowest F1" in printed_text
    assert printed_text.index("class07") < printed_text.index("class08") < printed_text.index("class00")
    assert "true class, columns" not in printed_text
    assert "class39" not in printed_text, "its F1 is not known"


@pytest.mark.parametrize(("temperature", "verdict"), [(4.0, ""), (1.0, ": it is not calibrated")])
def test_report_of_the_calibration(temperature: float, verdict: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(3000, 3)
    targets = torch.distributions.Categorical(logits=logits).sample()
    scores = 1 - logits.softmax(1).gather(1, targets[:, None]).flatten()
    calibration = Calibration(temperature, "half of val", 9, scores.sort().values, "half of val")
    evaluation = make_evaluation((4 * logits).tolist(), targets.tolist(), ("ant", "bee", "cat"))
    write_evaluation(replace(evaluation, split="val", calibration=calibration))
    out = capsys.readouterr().out
    assert re.search(rf"up to 0\.0\d+{verdict}\)", out)
    shares = [float(share) for share in re.findall(r"(?:ant|bee|cat) (\d\.\d{3})", out)]
    assert shares[0] < shares[1] < shares[2]
    assert out.count("was fitted on half of val, so on the same samples") == 2


def test_unwritable_run_is_refused(photo_run: Trained) -> None:
    (photo_run.path.parents[1] / "evaluation").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written"):
        write_evaluation(load(photo_run.path).evaluate())


def test_mistakes_are_drawn_as_the_network_sees_them(photo_run: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = load(photo_run.path).evaluate()
    wrong = evaluation.worst_indices()
    assert wrong, "after one epoch there should be mistakes"
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "draw_sheet", lambda *given, **_: drawn.append(given))
    x = worst_inputs(evaluation)
    assert torch.equal(x[0], evaluation.dataset[wrong[0]][0])
    assert evaluation.preprocessing is not None
    draw_worst(evaluation, figures.undo_normalization(x, evaluation.preprocessing))
    pictures, titles = drawn[0]
    assert torch.allclose(pictures, x / 2 + 0.5)
    assert len(titles) == len(wrong)
    first = wrong[0]
    taken_for, label = (
        evaluation.class_names[numbers[first]] for numbers in (evaluation.predicted, evaluation.targets)
    )
    assert (
        titles[0]
        == f"{evaluation.probability[first]:.0%} {taken_for}\nis {label}\n{evaluation.sample_name(first)[-5:]}"
    )


def test_images_of_an_earlier_evaluation_are_deleted(photo_run: Trained) -> None:
    """An evaluation without mistakes also deletes the worst.png of an earlier evaluation."""
    evaluation = load(photo_run.path).evaluate()
    write_evaluation(evaluation)
    folder = photo_run.path.parents[1] / "evaluation"
    assert (folder / "worst.png").is_file()
    (folder / "explained.png").write_bytes(b"from the same evaluation")
    right = torch.nn.functional.one_hot(evaluation.targets, 2).float()
    write_evaluation(replace(evaluation, outputs=right))
    assert sorted(file.name for file in folder.iterdir()) == [
        OUTPUT_MARKER,
        "confusion_matrix.csv",
        "confusion_matrix.png",
        "per_class.csv",
        "predictions.csv",
    ]


# --- predictions ------------------------------------------------------------------------------------------------------

ANSWERS = [
    Prediction("a, b.jpg", probabilities={"bees": 0.75, "ants": 0.25}),
    Prediction("é.jpg", error="no such file"),
]


def test_csv_and_json() -> None:
    write_predictions(ANSWERS, "p.csv")
    with Path("p.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "path": "a, b.jpg",
        "label": "bees",
        "probability": "0.750000",
        "label_2": "ants",
        "probability_2": "0.250000",
        "error": "",
    }
    assert (rows[1]["path"], rows[1]["label"], rows[1]["error"]) == ("é.jpg", "", "no such file")
    write_predictions([*ANSWERS, Prediction("r.csv", 3, outputs=(0.5, 1.0))], "p.json")
    write_predictions([*ANSWERS, Prediction("r.csv", 3, outputs=(0.5, 1.0))], "p.jsonl")
    ranked = [{"label": "bees", "probability": 0.75}, {"label": "ants", "probability": 0.25}]
    written = json.loads(Path("p.json").read_text())
    assert [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()] == written
    assert written == [
        {"path": "a, b.jpg", "label": "bees", "probability": 0.75, "top": ranked},
        {"path": "é.jpg", "error": "no such file"},
        {"path": "r.csv", "row": 3, "outputs": [0.5, 1.0]},
    ]


def test_table_has_columns_for_rows_and_outputs_if_there_are_any() -> None:
    head, body = prediction_table([Prediction("r.csv", 1, outputs=(0.5, 1e-7)), Prediction("r.csv", 2, error="bad")])
    assert head == ["path", "row", "output_1", "output_2", "error"]
    assert body == [["r.csv", "1", "0.5", "1e-07", ""], ["r.csv", "2", "", "", "bad"]]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_name_that_is_not_utf_8_is_written(suffix: str) -> None:
    write_predictions([Prediction("\udcff.jpg", error="no such file")], f"p.{suffix}")
    assert (b"\xff.jpg" if suffix == "csv" else b"\\udcff.jpg") in Path(f"p.{suffix}").read_bytes()


@pytest.mark.parametrize("output", ["p.txt", "nowhere/p.csv", "folder.csv"])
def test_unwritable_output_is_refused(output: str) -> None:
    Path("folder.csv").mkdir()
    with pytest.raises(UsageError, match=output):
        check_output_path(output)


def test_failed_write_keeps_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write_predictions(ANSWERS, "p.csv")
    old = Path("p.csv").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UsageError, match=r"--output p\.csv cannot be written \(No space left on device\)"):
        write_predictions(ANSWERS * 2, "p.csv")
    assert Path("p.csv").read_bytes() == old


def test_names_in_a_set_can_be_separated() -> None:
    head, [row] = prediction_table([Prediction("a.jpg", probabilities={"a;b": 1.0}, set=("a;b", "c\\"))])
    assert row[head.index("set")] == "a\\;b;c\\\\"
