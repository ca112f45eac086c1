"""An argparse parser that prints errors in one line. This module imports no slow library."""

import argparse
import io
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from datamodules.text import command, printable
from lit_training.text import closest_name, expand_paths


class Parser(argparse.ArgumentParser):
    """Parse flags with argparse. Refuse abbreviated flags, and suggest the closest flag for an unknown flag."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False)
        if isinstance(sys.stdout, io.TextIOWrapper):  # for characters that the terminal cannot show
            sys.stdout.reconfigure(errors="backslashreplace")

    def add_accelerator_flag(self) -> None:
        names, text = ("auto", "cpu", "gpu", "cuda", "mps"), "auto (default), cpu, gpu, cuda or mps"
        self.add_argument("--accelerator", type=str.lower, choices=names, default="auto", metavar="NAME", help=text)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(expand_paths(sys.argv[1:] if args is None else list(args)), namespace)

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            closest = closest_name(unknown[1].partition("=")[0], re.findall(r"--[a-z_]+", self.format_usage()))
            hint = f"did you mean {closest}?" if closest else f"see {command(self.prog, '--help')}"
            message = f"there is no {unknown[1]}: {hint}"
        self.exit(2, printable(f"{self.prog}: error: {message}") + "\n")


def at_least(minimum: int) -> Callable[[str], int]:
    """Return a function for argparse's ``type=``. It converts text to an integer of at least ``minimum``."""

    def to_integer(text: str) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"{text} must be an integer of at least {minimum}")
        return int(text)

    return to_integer
