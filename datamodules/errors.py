"""The error class for data that cannot be used, and the names of special files."""

from __future__ import annotations

import stat


class DataError(ValueError):
    """The user's data cannot be used. The message is one line that ends with what to do."""


def special_file_kind(mode: int) -> str:
    """Return the kind of a special file, such as ``a socket``, or "" for a regular file. ``mode``: its ``st_mode``."""
    kinds = {"-": "", "p": "a named pipe", "s": "a socket", "c": "a device", "b": "a device"}
    return kinds.get(stat.filemode(mode)[0], "not a regular file")
