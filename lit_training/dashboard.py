"""What TensorBoard shows of a run beyond the scalars that the model logs."""

import warnings
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger


class Dashboard(Callback):
    """The model graph, and hyper-parameters with the metrics that the run reached.

    Args:
        monitor: the metric that decides which epoch is best.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shape = getattr(getattr(trainer, "datamodule", None), "sample_shape", None)
        if shape is None:
            return
        example = torch.zeros(1, *shape, device=pl_module.device)
        mode = pl_module.training
        pl_module.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of Python branches, which is what it is to show
            for logger in self._boards(trainer):
                logger.experiment.add_graph(_Forward(pl_module), example)
        pl_module.train(mode)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reached: dict[str, Any] = {
            name: float(trainer.callback_metrics[name])
            for name in ("val_acc", "val_loss", "train_loss")
            if name in trainer.callback_metrics
        }
        data: Any = getattr(trainer, "datamodule", None)
        settings = {"model": type(pl_module).__name__, **pl_module.hparams}
        if data is not None:
            settings |= {"data": type(data).__name__, **{f"data.{k}": v for k, v in data.hparams.items()}}
        for logger in self._boards(trainer):
            logger.log_hyperparams(settings, reached)

    @staticmethod
    def _boards(trainer: Trainer) -> list[TensorBoardLogger]:
        return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


class _Forward(torch.nn.Module):
    """A plain module around a LightningModule's forward, which is all that a graph is drawn of."""

    def __init__(self, model: LightningModule) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)
