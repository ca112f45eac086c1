"""What TensorBoard shows of a run beyond the scalars that the model logs."""

import contextlib
import io
import os
import shlex
import sys
import time
import warnings
from dataclasses import dataclass
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

from datamodules.loading.order import EvalSampler, in_input_order
from lit_models import LitBase
from lit_training import figures
from lit_training.runs.best_epoch import BestSoFar
from lit_training.runs.devices import evaluation_mode
from lit_training.runs.foreign import data_of
from lit_training.runs.layout import CONFIG

SAMPLES, MISTAKES = 16, 12
DRAWING = 0.02
"""Share of a run's time that its figures of the best epoch may take; what is over it waits until there is time, or
for the end, and only the newest is then drawn."""
BY_EPOCH = ("train_loss", "val_loss", "val_acc", "samples_per_second")


@dataclass(frozen=True)
class BestAnswers:
    """What the best epoch up to now answered: a confusion matrix (K, K) int64, and its most confident mistakes, as
    numbers of samples with their class, the class that they were taken for and its probability, (B,) each."""

    step: int
    names: list[str]
    matrix: Tensor
    worst: list[int]
    labels: list[int]
    predicted: list[int]
    probability: list[float]


class Dashboard(Callback):
    """Fills TensorBoard's tabs.

    At the start: the model's graph, training pictures as the network sees them, settings for the tab HPARAMS, the
    command and the configuration as text, charts that join training and validation. After each epoch: its scalars
    against the epoch. When the best epoch improves: the confusion matrix and the most confident mistakes, not more
    often than :data:`DRAWING` allows; those of the best epoch are there at the end.

    It looks on: random states and the modes of all modules are afterwards what they were before.

    Args:
        monitor: the metric that decides which epoch is best, if any.
        mode: ``max`` or ``min``.
    """

    def __init__(self, monitor: str | None, mode: str) -> None:
        self.best = BestSoFar(monitor, mode)
        self.rows: list[Tensor] = []
        self.epoch_due: int | None = None
        self.undrawn: BestAnswers | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best.value = state_dict["best"]

    # --- at the start ---------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch_due = self.undrawn = None
        self.started, self.drawing = time.monotonic(), 0.0
        if not trainer.is_global_zero:
            return
        for logger in _tensorboards(trainer):
            _add_charts(logger, pl_module)
            _add_text(logger)
            _add_settings(logger, trainer, pl_module)
            if isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):  # others split the network up
                _add_graph(logger, trainer, pl_module)
            _add_samples(logger, trainer)

    # --- each epoch -----------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add_epoch(trainer)
        self.epoch_due = trainer.current_epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._add_epoch(trainer)
        if self.undrawn is not None:
            self._draw(trainer, self.undrawn)

    def _add_epoch(self, trainer: Trainer) -> None:
        """The scalars of the epoch that has ended; its training loss is known only after the epoch's last hook."""
        if self.epoch_due is not None and trainer.is_global_zero:
            for logger in _tensorboards(trainer):
                for name in BY_EPOCH:
                    if name in trainer.callback_metrics:
                        value = trainer.callback_metrics[name]
                        logger.experiment.add_scalar(f"by_epoch/{name}", value, self.epoch_due + 1)
        self.epoch_due = None

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
        # Every rank comes here, for the metric is the same on all.
        loader = _val_loader(trainer)
        if _in_order(loader):
            rows = in_input_order(trainer, rows, loader)  # (N, 3)
        else:
            rows = trainer.strategy.all_gather(rows).flatten(0, -2)  # of all ranks
        if not trainer.is_global_zero:
            return
        target, predicted, confidence = rows.cpu().T  # (N,) each
        target, predicted = target.long(), predicted.long()
        names = _class_names(trainer, self.num_classes)
        known = target >= 0  # negative ones count for nothing
        matrix = multiclass_confusion_matrix(predicted[known], target[known], len(names))
        confidence = confidence.masked_fill((target == predicted) | ~known, 0)
        worst = confidence.argsort(descending=True)[:MISTAKES]
        worst = worst[confidence[worst] > 0]
        answers = [column[worst].tolist() for column in (target, predicted, confidence)]
        self.undrawn = BestAnswers(trainer.global_step, names, matrix, worst.tolist(), *answers)
        if self.drawing <= DRAWING * (time.monotonic() - self.started):
            self._draw(trainer, self.undrawn)

    def _draw(self, trainer: Trainer, best: BestAnswers) -> None:
        begun, self.undrawn = time.monotonic(), None
        mistakes = self._mistakes(trainer, best)
        for logger in _tensorboards(trainer):
            logger.experiment.add_figure(
                "validation/confusion_matrix", figures.confusion(best.matrix, best.names), best.step
            )
            if mistakes is not None:
                logger.experiment.add_figure("validation/most_confident_mistakes", mistakes, best.step)
        self.drawing += time.monotonic() - begun

    @staticmethod
    def _mistakes(trainer: Trainer, best: BestAnswers) -> Any:
        loader = _val_loader(trainer)
        if not _in_order(loader):
            return None
        data = _pictures_of(loader)
        pictures = _network_view(trainer, data, best.worst)
        if pictures is None:
            return None
        files = getattr(data, "paths", None)
        named = None if files is None else [str(files[index]) for index in best.worst]
        return figures.mistakes(pictures, best.names, best.labels, best.predicted, best.probability, named)

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
    """Whether it is known which row is which sample."""
    return isinstance(getattr(loader, "sampler", None), EvalSampler)


