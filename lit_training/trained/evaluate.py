"""Evaluate a trained network: compute outputs, loss and scores. Letters in shapes: N samples, K classes or outputs."""

import contextlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from datamodules import Preprocessing
from datamodules.errors import DataError
from datamodules.image_folder import ImageFolderDataModule
from datamodules.loading.loader import count_decoding_workers
from datamodules.loading.module import SplitDataModule
from datamodules.loading.order import gather_in_input_order
from datamodules.photos.dataset import PhotoFiles
from datamodules.photos.find import SPLITS, TEST, TRAIN, VAL, Listing, find_photos
from datamodules.photos.folder import describe_lost
from datamodules.photos.scan import Scan, scan_photos
from datamodules.photos.split import find_scored_pictures, read_split_file
from datamodules.text import first_names, is_rank_zero, plural, print_note, printable
from lit_models import LitBase
from lit_models.base import dotted_path
from lit_training.errors import CheckpointError, UsageError
from lit_training.runs import checkpoints
from lit_training.runs.devices import find_device
from lit_training.runs.folder import relative_path, run_folder
from lit_training.runs.hashes import hash_file
from lit_training.runs.layout import EVALUATION, OUT_OF_FOLD, RECORD, SPLIT
from lit_training.runs.loaders import seed_random_numbers
from lit_training.runs.out_of_fold import read_out_of_fold
from lit_training.runs.own_classes import is_own
from lit_training.runs.processes import bind_to_loopback, refuse_other_ranks
from lit_training.runs.threads import choose_threads, use_threads
from lit_training.statistics import wilson_interval
from lit_training.text import progress_bar
from lit_training.trained.calibrate import Calibration
from lit_training.trained.describe import sample_input
from lit_training.trained.predict import distinct_class_names

QUIET: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
MAX_MISTAKES = 12
MAX_PRINTED_FILES = 10
MAX_PRINTED_CLASSES = 12
"""With more classes, only this many with the lowest F1 are printed, and the confusion matrix is not printed."""


