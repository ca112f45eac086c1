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
"""Seconds that another rank leaves to rank 0, which has the same error, to say it and to end them all."""


class UsageError(ValueError):
    """What was typed cannot be done: one line that says what is wrong and what to type."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read or written: one line that ends with what to type."""


class TrainingError(UsageError):
    """A run that cannot go on."""


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """End the program with one line where a user's error is raised, one of ours or one that a library refuses.

    All others are bugs, and keep their traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if not is_rank_zero() and re.search(r"(closed|reset) by peer", str(error)):
            sys.exit(2)  # another rank has failed, and says why
        late = isinstance(error, ValueError | TypeError | RuntimeError)
        if not (is_user_error(error) or (late and refused_by_library(error))):
            raise
        fail(program, str(error))


def is_user_error(error: Exception) -> bool:
    """True for the errors of this project, and Lightning's own, that say what the user can do."""
    if isinstance(error, UsageError | CheckpointError | DataError):
        return True
    from lightning.pytorch.utilities.exceptions import MisconfigurationException  # here: check.py needs no torch

    from lit_models import ModelError

    return isinstance(error, ModelError | MisconfigurationException)


def refused_by_library(error: Exception) -> bool:
    """True if Lightning or a torch optimizer itself raised it: a value found impossible once a run has begun."""
    import lightning
    import torch

    libraries = (Path(lightning.__file__).parent, Path(torch.optim.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(Path(frames[-1].filename).is_relative_to(library) for library in libraries)


def is_rank_zero() -> bool:
    """True in the process that prints and writes; known before the processes are connected."""
    counted_over_all = {"RANK", "SLURM_PROCID"} & set(os.environ)  # LOCAL_RANK begins anew on each machine
    first_node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) == "0"
    ranks = sys.modules.get("lightning.fabric.utilities.rank_zero")  # it knows once Lightning has been imported
    rank = getattr(ranks.rank_zero_only, "rank", 0) if ranks else 0
    return rank == 0 and (bool(counted_over_all) or first_node)


def fail(program: str, message: str) -> NoReturn:
    line = printable(f"{program}: error: {' '.join(message.split())}")  # names of files may hold what terminals obey
    if is_rank_zero():
        print(line, file=sys.stderr)
    else:  # Lightning kills rank 0 as soon as another rank has ended
        time.sleep(RANK_ZERO_GRACE)
        print(line, file=sys.stderr)  # still here: it is this rank's alone
    sys.exit(2)
