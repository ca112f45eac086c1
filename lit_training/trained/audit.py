"""Verify a run: check its files, and compute again the figures that it states. Nothing is written to the run."""

import contextlib
import csv
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import starmap, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Trainer

from datamodules import ImageFolderDataModule
from datamodules.files import READ_TEXT_FILE, read_csv
from datamodules.photos.split import read_split_file
from datamodules.text import first_names, plural, printable
from lit_training.errors import UsageError
from lit_training.runs.folder import find_checkpoint, relative_path, run_folder
from lit_training.runs.hashes import find_changed_files, hash_file
from lit_training.runs.layout import EVALUATION, HASHES, METRICS, OUT_OF_FOLD, PREDICTIONS, SPLIT
from lit_training.runs.loaders import seed_random_numbers
from lit_training.runs.out_of_fold import read_out_of_fold
from lit_training.text import is_number
from lit_training.trained.calibrate import Calibration, ValidationOutputs, fit_calibration, fit_from_folds
from lit_training.trained.compare import read_run
from lit_training.trained.evaluate import QUIET
from lit_training.trained.load import SavedRun, load
from lit_training.trained.outputs import write_evaluation

TOLERANCE = 0.01  # of a loss or a probability, relative: another machine or number of threads rounds differently
NEAR_TIE = 0.005  # if two probabilities differ by less, either class may be the predicted one
ACCURACY_TOLERANCE = 0.001  # of val_acc, for near ties


def verify(run: str, accelerator: str = "auto", photos: str | None = None) -> int:
    """Print which files and figures differ. Return 0: none. 1: some. 2: none, but some could not be computed.

    If ``run`` is a checkpoint, evaluation/ is compared with it, otherwise with the best one. ``photos`` is the folder
    where the run's photos are now. Raise a UsageError or CheckpointError without sha256.json or a checkpoint.
    """
    path = Path(run).expanduser()
    folder = relative_path(path if (path / HASHES).is_file() else run_folder(find_checkpoint(run)))
    different, failed = find_changed_files(folder), []
    for check in (_check_photos, _check_metrics, _check_tables):
        try:
            different += check(load(run), accelerator, photos)
        except Exception as error:  # changed files can cause any error
            failed.append(f"not computed ({' '.join(str(error).split()) or type(error).__name__})")
    for line in [*different, *failed] or ["all files and figures agree"]:
        print(f"{printable(str(folder))}: {printable(line)}")
    return 1 if different else 2 * bool(failed)


def _check_photos(saved: SavedRun, accelerator: str, photos: str | None) -> Iterator[str]:
    """Compare the photos with their hashes in split.csv."""
    if (file := saved.folder / SPLIT).is_file():
        root = Path(photos or saved.checkpoint["datamodule_hyper_parameters"]["root"]).expanduser()
        hashes = {root / path: line.sha256 for path, line in read_split_file(str(file)).items()}
        changed = [str(path) for path in hashes if not path.is_file() or hashes[path] not in ("", hash_file(path))]
        if changed:
            yield f"{SPLIT}: {plural(len(changed), 'photo')} missing or changed ({first_names(changed, 3)})"


def _check_metrics(saved: SavedRun, accelerator: str, photos: str | None) -> Iterator[str]:
    """Compare the best epoch in metrics.csv with a validation of best.ckpt."""
    best, run = load(saved.folder), read_run(str(saved.folder))
    stated = {name: run.best[name] for name in ("val_loss", "val_acc") if name in run.best}
    limits = {name: str(run.settings.get(f"trainer.{name}")) for name in ("limit_val_batches", "overfit_batches")}
    special = [name for name, value in limits.items() if value not in ("None", "0.0", "1.0")]
    special += [key for key in best.checkpoint["callbacks"] if key.startswith("StochasticWeightAveraging")]
    if not stated:
        return
    if special:
        raise UsageError(f"with {special[0]}, {METRICS} does not state the figures of best.ckpt on all validation data")
    data: Any = best.data()
    if isinstance(data, ImageFolderDataModule):
        data.root, data.hparams["split_file"] = Path(photos or data.root).expanduser(), str(saved.folder / SPLIT)
    trainer, model = Trainer(accelerator=accelerator, devices=1, **QUIET), best.model()
    seed_random_numbers(best.checkpoint["lit"].get("seed") or 0, trainer.strategy.root_device)  # setup() may draw
    trainer.callbacks.append(outputs := ValidationOutputs())  # type: ignore[attr-defined]
    [computed] = trainer.validate(model, data, verbose=False)
    for name, value in stated.items():
        allowed = ACCURACY_TOLERANCE if name == "val_acc" else TOLERANCE * abs(computed[name]) + 1e-6
        if not abs(value - computed[name]) <= allowed:
            yield f"{METRICS}: {name} of the best epoch is {value:.6g}, computed {computed[name]:.6g}"
    if calibration := Calibration.of(best.checkpoint):
        pairs: Any = outputs.gather(trainer)
        test = None if calibration.score_source == calibration.source else pairs  # it gave the scores, not checked here
        seed = best.checkpoint["lit"]["seed"] or 0
        fitted = fit_calibration(pairs[0], pairs[1], "val", seed, test)
        yield from _check_temperature(best, fitted)


