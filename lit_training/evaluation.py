"""How good a trained network is on data that it has not learned from, and where it is wrong.

Letters in shape comments: N samples, K classes or outputs, C channels, S side in pixels.
"""

import csv
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional import mean_absolute_error, r2_score

from datamodules.image_folder import ImageFolderDataModule, PhotoFiles
from datamodules.listing import TEST, TRAIN, VAL, DataError, Listing, Paths, counted, list_photos, shown
from datamodules.loading import make_loader, workers_for_decoding
from datamodules.photos import Photos, examine_files
from lit_models import LitBase
from lit_training import checkpoints, figures, tables
from lit_training.checkpoints import CheckpointError
from lit_training.intervals import wilson
from lit_training.messages import UsageError, is_rank_zero
from lit_training.prediction import find_device, in_input_order
from lit_training.signals import listen_here_alone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORST = 12
"""Most confident mistakes that are shown."""
PRINTED = 12
"""Classes up to which tables are printed whole."""
PREDICTION = ("path", "label", "predicted", "probability", "right")
"""Columns of predictions.csv: path below the folder of photos, or the sample's number; ``right`` is 1 or 0."""


@dataclass(frozen=True)
class Evaluation:
    """What a network answered to N samples: ``outputs`` (N, K) float32 (logits for classifiers) and ``targets``,
    (N,) int64 or (N, K) float32; ``loss`` as validation logs it; ``paths`` of the samples, where they are files."""

    checkpoint: Path
    data: str
    split: str
    loss: float
    outputs: Tensor
    targets: Tensor
    dataset: Dataset
    class_names: tuple[str, ...]
    preprocessing: dict[str, Any] | None
    paths: Paths | None

    @property
    def predicted(self) -> Tensor:
        """(N,) int64."""
        return self.outputs.argmax(1)

    @property
    def probability(self) -> Tensor:
        """(N,) float32, of the predicted class."""
        return self.outputs.softmax(1).amax(1)

    @property
    def folder(self) -> Path:
        """Where its files go: evaluation/ in the run's folder, and below that for photos of one's own."""
        folder = run_folder(self.checkpoint) / "evaluation"
        return folder / Path(self.data).resolve().name if self.split == "photos" else folder

    def confusion(self) -> Tensor:
        """(K, K) int64: how many samples of the class of the row were taken for that of the column."""
        classes = self.outputs.shape[1]
        return torch.bincount(self.targets * classes + self.predicted, minlength=classes**2).view(classes, classes)

    def worst(self) -> list[int]:
        """The most confident mistakes, the most confident first."""
        wrong = (self.predicted != self.targets).nonzero().flatten()
        order = self.probability[wrong].argsort(descending=True, stable=True)
        return wrong[order[:WORST]].tolist()

    def name(self, index: int) -> str:
        return str(index) if self.paths is None else self.paths[index]


@dataclass(frozen=True)
class Scores:
    """Per class, NaN where undefined: (K,) float64; ``support`` (K,) int64 is the number of samples."""

    precision: Tensor
    recall: Tensor
    f1: Tensor
    support: Tensor

    @classmethod
    def of(cls, confusion: Tensor) -> "Scores":
        hits, support, taken = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
        return cls(hits / taken, hits / support, 2 * hits / (support + taken), support)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have samples."""
        return float(self.recall.nanmean())


# --- the evaluation -----------------------------------------------------------------------------------------------


def evaluate(
    checkpoint_file: Path, data_root: str | None = None, accelerator: str = "auto", devices: str = "1"
) -> tuple[Evaluation, bool]:
    """Run the network of a checkpoint over the split that it is to be judged by: test where its data has one, else val.

    Args:
        checkpoint_file: as from :func:`lit_training.checkpoints.find`.
        data_root: a folder of photos to take instead of the data that the checkpoint names.
        accelerator: as the Trainer's.
        devices: as the Trainer's; the result does not depend on it.

    Returns:
        The evaluation, and whether this process is the one that tells of it.

    Raises:
        CheckpointError, DataError, UsageError: naming what does not fit.
    """
    find_device(accelerator)
    checkpoint = checkpoints.read(checkpoint_file)
    model = checkpoints.load_model(checkpoint)
    data, split = _data(checkpoint, checkpoint_file, model, data_root)
    outputs = _Outputs()
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        callbacks=[outputs],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    listen_here_alone(trainer)
    trainer.test(model, data, verbose=False)
    loader: Any = trainer.test_dataloaders
    dataset = loader.dataset
    answered, targets = (in_input_order(trainer, rows, loader).cpu() for rows in outputs.rows())
    photos = dataset if isinstance(dataset, PhotoFiles) else None
    evaluation = Evaluation(
        checkpoint_file,
        str(photos.root) if photos else type(data).__name__,
        split,
        float(trainer.callback_metrics["test_loss"]),
        answered,
        targets,
        dataset,
        tuple(model.class_names or map(str, range(answered.shape[1]))),
        model.preprocessing,
        photos.paths if photos else None,
    )
    return evaluation, trainer.is_global_zero


class _Outputs(Callback):
    """Keeps what the network answers to each batch of a test, and shows how far it is."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.disable |= not trainer.is_global_zero
        self.bar.start()
        self.task = self.bar.add_task("evaluating", total=trainer.num_test_batches[0])

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.kept.append((outputs["output"], outputs["target"]))
        self.bar.advance(self.task)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.bar.stop()  # after an exception, too

    def rows(self) -> tuple[Tensor, Tensor]:
        outputs, targets = zip(*self.kept, strict=True)
        return torch.cat(outputs), torch.cat(targets)


