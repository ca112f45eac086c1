"""An argparse parser with one-line errors for all scripts. It imports nothing that takes long."""

import argparse
import io
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from datamodules.text import printable
from lit_training.text import closest_name


class Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviations; its error for an unknown flag suggests the nearest one."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False)
        if isinstance(sys.stdout, io.TextIOWrapper):  # for terminals without UTF-8
            sys.stdout.reconfigure(errors="backslashreplace")

    def add_accelerator(self) -> None:
        names, text = ("auto", "cpu", "gpu", "mps"), "auto (default), cpu, gpu or mps"
        self.add_argument("--accelerator", choices=names, default="auto", metavar="NAME", help=text)

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            near = closest_name(unknown[1].partition("=")[0], re.findall(r"--[a-z_]+", self.format_usage()))
            hint = f"did you mean {near}?" if near else f"see python scripts/{self.prog} --help"
            message = f"there is no {unknown[1]}: {hint}"
        self.exit(2, printable(f"{self.prog}: error: {message}") + "\n")


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: an integer of at least ``least``."""

    def integer(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be an integer of at least {least}")
        return int(text)

    return integer
