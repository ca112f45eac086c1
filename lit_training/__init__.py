"""Train networks and use trained ones. ``load`` opens a trained network. Each name is imported at its first use."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from datamodules.machine import other_programs_are_idle

if TYPE_CHECKING:
    from lit_training.trained.load import SavedRun, load
    from lit_training.trained.predict import Prediction

# How torch's threads wait for each other: torch reads these variables when it is imported. Sleeping leaves the cores
# to other programs. If no other program computes now, each thread first spins for a moment, which is faster.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    if other_programs_are_idle():
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__all__ = ["Prediction", "SavedRun", "load"]

_MODULE_OF = {"Prediction": "predict", "SavedRun": "load", "load": "load"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lit_training' has no attribute {name!r}")
    return getattr(import_module(f"lit_training.trained.{_MODULE_OF[name]}"), name)
