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
    """A trained network in its run's folder. Nothing in a checkpoint is executed.

    Args:
        path: the checkpoint's file.

    Each method raises a CheckpointError where the file cannot be read safely or does not fit.
    """

    path: Path

    @property
    def folder(self) -> Path:
        """The folder of the run that the checkpoint belongs to."""
        return run_folder(self.path)

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """Everything in the checkpoint, as tensors and plain values."""
        return checkpoints.read(self.path)

    def model(self) -> LitBase:
        """The network, in evaluation mode on the CPU."""
        return checkpoints.load_model(self.checkpoint)

    def data(self) -> LightningDataModule:
        """The data module that it was trained on, not yet set up."""
        return checkpoints.load_data(self.checkpoint)

    def predict(self, images: Any, accelerator: str = "auto") -> Prediction | list[Prediction]:
        """Ask the network about pictures, or about the rows of files for networks that take rows.

        Args:
            images: a path of a file or a folder, a PIL image, or an array (H, W, 3) of uint8; or a list of these.
            accelerator: ``auto``, ``cpu``, ``gpu`` or ``mps``.

        Returns:
            One prediction; a list of them for a list, for a folder and for a file of rows.

        Raises:
            UsageError: a single file cannot be read. In a list it gets a prediction that says why.
        """
        model, several = self.model(), isinstance(images, list | tuple)
        takes_rows = model.sample_ndim == 1
        inputs: list[Any] = []
        for image in images if several else [images]:
            if isinstance(image, str | Path):
                inputs += find_files([str(image)], ROW_SUFFIXES if takes_rows else PICTURE_SUFFIXES)
            elif takes_rows:
                raise UsageError(f"{type(model).__name__} takes rows: give the path of a .csv or .npy file")
            else:
                inputs.append(image)
        found = list(predict(model, inputs, device=find_device(accelerator)))
        if not several and len(found) == 1 and found[0].error and found[0].row is None:
            raise UsageError(f"{found[0].path}: {found[0].error}")
        is_folder = isinstance(images, str | Path) and inputs != [str(images)]
        return found if several or takes_rows or is_folder else found[0]

    def evaluate(self, data: str | None = None, accelerator: str = "auto", devices: str = "1") -> Evaluation:
        """Measure the network on the test data of what it was trained on, else on its validation data.

        Args:
            data: a folder of photos to measure it on instead.
            accelerator: as the Trainer's.
            devices: as the Trainer's; the result does not depend on it.
        """
        return evaluate(self.model(), self.checkpoint, self.path, data, accelerator, devices)


def load(run: str | Path = "latest", root: str | Path = ".") -> SavedRun:
    """Open a run.

    Args:
        run: its folder (its best checkpoint), a ``.ckpt`` file, or ``latest``: the run begun last below
            ``root``/lightning_logs that has a checkpoint.
        root: the folder that holds ``lightning_logs``.

    Raises:
        CheckpointError: there is none.
    """
    return SavedRun(find_checkpoint(str(run), str(root)))
