"""Evaluate a trained network on data that it was not trained on.

Letters in shape comments: N samples, K classes or outputs, C channels, S side in pixels.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_confusion_matrix

from datamodules import Preprocessing
from datamodules.errors import DataError
from datamodules.image_folder import ImageFolderDataModule
from datamodules.loading.loader import count_decoding_workers, make_loader
from datamodules.loading.order import gather_in_input_order
from datamodules.photos.dataset import PhotoFiles
from datamodules.photos.find import SPLITS, TEST, TRAIN, VAL, Listing, find_photos
from datamodules.photos.paths import Paths
from datamodules.photos.scan import scan_photos
from datamodules.text import first_names, printable
from lit_models import LitBase
from lit_training.errors import CheckpointError, UsageError, is_rank_zero
from lit_training.runs import checkpoints
from lit_training.runs.devices import find_device
from lit_training.runs.folder import run_folder
from lit_training.runs.layout import EVALUATION, SPLIT
from lit_training.runs.processes import bind_to_loopback
from lit_training.text import progress_bar
from lit_training.trained.predict import distinct_class_names

WORST = 12
"""Number of mistakes to show."""
PRINTED = 12
"""Tables with more classes are shortened on the terminal."""


@dataclass(frozen=True)
class Evaluation:
    """The outputs of a network for N samples."""

    checkpoint: Path
    data: str
    """The folder of photos, or the name of the data module."""
    split: str
    """``test``, ``val``, or ``photos`` for a folder that the user named."""
    loss: float
    """As validation logs it."""
    outputs: Tensor
    """(N, K) float32; logits for a classifier."""
    targets: Tensor
    """(N,) int64 for a classifier, (N, K) float32 for a regression."""
    dataset: Dataset
    class_names: tuple[str, ...]
    preprocessing: Preprocessing | None
    paths: Paths | None
    """Paths of the samples, if they are files."""

    @property
    def predicted(self) -> Tensor:
        """(N,) int64, the most likely class of each sample."""
        return self.outputs.argmax(1)

    @property
    def probability(self) -> Tensor:
        """(N,) float32, probability of the predicted class."""
        return self.outputs.softmax(1).amax(1)

    @property
    def folder(self) -> Path:
        """Output folder: ``evaluation/`` in the run, with a subfolder for each folder of photos that the user named."""
        folder = run_folder(self.checkpoint) / EVALUATION
        return folder / Path(self.data).resolve().name if self.split == "photos" else folder

    def confusion(self) -> Tensor:
        """Return the confusion matrix, (K, K) int64: rows are true classes, columns are predicted classes."""
        return multiclass_confusion_matrix(self.predicted, self.targets, self.outputs.shape[1])

    def worst(self) -> list[int]:
        """Return the indices of the :data:`WORST` most confident mistakes, most confident first."""
        wrong = (self.predicted != self.targets).nonzero().flatten()
        order = self.probability[wrong].argsort(descending=True, stable=True)
        return wrong[order[:WORST]].tolist()

    def name(self, index: int) -> str:
        return str(index) if self.paths is None else self.paths[index]


@dataclass(frozen=True)
class Scores:
    """Scores per class, (K,) float64, NaN where undefined. ``support``, (K,) int64, is the number of samples."""

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


def evaluate(
    model: LitBase,
    checkpoint: dict[str, Any],
    path: Path,
    data_root: str | None = None,
    accelerator: str = "auto",
    devices: str = "1",
) -> Evaluation:
    """Evaluate the model of ``checkpoint``; see :meth:`lit_training.trained.load.SavedRun.evaluate`.

    Args:
        checkpoint: as from :func:`lit_training.runs.checkpoints.read`.
        path: the checkpoint's file.

    Raises:
        CheckpointError, DataError, UsageError: the data is missing or does not fit the network.
    """
    find_device(accelerator)
    data, split = _choose_data(model, checkpoint, path, data_root)
    with progress_bar("evaluating", show=is_rank_zero()) as progress:
        outputs = _Outputs(progress)
        trainer = Trainer(
            accelerator=accelerator,
            devices=devices,
            callbacks=[outputs],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        bind_to_loopback(trainer)
        trainer.test(model, data, verbose=False)
    loader: Any = trainer.test_dataloaders
    dataset = loader.dataset
    batches = zip(*outputs.batches, strict=True)
    predicted, targets = (gather_in_input_order(trainer, torch.cat(batch), loader).cpu() for batch in batches)
    photos = dataset if isinstance(dataset, PhotoFiles) else None
    return Evaluation(
        checkpoint=path,
        data=str(photos.root) if photos else type(data).__name__,
        split=split,
        loss=float(trainer.callback_metrics["test_loss"]),
        outputs=predicted,
        targets=targets,
        dataset=dataset,
        class_names=tuple(distinct_class_names(model.class_names, predicted.shape[1])),
        preprocessing=Preprocessing.from_dict(model.preprocessing) if model.preprocessing else None,
        paths=photos.paths if photos else None,
    )


class _Outputs(Callback):
    """Collects (output, target) of each test batch and calls ``progress(batches done, batches in all)``."""

    def __init__(self, progress: Callable[[int, int | None], None]) -> None:
        self.progress = progress
        self.batches: list[tuple[Tensor, Tensor]] = []

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.batches.append((outputs["output"], outputs["target"]))
        self.progress(len(self.batches), int(trainer.num_test_batches[0]))


class PhotosToJudge(LightningDataModule):
    """Photos for one pass, with the class numbers of the network as labels."""

    def __init__(self, photos: PhotoFiles) -> None:
        super().__init__()
        self.photos = photos

    def test_dataloader(self) -> DataLoader:
        workers = count_decoding_workers(self.trainer)
        return make_loader(self.photos, self.trainer, batch_size=32, seed=0, train=False, num_workers=workers)


def _choose_data(
    model: LitBase, checkpoint: dict[str, Any], path: Path, data_root: str | None
) -> tuple[LightningDataModule, str]:
    """Return the data to evaluate on, and the name of its split."""
    if data_root is not None:
        if model.task != "classification" or model.sample_ndim != 3:
            raise UsageError(f"--data {data_root}: {type(model).__name__} was not trained on photos; leave --data out")
        return _label_photos(model, _readable_photos(data_root)), "photos"
    if checkpoint["lit"]["data_class"] != ImageFolderDataModule.__name__:
        try:
            return checkpoints.load_data(checkpoint), "test"
        except CheckpointError as error:
            raise CheckpointError(f"{error}: name a folder of photos with --data") from error
    arguments = dict(checkpoint["datamodule_hyper_parameters"])
    split_file = run_folder(path) / SPLIT
    if split_file.is_file():  # images may have been added since the training
        arguments["split_file"] = str(split_file)
    data = checkpoints.load_data({**checkpoint, "datamodule_hyper_parameters": arguments})
    data.setup("test")
    split = TEST if data.has_test else VAL
    return _label_photos(model, data.photos.take(data.photos.select(split))), SPLITS[split]


def _readable_photos(root: str) -> Listing:
    """Return the photos of a folder: its test split, else its validation split, else all. Name unreadable files."""
    listing = find_photos(root)
    split = next(split for split in (TEST, VAL, TRAIN) if (listing.splits == split).any())  # TRAIN: it has no splits
    scan = scan_photos(listing.take(np.flatnonzero(listing.splits == split)))
    if is_rank_zero():
        for note in listing.notes:
            print(f"note: {note}", file=sys.stderr)
        for name, kind, reason in scan.bad:
            print(f"left out: {printable(name)}: {kind} ({printable(reason)})", file=sys.stderr)
    return scan.listing


def _label_photos(model: LitBase, found: Listing) -> PhotosToJudge:
    """Label photos with the network's class numbers. Classes are matched by name."""
    if model.class_names is None or model.preprocessing is None:
        raise CheckpointError("the checkpoint has no class names: train the network on a data module")
    folder = printable(str(found.root))
    if not len(found.paths):
        raise DataError(f"{folder} has no images to evaluate on: name another folder with --data")
    names = distinct_class_names(model.class_names, len(model.class_names))
    numbers = {name: number for number, name in enumerate(names)}
    labels = torch.tensor([numbers.get(name, -1) for name in found.class_names])[found.labels]
    if len(unknown := found.labels[labels.numpy() < 0]):
        name = printable(found.class_names[unknown.min()])
        raise DataError(f"{folder}: the network has no class {name}: rename it to one of {first_names(names, PRINTED)}")
    photos = PhotoFiles(found.root, found.paths, labels, Preprocessing.from_dict(model.preprocessing), False, 0)
    return PhotosToJudge(photos)
