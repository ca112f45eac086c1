"""Fit what shows how far a prediction can be believed. Letters: N samples, K classes, F features, R references."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.files import atomic_write
from datamodules.loading.module import SplitDataModule
from datamodules.loading.order import gather_in_input_order
from lit_models import LitBase
from lit_training.errors import CheckpointError, UsageError
from lit_training.runs import checkpoints
from lit_training.runs.folder import run_folder
from lit_training.runs.layout import OUT_OF_FOLD
from lit_training.runs.out_of_fold import OutOfFold, read_out_of_fold
from lit_training.runs.own_classes import is_own
from lit_training.statistics import conformal_threshold, fit_temperature, samples_for_coverage

MAX_SCORES = 5000  # and samples for the temperature; of more samples, a subset is drawn
MAX_PICTURES = 1000  # of the training, validation and test split that the network computes again
MAX_VALUES = 1 << 21  # of all references together, 4 MB
NO_MARKS = "no picture can be marked unlike the training photos (docs/trust.md)"


@dataclass(frozen=True)
class Calibration:
    """What is fitted on labelled samples that the weights were not trained on. It is kept in the checkpoint."""

    temperature: float  # > 0; the logits are divided by it
    source: str  # samples of the temperature: out-of-fold, val, or half of val
    count: int  # number of these samples
    scores: Tensor  # (n,) float32, sorted: 1 - calibrated probability of the true class
    score_source: str  # samples of the scores: out-of-fold, test, or half of val
    references: Tensor | None = None  # (R, F) float16: features of training pictures, of length 1
    limit: float = inf  # distance that 5 % of the validation pictures exceed: unlike the training photos

    @staticmethod
    def of(checkpoint: dict[str, Any]) -> "Calibration | None":
        """Return the calibration in a checkpoint, or None: of a regression, without validation, of older versions."""
        values = (checkpoint.get("lit") or {}).get("calibration")
        return Calibration(**values) if values else None

    def report(self) -> str:
        """Return a line with the temperature and its samples, and one if no picture can be marked."""
        note = ", which also chose the epoch" if "val" in self.source else ""
        scores = f"scores for sets from {len(self.scores)}: {self.score_source}"
        unlike = f"\nunlike      {NO_MARKS}" if self.limit == inf else ""
        return f"temperature {self.temperature:.3g}  (from {self.count} samples: {self.source}{note}; {scores}){unlike}"

    def threshold(self, coverage: float) -> float:
        """Return the largest score of a class in the set. Raise a UsageError if there are too few scores."""
        if not 0 < coverage < 1:
            raise UsageError(f"coverage must be larger than 0 and smaller than 1, not {coverage}: --coverage 0.9")
        if (needed := samples_for_coverage(coverage)) > (n := len(self.scores)):
            fix = f"ask for less, such as --coverage {max(1, 100 * n // (n + 1)) / 100}, or train with more pictures"
            raise UsageError(f"--coverage {coverage} needs {needed} labelled pictures, but {n} gave scores: {fix}")
        return conformal_threshold(self.scores.double().numpy(), coverage)

    def distances(self, features: Tensor) -> Tensor:
        """Return the cosine distance of each row (N, F) from the nearest reference (Sun et al. 2022), (N,)."""
        assert self.references is not None
        return 1 - (F.normalize(features.float().cpu()) @ self.references.float().T).amax(1)


def fit_calibration(
    logits: Any, labels: Any, source: str, seed: int, test: tuple[Tensor, Tensor] | None = None
) -> Calibration:
    """Fit a temperature and compute the scores of split conformal prediction (Sadinle, Lei and Wasserman 2019).

    ``logits`` (N, K) may be log-probabilities; ``labels`` (N,) are class indices. ``source`` is ``out-of-fold`` or
    ``val``. Out-of-fold predictions give both. Otherwise the scores are of the ``test`` logits and labels, if they are
    given; else half of the validation samples, drawn by ``seed``, gives the scores and the other half the temperature.
    """
    pairs: Any = torch.as_tensor(logits, dtype=torch.float32), torch.as_tensor(labels, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    of_scores, score_source = (pairs, source) if test is None else (test, "test")
    if test is None and source == "val":
        halves = torch.randperm(len(pairs[1]), generator=generator).tensor_split(2)
        pairs, of_scores = [[values[half] for values in pairs] for half in halves]
        source = score_source = "half of val"
    rows = [torch.randperm(len(y), generator=generator)[:MAX_SCORES] for _, y in (pairs, of_scores)]
    temperature = fit_temperature(*(values[rows[0]].numpy() for values in pairs))
    score_logits, score_labels = (values[rows[1]] for values in of_scores)
    scores = 1 - (score_logits / temperature).softmax(1).gather(1, score_labels[:, None]).flatten()
    return Calibration(temperature, source, len(rows[0]), scores[scores.isfinite()].sort().values, score_source)


def fit_from_folds(folds: OutOfFold, seed: int) -> Calibration:
    """Fit a calibration to the first repeat of out-of-fold predictions, which has each sample once."""
    first = folds.repeats == 1
    return fit_calibration(torch.from_numpy(folds.probabilities[first]).log(), folds.labels[first], "out-of-fold", seed)


def write_calibration(path: Path, calibration: Calibration | None) -> None:
    """Write a calibration into a checkpoint, atomically. Nothing else in the checkpoint changes."""
    checkpoint = checkpoints.read_any(path)
    checkpoint["lit"]["calibration"] = calibration and dict(vars(calibration))
    with atomic_write(path) as file:
        torch.save(checkpoint, file)


class ValidationOutputs(Callback):
    """Keep the outputs and the targets of a validation."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        if isinstance(outputs, dict) and {"output", "target"} <= outputs.keys():
            self.batches.append((outputs["output"].float().cpu(), outputs["target"].cpu()))

    def gather(self, trainer: Any) -> tuple[Tensor, Tensor] | None:
        """Return outputs (N, K) and targets without padding; None if they are not such. All ranks must call it."""
        if not self.batches or self.batches[0][0].ndim != 2:
            return None
        results, loader = [torch.cat(column) for column in zip(*self.batches, strict=True)], trainer.val_dataloaders
        if isinstance(trainer.datamodule, SplitDataModule) and isinstance(loader, DataLoader):
            results = [gather_in_input_order(trainer, values, loader).cpu() for values in results]
        elif trainer.world_size > 1:  # the padding of other loaders is not known
            return None
        is_sample: Any = slice(None) if results[1].is_floating_point() else results[1] >= 0
        return results[0][is_sample], results[1][is_sample]


