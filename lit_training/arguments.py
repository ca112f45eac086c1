"""The command line of the scripts beside fit.py: argparse, with errors in one line. Imports nothing heavy."""

import argparse
import difflib
import io
import re
import sys
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Flags are spelled out; a mistyped one is answered with the nearest there is."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False)
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter shows its number
            sys.stdout.reconfigure(errors="backslashreplace")

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[1].partition("=")[0], flags, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see python scripts/{self.prog} --help"
            message = f"there is no {unknown[1]}: {hint}"
        self.exit(2, f"{self.prog}: error: {message}\n")


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: a whole number, not below ``least``."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} up")
        return int(text)

    return whole_number
