"""Callbacks for ``fit.py --callbacks``. They set the network's outputs or the clock, end the run, or record it."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

NAME = "tests.support.scripted"
CLOCKS = ("monotonic", "perf_counter", "time")
"""Functions of ``time`` that return the time."""
FAVOURITES = ((1, 2.0), (2, 0.3), (3, 4.0), (0, 1.0), (3, 6.0), (2, 2.5))
"""The output of a classifier for all inputs, per epoch: a class, and its logit (the other logits are 0)."""
GUESSES = (5.0, 3.0, 0.0, 9.0, 4.0, 2.0)
"""The output of a regression for all inputs, per epoch."""


def answer(epoch: int, outputs: int) -> Tensor:
    """Return the output of the network after an epoch (from 1), (outputs,). With 4 outputs it is a classifier."""
    place = (epoch - 1) % len(FAVOURITES)
    if outputs != 4:
        return torch.full((outputs,), GUESSES[place])
    favourite, lead = FAVOURITES[place]
    return torch.eye(4)[favourite] * lead


class Scripted(Callback):
    """Makes the network output :func:`answer` for all inputs, before the validation of each epoch."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return  # the evaluation at the end uses the best weights
        layer = [module for module in pl_module.modules() if isinstance(module, nn.Linear)][-1]
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(answer(trainer.current_epoch + 1, len(layer.bias)))


def put_clock_back(patch: pytest.MonkeyPatch) -> None:
    """Make ``patch`` restore the real clock at its end. Call this function before a run with :class:`Clock`."""
    for name in CLOCKS:
        patch.setattr(time, name, getattr(time, name))


class Clock(Callback):
    """Replaces the clock: it advances :attr:`STEP` seconds per training batch and :attr:`LOOK` per validation batch.

    Call :func:`put_clock_back` first.
    """

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
    """A clock with one hour per step, so that the run saves a resume point after each step."""

    STEP = 3600.0


class Killed(BaseException):
    """Simulates a kill within the process."""


class Kill(Callback):
    """Ends the run during the step whose number is in the file ``kill``."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if Path("kill").exists() and trainer.global_step == int(Path("kill").read_text()):
            raise Killed


class Depths(Callback):
    """Records how often each training step of a LitDynamic uses its middle layer."""

    seen: list[int] = []  # noqa: RUF012

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        Depths.seen = []
        pl_module.net.middle_linear.register_forward_hook(lambda *_: self._count(pl_module.net.training))

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen.append(0)

    def _count(self, training: bool) -> None:
        if training:
            self.seen[-1] += 1
