"""Seed the random numbers of each step, so that they depend only on the seed of the run, the step and the rank."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.loading.seeds import combine_seeds
from lit_training.runs.foreign import with_default_attributes
from lit_training.runs.lightning_internals import set_last_reload_epoch
from lit_training.runs.loaders import RepeatableLoader, seed_random_numbers


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

    def _set_up_data(self, trainer: Trainer, set_up_data: Callable[[], None]) -> None:
        """Call train_dataloader(), which may draw random numbers, as if in the epoch in which the run called it."""
        epoch = self.resume_point.loaded.get("reload_epoch") if self.resume_point else None
        seed = combine_seeds(self.seed, trainer.current_epoch if epoch is None else epoch)
        seed_random_numbers(seed, trainer.strategy.root_device)
        set_up_data()
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
        first: int = getattr(getattr(trainer, "start", None), "processes", trainer.world_size)
        is_same = with_default_attributes(pl_module).same_random_numbers_on_all_ranks
        rank = 0 if is_same else trainer.global_rank * first // trainer.world_size
        seed = (self.seed * 1_000_003 + trainer.fit_loop.total_batch_idx) * 4096 + rank
        seed_random_numbers(seed, trainer.strategy.root_device)