@dataclass(frozen=True)
class Evaluation:
    """The outputs of a network for N samples, and their targets."""

    checkpoint: Path
    data: str  # path of the photo folder; if the samples are not files, the class name of the data module
    split: str  # test or val for the data of the run, fold for that of --folds, photos for another folder
    loss: float
    outputs: Tensor  # (N, K) float32; logits for a classifier
    targets: Tensor  # (N,) int64 for a classifier, (N, K) float32 for a regression
    dataset: Any  # N samples, each (input of the network, target)
    class_names: tuple[str, ...]
    preprocessing: Preprocessing | None = None  # None if the inputs are rows of numbers, or the loader is the user's
    paths: np.ndarray | None = None  # the N paths, relative to the photo folder; None if the samples are not files
    calibration: Calibration | None = None

    @cached_property
    def predicted(self) -> Tensor:
        """The most likely class of each sample, (N,) int64."""
        return self.outputs.argmax(1)

    @cached_property
    def probability(self) -> Tensor:
        """The calibrated probability of the predicted class of each sample, (N,) float32."""
        temperature = 1.0 if self.calibration is None else self.calibration.temperature
        return (self.outputs / temperature).softmax(1).amax(1)

    @cached_property
    def correct(self) -> Tensor:
        """True where the predicted class is the true class, (N,) bool. Raises a UsageError for a regression."""
        if self.targets.is_floating_point():
            raise UsageError("a regression has no correct or wrong answers: use loss, outputs and targets")
        return self.predicted == self.targets

    @property
    def accuracy(self) -> float:
        """The share of correct predictions, 0 to 1. Raises a UsageError for a regression."""
        return float(self.correct.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval (low, high) of the accuracy. Raises a UsageError for a regression."""
        return wilson_interval(int(self.correct.sum()), len(self.targets))

    @property
    def folder(self) -> Path:
        """The folder for the results: ``evaluation/`` in the run, or ``evaluation/NAME/`` for another photo folder."""
        folder = run_folder(self.checkpoint) / EVALUATION
        return folder / Path(self.data).resolve().name if self.split == "photos" else folder

    def confusion(self) -> Tensor:
        """Return the confusion matrix, (K, K) int64: rows are true classes, columns are predicted classes."""
        return multiclass_confusion_matrix(self.predicted, self.targets, self.outputs.shape[1])

    def class_scores(self) -> Tensor:
        """Return precision, recall, F1 and number of samples of each class, (K, 4) float64. Undefined ones are NaN."""
        confusion = self.confusion().double()
        correct, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        return torch.stack([correct / predicted, correct / support, 2 * correct / (support + predicted), support], 1)

    def worst_indices(self) -> list[int]:
        """Return the indices of the most confident mistakes, most confident first; at most :data:`MAX_MISTAKES`."""
        wrong = (~self.correct).nonzero().flatten()
        order = self.probability[wrong].argsort(descending=True, stable=True)
        return wrong[order[:MAX_MISTAKES]].tolist()

    def sample_name(self, index: int) -> str:
        """Return the path of a sample, or its index if the samples are not files."""
        return str(index) if self.paths is None else self.paths[index]


def evaluate(
    saved: Any,
    data: str | None = None,
    accelerator: str = "auto",
    devices: str = "1",
    photos: str | None = None,
    all_photos: bool = False,
) -> Evaluation:
    """Evaluate the network of a SavedRun on its test data, or on its validation data if there is no test data.

    ``data`` is a folder of other photos to evaluate on. Photos in it that the run was trained on are left out, unless
    ``all_photos`` is True. ``photos`` is the folder where the run's own photos are now. The result is the same for any
    number of devices. Raises a DataError or UsageError if the data is missing or does not fit.
    """
    find_device(accelerator)  # raises a UsageError if this machine does not have it
    if all_photos and data is None:
        raise UsageError("--all needs a folder of photos: --data DIR --all")
    model = saved.model()
    if data is None:
        _note_changed_fixes(saved)
    module, split = _choose_data(saved, model, data, photos, all_photos)
    if split == "val" and saved.checkpoint["lit"].get("trains_on_all"):
        return read_folds(saved, model, photos)
    batches: list[tuple[Tensor, Tensor]] = []
    with progress_bar("evaluating", show=is_rank_zero()) as report_progress:

        def collect(trainer: Trainer, model: Any, outputs: Any, *_: Any) -> None:
            if not isinstance(outputs, dict) or not {"output", "target"} <= outputs.keys():
                problem = f"test_step of {type(model).__name__} returns no dict with output and target"
                raise UsageError(f"{problem}: return super().test_step(batch, batch_idx), or leave your test_step out")
            batches.append((outputs["output"], outputs["target"]))
            report_progress(len(batches), int(trainer.num_test_batches[0]))

        collector = LambdaCallback(on_test_batch_end=collect)
        trainer = Trainer(accelerator=accelerator, devices=devices, callbacks=[collector], **QUIET)
        refuse_other_ranks(trainer)
        bind_to_loopback(trainer)
        is_ordered = isinstance(module, SplitDataModule)
        if trainer.world_size > 1 and not is_ordered:
            raise UsageError(f"{type(module).__name__} can be evaluated on one device only: leave --devices out")
        example = None if is_own(type(model)) else sample_input(model)
        threads = choose_threads(model, example, getattr(module, "eval_batch_size", 32), trainer.num_devices)
        with isolate_rng(), use_threads(threads):
            seed = saved.checkpoint["lit"].get("seed") or 0
            seed_random_numbers(seed, trainer.strategy.root_device)  # setup() may draw a split, as in fit.py
            trainer.test(model, module, verbose=False)
    loader: Any = trainer.test_dataloaders
    dataset: Any = getattr(loader, "dataset", None)
    outputs, targets = (torch.cat(column) for column in zip(*batches, strict=True))
    if is_ordered:
        outputs, targets = (gather_in_input_order(trainer, results, loader) for results in (outputs, targets))
    if outputs.ndim != 2 and not targets.is_floating_point():
        raise UsageError(f"the outputs of {type(model).__name__} are {tuple(outputs.shape)}: evaluate.py needs (N, K)")
    files = dataset if isinstance(dataset, PhotoFiles) else None
    return Evaluation(
        checkpoint=saved.path,
        data=str(files.root) if files else type(module).__name__,
        split=split,
        loss=float(trainer.callback_metrics.get("test_loss", float("nan"))),
        outputs=outputs.cpu(),
        targets=targets.cpu(),
        dataset=dataset,
        class_names=tuple(distinct_class_names(model.class_names, outputs.shape[1])),
        preprocessing=Preprocessing.from_dict(model.preprocessing) if model.preprocessing and is_ordered else None,
        paths=files.paths if files else None,
        calibration=saved.calibration,
    )


def _note_changed_fixes(saved: Any) -> None:
    """Print a note if the fixes.csv that the run was trained with has changed since, or is missing."""
    name = (saved.checkpoint.get("datamodule_hyper_parameters") or {}).get("fixes")
    file, then = Path(name or "").expanduser(), None
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # a run of an older version
        then = json.loads((saved.folder / RECORD).read_text("utf-8"))[-1]["fixes"]
    if name and not (file.is_file() and then in (None, hash_file(file))):
        problem = "has changed since the training" if file.is_file() else "is missing"
        print_note(f"{name} {problem}: the labels are those of the training, in {SPLIT}")


def read_folds(saved: Any, model: LitBase, photos: str | None = None) -> Evaluation:
    """Return the predictions of the first repeat of ``--folds``. Each sample is in it once.

    A photo that was moved counts with the class of its folder now. A photo that is missing is left out.
    """
    found, lit, arguments = read_out_of_fold(saved.folder / OUT_OF_FOLD), saved.checkpoint["lit"], saved.checkpoint
    own, spec = arguments.get("datamodule_hyper_parameters") or {}, Preprocessing.from_dict(model.preprocessing)
    root, split_file, found = photos or own.get("root", ""), saved.folder / SPLIT, found.take(found.repeats == 1)
    folder, lost, moved = Path(root).expanduser(), list[str](), list[str]()
    if is_photo := root != "" and split_file.is_file() and folder.is_dir():
        listing = find_photos(folder, own.get("layout"), strict=False)
        for row, place in enumerate(found.rows_in(listing, split_file)):
            old, new = found.paths[row], listing.paths[place] if place >= 0 else ""
            label = listing.class_names[listing.labels[place]] if new else ""
            if not new or (new != old and label not in found.class_names):
                lost.append(old)
            elif new != old:
                moved.append(old)
                found.paths[row], found.labels[row] = new, found.class_names.index(label)
        for names, text in ((lost, "left out: missing"), (moved, "moved: scored with the class of the folder")):
            if names:
                print_note(f"{plural(len(names), 'picture')} {text} ({first_names(names, 10)})")
        found = found.take(~np.isin(found.paths, lost))
    outputs = torch.from_numpy(found.probabilities).clamp(1e-30).log().float()
    paths, targets = found.paths, torch.from_numpy(found.labels)
    name = lit["data_class"].rpartition(".")[2]
    loss = float(torch.nn.functional.cross_entropy(outputs, targets))
    pictures = PhotoFiles(folder, paths, targets, spec, (), 0) if is_photo else None
    parts = (outputs, targets, pictures, found.class_names, spec if is_photo else None, paths, saved.calibration)
    return Evaluation(saved.path, str(folder) if is_photo else name, "fold", loss, *parts)


class EvaluationPhotos(SplitDataModule):
    """A data module of photos to evaluate. Their labels are the network's class indices."""

    eval_batch_size = 32

    def __init__(self, photos: PhotoFiles) -> None:
        super().__init__()
        self.hparams.update(batch_size=1, seed=0)
        self.sets = {"test": photos}

    def num_workers(self, dataset: Any) -> int:
        return count_decoding_workers(self.trainer)


def _choose_data(
    saved: Any, model: LitBase, data_root: str | None, photos_root: str | None, all_photos: bool
) -> tuple[LightningDataModule, str]:
    checkpoint, split_file = saved.checkpoint, saved.folder / SPLIT
    arguments = dict(checkpoint.get("datamodule_hyper_parameters") or {})
    arguments["root"] = root = photos_root or arguments.get("root", "")
    if data_root is not None:
        if model.task != "classification" or model.sample_ndim != 3:
            raise UsageError(f"--data {data_root}: {type(model).__name__} was not trained on photos; leave --data out")
        listing = _find_readable_photos(data_root, all_photos)
        listing = _leave_out_trained(listing, split_file, Path(root), all_photos)
        return _label_photos(model, listing), "photos"
    if checkpoint["lit"].get("data_class") not in (ImageFolderDataModule.__name__, dotted_path(ImageFolderDataModule)):
        data = checkpoints.load_data(checkpoint)
        if isinstance(data, ImageFolderDataModule):  # a subclass of the user
            data.root = Path(root).expanduser()
            data.hparams["split_file"] = str(split_file) if split_file.is_file() else data.hparams["split_file"]
        elif photos_root is not None:
            raise UsageError(f"--photos {photos_root}: the run was not trained on photos; leave --photos out")
        return _choose_split(data)
    if not Path(root).expanduser().is_dir():
        raise DataError(f"the photos of the run are not in {printable(root)}: give the folder with --photos DIR")
    has_test = split_file.is_file() and any(line.split == "test" for line in read_split_file(str(split_file)).values())
    if checkpoint["lit"].get("trains_on_all") and not has_test:
        return LightningDataModule(), "val"
    if split_file.is_file():  # a new split could move training images to the validation
        scan = _scan(find_photos(root, arguments.get("layout"), strict=False))
        listing, split, notes = find_scored_pictures(scan.listing, str(relative_path(split_file)))
        for note in notes:
            print_note(note)
        if not len(listing.paths):
            fix = "--photos DIR if they were moved, or --data DIR to evaluate on other photos"
            raise DataError(f"{printable(root)} has no test or val pictures of this run: {fix}")
    else:
        data = checkpoints.load_data({**checkpoint, "datamodule_hyper_parameters": arguments})
        data.setup("test")
        split = TEST if len(data.photos.select(TEST)) else VAL
        listing = data.photos.take(data.photos.select(split))
    return _label_photos(model, listing), SPLITS[split]


def _choose_split(data: Any) -> tuple[LightningDataModule, str]:
    """Return the data module, and ``test``. If it is the user's and has no test data, use its validation data."""
    if not is_own(type(data)):
        return data, "test"
    has_test, setup = is_overridden("test_dataloader", data), data.setup
    if isinstance(data, SplitDataModule):
        data.setup("test")
        try:
            has_test = len(data.dataset("test")) > 0  # type: ignore[arg-type]
        except KeyError:
            has_test = False
    if has_test:
        return data, "test"
    print_note(f"{dotted_path(type(data))} has no test data: its validation data is used")
    data.setup, data.test_dataloader = lambda stage: setup("fit"), data.val_dataloader
    return data, "val"


def _scan(listing: Listing) -> Scan:
    with progress_bar("examined photos", show=is_rank_zero()) as progress:
        return scan_photos(listing, progress=progress)


def _find_readable_photos(root: str, all_photos: bool) -> Listing:
    """Return the readable photos: the test split, else the validation split, else all. Print notes on stderr."""
    listing = find_photos(root, strict=False)  # the network's classes decide between two layouts
    # In a folder without splits, all photos have the split TRAIN.
    split = next(split for split in (TEST, VAL, TRAIN) if (listing.splits == split).any())
    listing = listing.take(np.flatnonzero((listing.splits == split) | all_photos))
    scan = _scan(listing)
    bad_files = [f"{file.path}: {file.kind} ({file.reason})" for file in scan.bad[:MAX_PRINTED_FILES]]
    lost = [f"left out, because they cannot be read: {text}" for text in describe_lost(listing, scan.listing)]
    for note in (*listing.notes, *(f"left out: {text}" for text in bad_files), *lost):
        print_note(note)
    return scan.listing


def _leave_out_trained(listing: Listing, split_file: Path, run_root: Path, all_photos: bool) -> Listing:
    """Return the photos that the run was not trained on, or all of them. Print on stderr how many it was trained on."""
    if not split_file.is_file():
        print_note("the run has no split.csv: it is unknown which of these pictures it was trained on")
        return listing
    here, there = listing.root.resolve(), run_root.expanduser().resolve()
    lines = read_split_file(str(split_file))
    train_lines = [(path, line.sha256) for path, line in lines.items() if line.split == SPLITS[TRAIN]]
    # a photo without sha256 is found by its path; an edited photo has another sha256, but is the same file
    trained = {key for path, sha256 in train_lines for key in (sha256 or path, f"{there}/{path}")}
    photos = zip(listing.paths, listing.sha256, strict=True)
    is_new = np.array([trained.isdisjoint((sha256.decode(), path, f"{here}/{path}")) for path, sha256 in photos], bool)
    count_text = f"{(~is_new).sum():,} of {plural(len(is_new), 'picture')} were trained on"
    if is_older := not all(line.sha256 for line in lines.values()):
        count_text += " (found by path: the run's split.csv is older and has no sha256)"
    if all_photos:
        print_note(f"{count_text}: scored too, because of --all")
        return listing
    if is_older or not is_new.all():
        print_note(f"{count_text}: left out (--all scores them too)")
    if not is_new.any():
        raise DataError(f"{printable(str(listing.root))}: {count_text}: give other photos, or add --all")
    return listing.take(np.flatnonzero(is_new))


def _label_photos(model: LitBase, listing: Listing) -> EvaluationPhotos:
    """Label photos with the network's class indices. The name of a photo's subfolder is its class name."""
    if model.class_names is None:
        raise CheckpointError("the checkpoint has no class names: train it on one of this project's data modules")
    folder = printable(str(listing.root))
    if not len(listing.paths):
        raise DataError(f"{folder} has no images to evaluate on: give another folder with --data")
    class_names = distinct_class_names(model.class_names, len(model.class_names))
    class_indices = {name: index for index, name in enumerate(class_names)}
    labels = torch.tensor([class_indices.get(name, -1) for name in listing.class_names])[listing.labels]
    if len(unknown_labels := listing.labels[labels.numpy() < 0]):
        subfolder = printable(listing.class_names[unknown_labels.min()])
        fix = f"rename the subfolder to one of {first_names(class_names, MAX_PRINTED_CLASSES)}"
        raise DataError(f"{folder}: the network has no class {subfolder}: {fix}")
    preprocessing = Preprocessing.from_dict(model.preprocessing)
    return EvaluationPhotos(PhotoFiles(listing.root, listing.paths, labels, preprocessing, (), 0))
