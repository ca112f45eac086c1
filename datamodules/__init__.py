"""The data modules. Each is imported at its first use, so that ``check.py`` does not have to import torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from datamodules.errors import DataError
from datamodules.preprocessing import Preprocessing

if TYPE_CHECKING:
    from datamodules.cifar10 import CIFAR10DataModule as CIFAR10DataModule
    from datamodules.image_folder import ImageFolderDataModule as ImageFolderDataModule
    from datamodules.random_data import RandomDataModule as RandomDataModule
    from datamodules.shapes import ShapesDataModule as ShapesDataModule

_MODULE_OF = {
    "CIFAR10DataModule": "cifar10",
    "ImageFolderDataModule": "image_folder",
    "RandomDataModule": "random_data",
    "ShapesDataModule": "shapes",
}
__all__ = ["DataError", "Preprocessing", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
    return getattr(import_module(f"datamodules.{_MODULE_OF[name]}"), name)
