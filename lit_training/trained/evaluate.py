"""How good a trained network is on data that it has not learned from, and where it is wrong.

Letters in shape comments: N samples, K classes or outputs, C channels, S side in pixels.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_confusion_matrix

from datamodules import Preprocessing
from datamodules.errors import DataError
from datamodules.image_folder import ImageFolderDataModule
from datamodules.loading.loader import make_loader, workers_for_decoding
from datamodules.loading.order import in_input_order
from datamodules.photos.dataset import PhotoFiles
from datamodules.photos.find import TEST, TRAIN, VAL, Listing, find_photos
from datamodules.photos.paths import Paths
from datamodules.photos.scan import scan_photos
from datamodules.text import name_first, printable
from lit_models import LitBase
from lit_training.errors import CheckpointError, UsageError, is_rank_zero
from lit_training.runs import checkpoints
from lit_training.runs.devices import find_device
from lit_training.runs.folder import run_folder
from lit_training.runs.layout import EVALUATION, SPLIT
from lit_training.runs.processes import bind_to_loopback
from lit_training.text import progress_bar

WORST = 12
"""Most confident mistakes that are shown."""
PRINTED = 12
"""Classes up to which tables are printed whole."""


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
    preprocessing: Preprocessing | None
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
        """Where its files go: evaluation/ in the run's folder; a folder below it for photos that were named."""
        folder = run_folder(self.checkpoint) / EVALUATION
        return folder / Path(self.data).resolve().name if self.split == "photos" else folder

    def confusion(self) -> Tensor:
        """(K, K) int64: how many samples of the class of the row were taken for that of the column."""
        return multiclass_confusion_matrix(self.predicted, self.targets, self.outputs.shape[1])

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


def evaluate(
    model: LitBase,
    checkpoint: dict[str, Any],
    path: Path,
    data_root: str | None = None,
    accelerator: str = "auto",
    devices: str = "1",
) -> Evaluation:
    """Run a network over the split that it is to be judged by: test where its data has one, else val.

    Args:
        model: of the checkpoint.
        checkpoint: as from :func:`lit_training.runs.checkpoints.read`.
        path: the checkpoint's file.
        data_root: a folder of photos to take instead of the data that the checkpoint names.
        accelerator: as the Trainer's.
        devices: as the Trainer's; the result does not depend on it.

    Raises:
        CheckpointError, DataError, UsageError: naming what does not fit.
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
    answered, targets = (in_input_order(trainer, rows, loader).cpu() for rows in outputs.rows())
    photos = dataset if isinstance(dataset, PhotoFiles) else None
    return Evaluation(
        checkpoint=path,
        data=str(photos.root) if photos else type(data).__name__,
        split=split,
        loss=float(trainer.callback_metrics["test_loss"]),
        outputs=answered,
        targets=targets,
        dataset=dataset,
        class_names=tuple(model.class_names or map(str, range(answered.shape[1]))),
        preprocessing=Preprocessing.from_dict(model.preprocessing) if model.preprocessing else None,
        paths=photos.paths if photos else None,
    )


class _Outputs(Callback):
    """Keeps what the network answers to each batch of a test.

    Args:
        progress: is told how many batches are done, of how many.
    """

    def __init__(self, progress: Callable[[int, int | None], None]) -> None:
        self.progress = progress
        self.kept: list[tuple[Tensor, Tensor]] = []

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
        self.progress(len(self.kept), int(trainer.num_test_batches[0]))

    def rows(self) -> tuple[Tensor, Tensor]:
        outputs, targets = zip(*self.kept, strict=True)
        return torch.cat(outputs), torch.cat(targets)


class PhotosToJudge(LightningDataModule):
    """Photos to be gone through once, labelled by the numbers that the network has for their classes."""

    def __init__(self, photos: PhotoFiles) -> None:
        super().__init__()
        self.photos = photos

    def test_dataloader(self) -> DataLoader:
        workers = workers_for_decoding(self.trainer)
        return make_loader(self.photos, self.trainer, batch_size=32, seed=0, train=False, num_workers=workers)


def _choose_data(
    model: LitBase, checkpoint: dict[str, Any], path: Path, data_root: str | None
) -> tuple[LightningDataModule, str]:
    """What to evaluate on, and the name of its split."""
    if data_root is not None:
        if model.task != "classification" or model.sample_ndim != 3:
            raise UsageError(f"--data {data_root}: {type(model).__name__} was not trained on photos; leave --data out")
        return _label_photos(model, _whole_photos(find_photos(data_root)), "photos")
    about = checkpoint["lit"]
    if about["data_class"] != ImageFolderDataModule.__name__:
        try:
            return checkpoints.load_data(checkpoint), "test"
        except CheckpointError as error:
            raise CheckpointError(f"{error}: name a folder of photos with --data") from error
    arguments = dict(checkpoint["datamodule_hyper_parameters"])
    split_file = run_folder(path) / SPLIT
    if split_file.is_file():  # pictures may have been added since
        arguments["split_file"] = str(split_file)
    data = checkpoints.load_data({**checkpoint, "datamodule_hyper_parameters": arguments})
    data.setup("test")
    return _label_photos(model, data.photos, "test" if data.has_test else "val")


def _whole_photos(listing: Listing) -> Listing:
    """The pictures of a folder to judge by, without what cannot be opened, which is named."""
    split = next(split for split in (TEST, VAL, TRAIN) if (listing.splits == split).any())  # TRAIN: without a split
    scan = scan_photos(listing.rows((listing.splits == split).nonzero()[0]))
    if is_rank_zero():
        for note in listing.notes:
            print(f"note: {note}", file=sys.stderr)
        for name, kind, reason in scan.bad:
            print(f"left out: {printable(name)}: {kind} ({printable(reason)})", file=sys.stderr)
    return scan.listing


def _label_photos(model: LitBase, found: Listing, split: str) -> tuple[PhotosToJudge, str]:
    """The pictures of ``split`` ("photos": all), their classes mapped to the network's by name."""
    rows = {"test": found.splits == TEST, "val": found.splits == VAL}.get(split, found.splits >= 0).nonzero()[0]
    here = printable(str(found.root))
    if model.class_names is None or model.preprocessing is None:
        raise CheckpointError("the checkpoint does not say what its classes are called: train it on a data module")
    if not len(rows):
        raise DataError(f"{here} has no pictures to evaluate on: name another folder with --data")
    numbers = {name: number for number, name in enumerate(model.class_names)}
    there = [found.class_names[label] for label in sorted(set(found.labels[rows].tolist()))]
    if unknown := [printable(name) for name in there if name not in numbers]:
        known = name_first(model.class_names, PRINTED)
        raise DataError(f"{here} has a class that the network does not know, {unknown[0]}: rename it to one of {known}")
    labels = torch.tensor([numbers.get(name, -1) for name in found.class_names])[found.labels[rows]]
    spec = Preprocessing.from_dict(model.preprocessing)
    photos = PhotoFiles(found.root, found.paths.take(rows), labels, spec, False, 0)
    return PhotosToJudge(photos), split
