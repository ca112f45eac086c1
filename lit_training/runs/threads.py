"""Choose the number of torch's threads from the network, the batch and the cores, never from the load measured."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from datamodules.image_folder import ImageFolderDataModule
from datamodules.machine import available_cores
from lit_models.base import read_attribute
from lit_training.runs.devices import evaluation_mode
from lit_training.runs.own_classes import why_not_cached, with_default_attributes

FLOPS_PER_THREAD = 16_000_000
"""With fewer FLOPs per layer and thread, the threads wait for each other longer than they compute (measured)."""
FEATURE_BATCH_SIZE = 32  # pictures per batch when the features of a frozen backbone are computed


def count_flops(model: nn.Module, x: Tensor, **options: Any) -> int:
    """Count the FLOPs of ``model(x, **options)`` in matrix products and convolutions. A multiply-add is 2 FLOPs."""
    from torch.utils.flop_counter import FlopCounterMode  # here, because the import takes 0.1 s

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, **options)
    return counter.get_total_flops()


def choose_threads(model: nn.Module, example: Tensor | None, batch_size: Any, processes: int = 1) -> int:
    """Return the number of threads for one of ``processes`` processes, which share the cores of this machine.

    ``example`` is an input with one sample. Use all cores if there is none, or the model cannot compute it.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    cores = max(1, available_cores() // processes)
    no_output = contextlib.redirect_stdout(io.StringIO())
    with isolate_rng(), evaluation_mode(model), no_output, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if any(map(is_lazy, model.parameters())):  # their first input initializes them: that must be training data
                return cores
            flops = count_flops(model, example) * batch_size  # type: ignore[arg-type]
            layers = sum(parameter.ndim > 1 for parameter in model.parameters())
            return min(cores, max(1, flops // (FLOPS_PER_THREAD * layers)))
        except Exception:  # the model may be any class of the user
            return cores


def threads_of_new_run(trainer: Any, model: Any, data: Any) -> tuple[int, int]:
    """Return the numbers of threads for training, and for computing the features of a frozen backbone."""
    attributes = with_default_attributes(data)
    shape, batch_size = read_attribute(data, "sample_shape"), attributes.hparams.get("batch_size")
    example = None if shape is None else torch.zeros(1, *shape)
    all_layers = choose_threads(model, example, FEATURE_BATCH_SIZE, trainer.num_devices)
    head = getattr(model, "head", None)
    is_cached = getattr(model, "fixed_features", False) and isinstance(data, ImageFolderDataModule) and not data.augment
    if is_cached and isinstance(head, nn.Linear) and not why_not_cached(model, data, trainer.callbacks):
        example = torch.zeros(1, head.in_features)  # FeatureCache: training computes the head only
    return choose_threads(model, example, batch_size, trainer.num_devices), all_layers


@contextlib.contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads inside the ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
