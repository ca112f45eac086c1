"""Store millions of paths in one array, to save memory."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from typing import SupportsIndex

import numpy as np


class Paths:
    """A sequence of n relative paths with `/` between folders. Bytes that are not UTF-8 become surrogates.

    `joined` (uint8) are the UTF-8 bytes of all paths, one path after the other. `offsets` (int64, (n + 1,)) are the
    starts of the paths in `joined`, and the end of the last path.
    """

    def __init__(self, joined: np.ndarray, offsets: np.ndarray) -> None:
        self._joined, self._offsets = joined, offsets

    @classmethod
    def from_iterable(cls, paths: Iterable[str]) -> Paths:
        return cls._join(path.encode("utf-8", "surrogateescape") for path in paths)

    @classmethod
    def _join(cls, paths: Iterable[bytes]) -> Paths:
        joined, offsets = bytearray(), array("q", [0])
        for path in paths:
            joined += path
            offsets.append(len(joined))
        return cls(np.frombuffer(joined, np.uint8), np.frombuffer(offsets, np.int64))

    def _bytes(self, index: int) -> bytes:
        return self._joined[self._offsets[index] : self._offsets[index + 1]].tobytes()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: SupportsIndex) -> str:
        return self._bytes(range(len(self))[index]).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: np.ndarray) -> Paths:
        """Return the paths at `indices` (ints >= 0), in this order."""
        return self._join(map(self._bytes, indices))

    def hashes(self, salt: str = "") -> np.ndarray:
        """Return a hash of each path, uint64 array (n,). Another `salt` (at most 64 bytes) gives other hashes."""
        digests, key = bytearray(), salt.encode()
        for index in range(len(self)):
            digests += hashlib.blake2b(self._bytes(index), digest_size=8, key=key).digest()
        return np.frombuffer(digests, "<u8")

    def update(self, digest: hashlib._Hash) -> None:
        """Update the hash object `digest` with all paths."""
        digest.update(self._offsets.astype("<i8").tobytes())
        digest.update(self._joined.tobytes())
