"""Decode every picture in a folder, in parallel processes that do not import torch, and cache the results."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.errors import DataError
from datamodules.files import atomic_write
from datamodules.machine import available_cores, cache_folder
from datamodules.photos.decode import THUMBNAIL_SIZE, Inspection, inspect_picture
from datamodules.photos.find import LeftOut, Listing

_FILES_PER_REQUEST = 64  # about 0.1 s of work for a worker
_MIN_BYTES_PER_PROCESS = 32 << 20  # decoding fewer bytes takes about as long as starting a process
# One row per picture, with the fields of Inspection: 649 bytes, and 673 in the cache.
_THUMBNAIL = ("thumbnail", "u1", (THUMBNAIL_SIZE, THUMBNAIL_SIZE))
INSPECTION_DTYPE = np.dtype([("flags", "u1"), ("width", "u4"), ("height", "u4"), _THUMBNAIL, ("sha256", "S64")])
_CACHE_DTYPE = np.dtype([("key", "u8"), ("size", "i8"), ("mtime", "i8"), ("verdict", INSPECTION_DTYPE)])


class Scan(NamedTuple):
    """The n pictures that can be decoded, and the files that cannot."""

    listing: Listing
    inspections: np.ndarray  # (n,) of INSPECTION_DTYPE
    first_copies: np.ndarray  # (n,), for each picture the index of the first exact copy
    bad: list[LeftOut]


def scan_photos(
    listing: Listing, *, num_workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> Scan:
    """Decode every file in parallel, leave out the bad ones and find exact copies.

    The results for good pictures are cached by path, size and mtime. Bad files are decoded again in each scan, because
    a repair, for example with chmod, can leave path, size and mtime unchanged. `num_workers` is the maximum number of
    worker processes; None: one per core. `progress` is called with the numbers of finished and all files.
    """
    n = len(listing.paths)
    cache_rows = np.zeros(n, _CACHE_DTYPE)
    cache_rows["key"] = hash_paths(listing.paths)
    cache_rows["size"], cache_rows["mtime"] = listing.sizes, listing.mtimes
    cache_file = _cache_file(listing.root)
    done = _read_cache(cache_file, cache_rows) if cache_file else np.zeros(n, bool)
    inspections = cache_rows["verdict"]
    todo = np.flatnonzero(~done)
    bad: list[LeftOut] = []
    finished = n - len(todo)
    try:
        for rows, results in _inspect_files(listing, todo, num_workers):
            for row, inspection in zip(rows.tolist(), results, strict=True):
                if inspection.kind:
                    bad.append(LeftOut(listing.paths[row], inspection.kind, inspection.reason))
                else:
                    inspections[row] = inspection[2:]
                    done[row] = True
            finished += len(rows)
            if progress:
                progress(finished, n)
    finally:  # also after Ctrl-C: the next scan then uses the results so far
        if cache_file and done[todo].any():
            with contextlib.suppress(OSError), atomic_write(cache_file) as file:  # ignore errors
                np.save(file, cache_rows[done][np.argsort(cache_rows["key"][done])])
    scanned = replace(listing.take(done), sha256=inspections["sha256"][done])
    return Scan(scanned, inspections[done], first_with_same_content(scanned.sha256), bad)


def hash_paths(paths: np.ndarray, salt: str = "") -> np.ndarray:
    """Return a hash of each path, uint64 array (n,). Another `salt` (at most 64 bytes) gives other hashes."""
    encoded, key = (path.encode("utf-8", "surrogateescape") for path in paths), salt.encode()
    return np.frombuffer(b"".join(hashlib.blake2b(path, digest_size=8, key=key).digest() for path in encoded), "<u8")


def first_with_same_content(hashes: np.ndarray) -> np.ndarray:
    """Return, for each picture, the index of the first one with the same hash, (n,)."""
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    return first[group]


def _inspect_files(
    listing: Listing, todo: np.ndarray, num_workers: int | None
) -> Iterator[tuple[np.ndarray, list[Inspection]]]:
    """Inspect the files at the indices `todo`. Yield (indices, results) for each request, in the order of `todo`."""
    root = listing.root.absolute()  # workers have another current folder
    chunks = [todo[start : start + _FILES_PER_REQUEST] for start in range(0, len(todo), _FILES_PER_REQUEST)]

    def make_request(rows: np.ndarray) -> list[str]:  # one at a time: a million names need much memory
        return [f"{root}/{listing.paths[row]}" for row in rows]

    max_workers = available_cores() if num_workers is None else num_workers
    num_workers = min(max_workers, int(listing.sizes[todo].sum()) // _MIN_BYTES_PER_PROCESS)
    if num_workers < 2:
        yield from ((rows, [inspect_picture(Path(name)) for name in make_request(rows)]) for rows in chunks)
        return
    # Do not use multiprocessing: "spawn" imports the main script again, with torch, and needs a __main__ guard.
    command = [sys.executable, "-W", "ignore", "-m", "datamodules.photos.scan"]
    folder = Path(__file__).parents[2]  # in this folder, -m finds the package even if it is not installed
    of_thread, pipe = threading.local(), subprocess.PIPE
    workers: list[subprocess.Popen[str]] = []

    def start_worker() -> None:
        of_thread.worker = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, text=True)
        workers.append(of_thread.worker)

    def inspect_in_worker(rows: np.ndarray) -> list[Inspection]:
        worker = of_thread.worker
        with contextlib.suppress(BrokenPipeError):  # the worker has died
            print(json.dumps(make_request(rows)), file=worker.stdin, flush=True)
        if answer := worker.stdout.readline():
            return [Inspection(*fields) for fields in json.loads(answer)]
        if worker.wait() == 1:  # a Python exception: a bug in this project. The worker has printed it
            raise RuntimeError("a process that examines pictures failed; see its error message above")
        start_worker()
        # A decoder has crashed the old worker. Inspect each file in a separate request, to find the damaged file.
        if len(rows) == 1:
            return [Inspection("damaged", "its decoder crashed")]
        return [inspection for row in rows for inspection in inspect_in_worker(row[None])]

    threads = ThreadPoolExecutor(num_workers, initializer=start_worker)
    try:
        yield from zip(chunks, threads.map(inspect_in_worker, chunks), strict=True)
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.communicate()  # closes the worker's input, so the worker ends


def _serve_requests() -> None:
    """Run as a worker: read requests from stdin and print results, both as lines of JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    for line in sys.stdin:
        results = [inspect_picture(Path(name)) for name in json.loads(line)]
        print(json.dumps(results), flush=True)


def _cache_file(root: Path) -> Path | None:
    """Return the path of the cache file for `root`, or None if there is no cache folder."""
    with contextlib.suppress(DataError, OSError):
        name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
        return cache_folder() / f"pictures-5-{name}.npy"  # increase the 5 if inspect_picture() changes its results
    return None


def _read_cache(file: Path, rows: np.ndarray) -> np.ndarray:
    """Read the column "verdict" (inspections) of `rows` from the cache. Return a bool array: True for valid ones."""
    cached = np.empty(0, _CACHE_DTYPE)
    with contextlib.suppress(OSError, ValueError, EOFError):  # missing or damaged
        cached = np.load(file, mmap_mode="r", allow_pickle=False)
    if cached.dtype != _CACHE_DTYPE or not len(cached):
        return np.zeros(len(rows), bool)
    found = cached[np.searchsorted(cached["key"], rows["key"]).clip(max=len(cached) - 1)]
    unchanged = np.all([found[column] == rows[column] for column in ("key", "size", "mtime")], axis=0)
    rows["verdict"] = found["verdict"]
    return unchanged


if __name__ == "__main__":
    _serve_requests()