# --- the data -----------------------------------------------------------------------------------------------------


class _Once(LightningDataModule):
    """Photos to be gone through once, labelled by the numbers that the network has for their classes."""

    def __init__(self, photos: PhotoFiles) -> None:
        super().__init__()
        self.photos = photos

    def test_dataloader(self) -> DataLoader:
        workers = workers_for_decoding(self.trainer)
        return make_loader(self.photos, self.trainer, batch_size=32, seed=0, train=False, num_workers=workers)


def _data(
    checkpoint: dict[str, Any], checkpoint_file: Path, model: LitBase, data_root: str | None
) -> tuple[LightningDataModule, str]:
    """What to evaluate on, and the name of its split."""
    if data_root is not None:
        if model.task != "classification" or model.sample_ndim != 3:
            raise UsageError(f"--data {data_root}: {type(model).__name__} was not trained on photos; leave --data out")
        return _photos(model, _whole(list_photos(data_root)), "photos")
    about = checkpoint["lit"]
    if about["data_class"] != ImageFolderDataModule.__name__:
        try:
            return checkpoints.load_data(checkpoint), "test"
        except CheckpointError as error:
            raise CheckpointError(f"{error}: name a folder of photos with --data") from error
    arguments = dict(checkpoint["datamodule_hyper_parameters"])
    split_file = run_folder(checkpoint_file) / "split.csv"
    if split_file.is_file():  # pictures may have been added since
        arguments["split_file"] = str(split_file)
    data = checkpoints.load_data({**checkpoint, "datamodule_hyper_parameters": arguments})
    data.setup("test")
    return _photos(model, data.photos, "test" if data.has_test else "val")


def _whole(listing: Listing) -> Listing:
    """The pictures of a folder to judge by, without what cannot be opened, which is named."""
    for split in (TEST, VAL, TRAIN):  # TRAIN is what a folder without a split is full of
        if (listing.splits == split).any():
            break
    listing = listing.rows((listing.splits == split).nonzero()[0])
    _, bad = examine_files(listing)
    if is_rank_zero():
        for note in listing.notes:
            print(f"note: {note}", file=sys.stderr)
        for row, (kind, reason) in sorted(bad.items()):
            print(f"left out: {shown(listing.paths[row])}: {kind} ({shown(reason)})", file=sys.stderr)
    kept = torch.ones(len(listing.paths), dtype=torch.bool)
    kept[list(bad)] = False
    return listing.rows(kept.nonzero().flatten().numpy())


def _photos(model: LitBase, found: Photos | Listing, split: str) -> tuple[_Once, str]:
    """The pictures of ``split`` ("photos": all), their classes mapped to the network's by name."""
    rows = {"test": found.splits == TEST, "val": found.splits == VAL}.get(split, found.splits >= 0).nonzero()[0]
    here = shown(str(found.root))
    if model.class_names is None or model.preprocessing is None:
        raise CheckpointError("the checkpoint does not say what its classes are called: train it on a data module")
    if not len(rows):
        raise DataError(f"{here} has no pictures to evaluate on: name another folder with --data")
    numbers = {name: number for number, name in enumerate(model.class_names)}
    there = [found.class_names[label] for label in sorted(set(found.labels[rows].tolist()))]
    if unknown := [shown(name) for name in there if name not in numbers]:
        known = ", ".join(map(shown, model.class_names[:PRINTED])) + ", ..." * (len(numbers) > PRINTED)
        raise DataError(f"{here} has a class that the network does not know, {unknown[0]}: rename it to one of {known}")
    labels = torch.tensor([numbers.get(name, -1) for name in found.class_names])[found.labels[rows]]
    photos = PhotoFiles(found.root, found.paths.take(rows), labels, model.preprocessing, False, 0)
    return _Once(photos), split


def run_folder(checkpoint_file: Path) -> Path:
    """The folder of the run that a checkpoint belongs to."""
    folder = checkpoint_file.absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


# --- the report ---------------------------------------------------------------------------------------------------


