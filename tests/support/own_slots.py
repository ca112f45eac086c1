"""A model and a callback of a user with state in ``__slots__``, and in settings of the Trainer."""

from array import array
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from tests.support.own_state import Net


class Decay:
    __slots__ = ("factor", "mean")

    def __init__(self) -> None:
        self.factor, self.mean = 1.0, torch.zeros(4)


@dataclass(slots=True, frozen=True)
class Seen:
    rows: Tensor


class Slots(Net):
    """Scales its loss with what it keeps in slots, in an array and in a frozen set."""

    def __init__(self) -> None:
        super().__init__()
        self.decay, self.seen = Decay(), deque[Seen](maxlen=3)
        self.numbers, self.known = array("d", [0.0, 0.0]), frozenset[int]()

    def weight(self, rows: Tensor) -> Any:
        self.decay.factor *= 0.9
        self.decay.mean = self.decay.mean + rows.mean(0)
        self.seen.append(Seen(rows))
        self.numbers[len(self.known) % 2] += 0.1
        self.known |= {int(rows.sum() * 1000)}
        parts: list[Any] = [self.decay.factor, self.decay.mean.sum(), self.numbers[0] - self.numbers[1]]
        return sum(parts) + len(self.known) / 9 + sum(one.rows.mean() for one in self.seen)


class Settings(Callback):
    """Changes settings of the Trainer in a step."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            trainer.gradient_clip_val, trainer.accumulate_grad_batches = 0.05, 2
