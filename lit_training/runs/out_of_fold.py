"""Read and write ``out_of_fold.csv``: for each labelled sample, predictions of networks that were not trained on it."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datamodules.files import READ_TEXT_FILE, write_spreadsheet
from datamodules.photos.find import Listing
from datamodules.photos.split import read_split_file
from datamodules.text import plural
from lit_training.errors import UsageError
from lit_training.runs.hashes import hash_file
from lit_training.statistics import folds_interval

COLUMNS = ("path", "repeat", "fold", "label", "prediction")
"""The first columns. Then follows one column for each class with its probability; its name is that of the class."""


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions: n rows, one for each sample and repeat. K is the number of classes."""

    class_names: tuple[str, ...]  # K different names
    paths: np.ndarray  # (n,) str, relative to the photo folder; the index of the sample if it is not a file
    repeats: np.ndarray  # (n,) int64, from 1
    folds: np.ndarray  # (n,) int64, from 1
    labels: np.ndarray  # (n,) int64, indices of class_names
    probabilities: np.ndarray  # (n, K) float64, not calibrated

    @property
    def predicted(self) -> np.ndarray:
        """The most likely class of each row, (n,) int64."""
        return self.probabilities.argmax(1)

    @property
    def correct(self) -> np.ndarray:
        """True where the predicted class is the label, (n,) bool."""
        return self.predicted == self.labels

    @property
    def accuracies(self) -> np.ndarray:
        """The accuracy of each fold of each repeat, (repeats * folds,) float64."""
        _, number = np.unique(self.repeats * len(self.folds) + self.folds, return_inverse=True)
        return np.bincount(number, self.correct) / np.bincount(number)

    def average_repeats(self) -> OutOfFold:
        """Return one row for each path, with the mean of its probabilities in all repeats."""
        _, first, number = np.unique(self.paths, return_index=True, return_inverse=True)
        sums = np.zeros((len(first), len(self.class_names)))
        np.add.at(sums, number, self.probabilities)
        return replace(self.take(first), probabilities=sums / np.bincount(number)[:, None])

    def take(self, rows: np.ndarray) -> OutOfFold:
        """Return some of the rows (ints, or bools for all rows)."""
        names = ("paths", "repeats", "folds", "labels", "probabilities")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def rows_in(self, listing: Listing, split_file: Path) -> np.ndarray:
        """Return the row of each path in a listing, (n,) int64, or -1. A moved photo is found by its SHA-256."""
        rows = {path: row for row, path in enumerate(listing.paths)}
        lines = read_split_file(str(split_file)) if split_file.is_file() else {}
        hashes = {path: lines[path].sha256 for path in {*self.paths} - {*rows} if path in lines}
        moved = {sha256: path for path, sha256 in hashes.items() if sha256}
        for place in {*rows} - {*self.paths} if moved else ():
            if old := moved.get(hash_file(listing.root / place)):
                rows[old] = rows[place]
        return np.array([rows.get(path, -1) for path in self.paths])

    def summary(self) -> str:
        """Return the accuracy and its interval as text."""
        return f"{self.accuracies.mean():.4f}  (95 % interval {self.interval()})"

    def interval(self) -> str:
        """Return the 95 % interval of the accuracy as text, with the numbers of samples, folds and repeats."""
        folds, repeats, samples = self.folds.max(), self.repeats.max(), int((self.repeats == 1).sum())
        low, high = folds_interval(self.accuracies.tolist(), int(folds), samples)
        how = f"{folds} folds x {plural(int(repeats), 'repeat')}"
        return f"{low:.3f} to {high:.3f}, n = {samples}, {how}"

    def write(self, path: Path) -> None:
        """Write the file atomically. Probabilities have 9 significant digits."""
        names, head = self.class_names, [*COLUMNS, *self.class_names]
        columns = zip(
            self.paths, self.repeats, self.folds, self.labels, self.predicted, self.probabilities, strict=True
        )
        rows = (
            [name, str(repeat), str(fold), names[label], names[guess], *(f"{share:.9g}" for share in shares)]
            for name, repeat, fold, label, guess, shares in columns
        )
        write_spreadsheet(path, [head, *rows])


def read_out_of_fold(path: Path) -> OutOfFold:
    """Read the file. Raise a UsageError if it cannot be read or was changed by hand."""
    try:
        with path.open(**READ_TEXT_FILE) as file:
            head, *rows = csv.reader(file)
        first = len(COLUMNS)
        names = tuple(name.removeprefix("'") for name in head[first:])
        if tuple(head[:first]) != COLUMNS or len(set(names)) < len(names) or not rows:
            raise ValueError("its columns or rows are missing")
        number = {name: index for index, name in enumerate(names)}
        paths, repeats, folds, labels, _ = zip(*(row[:first] for row in rows), strict=True)
        return OutOfFold(
            names,
            np.array([name.removeprefix("'") for name in paths], object),
            np.array(repeats, np.int64),
            np.array(folds, np.int64),
            np.array([number[label.removeprefix("'")] for label in labels], np.int64),
            np.array([row[first:] for row in rows], np.float64).reshape(len(rows), len(names)),
        )
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read ({error}): train again with --folds 5") from error
