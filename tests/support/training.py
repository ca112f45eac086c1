"""Train as in a notebook: with Lightning's Trainer, without files and without output."""

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
    """A checkpoint in its run's folder, and the metrics of Lightning's validation."""

    path: Path
    validated: dict[str, float]


def bare_trainer(**arguments: Any) -> Trainer:
    """Return a Trainer on one CPU, by default without logger, checkpoints and progress bar."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return Trainer(**{**QUIET, **arguments})


def train_and_save(folder: Path, model: Any, data: Any, **arguments: Any) -> Trained:
    """Train, by default for one epoch, and write ``folder/checkpoints/best.ckpt``."""
    trainer = bare_trainer(**{"max_epochs": 1, **arguments})
    trainer.fit(model, data)
    path = folder / "checkpoints" / "best.ckpt"
    trainer.save_checkpoint(path)
    [validated] = trainer.validate(model, data, verbose=False)
    return Trained(path, dict(validated))


def own_caches(place: Path, patch: pytest.MonkeyPatch) -> Path:
    """Put the caches beside ``place``, not into the user's folder, and delete the seed of an earlier test.

    ``tests/conftest.py`` calls this function for each test. Fixtures of a session must call it too. Returns the folder
    of the caches. It is not in ``place``: other libraries write to it too, and tests count the files in ``place``.
    """
    caches = place.with_name(f"{place.name}_caches")
    for name, folder in (("TORCH_HOME", "torch_home"), ("XDG_CACHE_HOME", "cache"), ("HF_HOME", "hf_home")):
        patch.setenv(name, str(caches / folder))
    others = caches / "cache" / "fontlist.json"
    others.parent.mkdir(parents=True, exist_ok=True)
    others.touch()
    patch.delenv("PL_GLOBAL_SEED", raising=False)
    return caches
