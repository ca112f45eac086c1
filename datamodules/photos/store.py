"""Decoded pictures in a file that every process maps: decoded once, by any rank and any run."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.files import atomic_write
from datamodules.machine import available_cores, cache_folder
from datamodules.photos.decode import BadPicture
from datamodules.photos.paths import Paths

AHEAD = 256  # pictures that wait to be written, at most


class PictureStore:
    """N pictures, (3, H, W) uint8 each, sizes as they come, mapped from one file.

    Args:
        path: written by :meth:`write`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(size - 8)
            count = int(np.frombuffer(file.read(8), np.int64)[0])
            file.seek(size - 8 - 16 * count)
            self.sizes = np.frombuffer(file.read(16 * count), np.int64).reshape(count, 2)  # height, width
        self.starts = np.concatenate([[0], (3 * self.sizes.prod(1)).cumsum()])
        self._map()

    def _map(self) -> None:
        # Private mapping: nothing is ever written, and the pages are those of every other process.
        self._bytes = torch.from_file(str(self.path), shared=False, size=int(self.starts[-1]), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Tensor:
        height, width = self.sizes[index]
        return self._bytes[self.starts[index] : self.starts[index + 1]].view(3, int(height), int(width))

    def stacked(self) -> Tensor:
        """All of them as (N, 3, H, W) without a copy; they have to be of one size."""
        height, width = self.sizes[0]
        return self._bytes.view(len(self), 3, int(height), int(width))

    def __getstate__(self) -> dict[str, Any]:  # a spawned worker maps the file itself
        return {name: value for name, value in self.__dict__.items() if name != "_bytes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    @staticmethod
    def write(path: Path, count: int, read: Callable[[int], Tensor]) -> None:
        """Decode with a thread a core and write; whoever reads sees the whole file or none.

        Raises:
            DataError: it cannot be written.
        """
        sizes = np.empty((count, 2), np.int64)
        try:
            with atomic_write(path) as file, ThreadPoolExecutor(available_cores()) as threads:
                for first in range(0, count, AHEAD):
                    indices = range(first, min(count, first + AHEAD))
                    for index, picture in zip(indices, threads.map(read, indices), strict=True):
                        sizes[index] = picture.shape[1:]
                        file.write(picture.contiguous().numpy().data)
                file.write(sizes.tobytes())
                file.write(np.int64(count).tobytes())
        except OSError as error:
            raise DataError(
                f"decoded pictures cannot be kept in {path.parent} ({error.strerror}): make room there, or name "
                "another place in the environment variable XDG_CACHE_HOME"
            ) from error


def store_path(root: Path, paths: Paths, settings: dict[str, Any]) -> Path:
    """Where these pictures, decoded with these settings, lie: another size, time or setting is another file.

    Raises:
        DataError: one of them is gone, or there is no place.
    """
    digest = hashlib.sha256(json.dumps([str(root.resolve()), settings], sort_keys=True).encode())
    paths.update(digest)
    for path in paths:
        try:
            status = (root / path).stat()
        except OSError as error:
            raise BadPicture(str(root / path), "unreadable", str(error.strerror)) from error
        digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
    return cache_folder() / "pictures" / f"{digest.hexdigest()[:32]}.pictures"
