"""Default attributes for models and data modules that are not classes of this project."""

import re
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, LambdaCallback

from datamodules import Preprocessing
from datamodules.loading.module import SplitDataModule
from lit_models import LitBase
from lit_models.base import read_attribute

PACKAGES = ("lit_models", "datamodules", "lit_training", "lightning", "torch", "builtins")
HARMLESS = {"configure_optimizers", "loss", "test_step", "predict_step", "default_epochs", "default_batch_size"}
"""What a user's subclass may change although its pictures are replaced by cached features."""
BATCH_HOOK = re.compile("(batch_start|batch_end|train_epoch_start)$")
DEFAULTS: dict[str, Any] = {
    # attributes of a model
    "default_epochs": 1,
    "skips_layers": False,
    "same_random_numbers_on_all_ranks": False,
    "samples_evaluated": None,
    # attributes of a data module
    "class_names": (),
    "sample_shape": None,
    "photos": None,
    "adapt_to": lambda model: None,
    "report": lambda: "",
    # attributes of both
    "task": None,
    "preprocessing": None,
    "hparams": {},
}


def known_metrics(model: Any, callbacks: Iterable[Callback], validates: bool) -> list[str]:
    """Return the metrics that a model of this project logs, or none if code of the user may log others."""
    is_users = any(type(own).__module__.partition(".")[0] not in PACKAGES for own in (model, *callbacks))
    if is_users or not isinstance(model, LitBase) or any(isinstance(one, LambdaCallback) for one in callbacks):
        return []
    of_validation = ["val_loss", *["val_acc"] * (model.task == "classification")]
    return ["train_loss", "train_loss_step", *(of_validation if validates else [])]


def why_not_cached(model: Any, data: Any, callbacks: Iterable[Callback]) -> str:
    """Return why a frozen model cannot train on cached features, or "": code of the user may use the pictures."""
    for own in (model, data, *callbacks):
        if isinstance(own, BaseFinetuning):
            return f"{type(own).__name__} trains the backbone"
        theirs = [kind for kind in type(own).__mro__ if kind.__module__.partition(".")[0] not in PACKAGES]
        for name in sorted({name for kind in theirs for name in vars(kind)} - HARMLESS):
            known = any(hasattr(kind, name) for kind in type(own).__mro__ if kind not in theirs)
            if known and not name.startswith("__") and (not isinstance(own, Callback) or BATCH_HOOK.search(name)):
                return f"{type(own).__name__} has its own {name}"
    return ""


class DefaultAttributes:
    """Wrap a model, a data module or None. If an attribute is missing, return its value in :data:`DEFAULTS`."""

    def __init__(self, own: Any) -> None:
        self.own = own

    def __getattr__(self, name: str) -> Any:
        if name not in DEFAULTS:
            raise AttributeError(f"there is no default for the attribute {name}")
        if callable(DEFAULTS[name]):  # a method of the user with this name may do something else
            return DEFAULTS[name]
        value = read_attribute(self.own, name, DEFAULTS[name])
        if name == "preprocessing" and not isinstance(value, Preprocessing):
            return Preprocessing.from_dict(value) if isinstance(value, dict) else None
        return value


def with_default_attributes(own: Any) -> Any:
    """Return a LitBase or SplitDataModule unchanged. Wrap any other object in :class:`DefaultAttributes`."""
    return own if isinstance(own, LitBase | SplitDataModule) else DefaultAttributes(own)


def data_of(trainer: Trainer) -> Any:
    """Return the data module of a Trainer, with default values for missing attributes."""
    return with_default_attributes(getattr(trainer, "datamodule", None))