def _is_classifier(model: LightningModule) -> bool:
    return isinstance(model, LitBase) and model.task == "classification"


def _class_names(trainer: Trainer, count: int) -> list[str]:
    names = data_of(trainer).class_names or ()
    return list(names) if len(names) == count else [str(label) for label in range(count)]


def _pictures_of(loader: Any) -> Any:
    """The data set of a loader; where it holds a backbone's features, the pictures that they were computed from."""
    dataset = getattr(loader, "dataset", None)
    return getattr(dataset, "pictures", dataset)


def _network_view(trainer: Trainer, dataset: Any, indices: list[int]) -> Tensor | None:
    """Pictures of a data set as the network sees them, (B, 3, H, W) in [0, 1]; None where there are none."""
    preprocessing = data_of(trainer).preprocessing
    if not (indices and preprocessing):
        return None
    with isolate_rng():  # reading may draw
        inputs = [dataset[index][0] for index in indices]
    return figures.pixels(torch.stack(inputs), preprocessing) if inputs[0].ndim == 3 else None


def _add_samples(logger: TensorBoardLogger, trainer: Trainer) -> None:
    """Training pictures at even distances through the data, augmented as in the first epoch."""
    dataset: Any = _pictures_of(trainer.train_dataloader)
    data = data_of(trainer)
    names = data.class_names
    if not (names and data.preprocessing):
        return
    count = min(SAMPLES, len(dataset))
    indices = [place * len(dataset) // count for place in range(count)]
    with isolate_rng():
        labels = [int(dataset[index][1]) for index in indices]
    pictures = _network_view(trainer, dataset, indices)
    if pictures is not None:
        drawn = figures.sheet(pictures, [names[label] for label in labels])
        logger.experiment.add_figure("training/samples", drawn, trainer.global_step)


def _add_charts(logger: TensorBoardLogger, model: LightningModule) -> None:
    """The tab CUSTOM SCALARS: which curves lie over one another."""
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
        indented = "\n".join(f"    {line}" for line in config.read_text(encoding="utf-8").splitlines())
        logger.experiment.add_text("config", indented)


def _add_settings(logger: TensorBoardLogger, trainer: Trainer, model: LightningModule) -> None:
    """The run's row in the tab HPARAMS; its metrics are the last values of the scalars of these names."""
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
    metrics = ["val_loss", "train_loss"]
    if _is_classifier(model):
        metrics.insert(0, "val_acc")
    for summary in hparams(plain, dict.fromkeys(metrics, 0.0)):
        logger.experiment.file_writer.add_summary(summary)


def _add_graph(logger: TensorBoardLogger, trainer: Trainer, model: LightningModule) -> None:
    shape = data_of(trainer).sample_shape
    if shape is None:
        return
    dtype: Any = model.dtype  # a half-precision network takes nothing else
    example = torch.zeros(1, *shape, device=model.device, dtype=dtype)
    silent = contextlib.redirect_stdout(io.StringIO())
    with evaluation_mode(model), isolate_rng(), torch.no_grad(), warnings.catch_warnings(), silent:
        warnings.simplefilter("ignore")  # tracing warns of Python branches, which is what it is to show
        try:
            # The class's name is what the graph's outermost box is called.
            named = type(type(model).__name__, (_Forward,), {})
            # Traced here, because add_graph would trace twice, to compare: a second for a backbone.
            logger.experiment.add_graph(torch.jit.trace(named(model), example, check_trace=False), example)
        except Exception as error:  # a network that cannot be traced can still be trained
            logger.experiment.add_text("graph", f"not drawn: {error}")


class _Forward(torch.nn.Module):
    """A plain module around a LightningModule's forward, which is all that a graph is drawn of."""

    def __init__(self, model: LightningModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
