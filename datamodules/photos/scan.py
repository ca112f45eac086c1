"""Open every picture of a folder once, in parallel processes that never import torch, and remember the whole ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from datamodules.errors import DataError
from datamodules.files import atomic_write
from datamodules.machine import available_cores, cache_folder
from datamodules.photos.decode import Look, look
from datamodules.photos.find import LeftOut, Listing

_CHUNK = 64  # files per message to a worker: about 0.1 s of work
_WORTH_A_PROCESS = 32 << 20  # bytes: opening fewer takes about as long as starting a process for it
# One row per picture. content is 0 where nobody asked for it: two files of different size cannot be copies.
VERDICT = np.dtype([("flags", "u1"), ("width", "u4"), ("height", "u4"), ("dhash", "u8"), ("content", "u8")])
_CACHE_ROW = np.dtype([("key", "u8"), ("size", "i8"), ("mtime", "i8"), ("verdict", VERDICT)])


def scan_files(
    listing: Listing,
    *,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: bool = True,
) -> tuple[np.ndarray, dict[int, tuple[str, str]]]:
    """Look at every file, in parallel; the result does not depend on the number of workers.

    Args:
        listing: the n files. Contents are hashed only where two sizes agree.
        num_workers: processes at most, fewer for little work; 0 works in this one; None: one per core.
        progress: called with (files done, files in all) now and then.
        cache: remember whole pictures by path, size and mtime. Bad files are looked at again every time: what
            was wrong with them may have been mended without a trace, as permissions are.

    Returns:
        Array (n,) of :data:`VERDICT`, and for each bad file its index with (kind, reason).
    """
    n, base = len(listing.paths), listing.root.absolute()  # absolute: a worker has its own current folder
    verdicts, done = np.zeros(n, VERDICT), np.zeros(n, bool)
    _, same_size, copies = np.unique(listing.sizes, return_inverse=True, return_counts=True)
    with_content = copies[same_size] > 1
    known = np.zeros(n, _CACHE_ROW)
    cache_file = _cache_file(base) if cache else None
    if cache_file:
        known["key"], known["size"], known["mtime"] = listing.paths.hashes(), listing.sizes, listing.mtimes
        done = _read_cache(cache_file, known)
        verdicts[done] = known["verdict"][done]
    done &= (verdicts["content"] != 0) | ~with_content
    todo = np.flatnonzero(~done)
    bad: dict[int, tuple[str, str]] = {}

    def request(rows: np.ndarray) -> list[tuple[str, bool]]:
        return [(f"{base}/{listing.paths[row]}", bool(with_content[row])) for row in rows]

    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    finished, size = n - len(todo), int(listing.sizes[todo].sum())
    try:
        for rows, looks in zip(chunks, _look_in_processes(chunks, request, size, num_workers), strict=True):
            for row, seen in zip(rows.tolist(), looks, strict=True):
                if seen.kind:
                    bad[row] = (seen.kind, seen.reason)
                else:
                    verdicts[row] = seen[2:]
                    done[row] = True
            finished += len(rows)
            if progress:
                progress(finished, n)
    finally:  # an interrupted look at a large folder goes on where it stopped
        if cache_file and len(todo):
            known["verdict"] = verdicts
            _write_cache(cache_file, known[done])
    return verdicts, bad


class Scan(NamedTuple):
    """The whole pictures of a folder: `listing` has n of them, `verdicts` (n,) are :data:`VERDICT`, `copies` (n,) as
    from :func:`content_groups`. `bad` names the others."""

    listing: Listing
    verdicts: np.ndarray
    copies: np.ndarray
    bad: list[LeftOut]


def scan_photos(
    listing: Listing,
    *,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: bool = True,
) -> Scan:
    """Look at every file, leave out what is no whole picture, and group the copies; arguments as of `scan_files`."""
    verdicts, bad = scan_files(listing, num_workers=num_workers, progress=progress, cache=cache)
    whole = np.ones(len(listing.paths), bool)
    whole[list(bad)] = False
    rows = np.flatnonzero(whole)
    left_out = [LeftOut(listing.paths[row], *why) for row, why in sorted(bad.items())]
    return Scan(listing.rows(rows), verdicts[rows], content_groups(verdicts["content"][rows]), left_out)


def content_groups(content: np.ndarray) -> np.ndarray:
    """For each picture the index of the first with the same content; `content` 0 has no copy."""
    _, first, group = np.unique(content, return_index=True, return_inverse=True)
    return np.where(content == 0, np.arange(len(content)), first[group])


def _look_in_processes(
    chunks: list[np.ndarray],
    request: Callable[[np.ndarray], list[tuple[str, bool]]],
    size: int,
    num_workers: int | None,
) -> Iterator[list[Look]]:
    """The looks of each chunk of rows, in order; `request` names a chunk's files (a million names at once are
    too many to hold) and says whose content to hash."""
    if num_workers is None:
        num_workers = available_cores()
    num_workers = min(num_workers, size // _WORTH_A_PROCESS)
    if num_workers < 2:
        for chunk in chunks:
            yield [look(Path(name), with_content) for name, with_content in request(chunk)]
        return
    # Own processes instead of multiprocessing's: a spawned one imports the caller's main module again, torch
    # included, and does not work at all below a script without a __main__ guard.
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    workers = [_start_worker() for _ in range(num_workers)]
    for worker in workers:
        idle.put(worker)

    def ask(rows: np.ndarray) -> list[Look]:
        worker = idle.get()
        try:
            answer = _ask_worker(worker, request(rows))
            if answer is not None:
                return answer
            if worker.wait() == 1:  # a Python error, on its standard error: ours, no file's
                raise RuntimeError("a process that examines pictures failed; its own message stands above")
            # A decoder took its process down. Each file on its own tells which one it was.
            worker = _start_worker()
            workers.append(worker)
        finally:
            idle.put(worker)
        if len(rows) == 1:
            return [Look("damaged", "its decoder crashed")]
        return [found for row in rows for found in ask(row[None])]

    threads = ThreadPoolExecutor(num_workers)
    try:
        yield from threads.map(ask, chunks)
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.communicate()  # closes its input, at which it ends


def _start_worker() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "datamodules.photos.scan"],
        cwd=Path(__file__).parents[2],  # where -m finds the package, installed or not
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _ask_worker(worker: subprocess.Popen[bytes], chunk: list[tuple[str, bool]]) -> list[Look] | None:
    """What `worker` says about `chunk`; None when it died over it."""
    assert worker.stdin
    assert worker.stdout
    try:
        worker.stdin.write(json.dumps(chunk).encode() + b"\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return None
    line = worker.stdout.readline()
    return [Look(*fields) for fields in json.loads(line)] if line else None


def _serve_requests() -> None:
    """A worker's life: chunks come in as lines of JSON, looks go out, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, once
    for line in sys.stdin.buffer:
        print(
            json.dumps([look(Path(name), with_content) for name, with_content in json.loads(line)]),
            flush=True,
        )


def _cache_file(root: Path) -> Path | None:
    """The file that remembers `root`; None where there is no place for it."""
    with contextlib.suppress(DataError, OSError):
        name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
        return cache_folder() / f"pictures-1-{name}.npy"  # 1: raise it when look() judges or hashes differently
    return None


def _read_cache(file: Path, wanted: np.ndarray) -> np.ndarray:
    """Fill in the verdicts of the `wanted` rows that `file` holds; say which, as a bool array."""
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there yet, or damaged: look again
        return np.zeros(len(wanted), bool)
    if rows.dtype != _CACHE_ROW or rows.ndim != 1 or not len(rows):
        return np.zeros(len(wanted), bool)
    found = rows[np.searchsorted(rows["key"], wanted["key"]).clip(max=len(rows) - 1)]
    unchanged = np.all([found[column] == wanted[column] for column in ("key", "size", "mtime")], axis=0)
    wanted["verdict"] = found["verdict"]
    return unchanged


def _write_cache(file: Path, rows: np.ndarray) -> None:
    """Remember `rows`. A cache that cannot be written is not needed."""
    with contextlib.suppress(OSError), atomic_write(file) as part:
        np.save(part, rows[np.argsort(rows["key"])])


if __name__ == "__main__":
    _serve_requests()