def _check_temperature(saved: SavedRun, computed: Calibration) -> Iterator[str]:
    stated, name = Calibration.of(saved.checkpoint), saved.path.name
    if stated is None:
        yield f"{name}: it has no temperature, computed {computed.temperature:.4g}"
        return
    if not abs(stated.temperature - computed.temperature) <= TOLERANCE * computed.temperature:
        yield f"{name}: the temperature is {stated.temperature:.4g}, computed {computed.temperature:.4g}"
    facts = [(one.source, one.count, one.score_source) for one in (stated, computed)]
    is_same = stated.scores.shape == computed.scores.shape and torch.allclose(stated.scores, computed.scores, atol=0.01)
    if facts[0] != facts[1] or not (is_same or stated.score_source == "test"):
        yield f"{name}: the samples or the scores of the calibration differ"


def _check_tables(saved: SavedRun, accelerator: str, photos: str | None) -> Iterator[str]:
    """Compare the tables in evaluation/ with those of a new evaluation, and out_of_fold.csv with itself."""
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        copy = Path(folder).resolve()
        if (file := saved.folder / OUT_OF_FOLD).is_file():
            table = read_out_of_fold(file)
            table.write(copy / OUT_OF_FOLD)
            computed = fit_from_folds(table, saved.checkpoint["lit"]["seed"] or 0)
            yield from _check_temperature(load(saved.folder), computed)
            rows = list(zip(table.paths, table.repeats, strict=True))
            if abs(table.probabilities.sum(1) - 1).max() > 1e-4 or len(set(rows)) < len(rows):
                yield f"{OUT_OF_FOLD}: probabilities do not add up to 1, or a sample is twice in a repeat"
            lines = read_split_file(str(saved.folder / SPLIT)) if (saved.folder / SPLIT).is_file() else {}
            cells = list(zip(table.paths, (table.class_names[label] for label in table.labels), strict=True))
            labels = dict(cells) | {path: line.label for path, line in lines.items()}
            if wrong := [path for path, name in cells if labels[path] != name]:
                yield f"{OUT_OF_FOLD}: {plural(len(wrong), 'row')} with another label ({first_names(wrong, 3)})"
        if (file := saved.folder / EVALUATION / PREDICTIONS).is_file():
            own = replace(saved.evaluate(None, accelerator, photos=photos), checkpoint=copy / saved.path.name)
            shares, number = own.outputs.softmax(1), {name: index for index, name in enumerate(own.class_names)}
            for row, stated in zip(range(len(shares)), read_csv(file), strict=False):
                label = number.get(stated["predicted"].removeprefix("'"))
                if label is not None and shares[row].max() - shares[row, label] <= NEAR_TIE:
                    own.predicted[row] = label
            write_evaluation(own)
        for file in sorted(copy.rglob("*.csv")):
            yield from _differing_rows(saved.folder, file.relative_to(copy), file)


def _differing_rows(run: Path, name: Path, computed: Path) -> Iterator[str]:
    with (run / name).open(**READ_TEXT_FILE) as one, computed.open(**READ_TEXT_FILE) as other:
        rows: list[Any] = list(zip_longest(csv.reader(one), csv.reader(other), fillvalue=[]))
    wrong = [row for row in rows if not all(starmap(_agree, zip_longest(rows[0][1], *row, fillvalue="")))]
    if wrong:
        stated, own = (",".join(cells) for cells in wrong[0])
        yield f"{name.as_posix()}: {plural(len(wrong), 'row')} such as {stated}, computed {own}"


def _agree(column: str, stated: str, computed: str) -> bool:
    are_shares = column == "probability" and is_number(stated) and is_number(computed)
    return stated == computed or (are_shares and math.isclose(float(stated), float(computed), rel_tol=TOLERANCE))
