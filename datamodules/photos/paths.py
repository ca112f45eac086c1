"""Millions of paths in one array."""

from __future__ import annotations

import hashlib
import operator
from array import array
from collections.abc import Iterable, Iterator
from typing import SupportsIndex

import numpy as np


class Paths:
    """An immutable sequence of relative paths with `/`, in one array of UTF-8 bytes.

    Bytes that are not UTF-8 survive (as lone surrogates, see :func:`os.fsdecode`). Pickles as two arrays.

    Args:
        data: uint8 array, all paths one behind the other.
        offsets: int64 array (n + 1,), where each begins, and the end.
    """

    __slots__ = ("_data", "_offsets")

    def __init__(self, data: np.ndarray, offsets: np.ndarray) -> None:
        self._data, self._offsets = data.view(), offsets.view()
        self._data.flags.writeable = self._offsets.flags.writeable = False

    @classmethod
    def from_iterable(cls, paths: Iterable[str]) -> Paths:
        return cls._joined(path.encode("utf-8", "surrogateescape") for path in paths)

    @classmethod
    def _joined(cls, names: Iterable[bytes | memoryview]) -> Paths:
        data, offsets = bytearray(), array("q", [0])
        for name in names:
            data += name
            offsets.append(len(data))
        return cls(np.frombuffer(data, np.uint8), np.frombuffer(offsets, np.int64))

    def _raw(self, indices: Iterable[int]) -> Iterator[memoryview]:
        data, offsets = memoryview(self._data.data), self._offsets
        return (data[offsets[i] : offsets[i + 1]] for i in indices)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: SupportsIndex) -> str:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        return bytes(next(self._raw([index % len(self)]))).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (bytes(raw).decode("utf-8", "surrogateescape") for raw in self._raw(range(len(self))))

    def __reduce__(self) -> tuple[type[Paths], tuple[np.ndarray, np.ndarray]]:
        return Paths, (self._data, self._offsets)

    def take(self, indices: np.ndarray) -> Paths:
        """The paths at `indices` (ints >= 0), in that order."""
        return self._joined(self._raw(indices))

    def hashes(self, salt: str = "") -> np.ndarray:
        """64 bits of each path's BLAKE2b as a uint64 array; other ones for each `salt` (up to 64 bytes)."""
        digests, key = bytearray(), salt.encode()
        for raw in self._raw(range(len(self))):
            digests += hashlib.blake2b(raw, digest_size=8, key=key).digest()
        return np.frombuffer(digests, "<u8")

    def update(self, digest: hashlib._Hash) -> None:
        """Feed all paths to `digest`."""
        digest.update(self._offsets.astype("<i8").tobytes())
        digest.update(self._data.tobytes())
