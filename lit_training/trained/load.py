"""Open a trained network, for example ``load("latest").predict("bee.jpg")``."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from datamodules.photos.find import PICTURE_SUFFIXES
from lit_models import LitBase
from lit_training.errors import UsageError
from lit_training.runs import checkpoints
from lit_training.runs.devices import find_device
from lit_training.runs.folder import find_checkpoint, run_folder
from lit_training.trained.calibrate import Calibration
from lit_training.trained.evaluate import evaluate
from lit_training.trained.export import export
from lit_training.trained.inputs import ROW_SUFFIXES, find_files
from lit_training.trained.predict import Prediction, predict


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
        bytes of a picture file; a uint8 array (H, W, 3); or a list of these. With a ``coverage`` such as 0.9, each
        prediction has the ``set`` of classes that holds the true one in 90 % of cases. Raises a UsageError or
        DataError if a single file cannot be read, or an input does not fit the network.
        """
        model = self.model()
        takes_rows = model.sample_ndim == 1
        is_list = isinstance(images, list | tuple)
        inputs: list[Any] = []
        for image in images if is_list else [images]:
            if isinstance(image, str | Path):
                inputs += find_files([str(image)], ROW_SUFFIXES if takes_rows else PICTURE_SUFFIXES)
            elif takes_rows:
                raise UsageError(f"{type(model).__name__} takes rows: give the path of a .csv or .npy file")
            else:
                inputs.append(image)
        device = find_device(accelerator)
        predictions = list(predict(model, inputs, calibration=self.calibration, coverage=coverage, device=device))
        is_folder_or_glob = isinstance(images, str | Path) and (Path(images).is_dir() or inputs != [str(images)])
        if is_list or is_folder_or_glob:
            return predictions
        if len(predictions) == 1 and predictions[0].error and predictions[0].row is None:
            raise UsageError(f"{predictions[0].path}: {predictions[0].error}")
        return predictions if takes_rows else predictions[0]

    evaluate = evaluate  # its first argument is a SavedRun
    export = export


def load(run: str | Path = "latest", root: str | Path = ".") -> SavedRun:
    """Open a trained network. Raises a CheckpointError if there is no checkpoint.

    ``run`` is a ``.ckpt`` file; the folder of a run, for its best checkpoint; or ``latest``, for the newest run in
    ``root/lightning_logs`` that has a checkpoint.
    """
    return SavedRun(find_checkpoint(str(run), str(root)))
