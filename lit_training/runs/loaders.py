"""Make the batches of any training loader repeatable, so that a resumed run gets the same batches."""

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DistributedSampler

from datamodules.loading.seeds import combine_seeds
from lit_training.runs.own_state import OwnState

MAX_NUMBERS = 10_000


def seed_random_numbers(seed: int, device: torch.device) -> None:
    """Seed the global generators of torch, numpy and Python. This takes 10 us."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed is slower, because it seeds all devices
    np.random.seed(seed % 2**32)
    random.seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class RepeatableLoader:
    """Wrap a training loader, which may be any iterable. Its batches depend only on seed, epoch and their number.

    ``resume_point.loaded`` is {}, or tells what a resumed run must restore. The batches before it are loaded again
    and dropped, but if the loader has a ``state_dict``, Lightning restores its position. It keeps its attributes.
    """

    def __init__(self, loader: Any, trainer: Trainer, seed: int, resume_point: Any) -> None:
        own = SimpleNamespace(loader=loader, trainer=trainer, seed=seed, resume_point=resume_point)
        own.has_state, own.start, own.epoch, own.passes, own.skip = False, {}, -1, 0, 0
        vars(self)["own"] = own
        if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
            vars(self).update(state_dict=loader.state_dict, load_state_dict=loader.load_state_dict)
            own.has_state = True
        own.first = self._state().digests()

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["own"].loader, name)

    def __setattr__(self, name: str, value: Any) -> None:  # for example Lightning sets worker_init_fn
        setattr(self.own.loader, name, value)

    def __len__(self) -> int:
        return len(self.own.loader)

    # Lightning may call iter() before the epoch begins. The body of a generator runs later, at the first batch.
    def __iter__(self) -> Iterator[Any]:
        own, device = self.own, self.own.trainer.strategy.root_device
        resumed = own.resume_point.loaded if own.resume_point else {}
        if (epoch := resumed.get("epoch", own.trainer.current_epoch)) != own.epoch:
            if resumed.get("loaders"):
                states = resumed["loaders"][own.trainer.global_rank]
                self._state().restore(states[repeatable_loaders(own.trainer).index(self)], device)
            own.epoch, own.passes, own.start = epoch, 0, self._state().values
        if not own.passes:  # otherwise a longer loader continues, and this one starts again in the same epoch
            self._state().restore(own.start, device)
            own.skip = resumed.get("batches", 0)
        seed = combine_seeds(own.seed, epoch, own.passes)
        first = own.skip if own.has_state else 0  # the number of the loader's first batch
        own.skip -= first
        to_skip, number = own.skip, first
        seed_random_numbers(seed + first, device)
        for number, batch in enumerate(own.loader, first + 1):
            if own.skip:
                own.skip -= 1
            else:
                yield batch
            seed_random_numbers(seed + number, device)
        own.passes += 1
        if own.passes > 1 and to_skip >= number > 0:  # Lightning does not expect that a second pass gives no batch
            yield from self

    def _state(self) -> OwnState:
        """Return the state of the loader, its sampler and its dataset now, or no state if the loader saves its own."""
        return OwnState(None if self.own.has_state else self.own.loader, MAX_NUMBERS)

    def changed_state(self, finished: bool) -> dict[Any, Any]:
        """Return what had changed in the loader when this epoch began, or at the end if the run has finished."""
        state = self._state()
        state.values = state.values if finished else self.own.start
        return state.changed(self.own.first)


def repeatable_loaders(trainer: Trainer) -> list[RepeatableLoader]:
    """Return the training loaders in Lightning's order."""
    return [one for one in CombinedLoader(trainer.train_dataloader).flattened if isinstance(one, RepeatableLoader)]


def shuffled(trainer: Trainer) -> list[Any]:
    """Return for each training loader if it shuffles. If its order depends on the number of processes, return that."""
    samplers = [getattr(one, "sampler", None) for one in repeatable_loaders(trainer)]
    return [one.shuffle if isinstance(one, DistributedSampler) else f"on {trainer.world_size}" for one in samplers]
