"""What TensorBoard shows of a run beyond the scalars that the model logs."""

import contextlib
import io
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
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

from datamodules.loading import EvalSampler
from lit_models import LitBase
from lit_training import figures
from lit_training.console import BestSoFar, samples_in
from lit_training.prediction import in_input_order

SAMPLES, MISTAKES = 16, 12
DRAWING = 0.02
"""Share of a run's time that its figures of the best epoch may take; what is over it waits until there is time, or
for the end, and only the newest is then drawn."""
BY_EPOCH = ("train_loss", "val_loss", "val_acc", "samples_per_second")


class Throughput(Callback):
    """Logs ``samples_per_second``, once an epoch: what all devices together trained on, validation left out."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.samples, self.paused, self.started = 0, 0.0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.samples += samples_in(batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.pause = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.paused += time.monotonic() - self.pause

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = time.monotonic() - self.started - self.paused
        speed = self.samples * trainer.world_size / max(seconds, 1e-9)
        pl_module.log("samples_per_second", speed, sync_dist=trainer.world_size > 1)


@dataclass(frozen=True)
class Best:
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
        self.undrawn: Best | None = None

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
        for logger in _boards(trainer):
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
            for logger in _boards(trainer):
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
        pairs = target[known] * len(names) + predicted[known]
        matrix = torch.bincount(pairs, minlength=len(names) ** 2).view(len(names), -1)
        confidence = confidence.masked_fill((target == predicted) | ~known, 0)
        worst = confidence.argsort(descending=True)[:MISTAKES]
        worst = worst[confidence[worst] > 0]
        answers = [column[worst].tolist() for column in (target, predicted, confidence)]
        self.undrawn = Best(trainer.global_step, names, matrix, worst.tolist(), *answers)
        if self.drawing <= DRAWING * (time.monotonic() - self.started):
            self._draw(trainer, self.undrawn)

    def _draw(self, trainer: Trainer, best: Best) -> None:
        begun, self.undrawn = time.monotonic(), None
        mistakes = self._mistakes(trainer, best)
        for logger in _boards(trainer):
            logger.experiment.add_figure(
                "validation/confusion_matrix", figures.confusion(best.matrix, best.names), best.step
            )
            if mistakes is not None:
                logger.experiment.add_figure("validation/most_confident_mistakes", mistakes, best.step)
        self.drawing += time.monotonic() - begun

    @staticmethod
    def _mistakes(trainer: Trainer, best: Best) -> Any:
        loader = _val_loader(trainer)
        if not _in_order(loader):
            return None
        data = _pictures_of(loader)
        pictures = _as_seen(trainer, data, best.worst)
        if pictures is None:
            return None
        files = getattr(data, "paths", None)
        named = None if files is None else [str(files[index]) for index in best.worst]
        return figures.mistakes(pictures, best.names, best.labels, best.predicted, best.probability, named)

    @staticmethod
    def _classifies(trainer: Trainer, pl_module: LightningModule) -> bool:
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        return fitting and _is_classifier(pl_module) and bool(_boards(trainer))


def _boards(trainer: Trainer) -> list[TensorBoardLogger]:
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
    names = getattr(getattr(trainer, "datamodule", None), "class_names", None) or ()
    return list(names) if len(names) == count else [str(label) for label in range(count)]


def _pictures_of(loader: Any) -> Any:
    """The data set of a loader; where it holds a backbone's features, the pictures that they were computed from."""
    dataset = getattr(loader, "dataset", None)
    return getattr(dataset, "pictures", dataset)


def _as_seen(trainer: Trainer, dataset: Any, indices: list[int]) -> Tensor | None:
    """Pictures of a data set as the network sees them, (B, 3, H, W) in [0, 1]; None where there are none."""
    preprocessing = getattr(getattr(trainer, "datamodule", None), "preprocessing", None)
    if not (indices and preprocessing):
        return None
    with isolate_rng():  # reading may draw
        inputs = [dataset[index][0] for index in indices]
    return figures.pixels(torch.stack(inputs), preprocessing) if inputs[0].ndim == 3 else None


def _add_samples(logger: TensorBoardLogger, trainer: Trainer) -> None:
    """Training pictures at even distances through the data, augmented as in the first epoch."""
    dataset: Any = _pictures_of(trainer.train_dataloader)
    data = getattr(trainer, "datamodule", None)
    names = getattr(data, "class_names", None)
    if not (names and getattr(data, "preprocessing", None)):
        return
    count = min(SAMPLES, len(dataset))
    indices = [place * len(dataset) // count for place in range(count)]
    with isolate_rng():
        labels = [int(dataset[index][1]) for index in indices]
    pictures = _as_seen(trainer, dataset, indices)
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
    config = Path(logger.log_dir) / "config.yaml"
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
    shape = getattr(getattr(trainer, "datamodule", None), "sample_shape", None)
    if shape is None:
        return
    dtype: Any = model.dtype  # a half-precision network takes nothing else
    example = torch.zeros(1, *shape, device=model.device, dtype=dtype)
    with _undisturbed(model), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # tracing warns of Python branches, which is what it is to show
        try:
            # The class's name is what the graph's outermost box is called.
            named = type(type(model).__name__, (_Forward,), {})
            # Traced here, because add_graph would trace twice, to compare: a second for a backbone.
            logger.experiment.add_graph(torch.jit.trace(named(model), example, check_trace=False), example)
        except Exception as error:  # a network that cannot be traced can still be trained
            logger.experiment.add_text("graph", f"not drawn: {error}")


@contextlib.contextmanager
def _undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards random states and each module's mode are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    with isolate_rng(), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


class _Forward(torch.nn.Module):
    """A plain module around a LightningModule's forward, which is all that a graph is drawn of."""

    def __init__(self, model: LightningModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)
