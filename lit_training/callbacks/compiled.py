"""Compile what the model's forward does, for ``--compile``."""

import logging
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.text import print_once
from lit_training.errors import UsageError
from lit_training.runs.lightning_internals import compile_error, compile_in_place

BACKEND = "inductor"


class CompileForward(Callback):
    """Compile the model's ``forward`` in place. The names in its checkpoints stay the same.

    For an exact resume, each shape of the input gets its own code, and random numbers are those of the uncompiled
    network. Unless ``mode`` is ``default``, CUDA graphs are recorded on CUDA; callers get copies of their outputs.
    """

    def __init__(self, mode: bool | str) -> None:
        self.mode, self.calls = mode, 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        has_graphs = self.mode != "default" and trainer.strategy.root_device.type == "cuda"
        options: Any = {"fallback_random": True, "triton.cudagraphs": has_graphs}
        loggers = map(logging.getLogger, ("torch", "torch._dynamo", "torch._inductor"))
        for handler in [handler for logger in loggers for handler in logger.handlers]:
            handler.addFilter(_is_shown)
        forward = type(pl_module).forward

        def call(compiled: Any, eager: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(pl_module.forward, "__func__", None) is not forward:
                return eager(*args, **kwargs)  # with DDP, Lightning calls training_step by the name of forward
            self.calls += pl_module.training
            try:
                output = compiled(*args, **kwargs)
            except compile_error() as error:
                eager(*args, **kwargs)  # raises the error of a forward that is wrong
                reason = next((line for line in str(error).splitlines() if ": " in line), "")
                problem = f"--compile: torch cannot compile {type(pl_module).__name__} ({reason})"
                raise UsageError(f"{problem}: leave --compile out, or install its compiler (g++)") from error
            return apply_to_collection(output, torch.Tensor, torch.Tensor.clone) if has_graphs else output

        options = options if BACKEND == "inductor" else None
        compile_in_place(pl_module, call, backend=BACKEND, dynamic=False, options=options)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.calls:
            print_once(f"--compile has no effect: training_step of {type(pl_module).__name__} does not call self(...)")


def _is_shown(record: logging.LogRecord) -> bool:
    """Hide the warnings of the compiler. If it gives up because of too many shapes, print a note instead."""
    if "recompile_limit" in record.getMessage():
        print_once("forward gets too many kinds of input: not all are compiled, so a resumed run can differ a little")
    return record.levelno >= logging.ERROR
