"""Errors that are the user's to mend: one line on stderr, exit code 2, no traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lightning.fabric.utilities.rank_zero import rank_zero_only

from datamodules import DataError
from lit_models import ModelError
from lit_training.checkpoints import CheckpointError


class UsageError(ValueError):
    """What was typed cannot be done: one line that says what is wrong and what to type."""


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """End the program with one line where one of this project's own errors is raised; others are our bugs."""
    try:
        yield
    except (UsageError, CheckpointError, DataError, ModelError) as error:
        fail(program, str(error))


def is_rank_zero() -> bool:
    """Whether this is the process that speaks and writes, known before any of them are connected."""
    return getattr(rank_zero_only, "rank", 0) == 0


def fail(program: str, message: str) -> NoReturn:
    if is_rank_zero():
        print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
