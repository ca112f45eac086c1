"""Print and write the results of evaluate.py and predict.py."""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional import mean_absolute_error, r2_score

from datamodules.files import OUTPUT_MARKER, atomic_write, write_spreadsheet
from datamodules.text import plural, printable
from lit_training import figures
from lit_training.errors import UsageError
from lit_training.runs.folder import run_folder
from lit_training.runs.layout import EXPLAINED, OUT_OF_FOLD, PER_CLASS, PREDICTIONS, RELIABILITY
from lit_training.runs.out_of_fold import read_out_of_fold
from lit_training.statistics import bootstrap_interval, calibration_error, chance_error, samples_for_coverage
from lit_training.text import print_table
from lit_training.trained.calibrate import Calibration
from lit_training.trained.evaluate import MAX_PRINTED_CLASSES, Evaluation
from lit_training.trained.predict import Prediction

PREDICTION_COLUMNS = ("path", "label", "predicted", "probability", "right")
"""Columns of predictions.csv. ``path`` is an index if the samples are not files. ``label`` is the true class."""
COVERAGE = 0.9  # of the sets
MAX_CHANCE_ERROR = 0.05  # if a calibrated network often shows a larger calibration error, the samples are too few


def write_evaluation(evaluation: Evaluation) -> None:
    """Print the scores. For a classifier, write predictions, confusion matrix and mistakes to ``evaluation.folder``."""
    n = len(evaluation.targets)
    print(f"checkpoint  {os.path.relpath(evaluation.checkpoint)}")
    print(f"data        {printable(evaluation.data)}, {evaluation.split}: {plural(n, 'sample')}\n")
    for name, text in scores_of(evaluation).items():
        print(f"{name:<10}  {text}")
    if evaluation.targets.is_floating_point():
        return
    print()
    confusion, scores = evaluation.confusion(), evaluation.class_scores()
    if evaluation.calibration is not None:
        _print_calibration(evaluation, evaluation.calibration)
    by_f1 = scores[:, 2].nan_to_num(2.0).argsort(stable=True).tolist()  # classes with undefined F1 are last
    matrix = [[name, *map(str, row)] for name, row in zip(evaluation.class_names, confusion.tolist(), strict=True)]
    rows, columns = class_rows(evaluation, "-", digits=4), ["class", "precision", "recall", "F1", "support"]
    if len(rows) > MAX_PRINTED_CLASSES:
        print(f"the {MAX_PRINTED_CLASSES} of {len(rows)} classes with the lowest F1")
        print_table(columns, [rows[k] for k in by_f1[:MAX_PRINTED_CLASSES]])
    else:
        print_table(columns, rows)
        print("\nrows: true class, columns: predicted class")
        print_table(["", *evaluation.class_names], matrix)
    worst = evaluation.worst_indices()
    if worst:
        print("\nmost confident mistakes")
        print_table(list(PREDICTION_COLUMNS[:4]), [row[:4] for row in _prediction_rows(evaluation, worst)])
    folder, files = evaluation.folder, [PREDICTIONS, "confusion_matrix.csv", "confusion_matrix.png", PER_CLASS]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OUTPUT_MARKER).touch()
        for old_file in ("worst.png", EXPLAINED, RELIABILITY):  # of an earlier evaluation, perhaps of other weights
            (folder / old_file).unlink(missing_ok=True)
        predictions = _prediction_rows(evaluation, range(n))  # not a list: it could need more memory than the data
        write_spreadsheet(folder / files[0], chain([PREDICTION_COLUMNS], predictions))
        write_spreadsheet(folder / files[1], [["label", *evaluation.class_names], *matrix], mark="")
        if evaluation.calibration is not None:
            draw_reliability(evaluation).savefig(folder / RELIABILITY)
            files.append(RELIABILITY)
        rows = class_rows(evaluation, "", digits=6)
        write_spreadsheet(folder / files[3], [["class", "precision", "recall", "f1", "support"], *rows])
        figures.draw_confusion(confusion, evaluation.class_names).savefig(folder / files[2])
        if worst and evaluation.preprocessing is not None:
            pictures = figures.undo_normalization(worst_inputs(evaluation), evaluation.preprocessing)
            draw_worst(evaluation, pictures).savefig(folder / "worst.png")
            files.append("worst.png")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}): copy the run to a writable folder") from error
    print(f"\nwritten     {os.path.relpath(folder)}/: {', '.join(files)}")