def report(evaluation: Evaluation) -> None:
    """Print what was measured; write the confusion matrix, every prediction and the worst mistakes into the run.

    Raises:
        UsageError: the folder cannot be written.
    """
    n, stage = len(evaluation.targets), "" if evaluation.split == "photos" else f"{evaluation.split}_"
    print(f"checkpoint  {os.path.relpath(evaluation.checkpoint)}")
    print(f"data        {shown(evaluation.data)}, {evaluation.split}: {counted(n, 'sample')}\n")
    if evaluation.targets.is_floating_point():
        outputs, targets = evaluation.outputs.double(), evaluation.targets.double()
        print(f"{stage + 'loss':<10}  {evaluation.loss:.4g}")
        print(f"R2          {float(r2_score(outputs, targets)) if n > 1 else math.nan:.4f}")
        print(f"MAE         {float(mean_absolute_error(outputs, targets)):.4g}")
        return
    confusion = evaluation.confusion()
    scores, right = Scores.of(confusion), int(confusion.trace())
    low, high = wilson(right, n)
    print(f"{stage + 'acc':<10}  {right / n:.4f}  (95 % interval {low:.3f} to {high:.3f}, {right} of {n} right)")
    print(f"balanced    {scores.balanced_accuracy:.4f}  (mean recall of the classes)")
    print(f"{stage + 'loss':<10}  {evaluation.loss:.4g}\n")
    _print_classes(evaluation.class_names, scores)
    matrix = [[name, *map(str, row)] for name, row in zip(evaluation.class_names, confusion.tolist(), strict=True)]
    if len(matrix) <= PRINTED:
        print("\nrows: the true class, columns: what it was taken for")
        tables.show(["", *evaluation.class_names], matrix)
    predictions, worst = _predictions(evaluation), evaluation.worst()
    if worst:
        print("\nmost confident mistakes")
        tables.show(list(PREDICTION[:4]), [predictions[index][:4] for index in worst])
    folder = evaluation.folder
    files = ["predictions.csv", "confusion_matrix.csv", "confusion_matrix.png"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in ("worst.png", "explained.png"):  # of another checkpoint, perhaps
            (folder / earlier).unlink(missing_ok=True)
        _write_csv(folder / files[0], [list(PREDICTION), *predictions])
        _write_csv(folder / files[1], [["label", *evaluation.class_names], *matrix])
        figures.confusion(confusion, evaluation.class_names).savefig(folder / files[2], dpi=100)
        if worst and evaluation.preprocessing is not None:
            pictures = figures.pixels(worst_inputs(evaluation), evaluation.preprocessing)
            draw_worst(evaluation, pictures).savefig(folder / "worst.png", dpi=150)
            files.append("worst.png")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}): copy the run to where it can") from error
    print(f"\nwritten     {os.path.relpath(folder)}/: {', '.join(files)}")


def _print_classes(names: Sequence[str], scores: Scores) -> None:
    """A line a class; of many classes those with the lowest F1."""
    order = list(range(len(names)))
    if len(order) > PRINTED:
        order = scores.f1.nan_to_num(2.0).argsort(stable=True)[:PRINTED].tolist()  # undefined: last
        print(f"the {PRINTED} of {len(names)} classes with the lowest F1")
    columns = (scores.precision, scores.recall, scores.f1)
    body = []
    for k in order:
        shares = ["-" if column[k].isnan() else f"{column[k]:.4f}" for column in columns]
        body.append([names[k], *shares, str(int(scores.support[k]))])
    tables.show(["class", "precision", "recall", "F1", "support"], body)


def _predictions(evaluation: Evaluation) -> list[list[str]]:
    """A row of :data:`PREDICTION` for each sample, in the order of the data."""
    names = evaluation.class_names
    columns = evaluation.targets.tolist(), evaluation.predicted.tolist(), evaluation.probability.tolist()
    return [
        [evaluation.name(index), names[label], names[predicted], f"{probability:.6f}", str(int(label == predicted))]
        for index, (label, predicted, probability) in enumerate(zip(*columns, strict=True))
    ]


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)


def worst_inputs(evaluation: Evaluation) -> Tensor:
    """What the network saw of its most confident mistakes: (B, C, S, S) float32, normalised; there have to be some."""
    return torch.stack([evaluation.dataset[index][0] for index in evaluation.worst()])


def draw_worst(evaluation: Evaluation, pictures: Tensor, columns: int = 4) -> "Figure":
    """``pictures`` (B, 3, H, W) in [0, 1] of the most confident mistakes, each with what it is and was taken for."""
    worst, paths = evaluation.worst(), evaluation.paths
    return figures.mistakes(
        pictures,
        evaluation.class_names,
        evaluation.targets[worst].tolist(),
        evaluation.predicted[worst].tolist(),
        evaluation.probability[worst].tolist(),
        None if paths is None else [paths[index] for index in worst],
        columns,
    )
