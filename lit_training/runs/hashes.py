"""Keep sha256.json, which lists the SHA-256 of every other file of a run, and find files that differ from it.

A command deletes the list before it writes into a run, and writes it again at its end. So if the command is killed,
there is no list instead of a wrong one. Hidden files hold no results: they are not listed.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datamodules.files import atomic_write
from datamodules.text import command
from lit_training.errors import UsageError
from lit_training.runs.layout import EVALUATION, HASHES, MODEL_CARD, REPORT


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, in lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_hashes(run: Path) -> dict[str, str]:
    """Return the SHA-256 by the path of the file. Raise a UsageError if the list is missing or damaged."""
    file, fix = run / HASHES, f"{command('fit.py', '--resume', run)} writes it"
    try:
        hashes = json.loads(file.read_text(encoding="utf-8"))
        if all(isinstance(digest, str) and not {"", ".."} & {*path.split("/")} for path, digest in hashes.items()):
            return hashes
    except FileNotFoundError as error:
        problem = f"{run} has no {HASHES}, because it has not finished, a command was stopped, or it is an old run"
        raise UsageError(f"{problem}: {fix}") from error
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    raise UsageError(f"{file} is damaged: delete it, then {fix} again")


def write_hashes(run: Path, known: dict[str, str] | None = None) -> None:
    """Write the list. The files in ``known`` keep their hashes, so that changes by others are still found."""
    known = known or {}
    new = [path for path in _list_files(run) if path not in known]
    with ThreadPoolExecutor() as threads:  # hashing releases Python's lock
        hashes = known | dict(zip(new, threads.map(lambda path: hash_file(run / path), new), strict=True))
    with atomic_write(run / HASHES, "w") as file:
        json.dump(hashes, file, indent=1, sort_keys=True)


@contextlib.contextmanager
def recorded(run: Path, folder: Path) -> Iterator[None]:
    """If the run has a list, update it after the ``with`` block, which writes into ``folder``, and the report."""
    rewritten = {REPORT, MODEL_CARD} if folder == run / EVALUATION else set()
    had_list = (run / HASHES).is_file()
    listed = read_hashes(run) if had_list else {}
    known = {path: listed[path] for path in listed if (run / path).parent != folder and path not in rewritten}
    with contextlib.suppress(OSError):  # if nothing can be written, the block says so
        (run / HASHES).unlink()
    try:
        yield
    finally:  # also after an error or Ctrl-C
        if had_list or (run / HASHES).is_file():
            with contextlib.suppress(OSError):  # a full disk: the run has no list
                write_hashes(run, known)


def find_changed_files(run: Path) -> list[str]:
    """Return ``changed PATH`` (or missing, unreadable, added) for each file that differs from the list."""
    hashes = read_hashes(run)
    found = [f"added {path}" for path in _list_files(run) if path not in hashes]
    for path, digest in hashes.items():
        try:
            if not (run / path).is_file():
                found.append(f"missing {path}")
            elif hash_file(run / path) != digest:
                found.append(f"changed {path}")
        except OSError:
            found.append(f"unreadable {path}")
    return found


def _list_files(run: Path) -> list[str]:
    paths = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return [path.as_posix() for path in paths if path != Path(HASHES) and "/." not in f"/{path.as_posix()}"]
