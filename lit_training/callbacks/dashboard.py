"""Write scalars, pictures, figures, text and settings to TensorBoard."""

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
from itertools import product
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from datamodules.loading.order import EvalSampler
from datamodules.text import print_once
from lit_models import LitBase
from lit_training import figures
from lit_training.runs.best_epoch import BestSoFar
from lit_training.runs.devices import evaluation_mode
from lit_training.runs.layout import CONFIG
from lit_training.runs.own_classes import data_of
from lit_training.runs.processes import gather_objects

SAMPLE_COUNT = 12
MISTAKE_COUNT = 12
DRAWING_TIME_SHARE = 0.02  # of the run's time; after that, new figures are drawn at the end of training
FIRST_SETTINGS = ("lr", "epochs", "data.batch_size", "model")  # columns of the tab HPARAMS
METRICS_BY_EPOCH = {
    "train_loss": ("train", "loss"),
    "val_loss": ("val", "loss"),
    "val_acc": ("val", "accuracy"),
    "samples_per_second": ("", "samples_per_second"),
}
"""Metric -> its folder in the run's folder, and its name there. TensorBoard gives each folder a colour of its own."""


class Dashboard(Callback):
    """Write to TensorBoard, without changing random states or training modes.

    Figures that are to be drawn later (see :data:`DRAWING_TIME_SHARE`) are lost if the run is stopped.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        self.best = BestSoFar(monitor, mode)
        self.matrix: Tensor | None = None  # (K, K) int64 of this validation: class, predicted class
        self.mistakes = torch.empty(0, 4)  # class, predicted class, its probability, place in the dataset: float64

    def state_dict(self) -> dict[str, Any]:
        return self.best.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best.load_state_dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.unwritten_epoch: int | None = None
        self.draw_waiting: Callable[[], None] | None = None  # draws the figures that are not drawn yet
        self.writers: dict[str, SummaryWriter] = {}
        self.start_time, self.drawing_seconds = time.monotonic(), 0.0
        if not trainer.is_global_zero:
            return
        with isolate_rng():
            for logger in _tensorboard_loggers(trainer):
                _add_charts(logger, pl_module)
                _add_text(logger, trainer.global_step)
                _add_settings(logger, trainer, pl_module)
                for name, draw in (("graph", _add_graph), ("samples", _add_samples)):
                    try:
                        draw(logger, trainer, pl_module)
                    except Exception as error:  # a network that cannot be traced can still be trained
                        logger.experiment.add_text(name, f"not drawn: {error}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_epoch_scalars(trainer)
        self.unwritten_epoch = trainer.current_epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_epoch_scalars(trainer)
        if self.draw_waiting is not None:
            self.draw_waiting()
        for writer in self.writers.values():
            writer.close()

    def _write_epoch_scalars(self, trainer: Trainer) -> None:
        """Write the metrics of the last complete epoch. Its training loss exists only after the epoch's hooks."""
        epoch, self.unwritten_epoch = self.unwritten_epoch, None
        if epoch is None or not trainer.is_global_zero:
            return
        logged = [metric for metric in METRICS_BY_EPOCH if metric in trainer.callback_metrics]
        for logger, metric in product(_tensorboard_loggers(trainer), logged):
            part, name = METRICS_BY_EPOCH[metric]
            folder = f"{logger.log_dir}/{part}"
            if part and folder not in self.writers:  # after a resume, its epochs replace those of the killed run
                self.writers[folder] = SummaryWriter(folder, purge_step=epoch + 1)
            writer = self.writers.get(folder, logger.experiment)
            writer.add_scalar(f"by_epoch/{name}", trainer.callback_metrics[metric], epoch + 1)
            writer.flush()

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._collects_predictions(trainer, pl_module) or dataloader_idx:
            return
        if not isinstance(outputs, dict) or not {"output", "target"} <= outputs.keys():
            name = type(pl_module).__name__
            print_once(f"no confusion matrix: validation_step of {name} returns no dict with output and target")
        else:
            size, (confidence, predicted) = outputs["output"].shape[-1], outputs["output"].float().softmax(-1).max(-1)
            rows = torch.stack([outputs["target"], predicted, confidence]).cpu().double()  # (3, B), one copy from a GPU
            target, predicted = rows[:2].long()
            if self.matrix is None:
                self.matrix, self.mistakes = torch.zeros(size, size).long(), torch.empty(0, 4).double()
            cells = (target * size + predicted)[target >= 0]  # other rows only fill the last batch
            self.matrix.view(-1).put_(cells, torch.ones_like(cells), accumulate=True)
            batches = batch_idx * trainer.world_size + trainer.global_rank  # before this one; see EvalSampler
            places = batches * (getattr(_loader(trainer), "batch_size", None) or 1) + torch.arange(len(target))
            rows = torch.cat([rows, places[None]])[:, (target != predicted) & (target >= 0)]  # (4, mistakes)
            self.mistakes = _worst(torch.cat([self.mistakes, rows.T]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        matrix, self.matrix = self.matrix, None
        if matrix is None or not self.best.improved(trainer.callback_metrics):
            return
        # All ranks have the same metrics, so either all ranks or no rank call this collective operation.
        matrices, mistakes = zip(*gather_objects(trainer, (matrix, self.mistakes)), strict=True)
        if not trainer.is_global_zero:
            return
        worst = _worst(torch.cat(mistakes)).tolist()
        answers = [(int(target), int(predicted), confidence) for target, predicted, confidence, _ in worst]
        loader, places = _loader(trainer), [int(row[3]) for row in worst]
        step = trainer.global_step - 1  # as val_loss: a resumed run removes later steps
        dataset = _pictures_of(loader) if isinstance(getattr(loader, "sampler", None), EvalSampler) else None
        self.draw_waiting = partial(self._draw, trainer, sum(matrices), dataset, places, answers, step)
        if self.drawing_seconds <= DRAWING_TIME_SHARE * (time.monotonic() - self.start_time):
            self.draw_waiting()

    def _draw(
        self, trainer: Trainer, matrix: Tensor, dataset: Any, worst: list[int], answers: list[Any], step: int
    ) -> None:
        """Draw the confusion matrix, and the mistakes with the indices ``worst`` if ``dataset`` is not None."""
        start_time, self.draw_waiting = time.monotonic(), None
        names = data_of(trainer).class_names or ()
        if len(names) != len(matrix):
            names = [str(label) for label in range(len(matrix))]
        drawn = {"confusion_matrix": figures.draw_confusion(matrix, names)}
        with isolate_rng():  # augmentation uses random numbers
            pictures = _network_inputs_as_pictures(trainer, dataset, worst)
        if pictures is not None:
            paths = getattr(dataset, "paths", None)
            files = None if paths is None else [str(paths[index]) for index in worst]
            drawn["most_confident_mistakes"] = figures.draw_mistakes(pictures, names, answers, files)
        for logger in _tensorboard_loggers(trainer):
            for name, figure in drawn.items():
                logger.experiment.add_figure(f"validation/{name}", figure, step)
        self.drawing_seconds += time.monotonic() - start_time

    @staticmethod
    def _collects_predictions(trainer: Trainer, pl_module: LightningModule) -> bool:
        """Return True if a classifier is trained with TensorBoard, except during the sanity check."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        return fitting and _is_classifier(pl_module) and bool(_tensorboard_loggers(trainer))


def _worst(mistakes: Tensor) -> Tensor:
    """Return the most confident mistakes. Of two with the same probability, the one that is earlier in the dataset."""
    in_order = mistakes[mistakes[:, 3].argsort()]
    return in_order[in_order[:, 2].argsort(descending=True, stable=True)[:MISTAKE_COUNT]]


def _loader(trainer: Any) -> Any:
    return trainer.val_dataloaders[0] if isinstance(trainer.val_dataloaders, list) else trainer.val_dataloaders


def _tensorboard_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _is_classifier(model: LightningModule) -> bool:
    return isinstance(model, LitBase) and model.task == "classification"


def _pictures_of(loader: Any) -> Any:
    """Return the dataset of a loader. If it contains cached features, return the dataset of their pictures."""
    dataset = getattr(loader, "dataset", None)
    return getattr(dataset, "pictures", dataset)


def _network_inputs_as_pictures(trainer: Trainer, dataset: Any, indices: list[int]) -> Tensor | None:
    """Return the network's inputs as pictures (B, 3, H, W) in [0, 1], or None if the inputs are not pictures."""
    preprocessing = data_of(trainer).preprocessing
    if dataset is None or not (indices and preprocessing):
        return None
    inputs = [dataset[index][0] for index in indices]
    return figures.undo_normalization(torch.stack(inputs), preprocessing) if inputs[0].ndim == 3 else None


def _add_samples(logger: TensorBoardLogger, trainer: Trainer, model: LightningModule) -> None:
    """Draw training pictures, evenly spaced in the dataset, with their class names, augmented as in the first epoch."""
    data, dataset = data_of(trainer), _pictures_of(trainer.train_dataloader)
    if not (data.class_names and data.preprocessing):
        return
    count = min(SAMPLE_COUNT, len(dataset))
    indices = [number * len(dataset) // count for number in range(count)]
    pictures = _network_inputs_as_pictures(trainer, dataset, indices)
    if pictures is not None:
        figure = figures.draw_sheet(pictures, [data.class_names[int(dataset[index][1])] for index in indices])
        logger.experiment.add_figure("training/samples", figure, trainer.global_step)


def _add_charts(logger: TensorBoardLogger, model: LightningModule) -> None:
    """Write the curves of each chart in the tab CUSTOM SCALARS. "Margin" charts, of three curves, are not smoothed."""
    by_epoch = {"training and validation loss": ["Margin", ["by_epoch/loss"] * 3]}
    if _is_classifier(model):
        by_epoch["validation accuracy"] = ["Margin", ["by_epoch/accuracy"] * 3]
    by_step = {"training loss of single batches": ["Multiline", ["^train_loss_step$"]]}
    logger.experiment.add_custom_scalars({"by epoch": by_epoch, "by step": by_step})


def _add_text(logger: TensorBoardLogger, step: int) -> None:
    """Write command and configuration. Each resume writes its own at its step; those of the first start stay."""
    logger.experiment.add_text("command", f"    {shlex.join(['python', *sys.argv])}", step)
    config = Path(logger.log_dir) / CONFIG
    if config.is_file():
        logger.experiment.add_text("config", textwrap.indent(config.read_text(encoding="utf-8"), "    "), step)


def _add_settings(logger: TensorBoardLogger, trainer: Trainer, model: LightningModule) -> None:
    """Write the settings of the run to the tab HPARAMS. TensorBoard shows the logged metrics with these names there."""
    data: Any = getattr(trainer, "datamodule", None)
    settings = {"model": type(model).__name__, **model.hparams}
    if data is not None:
        settings |= {"data": type(data).__name__, **{f"data.{name}": value for name, value in data.hparams.items()}}
    settings["optimizer"] = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
    settings |= {"seed": os.environ.get("PL_GLOBAL_SEED"), "devices": trainer.world_size, "epochs": trainer.max_epochs}
    simple = {name: value if isinstance(value, int | float | str) else str(value) for name, value in settings.items()}
    metrics = ["val_acc", "val_loss", "train_loss"] if _is_classifier(model) else ["val_loss", "train_loss"]
    summaries = hparams(simple, dict.fromkeys(metrics, 0.0))
    # TensorBoard sorts the columns: first those marked as different between runs, then by name.
    content = HParamsPluginData.FromString(summaries[0].value[0].metadata.plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in FIRST_SETTINGS
    summaries[0].value[0].metadata.plugin_data.content = content.SerializeToString()
    for summary in summaries:
        logger.experiment.file_writer.add_summary(summary)


def _add_graph(logger: TensorBoardLogger, trainer: Trainer, model: LightningModule) -> None:
    """Write the graph of the network, unless a strategy splits it."""
    shape = data_of(trainer).sample_shape
    if shape is None or not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        return
    dtype: Any = model.dtype  # a half-precision network needs half-precision input
    example = torch.zeros(1, *shape, device=model.device, dtype=dtype)
    no_output = contextlib.redirect_stdout(io.StringIO())
    with evaluation_mode(model), torch.no_grad(), warnings.catch_warnings(), no_output:
        warnings.simplefilter("ignore")  # tracing warns about Python branches in the network
        # Trace a plain module that contains the model. The graph shows its class name on the outermost box.
        wrapped = type(type(model).__name__, (torch.nn.Module,), {"forward": lambda self, x: self.model(x)})()
        wrapped.model = model
        # Pass a traced model: otherwise add_graph traces twice to compare the results, which is slow.
        logger.experiment.add_graph(torch.jit.trace(wrapped, example, check_trace=False), example)
