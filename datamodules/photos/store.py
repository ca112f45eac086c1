"""Store decoded pictures in a memory-mapped file, which all processes and all runs share."""

import hashlib
import json
from collections.abc import Callable, Sequence
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

MAX_WAITING_PICTURES = 256  # maximum number of decoded pictures that wait to be written


class PictureStore:
    """Decoded pictures in a file from :meth:`write`. Each is (3, H, W) uint8. H and W may differ between pictures."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        count = int(np.fromfile(path, np.int64, offset=size - 8)[0])
        self.sizes = np.fromfile(path, np.int64, 2 * count, offset=size - 8 - 16 * count).reshape(count, 2)
        self.starts = np.concatenate([[0], (3 * self.sizes.prod(1)).cumsum()])
        # shared=False makes a private mapping. Nothing is written to it, so all processes share its memory pages.
        self.pixels = torch.from_file(str(path), shared=False, size=int(self.starts[-1]), dtype=torch.uint8)

    def __reduce__(self) -> tuple[type["PictureStore"], tuple[Path]]:
        return PictureStore, (self.path,)  # pickle only the path: a spawned worker maps the file again

    def on(self, device: torch.device) -> "PictureStore":
        """Return a store with a copy of the pixels on ``device``."""
        moved = PictureStore(self.path)
        moved.pixels = self.pixels.to(device)
        return moved

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Tensor:
        height, width = self.sizes[index]
        return self.pixels[self.starts[index] : self.starts[index + 1]].view(3, int(height), int(width))

    def stacked(self) -> Tensor:
        """Return all pictures as one tensor (N, 3, H, W) without a copy. All pictures must have the same size."""
        height, width = self.sizes[0]
        return self.pixels.view(len(self), 3, int(height), int(width))

    @staticmethod
    def write(path: Path, count: int, read: Callable[[int], Tensor]) -> None:
        """Write the pixels of all pictures, then all heights and widths, then `count` (int64). Threads call `read`."""
        sizes = np.empty((count, 2), np.int64)
        try:
            with atomic_write(path) as file, ThreadPoolExecutor(available_cores()) as threads:
                for first in range(0, count, MAX_WAITING_PICTURES):
                    indices = range(first, min(count, first + MAX_WAITING_PICTURES))
                    for index, picture in zip(indices, threads.map(read, indices), strict=True):
                        sizes[index] = picture.shape[1:]
                        file.write(picture.contiguous().numpy().data)
                file.write(np.append(sizes, count).tobytes())
        except OSError as error:
            fix = "free some space, or set the environment variable XDG_CACHE_HOME to another folder"
            raise DataError(f"decoded pictures cannot be written to {path.parent} ({error.strerror}): {fix}") from error


def store_path(root: Path, paths: Sequence[str] | np.ndarray, settings: dict[str, Any]) -> Path:
    """Return the path of a store. It depends on `root`, `settings` and the path, size and mtime of each file."""
    digest = hashlib.sha256(json.dumps([str(root.resolve()), settings, *paths], sort_keys=True).encode())
    for path in paths:
        try:
            status = (root / path).stat()
        except OSError as error:
            raise BadPicture(str(root / path), "unreadable", str(error.strerror)) from error
        digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
    return cache_folder() / "pictures" / f"{digest.hexdigest()[:32]}.pictures"
