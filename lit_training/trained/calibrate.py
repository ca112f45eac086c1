"""Fit what makes a prediction believable: temperature and scores. Letters: N samples, K classes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.files import atomic_write
from lit_training.runs import checkpoints
from lit_training.statistics import fit_temperature

MAX_SCORES = 5000
"""More scores are not kept in the checkpoint: a subset is drawn."""


@dataclass(frozen=True)
class Calibration:
    """What is fitted on labelled samples that the weights were not trained on. It is kept in the checkpoint."""

    temperature: float  # > 0; the logits are divided by it
    source: str  # samples of the temperature: out-of-fold, val, or half of val
    count: int  # number of these samples
    scores: Tensor  # (n,) float32, sorted: 1 - calibrated probability of the true class
    score_source: str  # samples of the scores: out-of-fold, test, or half of val

    @staticmethod
    def from_checkpoint(checkpoint: dict[str, Any]) -> "Calibration | None":
        values = (checkpoint.get("lit") or {}).get("calibration")
        return Calibration(**values) if values else None


def fit_calibration(
    logits: Any, labels: Any, source: str, seed: int, test: tuple[Tensor, Tensor] | None = None
) -> Calibration:
    """Fit a temperature and compute the scores of split conformal prediction (Sadinle, Lei and Wasserman 2019).

    ``logits`` (N, K) may be log-probabilities; ``labels`` (N,) are class indices. ``source`` is ``out-of-fold`` or
    ``val``. Out-of-fold predictions give both. Otherwise the scores are of the ``test`` logits and labels, if they are
    given; else half of the validation samples, drawn by ``seed``, gives the scores and the other half the temperature.
    """
    logits, labels = torch.as_tensor(logits, dtype=torch.float32), torch.as_tensor(labels, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    score_source, score_logits, score_labels = source, logits, labels
    if source != "out-of-fold" and test is not None:
        score_source, (score_logits, score_labels) = "test", test
    elif source != "out-of-fold":
        order = torch.randperm(len(labels), generator=generator)
        first, second = order[: len(order) // 2], order[len(order) // 2 :]
        source = score_source = f"half of {source}"
        score_logits, score_labels = logits[second], labels[second]
        logits, labels = logits[first], labels[first]
    temperature = fit_temperature(logits.numpy(), labels.numpy())
    probabilities = (score_logits.float() / temperature).softmax(1)
    scores = 1 - probabilities.gather(1, score_labels[:, None]).flatten()
    scores = scores[scores.isfinite()]
    if len(scores) > MAX_SCORES:
        scores = scores[torch.randperm(len(scores), generator=generator)[:MAX_SCORES]]
    return Calibration(temperature, source, len(labels), scores.sort().values, score_source)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration into a checkpoint, atomically. Nothing else in the checkpoint changes."""
    checkpoint = checkpoints.read_any(path)
    checkpoint["lit"]["calibration"] = dict(vars(calibration))
    with atomic_write(path) as file:
        torch.save(checkpoint, file)
