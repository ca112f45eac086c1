"""Errors that are the user's to mend: one line on stderr, exit code 2, no traceback."""

import difflib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import lightning
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import DataError
from datamodules.listing import shown
from lit_models import ModelError
from lit_training.checkpoints import CheckpointError

GRACE = 5
"""Seconds that another rank leaves to rank 0, which has the same error, to say it and to end them all."""


class UsageError(ValueError):
    """What was typed cannot be done: one line that says what is wrong and what to type."""


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
    except (UsageError, CheckpointError, DataError, ModelError, MisconfigurationException) as error:
        fail(program, str(error))
    except (ValueError, TypeError, RuntimeError) as error:
        if not is_rank_zero() and re.search(r"(closed|reset) by peer", str(error)):
            sys.exit(2)  # another rank has failed, and says why
        if not refused_by_library(error):
            raise
        fail(program, str(error))


def refused_by_library(error: Exception) -> bool:
    """Whether Lightning or a torch optimizer itself raised it: a value found impossible once a run has begun."""
    libraries = (Path(lightning.__file__).parent, Path(torch.optim.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(Path(frames[-1].filename).is_relative_to(library) for library in libraries)


def is_rank_zero() -> bool:
    """Whether this is the process that speaks and writes, known before any of them are connected."""
    counted_over_all = {"RANK", "SLURM_PROCID"} & set(os.environ)  # LOCAL_RANK begins anew on each machine
    first_node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")) == "0"
    return getattr(rank_zero_only, "rank", 0) == 0 and (bool(counted_over_all) or first_node)


def fail(program: str, message: str) -> NoReturn:
    line = shown(f"{program}: error: {' '.join(message.split())}")  # names of files may hold what terminals obey
    if is_rank_zero():
        print(line, file=sys.stderr)
    else:  # Lightning kills rank 0 as soon as another rank has ended
        time.sleep(GRACE)
        print(line, file=sys.stderr)  # still here: it is this rank's alone
    sys.exit(2)


def suggest(word: str, known: Iterable[str]) -> str:
    """The known name nearest to ``word`` as a question, or all of them to choose from."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5)
    listed = [*names.values()][:12] + ["..."] * (len(names) > 12)
    return f"did you mean {names[near[0]]}?" if near else f"choose one of {', '.join(listed)}"
