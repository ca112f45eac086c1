"""Errors that the user can fix. They are printed in one line on stderr, without traceback; the exit code is 2."""

import errno
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from datamodules.errors import DataError
from datamodules.text import is_rank_zero, printable

LIBRARIES = ("lightning.", "torch.optim.", "torch.nn.parallel.")
BASE = "lit_models.base."
PART = re.compile(r"lightning\.\w+\.(callbacks|loggers|plugins|profilers)\.")
SECONDS_FOR_RANK_ZERO = 15  # other ranks wait before they exit, so that rank 0 can print the error first


class UsageError(ValueError):
    """The command is wrong. The message is one line that says what is wrong and what to type."""


class CheckpointError(ValueError):
    """A checkpoint cannot be found, read or written. The message is one line that ends with what to type."""


class TrainingError(UsageError):
    """The run cannot continue."""


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """If the ``with`` block raises an error that the user can fix, print one line on stderr and exit with code 2.

    The line begins with the ``program``. After Ctrl-C the exit code is 130. If nobody reads the output, as after
    ``| head``, it is 141. Other errors are bugs: they are not caught.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        try:
            yield
        finally:
            print(end="", flush=True)  # when Python ends, a closed pipe would give a traceback
    except (KeyboardInterrupt, SystemExit) as error:
        if not any(isinstance(cause, KeyboardInterrupt) for cause in (error, error.__context__)):
            raise
        print(f"{program}: stopped", file=sys.stderr)  # Lightning replaces a KeyboardInterrupt by SystemExit(1)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        _drop_output()
        sys.exit(128 + 13)  # 13 is SIGPIPE, which Windows does not have
    except Exception as error:
        if not is_rank_zero() and re.search(r"(closed|reset) by peer", str(error)):
            sys.exit(2)  # the connection to another rank is lost: that rank failed and prints its error
        message = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:  # such as fit.py > FILE
            _drop_output()
            exit_with_error(program, f"the output cannot be written ({error.strerror}): free disk space, then repeat")
        if not isinstance(error, UsageError | CheckpointError | DataError):
            from lightning.pytorch.utilities.exceptions import MisconfigurationException  # here, because it is slow

            from lit_models import ModelError

            if gpu_message := explain_gpu_error(error):
                exit_with_error(program, gpu_message)
            is_bad_value = isinstance(error, ValueError | TypeError | RuntimeError) and is_library_error(error)
            part, wrong_model = part_of_lightning(error), explain_own_model(error)
            if not (part or wrong_model or is_bad_value or isinstance(error, ModelError | MisconfigurationException)):
                raise
            message = f"{part}: {message.rstrip('.')}; change or remove {part}" if part else wrong_model or message
        exit_with_error(program, message)


def _drop_output() -> None:
    """Let what Python still writes to stdout when it ends disappear, instead of failing again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(signum: int, frame: Any) -> None:
    """Raise a KeyboardInterrupt. End at once during an import: numpy and torch would crash with other errors."""
    if any("importlib._bootstrap" in caller.f_code.co_filename for caller, _ in traceback.walk_stack(frame)):
        os._exit(128 + signum)
    raise KeyboardInterrupt


def frames_of(error: BaseException) -> list[tuple[FrameType, str]]:
    """Return the frames that the error has left and the names of their modules, the innermost frame first."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [(frame, f"{frame.f_globals.get('__name__')}.") for frame in reversed(frames)]


def is_library_error(error: Exception) -> bool:
    """Return True if Lightning, torch's optimizers or DDP raised the error, for example for a wrong learning rate."""
    return any(module.startswith(LIBRARIES) for _, module in frames_of(error)[:1])


def part_of_lightning(error: Exception) -> str:
    """Return the class of the callback, logger or other part of Lightning that raised the error, itself or in torch."""
    for frame, module in frames_of(error):
        part = type(frame.f_locals.get("self"))
        if not PART.match(module) and (not module.startswith("torch.") or module.startswith(LIBRARIES)):
            break
        if PART.match(module) and part is not type(None) and not part.__module__.startswith("lit_training."):
            return part.__name__
    return ""


def explain_own_model(error: Exception) -> str:
    """Return what to write if a subclass of LitBase lacks its metrics, ``forward`` or a usable output; else ``""``."""
    if isinstance(error, NotImplementedError) and (found := re.match(r"Module \[(\w+)\] .*\"forward\"", str(error))):
        return f"{found[1]} has no forward: define forward(self, x), which returns the outputs for a batch x"
    metric = isinstance(error, AttributeError) and re.search("no attribute '((val|test)_(loss|acc))'", str(error))
    for values, function in ((one.f_locals, one.f_code.co_name) for one, name in frames_of(error) if name == BASE):
        name, is_classifier = type(model := values.get("self")).__name__, getattr(model, "task", "") == "classification"
        if metric:
            fix = f"end its __init__ with self.make_metrics({'num_classes' * is_classifier})"
            return f"{name} has no {metric[1]}: {fix}"
        if function in ("loss", "loss_per_sample"):
            pair = [(getattr(one, "shape", type(one).__name__), one) for one in (values["output"], values["target"])]
            shapes = [f"{tuple(shape)} {one.dtype}" if hasattr(one, "dtype") else shape for shape, one in pair]
            needs = "logits (B, K), K above the largest target" if is_classifier else "a tensor like the targets"
            problem = f"the loss of {name} cannot use outputs {shapes[0]} and targets {shapes[1]} ({error})"
            return f"{problem}: let forward return {needs}"
    return ""


OUT_OF_MEMORY = "can't allocate memory|out of memory|STATUS_ALLOC_FAILED"  # patterns in messages of torch
UNUSABLE_GPU = r"(NVIDIA|CUDA) driver|CUDA unknown error|CUDA-capable|CUDA error: .*(kernel image|PTX|initialized)"


def explain_gpu_error(error: Exception) -> str:
    """Return a message with what to type if torch cannot use the GPU, or if its memory is full; otherwise ``""``."""
    if not isinstance(error, RuntimeError) or not re.search(f"{UNUSABLE_GPU}|CUD.*({OUT_OF_MEMORY})", str(error)):
        return ""
    reason = re.split(r"[.,:;]( |$)|\n", re.sub("^(CUDA|cuDNN) error: ", "", str(error)))[0]
    fix = "end other programs on it" if re.search(f"{OUT_OF_MEMORY}|busy", reason) else "update its driver or torch"
    return f"the GPU cannot be used ({reason}): {fix}, or use --accelerator cpu"


def exit_with_error(program: str, message: str) -> NoReturn:
    """Print ``program: error: message`` in one line on stderr and exit with code 2."""
    line = printable(f"{program}: error: {' '.join(message.split())}")  # file names can contain control characters
    if not is_rank_zero():  # if another rank exits first, Lightning kills rank 0 before it can print
        time.sleep(SECONDS_FOR_RANK_ZERO)
    print(line, file=sys.stderr)
    sys.exit(2)
