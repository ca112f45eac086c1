"""The command line of the scripts beside fit.py: argparse with errors in one line. Imports nothing heavy."""

import argparse
import io
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from datamodules.text import printable
from lit_training.text import nearest


class Parser(argparse.ArgumentParser):
    """An argparse parser whose flags have to be spelled out; it answers a mistyped flag with the nearest one."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False)
        if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter shows its number
            sys.stdout.reconfigure(errors="backslashreplace")

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            near = nearest(unknown[1].partition("=")[0], re.findall(r"--[a-z_]+", self.format_usage()))
            hint = f"did you mean {near}?" if near else f"see python scripts/{self.prog} --help"
            message = f"there is no {unknown[1]}: {hint}"
        self.exit(2, printable(f"{self.prog}: error: {message}") + "\n")


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: an integer, not below ``least``."""

    def integer(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be an integer of at least {least}")
        return int(text)

    return integer
