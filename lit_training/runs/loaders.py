"""Seed the random numbers of each step and batch, so that a resumed run draws the same and gets the same batches."""

import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DistributedSampler

from datamodules.loading.seeds import combine_seeds
from datamodules.text import print_once
from lit_training.errors import TrainingError
from lit_training.runs.lightning_internals import set_last_reload_epoch
from lit_training.runs.own_classes import with_default_attributes
from lit_training.runs.own_state import MAX_NUMBERS, OwnState

NO_BATCH = "train_dataloader gives no batch in epoch {}: it has no samples, or fewer than one batch with drop_last=True"


def seed_random_numbers(seed: int, device: torch.device) -> None:
    """Seed the global generators of torch, numpy and Python. This takes 10 us."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed is slower, because it seeds all devices
    np.random.seed(seed % 2**32)
    random.seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class StepSeed(Callback):
    """Seed all random numbers before each epoch, batch and step, from the seed of the run and their number.

    In a step, each rank draws other numbers, unless the model has ``same_random_numbers_on_all_ranks``. With another
    number of processes than at first, it draws those of the first rank that had its share.
    """

    def __init__(self, seed: int, resume_point: Any = None) -> None:
        self.seed, self.resume_point = seed, resume_point

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            strategy, loop = trainer.strategy, trainer.fit_loop
            strategy.process_dataloader = partial(self._wrap, trainer, strategy.process_dataloader)  # type: ignore[method-assign]
            loop.setup_data = partial(self._set_up_data, trainer, loop.setup_data)  # type: ignore[method-assign]
            first: int = getattr(getattr(trainer, "start", None), "processes", trainer.world_size)
            is_same = with_default_attributes(pl_module).same_random_numbers_on_all_ranks
            self.rank = 0 if is_same else trainer.global_rank * first // trainer.world_size

    def _set_up_data(self, trainer: Trainer, set_up_data: Callable[[], None]) -> None:
        """Call train_dataloader(), which may draw random numbers, as if in the epoch in which the run called it."""
        epoch = self.resume_point.loaded.get("reload_epoch") if self.resume_point else None
        seed = combine_seeds(self.seed, trainer.current_epoch if epoch is None else epoch)
        seed_random_numbers(seed, trainer.strategy.root_device)
        set_up_data()
        if trainer.num_training_batches == 0:
            raise TrainingError(NO_BATCH.format(trainer.current_epoch + 1))
        if epoch is not None:
            set_last_reload_epoch(trainer, epoch)

    def _wrap(self, trainer: Trainer, process: Callable[[Any], Any], loader: Any) -> Any:
        """Make a training loader repeatable. Lightning calls this function for each loader that it gets."""
        loader = process(loader)
        if not trainer.training or isinstance(loader, RepeatableLoader):
            return loader
        is_iterator = any(isinstance(one, Iterator) for one in (loader, getattr(loader, "dataset", None)))
        keeps_workers = getattr(loader, "persistent_workers", False) and not hasattr(loader, "load_state_dict")
        if (is_iterator or keeps_workers) and self.resume_point and trainer.is_global_zero:
            reason = "an iterator cannot start again" if is_iterator else "its loader has persistent_workers=True"
            print(f"warning: the run may be different after an interruption: {reason}", file=sys.stderr, flush=True)
        return RepeatableLoader(loader, trainer, self.seed, self.resume_point)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seed_random_numbers(combine_seeds(self.seed, trainer.current_epoch), trainer.strategy.root_device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = (self.seed * 1_000_003 + trainer.fit_loop.total_batch_idx) * 4096 + self.rank
        seed_random_numbers(seed, trainer.strategy.root_device)


class RepeatableLoader:
    """Wrap a training loader, which may be any iterable. Its batches depend only on seed, epoch and their number.

    ``resume_point.loaded`` is {}, or tells what a resumed run must restore. The batches before it are loaded again
    and dropped, but if the loader has a ``state_dict``, Lightning restores its position. It keeps its attributes.
    """

    def __init__(self, loader: Any, trainer: Trainer, seed: int, resume_point: Any) -> None:
        own = SimpleNamespace(loader=loader, trainer=trainer, seed=seed, resume_point=resume_point)
        own.has_state, own.start, own.epoch, own.passes, own.skip = False, {}, -1, 0, 0
        own.is_fetching = False  # True if the next batch was requested, so that the step before is complete
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
        elif not own.passes:  # iter() was called before in this epoch
            self._state().restore(own.start, device)
        if not own.passes:  # otherwise a longer loader continues, and this one starts again in the same epoch
            own.skip = resumed.get("batches", 0)
        seed = combine_seeds(own.seed, epoch, own.passes)
        first = own.skip if own.has_state else 0  # the number of the loader's first batch
        own.skip -= first
        to_skip, number = own.skip, first
        seed_random_numbers(seed + first, device)
        for number, batch in enumerate(own.loader, first + 1):
            own.is_fetching = False
            if own.skip:
                own.skip -= 1
            else:
                yield batch
            own.is_fetching = True
            if not (getattr(own.trainer, "is_plain", False) and getattr(own.loader, "has_next", False)):
                seed_random_numbers(seed + number, device)
        if number == 0:
            if not own.trainer.global_step:
                raise TrainingError(NO_BATCH.format(epoch + 1))
            print_once(NO_BATCH.format(epoch + 1))
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
