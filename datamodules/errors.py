"""Define the error for data that cannot be used, and name the kinds of special files."""

from __future__ import annotations

import stat


class DataError(ValueError):
    """The user's data cannot be used. The message is one line that ends with what to do."""


def special_file_kind(mode: int) -> str:
    """Return what a file with this ``st_mode`` is, such as ``a socket``. Return "" for a regular file."""
    kinds = {"-": "", "p": "a named pipe", "s": "a socket", "c": "a device", "b": "a device"}
    return kinds.get(stat.filemode(mode)[0], "not a regular file")
