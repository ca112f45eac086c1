"""Print and write the results of evaluate.py and predict.py."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional import mean_absolute_error, r2_score

from datamodules.files import atomic_write, write_csv
from datamodules.text import plural, printable
from lit_training import figures
from lit_training.errors import UsageError
from lit_training.runs.layout import EXPLAINED, PREDICTIONS
from lit_training.statistics import wilson_interval
from lit_training.text import print_table
from lit_training.trained.evaluate import PRINTED, Evaluation, Scores
from lit_training.trained.predict import Prediction

PREDICTION = ("path", "label", "predicted", "probability", "right")
"""Columns of predictions.csv. ``path`` is relative to the folder of photos, or a sample number; ``right`` is 0 or 1."""


def write_evaluation(evaluation: Evaluation) -> None:
    """Print the scores; write the confusion matrix, all predictions and the worst mistakes to the run's folder.

    Raises:
        UsageError: the folder cannot be written.
    """
    n, stage = len(evaluation.targets), "" if evaluation.split == "photos" else f"{evaluation.split}_"
    print(f"checkpoint  {os.path.relpath(evaluation.checkpoint)}")
    print(f"data        {printable(evaluation.data)}, {evaluation.split}: {plural(n, 'sample')}\n")
    if evaluation.targets.is_floating_point():
        outputs, targets = evaluation.outputs.double(), evaluation.targets.double()
        print(f"{stage + 'loss':<10}  {evaluation.loss:.4g}")
        print(f"R2          {float(r2_score(outputs, targets)) if n > 1 else math.nan:.4f}")
        print(f"MAE         {float(mean_absolute_error(outputs, targets)):.4g}")
        return
    confusion = evaluation.confusion()
    scores, right = Scores.of(confusion), int(confusion.trace())
    low, high = wilson_interval(right, n)
    print(f"{stage + 'acc':<10}  {right / n:.4f}  (95 % interval {low:.3f} to {high:.3f}, {right} of {n} right)")
    print(f"balanced    {scores.balanced_accuracy:.4f}  (mean recall of the classes)")
    print(f"{stage + 'loss':<10}  {evaluation.loss:.4g}\n")
    _print_classes(evaluation.class_names, scores)
    matrix = [[name, *map(str, row)] for name, row in zip(evaluation.class_names, confusion.tolist(), strict=True)]
    if len(matrix) <= PRINTED:
        print("\nrows: true class, columns: predicted class")
        print_table(["", *evaluation.class_names], matrix)
    predictions, worst = _predictions(evaluation), evaluation.worst()
    if worst:
        print("\nmost confident mistakes")
        print_table(list(PREDICTION[:4]), [predictions[index][:4] for index in worst])
    folder = evaluation.folder
    files = [PREDICTIONS, "confusion_matrix.csv", "confusion_matrix.png"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in ("worst.png", EXPLAINED):  # may be from another checkpoint
            (folder / earlier).unlink(missing_ok=True)
        write_csv(folder / files[0], [list(PREDICTION), *predictions])
        write_csv(folder / files[1], [["label", *evaluation.class_names], *matrix])
        figures.draw_confusion(confusion, evaluation.class_names).savefig(folder / files[2], dpi=100)
        if worst and evaluation.preprocessing is not None:
            pictures = figures.undo_normalization(worst_inputs(evaluation), evaluation.preprocessing)
            draw_worst(evaluation, pictures).savefig(folder / "worst.png", dpi=150)
            files.append("worst.png")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}): copy the run to a writable folder") from error
    print(f"\nwritten     {os.path.relpath(folder)}/: {', '.join(files)}")


def _print_classes(names: Sequence[str], scores: Scores) -> None:
    """Print a row per class; if there are many classes, only those with the lowest F1."""
    order = list(range(len(names)))
    if len(order) > PRINTED:
        order = scores.f1.nan_to_num(2.0).argsort(stable=True)[:PRINTED].tolist()  # undefined last
        print(f"the {PRINTED} of {len(names)} classes with the lowest F1")
    columns = (scores.precision, scores.recall, scores.f1)
    body = []
    for k in order:
        shares = ["-" if column[k].isnan() else f"{column[k]:.4f}" for column in columns]
        body.append([names[k], *shares, str(int(scores.support[k]))])
    print_table(["class", "precision", "recall", "F1", "support"], body)


def _predictions(evaluation: Evaluation) -> list[list[str]]:
    """Return a row of :data:`PREDICTION` for each sample, in the order of the data."""
    names = evaluation.class_names
    columns = evaluation.targets.tolist(), evaluation.predicted.tolist(), evaluation.probability.tolist()
    return [
        [evaluation.name(index), names[label], names[predicted], f"{probability:.6f}", str(int(label == predicted))]
        for index, (label, predicted, probability) in enumerate(zip(*columns, strict=True))
    ]


def worst_inputs(evaluation: Evaluation) -> Tensor:
    """Return the network's inputs for the most confident mistakes, (B, C, S, S) float32. There must be at least one."""
    return torch.stack([evaluation.dataset[index][0] for index in evaluation.worst()])


