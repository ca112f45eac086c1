"""Find the class of a checkpoint's model or data module: a class of this project, or one of a module of the user."""

import sys
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import datamodules
import lit_models
from datamodules.text import printable
from lit_models import LitBase
from lit_training.errors import CheckpointError


def add_current_folder() -> None:
    """Let Python import the modules in the current folder, such as ``mine.py`` for ``--model mine.Wide``."""
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)


def is_own(kind: type) -> bool:
    """Return True for a class of the user, False for a class of this project."""
    return kind.__module__.partition(".")[0] not in (lit_models.__name__, datamodules.__name__)


def find_class(path: Any, base: type) -> Any:
    """Return the class of a dotted path such as ``mine.Wide``. ``base`` is LitBase or LightningDataModule.

    A name without a module, as in older checkpoints, is a class of this project. A class of the user is imported as
    in ``from mine import Wide``; no code comes from the checkpoint. Raise a CheckpointError if there is no such class.
    """
    project: Any = lit_models if base is LitBase else datamodules
    *modules, name = names = str(path).split(".")
    found: Any = None
    if name in project.__all__ and modules[:1] in ([], [project.__name__]):
        found = getattr(project, name)
    elif modules and modules[0] not in sys.stdlib_module_names:
        found = _import(names)
    if isinstance(found, type) and issubclass(found, base):
        return found
    problem = f"is not built on {base.__name__}, as docs/your_own.md shows" if found else "this project does not have"
    fix = "open it in your own code, or train again"
    raise CheckpointError(printable(f"the checkpoint contains {path}, which {problem}: {fix}"))


def _import(names: list[str]) -> Any:
    """Import the longest part of a dotted path that is a module. Return what the other names are in this module."""
    add_current_folder()
    reason: BaseException | None = None
    for length in range(len(names) - 1, 0, -1):
        module = ".".join(names[:length])
        try:
            return reduce(getattr, names[length:], import_module(module))
        except (Exception, SystemExit) as error:  # importing the user's module may raise any error
            reason = error
            if not isinstance(error, ModuleNotFoundError) or not f"{module}.".startswith(f"{error.name}."):
                break
    fix = f"run the command in the folder that has {names[0]}.py or {names[0]}/, unchanged since the training"
    if names[0] == "__main__" or "<locals>" in names:
        fix = "define the class in a file such as mine.py, not in a notebook, a script or a function, and train again"
    problem = f"the checkpoint needs the class {'.'.join(names)}: {type(reason).__name__}: {reason}"
    raise CheckpointError(printable(" ".join(f"{problem}: {fix}".split()))) from reason
