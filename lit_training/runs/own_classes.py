"""Classes of the user: find those of a checkpoint, and give models and data modules the attributes they lack."""

import re
import sys
from collections.abc import Iterable
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, LambdaCallback

import datamodules
import lit_models
from datamodules import Preprocessing
from datamodules.loading.module import SplitDataModule
from datamodules.text import printable
from lit_models import LitBase
from lit_models.base import read_attribute
from lit_training.errors import CheckpointError

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


def add_current_folder() -> None:
    """Let Python import the modules in the current folder, such as ``mine.py`` for ``--model mine.Wide``."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)


def is_own(kind: type) -> bool:
    """Return True for a class of the user, False for a class of this project."""
    return kind.__module__.partition(".")[0] not in (lit_models.__name__, datamodules.__name__)


def find_class(path: Any, base: type) -> Any:
    """Return the class of a dotted path such as ``mine.Wide``. ``base`` is LitBase or LightningDataModule.

    A name without a module, as in older checkpoints, is a class of this project. A class of the user is imported as
    in ``from mine import Wide``; no code comes from the checkpoint. Raise a CheckpointError if there is no such class.
    """
    project: Any = lit_models if base is LitBase else datamodules
    *modules, name = names = str(path).split(".")
    found: Any = None
    if name in project.__all__ and modules[:1] in ([], [project.__name__]):
        found = getattr(project, name)
    elif modules and modules[0] not in sys.stdlib_module_names:
        found = _import(names)
    if isinstance(found, type) and issubclass(found, base):
        return found
    problem = f"is not built on {base.__name__}, as docs/your_own.md shows" if found else "this project does not have"
    fix = "open it in your own code, or train again"
    raise CheckpointError(printable(f"the checkpoint contains {path}, which {problem}: {fix}"))


def _import(names: list[str]) -> Any:
    """Import the longest part of a dotted path that is a module. Return what the other names are in this module."""
    add_current_folder()
    reason: BaseException | None = None
    for length in range(len(names) - 1, 0, -1):
        module = ".".join(names[:length])
        try:
            return reduce(getattr, names[length:], import_module(module))
        except (Exception, SystemExit) as error:  # importing the user's module may raise any error
            reason = error
            if not isinstance(error, ModuleNotFoundError) or not f"{module}.".startswith(f"{error.name}."):
                break
    fix = f"run the command in the folder that has {names[0]}.py or {names[0]}/, unchanged since the training"
    if names[0] == "__main__" or "<locals>" in names:
        fix = "define the class in a file such as mine.py, not in a notebook, a script or a function, and train again"
    problem = f"the checkpoint needs the class {'.'.join(names)}: {type(reason).__name__}: {reason}"
    raise CheckpointError(printable(" ".join(f"{problem}: {fix}".split()))) from reason


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
