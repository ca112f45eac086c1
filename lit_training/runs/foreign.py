"""Default attributes for models and data modules from outside this project."""

from typing import Any

from lightning.pytorch import Trainer

from datamodules import Preprocessing
from datamodules.loading.module import SplitDataModule
from lit_models import LitBase

DEFAULTS: dict[str, Any] = {
    # of a model
    "default_epochs": 1,
    "skips_layers": False,
    "draws_per_batch": False,
    "epoch_losses": None,
    "samples_evaluated": None,
    # of a data module
    "class_names": (),
    "sample_shape": None,
    "photos": None,
    "adapt_to": lambda model: None,
    "report": lambda: "",
    # of both
    "task": None,
    "preprocessing": None,
    "hparams": {},
}


class DefaultAttributes:
    """Adapter for a LightningModule, a LightningDataModule or None: its own attributes, and defaults for the others."""

    def __init__(self, own: Any) -> None:
        self.own = own

    def __getattr__(self, name: str) -> Any:
        if name not in DEFAULTS:
            raise AttributeError(f"{name} has no default in DEFAULTS")
        value = getattr(self.own, name, DEFAULTS[name])
        if name == "preprocessing" and isinstance(value, dict):
            return Preprocessing.from_dict(value)
        return value


def with_default_attributes(own: Any) -> Any:
    """Return ``own`` itself if it is a LitBase or a SplitDataModule, which have all attributes, else an adapter."""
    return own if isinstance(own, LitBase | SplitDataModule) else DefaultAttributes(own)


def data_of(trainer: Trainer) -> Any:
    """Return a Trainer's data module, or an adapter with the defaults."""
    return with_default_attributes(getattr(trainer, "datamodule", None))
