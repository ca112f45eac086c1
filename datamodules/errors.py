"""Errors about the user's data."""

from __future__ import annotations

import stat


class DataError(ValueError):
    """What is wrong with the user's data, in one line that ends with what to do about it."""


def special_file_kind(mode: int) -> str:
    """Name what is not an ordinary file by its `mode` (of :func:`os.stat`), else "". A pipe may be waited for."""
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return "" if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "something else than a file")
