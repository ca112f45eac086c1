"""Train networks and use trained ones. ``load`` opens a trained network. Each name is imported at its first use."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_training.trained.load import SavedRun, load
    from lit_training.trained.predict import Prediction

# Waiting threads must sleep, not use cores that other programs need. torch reads this variable when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__all__ = ["Prediction", "SavedRun", "load"]

_MODULE_OF = {"Prediction": "predict", "SavedRun": "load", "load": "load"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lit_training' has no attribute {name!r}")
    return getattr(import_module(f"lit_training.trained.{_MODULE_OF[name]}"), name)
