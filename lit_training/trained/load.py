"""Open a trained network, for example ``load("latest").predict("bee.jpg")``."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from datamodules import Preprocessing
from datamodules.loading.memory import normalize
from datamodules.photos.find import PICTURE_SUFFIXES
from lit_models import LitBase
from lit_training.errors import UsageError
from lit_training.runs import checkpoints
from lit_training.runs.devices import find_device
from lit_training.runs.folder import find_checkpoint, run_folder
from lit_training.text import suggest
from lit_training.trained.calibrate import Calibration
from lit_training.trained.evaluate import evaluate
from lit_training.trained.explain import check_explainable, grad_cam
from lit_training.trained.export import export
from lit_training.trained.inputs import ROW_SUFFIXES, find_files, read_pictures
from lit_training.trained.predict import Prediction, class_names_of, predict


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint of a trained network. Its code is never executed. If it cannot be read: a CheckpointError."""

    path: Path

    @property
    def folder(self) -> Path:
        return run_folder(self.path)

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The contents of the checkpoint, as tensors and plain values."""
        return checkpoints.read(self.path)

    def model(self) -> LitBase:
        """Return the network, in evaluation mode on the CPU."""
        return checkpoints.load_model(self.checkpoint)

    def data(self) -> LightningDataModule:
        """Return the data module of the training. Its ``setup`` has not run yet."""
        return checkpoints.load_data(self.checkpoint)

    @property
    def calibration(self) -> Calibration | None:
        """What fit.py has fitted after training; None for a regression, without validation and of older versions."""
        return Calibration.of(self.checkpoint)

    def predict(
        self, images: Any, accelerator: str = "auto", coverage: float | None = None
    ) -> Prediction | list[Prediction]:
        """Return one prediction for a single image, otherwise a list. In a list, unreadable files have an ``error``.

        ``images`` is the path of an image, of a folder of images or of a file of rows (.csv or .npy); a PIL image; the
        bytes of a picture file; a uint8 array (H, W, 3); or several of these, in a list or another iterable. With a
        ``coverage`` such as 0.9, each prediction has the ``set`` of classes that holds the true one in 90 % of cases.
        Raises a UsageError or DataError if a single file cannot be read, or an input does not fit the network.
        """
        model, device = self.model(), find_device(accelerator)
        takes_rows, (inputs, is_list) = model.sample_ndim == 1, _list_inputs(model, images)
        predictions = list(predict(model, inputs, calibration=self.calibration, coverage=coverage, device=device))
        if not takes_rows:  # a notebook shows the picture
            predictions = [replace(one, source=image) for one, image in zip(predictions, inputs, strict=True)]
        if is_list:
            return predictions
        if len(predictions) == 1 and predictions[0].error and predictions[0].row is None:
            raise UsageError(f"{predictions[0].path}: {predictions[0].error}")
        return predictions if takes_rows else predictions[0]

    evaluate = evaluate  # its first argument is a SavedRun
    export = export

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names in the order of the network's outputs; empty for a regression."""
        return tuple(class_names_of(self.model()))

    def features(self, images: Any, accelerator: str = "auto", batch_size: int = 32) -> Tensor:
        """Return the inputs of the network's last layer (embeddings) for N images: (N, F) float32 on the CPU.

        ``images`` is as in :meth:`predict`. Raises a UsageError if an image cannot be read, or the model has no
        ``features()``.
        """
        model, rows, device = self.model(), list[Tensor](), find_device(accelerator)
        needed = "they need pictures, and an nn.Linear as the last layer or a method features(x)"
        problem = UsageError(f"{type(model).__name__} has no features: {needed}")
        if model.sample_ndim != 3:
            raise problem
        for x in _read_batches(model, images, batch_size):
            with torch.inference_mode():
                batch = model.to(device).features(x.to(device))
            if batch is None:
                raise problem
            rows.append(batch.float().cpu())
        return torch.cat(rows)

    def explain(self, image: Any, label: str | None = None) -> np.ndarray:
        """Return a heat map of an image by Grad-CAM (Selvaraju et al. 2017), (S, S) float32 from 0 to 1.

        It shows what speaks for the class ``label`` (default: the most likely one) in the picture as the network sees
        it, of S x S pixels. Raises a UsageError for another label, or a network that is no image classifier.
        """
        model = self.model()
        check_explainable(model)
        names = class_names_of(model)
        if label is not None and label not in names:
            raise UsageError(f"there is no class {label}: {suggest(str(label), names)}")
        x = next(_read_batches(model, image, 2))
        if len(x) > 1:
            raise UsageError("explain takes one image: call it for each image")
        chosen = model.predict_step(x).argmax(1) if label is None else torch.tensor([names.index(label)])
        return grad_cam(model, x, chosen)[0].numpy()


def _list_inputs(model: LitBase, images: Any) -> tuple[list[Any], bool]:
    """Return paths of files, PIL images and arrays; and False if ``images`` is a single one, not an iterable or folder.

    Raise a UsageError for an array instead of a file of rows.
    """
    takes_rows, inputs = model.sample_ndim == 1, list[Any]()
    is_single = not isinstance(images, Iterable) or isinstance(images, str | bytes | np.ndarray)
    is_single = is_single or hasattr(images, "read")  # an open file: its lines are no pictures
    for image in [images] if is_single else images:
        if isinstance(image, str | Path):
            inputs += find_files([str(image)], ROW_SUFFIXES if takes_rows else PICTURE_SUFFIXES)
        elif takes_rows:
            raise UsageError(f"{type(model).__name__} takes rows: give the path of a .csv or .npy file")
        else:
            inputs.append(image)
    is_folder_or_glob = isinstance(images, str | Path) and (os.path.isdir(images) or inputs != [str(images)])  # noqa: PTH112
    return inputs, not is_single or is_folder_or_glob


def _read_batches(model: LitBase, images: Any, batch_size: int) -> Iterator[Tensor]:
    """Yield normalized pictures, (B, C, S, S) float32. Raise a UsageError if one cannot be read."""
    spec, (inputs, _) = Preprocessing.from_dict(model.preprocessing), _list_inputs(model, images)
    if not inputs or batch_size < 1:
        raise UsageError("there is nothing to compute: give at least one image, and a batch_size of at least 1")
    samples = read_pictures(inputs, spec, batch_size)
    while batch := list(islice(samples, batch_size)):
        for sample in batch:
            if sample.x is None:
                raise UsageError(f"{sample.path}: {sample.error}")
        yield normalize(torch.stack([sample.x for sample in batch if sample.x is not None]), spec.mean, spec.std)


def load(run: str | Path = "latest", root: str | Path = ".") -> SavedRun:
    """Open a trained network. Raises a CheckpointError if there is no checkpoint.

    ``run`` is a ``.ckpt`` file; the folder of a run, for its best checkpoint; or ``latest``, for the newest run in
    ``root/lightning_logs`` that has a checkpoint.
    """
    return SavedRun(find_checkpoint(str(run), str(root)))
