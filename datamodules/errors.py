"""The error class for the user's data."""

from __future__ import annotations

import stat


class DataError(ValueError):
    """The user's data cannot be used. The message is one line that ends with what to do."""


def special_file_kind(mode: int) -> str:
    """Return what a special file is, from its ``mode`` (:func:`os.stat`), or "" for a regular file."""
    kinds = {"-": "", "p": "a named pipe", "s": "a socket", "c": "a device", "b": "a device"}
    return kinds.get(stat.filemode(mode)[0], "not a regular file")
