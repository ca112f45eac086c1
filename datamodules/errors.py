"""The error class for the user's data."""

from __future__ import annotations

import stat


class DataError(ValueError):
    """The user's data cannot be used. The message is one line that ends with what to do."""


def special_file_kind(mode: int) -> str:
    """Return what a special file is, from its ``mode`` (:func:`os.stat`), or "" for a regular file."""
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return "" if stat.S_ISREG(mode) else kinds.get(stat.S_IFMT(mode), "not a regular file")
