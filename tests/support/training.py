"""Train as in a notebook: with a Trainer of Lightning's own, that writes and prints nothing."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lightning.pytorch import Trainer

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Trained(NamedTuple):
    """A checkpoint in its run's folder, and what Lightning's own validation says of it."""

    path: Path
    validated: dict[str, float]


def bare_trainer(**arguments: Any) -> Trainer:
    """A Trainer on one CPU without logger, checkpoints or bars, where the arguments do not ask for them."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return Trainer(**{**QUIET, **arguments})


def train_and_save(folder: Path, model: Any, data: Any, **arguments: Any) -> Trained:
    """Train, for an epoch if nothing else is said, and write ``folder/checkpoints/best.ckpt``."""
    trainer = bare_trainer(**{"max_epochs": 1, **arguments})
    trainer.fit(model, data)
    path = folder / "checkpoints" / "best.ckpt"
    trainer.save_checkpoint(path)
    [validated] = trainer.validate(model, data, verbose=False)
    return Trained(path, dict(validated))


def own_caches(place: Path, patch: pytest.MonkeyPatch) -> None:
    """Let nothing be read from the user's caches, nor from a seed that a test before left behind.

    ``tests/conftest.py`` does so for each test; fixtures of a session come before that.
    """
    for name, folder in (("TORCH_HOME", "torch_home"), ("XDG_CACHE_HOME", "cache"), ("HF_HOME", "hf_home")):
        patch.setenv(name, str(place / folder))
    patch.delenv("PL_GLOBAL_SEED", raising=False)
