"""Errors that the user can fix: one line on stderr, exit code 2, no traceback."""

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from datamodules.errors import DataError
from datamodules.text import printable

RANK_ZERO_GRACE = 15
"""Seconds that another rank waits, so that rank 0 can print the same error and end all ranks."""


class UsageError(ValueError):
    """The command line is wrong. The message is one line that says what is wrong and what to type."""


class CheckpointError(ValueError):
    """A checkpoint cannot be found, read or written. The message is one line that ends with what to type."""


class TrainingError(UsageError):
    """The run cannot continue."""


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """End the program with one line if the body raises an error that the user can fix.

    Other errors are bugs and keep their traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if not is_rank_zero() and re.search(r"(closed|reset) by peer", str(error)):
            sys.exit(2)  # another rank failed and prints why
        late = isinstance(error, ValueError | TypeError | RuntimeError)
        if not (is_user_error(error) or (late and is_library_error(error))):
            raise
        exit_with_error(program, str(error))


def is_user_error(error: Exception) -> bool:
    """True for the errors of this project and of Lightning that tell the user what to do."""
    if isinstance(error, UsageError | CheckpointError | DataError):
        return True
    from lightning.pytorch.utilities.exceptions import MisconfigurationException  # slow; check.py needs no torch

    from lit_models import ModelError

    return isinstance(error, ModelError | MisconfigurationException)


def is_library_error(error: Exception) -> bool:
    """True if Lightning or a torch optimizer raised it: a bad value that is only found in a run."""
    import lightning
    import torch

    libraries = (Path(lightning.__file__).parent, Path(torch.optim.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(Path(frames[-1].filename).is_relative_to(library) for library in libraries)


def is_rank_zero() -> bool:
    """True on rank 0. Works before the processes are connected."""
    has_global_rank = {"RANK", "SLURM_PROCID"} & set(os.environ)  # LOCAL_RANK starts at 0 on each machine
    first_node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) == "0"
    ranks = sys.modules.get("lightning.fabric.utilities.rank_zero")  # set once Lightning is imported
    rank = getattr(ranks.rank_zero_only, "rank", 0) if ranks else 0
    return rank == 0 and (bool(has_global_rank) or first_node)


def exit_with_error(program: str, message: str) -> NoReturn:
    """Print the message in one line and exit with code 2."""
    line = printable(f"{program}: error: {' '.join(message.split())}")  # file names can contain control characters
    if not is_rank_zero():  # Lightning kills rank 0 as soon as another rank exits
        time.sleep(RANK_ZERO_GRACE)
    print(line, file=sys.stderr)
    sys.exit(2)
