"""Decode every picture of a folder once, in parallel processes that do not import torch, and remember the results."""

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
from datamodules.photos.decode import Inspection, inspect_picture
from datamodules.photos.find import LeftOut, Listing

_CHUNK = 64  # files per message to a worker: about 0.1 s of work
_BYTES_PER_PROCESS = 32 << 20  # decoding fewer takes about as long as starting a process
# One row per picture. content is 0 if it was not hashed: files of different sizes cannot be copies.
VERDICT = np.dtype([("flags", "u1"), ("width", "u4"), ("height", "u4"), ("dhash", "u8"), ("content", "u8")])
_CACHE_ROW = np.dtype([("key", "u8"), ("size", "i8"), ("mtime", "i8"), ("verdict", VERDICT)])


class Scan(NamedTuple):
    """The pictures that can be decoded, n of them, and the files that cannot.

    `verdicts` is an array (n,) of :data:`VERDICT`, `copies` the array (n,) that :func:`content_groups` returns.
    """

    listing: Listing
    verdicts: np.ndarray
    copies: np.ndarray
    bad: list[LeftOut]


def scan_photos(
    listing: Listing, *, num_workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Scan:
    """Decode every file in parallel, leave out the bad ones and group exact copies.

    Good pictures are remembered by path, size and mtime and are not decoded again. Bad files are, because a repair
    may change none of the three (permissions).

    Args:
        listing: the files. The content of a file is hashed only if another file has the same size.
        num_workers: maximum number of processes, 0 for none, None for one per core. The result does not depend on it.
        progress: called with (files done, number of files) after each chunk.
    """
    n = len(listing.paths)
    _, same_size, copies = np.unique(listing.sizes, return_inverse=True, return_counts=True)
    with_content = copies[same_size] > 1
    known = np.zeros(n, _CACHE_ROW)
    known["key"], known["size"], known["mtime"] = listing.paths.hashes(), listing.sizes, listing.mtimes
    cache_file = _cache_file(listing.root)
    done = _read_cache(cache_file, known) if cache_file else np.zeros(n, bool)
    verdicts = known["verdict"]
    done &= (verdicts["content"] != 0) | ~with_content
    todo = np.flatnonzero(~done)
    bad: list[LeftOut] = []
    finished = n - len(todo)
    try:
        for rows, looks in _look_at_files(listing, todo, with_content, num_workers):
            for row, seen in zip(rows.tolist(), looks, strict=True):
                if seen.kind:
                    bad.append(LeftOut(listing.paths[row], seen.kind, seen.reason))
                else:
                    verdicts[row] = seen[2:]
                    done[row] = True
            finished += len(rows)
            if progress:
                progress(finished, n)
    finally:  # the next scan of the folder continues where this one was interrupted
        if cache_file and done[todo].any():
            with contextlib.suppress(OSError), atomic_write(cache_file) as file:  # the cache only saves time
                np.save(file, known[done][np.argsort(known["key"][done])])
    return Scan(listing.take(np.flatnonzero(done)), verdicts[done], content_groups(verdicts["content"][done]), bad)


def content_groups(content: np.ndarray) -> np.ndarray:
    """For each picture, return the index of the first one with the same content hash; a hash of 0 equals no other."""
    _, first, group = np.unique(content, return_index=True, return_inverse=True)
    return np.where(content == 0, np.arange(len(content)), first[group])


def _look_at_files(
    listing: Listing, todo: np.ndarray, with_content: np.ndarray, num_workers: int | None
) -> Iterator[tuple[np.ndarray, list[Inspection]]]:
    """Yield chunks of the indices `todo` with the results for their files, in order."""
    root = listing.root.absolute()  # workers have another current folder
    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]

    def request(rows: np.ndarray) -> list[tuple[str, bool]]:  # for one chunk: a million names need much memory
        return [(f"{root}/{listing.paths[row]}", bool(with_content[row])) for row in rows]

    if num_workers is None:
        num_workers = available_cores()
    num_workers = min(num_workers, int(listing.sizes[todo].sum()) // _BYTES_PER_PROCESS)
    if num_workers < 2:
        for rows in chunks:
            yield rows, [inspect_picture(Path(name), hash_it) for name, hash_it in request(rows)]
        return
    # Not multiprocessing: its "spawn" imports the caller's main module again, with torch, and fails if a script has
    # no __main__ guard.
    workers = [_start_worker() for _ in range(num_workers)]
    idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def ask(rows: np.ndarray) -> list[Inspection]:
        worker = idle.get()
        try:
            with contextlib.suppress(BrokenPipeError):  # the worker has died
                print(json.dumps(request(rows)), file=worker.stdin, flush=True)
            if answer := worker.stdout.readline():  # type: ignore[union-attr]
                return [Inspection(*fields) for fields in json.loads(answer)]
            if worker.wait() == 1:  # a Python exception is a bug of ours; the worker has printed it
                raise RuntimeError("a process that examines pictures failed; see its error message above")
            worker = _start_worker()
            workers.append(worker)
        finally:
            idle.put(worker)
        # A decoder has crashed the worker: try the files one by one to find out which.
        if len(rows) == 1:
            return [Inspection("damaged", "its decoder crashed")]
        return [found for row in rows for found in ask(row[None])]

    threads = ThreadPoolExecutor(num_workers)
    try:
        yield from zip(chunks, threads.map(ask, chunks), strict=True)
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.communicate()  # closes its input, which ends it


def _start_worker() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "datamodules.photos.scan"],
        cwd=Path(__file__).parents[2],  # so that -m finds the package even if it is not installed
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _serve_requests() -> None:
    """Run as a worker: read chunks as lines of JSON and print the results as JSON, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    for line in sys.stdin:
        results = [inspect_picture(Path(name), with_content) for name, with_content in json.loads(line)]
        print(json.dumps(results), flush=True)


def _cache_file(root: Path) -> Path | None:
    """Return the file that holds the results for `root`, or None if there is no cache folder."""
    with contextlib.suppress(DataError, OSError):
        name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
        return cache_folder() / f"pictures-1-{name}.npy"  # increase the 1 if inspect_picture() changes its results
    return None


def _read_cache(file: Path, wanted: np.ndarray) -> np.ndarray:
    """Set the verdicts of the `wanted` rows from `file`; return a bool array that is True where they are valid."""
    rows = np.empty(0, _CACHE_ROW)
    with contextlib.suppress(OSError, ValueError, EOFError):  # not written yet, or damaged
        rows = np.load(file, allow_pickle=False)
    if rows.dtype != _CACHE_ROW or not len(rows):
        return np.zeros(len(wanted), bool)
    found = rows[np.searchsorted(rows["key"], wanted["key"]).clip(max=len(rows) - 1)]
    unchanged = np.all([found[column] == wanted[column] for column in ("key", "size", "mtime")], axis=0)
    wanted["verdict"] = found["verdict"]
    return unchanged


if __name__ == "__main__":
    _serve_requests()
