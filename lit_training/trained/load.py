"""Open a trained network: ``load("latest").predict("bee.jpg")``."""

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
    """A trained network in its run's folder, as :func:`load` returns it.

    No code in a checkpoint is executed. The methods raise a CheckpointError if the file cannot be read safely or does
    not fit the network.
    """

    path: Path
    """The checkpoint's file."""

    @property
    def folder(self) -> Path:
        """The folder of the run."""
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
        """Predict images, or the rows of files if the network takes rows.

        Args:
            images: a path of a file or folder, a PIL image, a uint8 array (H, W, 3), or a list of these.
            accelerator: ``auto``, ``cpu``, ``gpu`` or ``mps``.

        Returns:
            One prediction for one image; a list of predictions for a list, a folder or a file of rows.

        Raises:
            UsageError: a single file cannot be read. In a list, its prediction has an ``error`` instead.
        """
        model = self.model()
        takes_rows = model.sample_ndim == 1
        single = not isinstance(images, list | tuple)
        inputs: list[Any] = []
        for image in [images] if single else images:
            if isinstance(image, str | Path):
                inputs += find_files([str(image)], ROW_SUFFIXES if takes_rows else PICTURE_SUFFIXES)
            elif takes_rows:
                raise UsageError(f"{type(model).__name__} takes rows: give the path of a .csv or .npy file")
            else:
                inputs.append(image)
        found = list(predict(model, inputs, device=find_device(accelerator)))
        if single and len(found) == 1 and found[0].error and found[0].row is None:
            raise UsageError(f"{found[0].path}: {found[0].error}")
        is_folder = isinstance(images, str | Path) and inputs != [str(images)]
        return found[0] if single and not takes_rows and not is_folder else found

    def evaluate(self, data: str | None = None, accelerator: str = "auto", devices: str = "1") -> Evaluation:
        """Evaluate the network on its test data, or on its validation data if there is no test data.

        Args:
            data: evaluate on this folder of photos instead.
            accelerator: ``auto``, ``cpu``, ``gpu`` or ``mps``.
            devices: number of devices; the result does not depend on it.
        """
        return evaluate(self.model(), self.checkpoint, self.path, data, accelerator, devices)


def load(run: str | Path = "latest", root: str | Path = ".") -> SavedRun:
    """Open a trained network.

    Args:
        run: a run's folder (its best checkpoint is used), a ``.ckpt`` file, or ``latest``: the newest run in
            ``root/lightning_logs`` that has a checkpoint.
        root: the folder that contains ``lightning_logs``.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    return SavedRun(find_checkpoint(str(run), str(root)))