def scores_of(evaluation: Evaluation) -> dict[str, str]:
    """Return name -> text of accuracies, mean recall and loss, or of loss, R2 and mean error of a regression."""
    n, prefix = len(evaluation.targets), "" if evaluation.split == "photos" else f"{evaluation.split}_"
    loss = {f"{prefix}loss": f"{evaluation.loss:.4g}{'  (not calibrated)' * bool(evaluation.calibration)}"}
    if not evaluation.targets.is_floating_point():
        (low, high), right = evaluation.interval, int(evaluation.correct.sum())
        text = f"{evaluation.accuracy:.4f}  (95 % interval {low:.3f} to {high:.3f}, {right} of {n} right)"
        scores = {} if evaluation.split == "fold" else {f"{prefix}acc": text}
        if prefix and (file := run_folder(evaluation.checkpoint) / OUT_OF_FOLD).is_file():
            scores["fold_acc"] = read_out_of_fold(file).summary()
        recall = float(evaluation.class_scores()[:, 1].nanmean())
        return scores | {"balanced": f"{recall:.4f}  (mean recall of the classes)"} | loss
    outputs, targets = evaluation.outputs.double(), evaluation.targets.double()
    r2 = float(r2_score(outputs, targets)) if n > 1 else math.nan
    return loss | {"R2": f"{r2:.4f}", "MAE": f"{float(mean_absolute_error(outputs, targets)):.4g}"}


def draw_reliability(evaluation: Evaluation) -> Any:
    """Draw the reliability diagram of a calibrated network."""
    confidences = {"before": evaluation.outputs.softmax(1).amax(1), "calibrated": evaluation.probability}
    return figures.draw_reliability(confidences, evaluation.correct)


def _print_calibration(evaluation: Evaluation, calibration: Calibration) -> None:
    """Print log loss and calibration error before and after, with 95 % bootstrap intervals, and the sets' coverage."""
    print(calibration.report())
    before, after = evaluation.outputs, evaluation.outputs / calibration.temperature
    targets, right, n = evaluation.targets, evaluation.correct.numpy(), len(evaluation.targets)
    losses = [F.cross_entropy(logits, targets, reduction="none").double().numpy() for logits in (before, after)]
    low, high = bootstrap_interval(lambda rows: (losses[1] - losses[0])[rows].mean(), n)
    change = f"change: 95 % interval {low:+.4f} to {high:+.4f}"
    print(f"log loss    {losses[0].mean():.4f} before, {losses[1].mean():.4f} after  ({change})")
    sure = [logits.softmax(1).amax(1).numpy() for logits in (before, after)]
    errors, chance = [calibration_error(one, right) for one in sure], chance_error(sure[1])
    low, high = bootstrap_interval(lambda rows: calibration_error(sure[1][rows], right[rows]), n)
    verdict = "" if errors[1] <= chance else ": it is not calibrated"
    verdict = ": too few to tell" if chance > MAX_CHANCE_ERROR else verdict
    details = f"95 % interval {low:.4f} to {high:.4f}; calibrated networks have up to {chance:.4f}{verdict}"
    print(f"ECE         {errors[0]:.4f} before, {errors[1]:.4f} after  ({details})")
    if len(calibration.scores) >= samples_for_coverage(COVERAGE):
        is_in_set = 1 - after.softmax(1) <= calibration.threshold(COVERAGE)
        holds, size = is_in_set.gather(1, targets[:, None]).flatten().double(), is_in_set.sum(1).double().mean()
        names = evaluation.class_names
        by_class = [(float(holds[targets == k].mean()), names[k]) for k in targets.unique().tolist()]
        lowest = ", ".join(f"{name} {share:.3f}" for share, name in sorted(by_class)[:MAX_PRINTED_CLASSES])
        print(printable(f"coverage    {holds.mean():.4f} of the {COVERAGE:.0%} sets, mean size {size:.2f}: {lowest}"))
    warning = "so on the same samples: it looks better here than elsewhere"
    for what, source in (("temperature", calibration.source), ("coverage", calibration.score_source)):
        if source.endswith(evaluation.split):
            print(f"note: the {what} was fitted on {source}, {warning}")
    print()


def class_rows(evaluation: Evaluation, undefined: str, digits: int) -> list[list[str]]:
    """Return a row with name, precision, recall, F1 and support for each class."""
    rows = zip(evaluation.class_names, evaluation.class_scores().tolist(), strict=True)
    return [
        [name, *(undefined if math.isnan(share) else f"{share:.{digits}f}" for share in shares), f"{support:.0f}"]
        for name, (*shares, support) in rows
    ]