def calibrate(
    path: Path, data: Any, outputs: tuple[Tensor, Tensor] | None, device: torch.device, progress: Callable[[], None]
) -> Calibration | None:
    """Calibrate a checkpoint from out_of_fold.csv, or from the ``outputs`` of its validation. Write it, and return it.

    For data of this project, features are computed, and, if the model is not a class of the user, whose steps and hooks
    may change its inputs, test scores. An error in the user's model must not end a run that has trained.
    """
    checkpoint, table = checkpoints.read(path), run_folder(path) / OUT_OF_FOLD
    calibration, seed = Calibration.of(checkpoint), checkpoint["lit"].get("seed") or 0
    compute, is_ours = None, str(checkpoint["lit"].get("model_class")).startswith("lit_models.")
    if isinstance(data, SplitDataModule) and not is_own(type(data)):
        with contextlib.suppress(*() if is_ours else (CheckpointError,)):
            model = checkpoints.load_model(checkpoint, announce=False).to(device)
            compute = partial(_compute, model, data, seed, progress) if model.sample_ndim == 3 else None
    if calibration is None and table.is_file():
        calibration = fit_from_folds(read_out_of_fold(table), seed)
    elif calibration is None and outputs is not None and not outputs[1].is_floating_point():
        calibration = fit_calibration(*outputs, "val", seed, compute("test") if compute and is_ours else None)
    if calibration is not None and compute:
        with contextlib.suppress(*() if is_ours else (Exception,)):
            calibration = _add_references(calibration, compute)
    write_calibration(path, calibration)
    return calibration


def _add_references(calibration: Calibration, compute: Callable[..., Any]) -> Calibration:
    """Return the calibration with features of training pictures, if the model has features, and their limit."""
    if (train := compute("train", features=True)) is None:
        return calibration
    val, references = compute("val", features=True), F.normalize(train[0])
    others, references = (val[0], references) if val else references.tensor_split([len(references) // 5])  # folds
    calibration = replace(calibration, references=references[: MAX_VALUES // references.shape[1]].half())
    return replace(calibration, limit=conformal_threshold(calibration.distances(others).numpy(), 0.95))


def _compute(
    model: LitBase, data: SplitDataModule, seed: int, progress: Callable[[], None], split: str, features: bool = False
) -> tuple[Tensor, Tensor] | None:
    """Return logits or features of some pictures of a split, drawn by ``seed``, and their labels; None without any."""
    data.setup("test" if split == "test" else "fit")
    dataset: Any = data.dataset(split)
    found = []
    with torch.inference_mode():
        rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:MAX_PICTURES]
        for keys in rows.split(32) if len(rows) else ():
            x, labels = dataset.__getitems__(keys.tolist())
            x = x.to(model.device)
            is_feature = x.ndim == 2 < model.sample_ndim  # a dataset of FeatureCache
            values = model(x) if not features else x if is_feature else model.features(x)
            if values is None:
                return None
            found.append((values.float().cpu(), labels.cpu()))
            progress()
    return (torch.cat([one for one, _ in found]), torch.cat([one for _, one in found])) if found else None
