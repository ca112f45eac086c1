"""Models and data modules of your own: what they do not say has a default here."""

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
    "follow": lambda model: None,
    "report": lambda: "",
    # of both
    "task": None,
    "preprocessing": None,
    "hparams": {},
}


class Promises:
    """Answers what a class of your own says, and the default where it does not.

    Args:
        own: a LightningModule or a LightningDataModule, or None where there is none.
    """

    def __init__(self, own: Any) -> None:
        self.own = own

    def __getattr__(self, name: str) -> Any:
        if name not in DEFAULTS:
            raise AttributeError(f"{type(self.own).__name__} is not asked for {name}")
        value = getattr(self.own, name, DEFAULTS[name])
        if name == "preprocessing" and isinstance(value, dict):
            return Preprocessing.from_dict(value)
        return value


def promises(own: Any) -> Any:
    """``own`` itself if it is built on LitBase or SplitDataModule, which have all these attributes; else an adapter."""
    return own if isinstance(own, LitBase | SplitDataModule) else Promises(own)


def data_of(trainer: Trainer) -> Any:
    """What a Trainer's data module promises; the defaults where it has none."""
    return promises(getattr(trainer, "datamodule", None))
