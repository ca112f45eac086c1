"""Write pictures, figures, text and settings to TensorBoard."""

import contextlib
import io
import os
import shlex
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from torchmetrics.functional.classification import multiclass_confusion_matrix

from datamodules.loading.order import EvalSampler, gather_in_input_order
from lit_models import LitBase
from lit_training import figures
from lit_training.runs.best_epoch import BestSoFar
from lit_training.runs.devices import evaluation_mode
from lit_training.runs.foreign import data_of
from lit_training.runs.layout import CONFIG

SAMPLES, MISTAKES = 16, 12
DRAWING = 0.02
"""Largest share of the run's time for the figures of the best epoch. Above it, figures wait; only the newest are kept,
and they are drawn at the end at the latest."""
BY_EPOCH = ("train_loss", "val_loss", "val_acc", "samples_per_second")


class Dashboard(Callback):
    """Write to TensorBoard's tabs.

    - At the start: the model's graph, training pictures as the network sees them, settings for the tab HPARAMS, the
      command and the configuration as text, charts that combine training and validation.
    - After each epoch: its scalars against the epoch.
    - When the best epoch (see :class:`BestSoFar`) improves: the confusion matrix and the most confident mistakes, at
      most as often as :data:`DRAWING` allows. At the end those of the best epoch are always drawn.

    The callback does not change the run: random states and the modes of all modules are restored.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        self.best = BestSoFar(monitor, mode)
        self.rows: list[Tensor] = []
        self.unwritten_epoch: int | None = None
        self.draw_pending: Callable[[], None] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best.value = state_dict["best"]

    # --- at the start ---------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.unwritten_epoch = self.draw_pending = None
        self.started, self.drawing = time.monotonic(), 0.0
        if not trainer.is_global_zero:
            return
        with isolate_rng():
            for logger in _tensorboards(trainer):
                _add_charts(logger, pl_module)
                _add_text(logger)
                _add_settings(logger, trainer, pl_module)
                if isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):  # others split the network
                    _add_graph(logger, trainer, pl_module)
                _add_samples(logger, trainer)

    # --- each epoch -----------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add_epoch(trainer)
        self.unwritten_epoch = trainer.current_epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add_epoch(trainer)
        if self.draw_pending is not None:
            self.draw_pending()

    def _add_epoch(self, trainer: Trainer) -> None:
        """Write the scalars of the epoch before. Its training loss is known only after the epoch's last hook."""
        if self.unwritten_epoch is not None and trainer.is_global_zero:
            for logger in _tensorboards(trainer):
                for name in BY_EPOCH:
                    if name in trainer.callback_metrics:
                        value = trainer.callback_metrics[name]
                        logger.experiment.add_scalar(f"by_epoch/{name}", value, self.unwritten_epoch + 1)
        self.unwritten_epoch = None

    # --- validation -----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._classifies(trainer, pl_module) and dataloader_idx == 0:
            self.num_classes = outputs["output"].shape[-1]
            confidence, predicted = outputs["output"].float().softmax(-1).max(-1)  # (B,), (B,)
            self.rows.append(torch.stack([outputs["target"], predicted, confidence], 1))  # (B, 3) float32

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (self.rows and self._classifies(trainer, pl_module) and self.best.improved(trainer.callback_metrics)):
            return
        rows, self.rows = torch.cat(self.rows), []
        # The metric is the same on all ranks, so all of them reach the collective operations below.
        loader = _val_loader(trainer)
        if _in_order(loader):
            rows = gather_in_input_order(trainer, rows, loader)  # (N, 3)
        else:
            rows = trainer.strategy.all_gather(rows).flatten(0, -2)  # of all ranks
        if not trainer.is_global_zero:
            return
        target, predicted, confidence = rows.cpu().T  # (N,) each
        target, predicted = target.long(), predicted.long()
        names = _class_names(trainer, self.num_classes)
        known = target >= 0  # padding is negative
        matrix = multiclass_confusion_matrix(predicted[known], target[known], len(names))
        confidence = confidence.masked_fill((target == predicted) | ~known, 0)
        worst = confidence.argsort(descending=True)[:MISTAKES]
        worst = worst[confidence[worst] > 0]
        mistakes = [column[worst].tolist() for column in (target, predicted, confidence)]
        self.draw_pending = partial(self._draw, trainer, names, matrix, worst.tolist(), mistakes, trainer.global_step)
        if self.drawing <= DRAWING * (time.monotonic() - self.started):
            self.draw_pending()

    def _draw(
        self, trainer: Trainer, names: list[str], matrix: Tensor, worst: list[int], mistakes: list[Any], step: int
    ) -> None:
        """Draw the confusion matrix (K, K) and the samples with indices ``worst``.

        Args:
            mistakes: three lists, one entry per sample: class, predicted class, and the probability of the latter.
        """
        began, self.draw_pending = time.monotonic(), None
        with isolate_rng():  # reading a sample may draw random numbers
            sheet = self._sheet(trainer, names, worst, mistakes)
        for logger in _tensorboards(trainer):
            logger.experiment.add_figure("validation/confusion_matrix", figures.draw_confusion(matrix, names), step)
            if sheet is not None:
                logger.experiment.add_figure("validation/most_confident_mistakes", sheet, step)
        self.drawing += time.monotonic() - began

    @staticmethod
    def _sheet(trainer: Trainer, names: list[str], worst: list[int], mistakes: list[Any]) -> Any:
        loader = _val_loader(trainer)
        data = _pictures_of(loader)
        pictures = _network_view(trainer, data, worst) if _in_order(loader) else None
        if pictures is None:
            return None
        paths = getattr(data, "paths", None)
        files = None if paths is None else [str(paths[index]) for index in worst]
        labels, predicted, probability = mistakes
        return figures.draw_mistakes(pictures, names, labels, predicted, probability, files)

    @staticmethod
    def _classifies(trainer: Trainer, pl_module: LightningModule) -> bool:
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        return fitting and _is_classifier(pl_module) and bool(_tensorboards(trainer))


