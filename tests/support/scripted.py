"""Callbacks for ``fit.py --callbacks``: with them the figures, the time and the end of a run are known beforehand."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

NAME = "tests.support.scripted"
CLOCKS = ("monotonic", "perf_counter", "time")
"""What programs read the time from."""
FAVOURITES = ((1, 2.0), (2, 0.3), (3, 4.0), (0, 1.0), (3, 6.0), (2, 2.5))
"""A classifier's answer to everything, epoch by epoch: a class, and by how much its logit is above the others."""
GUESSES = (5.0, 3.0, 0.0, 9.0, 4.0, 2.0)
"""A regression's answer to everything, epoch by epoch."""


def answer(epoch: int, outputs: int) -> Tensor:
    """What a scripted network of 4 classes, or a scripted regression, answers after an epoch (from 1): (outputs,)."""
    place = (epoch - 1) % len(FAVOURITES)
    if outputs != 4:
        return torch.full((outputs,), GUESSES[place])
    favourite, lead = FAVOURITES[place]
    return torch.eye(4)[favourite] * lead


class Scripted(Callback):
    """Before the validation of each epoch it makes the network answer :func:`answer` to everything."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return  # the evaluation at the end is of the best weights
        layer = [module for module in pl_module.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(answer(trainer.current_epoch + 1, len(layer.bias)))


def put_clock_back(patch: pytest.MonkeyPatch) -> None:
    """The real clock is there again when ``patch`` ends, whatever :class:`Clock` did meanwhile."""
    for name in CLOCKS:
        patch.setattr(time, name, getattr(time, name))


class Clock(Callback):
    """The program's clock stands still, but for :attr:`STEP` seconds a training batch and :attr:`LOOK` a validation
    batch. A test calls :func:`put_clock_back` before."""

    STEP, LOOK = 1 / 1024, 64.0
    now = 1000.0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for name in CLOCKS:
            setattr(time, name, lambda: Clock.now)

    def on_train_batch_start(self, *_: Any) -> None:
        Clock.now += self.STEP

    def on_validation_batch_start(self, *_: Any) -> None:
        Clock.now += self.LOOK


class Slow(Clock):
    """Steps of an hour: the run saves a resume point between any two of them."""

    STEP = 3600.0


class Killed(BaseException):
    """As sudden as it gets within one process."""


class Kill(Callback):
    """Ends the run in the middle of the step whose number stands in the file ``kill``."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if Path("kill").exists() and trainer.global_step == int(Path("kill").read_text()):
            raise Killed


class Depths(Callback):
    """Notes how often each training step of a LitDynamic used its middle layer."""

    seen: list[int] = []  # noqa: RUF012

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        Depths.seen = []
        pl_module.net.middle_linear.register_forward_hook(lambda *_: self._count(pl_module.net.training))

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen.append(0)

    def _count(self, training: bool) -> None:
        if training:
            self.seen[-1] += 1