def _prediction_rows(evaluation: Evaluation, indices: Iterable[int]) -> Iterator[list[str]]:
    """Yield the table row of each index. The columns are :data:`PREDICTION_COLUMNS`."""
    names, labels = evaluation.class_names, evaluation.targets
    predictions, probabilities = evaluation.predicted, evaluation.probability
    for index in indices:
        label, predicted = int(labels[index]), int(predictions[index])
        cells = names[label], names[predicted], f"{float(probabilities[index]):.6f}", str(int(label == predicted))
        yield [evaluation.sample_name(index), *cells]


def worst_inputs(evaluation: Evaluation) -> Tensor:
    """Return the network's inputs for the most confident mistakes, (B, C, S, S) float32. There must be a mistake."""
    return torch.stack([evaluation.dataset[index][0] for index in evaluation.worst_indices()])


def draw_worst(evaluation: Evaluation, pictures: Tensor, heat_maps: bool = False) -> Any:
    """Draw the pictures of the most confident mistakes, (B, 3, H, W) float32 in [0, 1], or these and ``heat_maps``."""
    worst, paths = evaluation.worst_indices(), evaluation.paths
    of_all_samples = evaluation.targets, evaluation.predicted, evaluation.probability
    answers = list(zip(*(values[worst].tolist() for values in of_all_samples), strict=True))
    files = None if paths is None else [paths[index] for index in worst]
    return figures.draw_mistakes(pictures, evaluation.class_names, answers, files, heat_maps)


def prediction_table(predictions: Sequence[Prediction]) -> tuple[list[str], list[list[str]]]:
    """Return the column names and the rows of a table of predictions, for the terminal and for CSV files."""
    rows = [_table_row(prediction) for prediction in predictions]
    longest: dict[str, str] = max(rows, key=len, default={"path": "", "error": ""})  # the longest row has all columns
    return list(longest), [[row.get(name, "") for name in longest] for row in rows]


def _table_row(prediction: Prediction) -> dict[str, str]:
    cells = {"path": prediction.path}
    if prediction.row is not None:
        cells["row"] = str(prediction.row)
    for rank, (label, probability) in enumerate(prediction.probabilities.items(), start=1):
        suffix = "" if rank == 1 else f"_{rank}"
        cells |= {f"label{suffix}": label, f"probability{suffix}": f"{probability:.6f}"}
    cells |= {f"output_{number}": f"{value:.6g}" for number, value in enumerate(prediction.outputs, start=1)}
    if prediction.set is not None:  # a backslash marks a ; that belongs to a name
        cells["set"] = ";".join(re.sub(r"([;\\])", r"\\\1", name) for name in prediction.set)
    if prediction.set is not None or prediction.note:
        cells["note"] = prediction.note
    return cells | {"error": prediction.error}


def check_output_path(path: str) -> None:
    """Raise a UsageError if ``path`` is not a .csv, .json or .jsonl file in an existing folder."""
    if Path(path).suffix.lower() not in (".csv", ".json", ".jsonl"):
        raise UsageError(f"--output {path} must end in .csv, .json or .jsonl: try --output predictions.csv")
    if not Path(path).absolute().parent.is_dir() or Path(path).is_dir():
        raise UsageError(f"--output {path} cannot be written: give a file in an existing folder")


def write_predictions(predictions: Sequence[Prediction], path: str) -> None:
    """Write predictions to a .csv, .json or .jsonl file. Raise a UsageError if the file cannot be written."""
    try:
        if path.lower().endswith(".csv"):
            head, body = prediction_table(predictions)
            write_spreadsheet(path, [head, *body], numbers="output_")
        else:
            objects = [_json_object(prediction) for prediction in predictions]
            lines = "".join(json.dumps(entry) + "\n" for entry in objects)
            with atomic_write(path, "w") as file:
                file.write(lines if path.lower().endswith(".jsonl") else json.dumps(objects, indent=1))
    except OSError as error:
        raise UsageError(f"--output {path} cannot be written ({error.strerror}): choose another file") from error


def _json_object(prediction: Prediction) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": prediction.path}
    if prediction.row is not None:
        entry["row"] = prediction.row
    if prediction.error:
        return entry | {"error": prediction.error}
    if prediction.outputs:
        return entry | {"outputs": list(prediction.outputs)}
    top = [{"label": label, "probability": probability} for label, probability in prediction.probabilities.items()]
    if prediction.set is not None:
        entry["set"] = list(prediction.set)
    return entry | top[0] | {"top": top} | ({"note": prediction.note} if prediction.note else {})
