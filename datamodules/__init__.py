"""The data: one LightningDataModule a file.

Names are imported when first used, so that ``datamodules.photos``, which needs no torch, starts fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.cifar10 import CIFAR10DataModule
    from datamodules.image_folder import ImageFolderDataModule
    from datamodules.photos import DataError
    from datamodules.random_data import RandomDataModule
    from datamodules.shapes import ShapesDataModule

__all__ = ["CIFAR10DataModule", "DataError", "ImageFolderDataModule", "RandomDataModule", "ShapesDataModule"]

_HOMES = {
    "CIFAR10DataModule": "cifar10",
    "DataError": "photos",
    "ImageFolderDataModule": "image_folder",
    "RandomDataModule": "random_data",
    "ShapesDataModule": "shapes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'datamodules' has no attribute {name!r}")
    return getattr(import_module(f"datamodules.{_HOMES[name]}"), name)