def _tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _val_loader(trainer: Trainer) -> Any:
    loaders: Any = trainer.val_dataloaders
    return loaders[0] if isinstance(loaders, list) else loaders


def _in_order(loader: Any) -> bool:
    """Return True if the order of the rows is known."""
    return isinstance(getattr(loader, "sampler", None), EvalSampler)


def _is_classifier(model: LightningModule) -> bool:
    return isinstance(model, LitBase) and model.task == "classification"


def _class_names(trainer: Trainer, count: int) -> list[str]:
    names = data_of(trainer).class_names or ()
    return list(names) if len(names) == count else [str(label) for label in range(count)]


def _pictures_of(loader: Any) -> Any:
    """Return a loader's dataset; for cached features, the pictures that they were computed from."""
    dataset = getattr(loader, "dataset", None)
    return getattr(dataset, "pictures", dataset)


def _network_view(trainer: Trainer, dataset: Any, indices: list[int]) -> Tensor | None:
    """Return samples as the network sees them, (B, 3, H, W) in [0, 1], or None if they are not pictures."""
    preprocessing = data_of(trainer).preprocessing
    if not (indices and preprocessing):
        return None
    inputs = [dataset[index][0] for index in indices]
    return figures.undo_normalization(torch.stack(inputs), preprocessing) if inputs[0].ndim == 3 else None


def _add_samples(logger: TensorBoardLogger, trainer: Trainer) -> None:
    """Show evenly spaced training pictures, augmented as in the first epoch."""
    dataset: Any = _pictures_of(trainer.train_dataloader)
    data = data_of(trainer)
    names = data.class_names
    if not (names and data.preprocessing):
        return
    count = min(SAMPLES, len(dataset))
    indices = [place * len(dataset) // count for place in range(count)]
    labels = [int(dataset[index][1]) for index in indices]
    pictures = _network_view(trainer, dataset, indices)
    if pictures is not None:
        drawn = figures.draw_sheet(pictures, [names[label] for label in labels])
        logger.experiment.add_figure("training/samples", drawn, trainer.global_step)


def _add_charts(logger: TensorBoardLogger, model: LightningModule) -> None:
    """Write the layout of the tab CUSTOM SCALARS: which curves share a chart."""
    layout = {
        "by step": {
            "loss": ["Multiline", ["^train_loss$", "^val_loss$"]],
            "loss of single batches": ["Multiline", ["^train_loss_step$", "^val_loss$"]],
        },
        "by epoch": {"loss": ["Multiline", ["^by_epoch/train_loss$", "^by_epoch/val_loss$"]]},
    }
    if _is_classifier(model):
        layout["by step"]["accuracy"] = ["Multiline", ["^val_acc$"]]
        layout["by epoch"]["accuracy"] = ["Multiline", ["^by_epoch/val_acc$"]]
    logger.experiment.add_custom_scalars(layout)


def _add_text(logger: TensorBoardLogger) -> None:
    logger.experiment.add_text("command", f"    {shlex.join(['python', *sys.argv])}")
    config = Path(logger.log_dir) / CONFIG
    if config.is_file():
        logger.experiment.add_text("config", textwrap.indent(config.read_text(encoding="utf-8"), "    "))


def _add_settings(logger: TensorBoardLogger, trainer: Trainer, model: LightningModule) -> None:
    """Write the run's row in the tab HPARAMS. TensorBoard takes the metrics from the scalars with the same names."""
    data: Any = getattr(trainer, "datamodule", None)
    settings = {"model": type(model).__name__, **model.hparams}
    if data is not None:
        settings |= {"data": type(data).__name__, **{f"data.{name}": value for name, value in data.hparams.items()}}
    settings |= {
        "optimizer": ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers),
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "devices": trainer.world_size,
    }
    plain = {
        name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in settings.items()
    }
    metrics = ["val_acc", "val_loss", "train_loss"] if _is_classifier(model) else ["val_loss", "train_loss"]
    for summary in hparams(plain, dict.fromkeys(metrics, 0.0)):
        logger.experiment.file_writer.add_summary(summary)


def _add_graph(logger: TensorBoardLogger, trainer: Trainer, model: LightningModule) -> None:
    shape = data_of(trainer).sample_shape
    if shape is None:
        return
    dtype: Any = model.dtype  # a half-precision network needs half-precision input
    example = torch.zeros(1, *shape, device=model.device, dtype=dtype)
    silent = contextlib.redirect_stdout(io.StringIO())
    with evaluation_mode(model), torch.no_grad(), warnings.catch_warnings(), silent:
        warnings.simplefilter("ignore")  # tracing warns about Python branches
        try:
            # A plain module around the network; the outermost box of the graph has the name of its class.
            wrapped = type(type(model).__name__, (torch.nn.Module,), {"forward": lambda self, x: self.model(x)})()
            wrapped.model = model
            # add_graph would trace twice to compare the results, which takes a second for a backbone.
            logger.experiment.add_graph(torch.jit.trace(wrapped, example, check_trace=False), example)
        except Exception as error:  # a network that cannot be traced can still be trained
            logger.experiment.add_text("graph", f"not drawn: {error}")
