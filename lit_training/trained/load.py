"""Open a trained network, as in ``load("latest").predict("bee.jpg")``."""

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
from lit_training.trained.evaluate import Evaluation, evaluate
from lit_training.trained.inputs import ROW_SUFFIXES, find_files
from lit_training.trained.predict import Prediction, predict


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint of a trained network, as :func:`load` returns it.

    Code in the checkpoint is never executed. All methods raise a CheckpointError if the file cannot be read safely or
    if its values do not fit the network.
    """

    path: Path
    """Path of the checkpoint."""

    @property
    def folder(self) -> Path:
        """The folder of the run that saved the checkpoint."""
        return run_folder(self.path)

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The contents of the checkpoint, as tensors and plain values."""
        return checkpoints.read(self.path)

    def model(self) -> LitBase:
        """Return the network, in evaluation mode on the CPU."""
        return checkpoints.load_model(self.checkpoint)

    def data(self) -> LightningDataModule:
        """Return the data module that the network was trained on, before ``setup``."""
        return checkpoints.load_data(self.checkpoint)

    def predict(self, images: Any, accelerator: str = "auto") -> Prediction | list[Prediction]:
        """Predict images, or rows of numbers if the network takes rows.

        Args:
            images: the path of an image, of a folder of images or of a file of rows (.csv or .npy); a PIL image; a
                uint8 array (H, W, 3); or a list of these.
            accelerator: ``auto``, ``cpu``, ``gpu`` or ``mps``.

        Returns:
            One prediction for a single image; otherwise a list. In a list, the prediction of a file that cannot be
            read has an ``error``.

        Raises:
            UsageError: ``images`` is the path of a file that cannot be read, or an image for a network of rows.
            DataError: an array is not an image.
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
        predictions = list(predict(model, inputs, device=find_device(accelerator)))
        is_path = isinstance(images, str | Path)
        is_folder = is_path and (Path(images).is_dir() or inputs != [str(images)])  # or a glob
        if is_list or is_folder:
            return predictions
        if len(predictions) == 1 and predictions[0].error and predictions[0].row is None:
            raise UsageError(f"{predictions[0].path}: {predictions[0].error}")
        return predictions if takes_rows else predictions[0]

    def evaluate(self, data: str | None = None, accelerator: str = "auto", devices: str = "1") -> Evaluation:
        """Evaluate the network on its test data, or on its validation data if there is no test data.

        Args:
            data: a folder of photos to evaluate on instead.
            accelerator: ``auto``, ``cpu``, ``gpu`` or ``mps``.
            devices: number of devices. The result is the same for any number.

        Raises:
            DataError, UsageError: the data is missing or does not fit the network.
        """
        return evaluate(self.model(), self.checkpoint, self.path, data, accelerator, devices)


def load(run: str | Path = "latest", root: str | Path = ".") -> SavedRun:
    """Open a trained network.

    Args:
        run: the folder of a run, to open its best checkpoint; a ``.ckpt`` file; or ``latest``, to open the newest run
            in ``root/lightning_logs`` that has a checkpoint.
        root: the folder that contains ``lightning_logs``.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    return SavedRun(find_checkpoint(str(run), str(root)))