def draw_worst(evaluation: Evaluation, pictures: Tensor, columns: int = 4) -> Any:
    """Draw the most confident mistakes with true and predicted class; ``pictures`` is (B, 3, H, W) in [0, 1]."""
    worst, paths = evaluation.worst(), evaluation.paths
    return figures.draw_mistakes(
        pictures,
        evaluation.class_names,
        evaluation.targets[worst].tolist(),
        evaluation.predicted[worst].tolist(),
        evaluation.probability[worst].tolist(),
        None if paths is None else [paths[index] for index in worst],
        columns,
    )


def prediction_table(predictions: Sequence[Prediction]) -> tuple[list[str], list[list[str]]]:
    """Return column names and rows of the table that is printed and written as CSV."""
    rows = [_cells(prediction) for prediction in predictions]
    longest: dict[str, str] = max(rows, key=len, default={"path": "", "error": ""})  # has all columns
    return list(longest), [[cells.get(name, "") for name in longest] for cells in rows]


def _cells(prediction: Prediction) -> dict[str, str]:
    cells = {"path": prediction.path}
    if prediction.row is not None:
        cells["row"] = str(prediction.row)
    for place, (label, probability) in enumerate(prediction.probabilities.items(), start=1):
        number = "" if place == 1 else f"_{place}"
        cells |= {f"label{number}": label, f"probability{number}": f"{probability:.6f}"}
    cells |= {f"output_{place}": f"{value:.6g}" for place, value in enumerate(prediction.outputs, start=1)}
    return cells | {"error": prediction.error}


def check_output_path(path: str) -> None:
    """Raise a UsageError if ``path`` cannot be written, before anything is computed."""
    if Path(path).suffix.lower() not in (".csv", ".json"):
        raise UsageError(f"--output {path} ends in neither .csv nor .json: try --output predictions.csv")
    if not Path(path).absolute().parent.is_dir() or Path(path).is_dir():
        raise UsageError(f"--output {path} cannot be written: give a file in an existing folder")


def write_predictions(predictions: Sequence[Prediction], path: str) -> None:
    """Write predictions to a ``.csv`` or ``.json`` file.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        if path.lower().endswith(".csv"):
            head, body = prediction_table(predictions)
            write_csv(path, [head, *body])
        else:
            with atomic_write(path, "w") as file:
                json.dump([_document(prediction) for prediction in predictions], file, indent=1)
    except OSError as error:
        raise UsageError(f"--output {path} cannot be written ({error.strerror}): choose another file") from error


def _document(prediction: Prediction) -> dict[str, Any]:
    document: dict[str, Any] = {"path": prediction.path}
    if prediction.row is not None:
        document["row"] = prediction.row
    if prediction.error:
        return document | {"error": prediction.error}
    if prediction.outputs:
        return document | {"outputs": list(prediction.outputs)}
    top = [{"label": label, "probability": probability} for label, probability in prediction.probabilities.items()]
    return document | top[0] | {"top": top}
