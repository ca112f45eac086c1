"""Pictures that nobody meant are read or refused; and the fuzzer finds what it looks for."""

import os
import random
import runpy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules import DataError

FUZZ = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "fuzz.py"))


def test_any_picture_is_read_or_refused(tmp_path: Path) -> None:
    """The first 2000 of the 100,000 that scripts/fuzz.py tries."""
    counts, wrong = FUZZ["attempts"]("pictures", 0, 2000)
    assert wrong == []
    assert sum(counts.values()) == 2000
    assert min(counts[f"pictures tried: {kind}"] for kind in ("read", "damaged", "truncated", "not a picture")) > 100


def test_whole_pictures_are_read(tmp_path: Path) -> None:
    files = FUZZ["whole_pictures"]()
    assert len(set(files)) == len(files) >= 24
    assert {FUZZ["try_picture"](data, tmp_path / "picture.jpg") for data in files} == {"read"}


@pytest.mark.parametrize(
    ("name", "replacement", "said"),
    [
        ("read_pixels", KeyError("a bug"), "KeyError: 'a bug'"),
        ("read_pixels", DataError("no name in it"), "does not name the file"),
        ("read_picture", DataError("refused"), "look takes what read_picture refuses"),
        ("look", RecursionError("deep"), "RecursionError: deep"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, name: str, replacement: Exception, said: str) -> None:
    def spoilt(*_: Any) -> None:
        raise replacement

    try_picture: Callable[..., str] = FUZZ["try_picture"]
    kept = try_picture.__globals__[name]
    try_picture.__globals__[name] = spoilt
    try:
        with pytest.raises(AssertionError, match=said):
            try_picture(FUZZ["whole_pictures"]()[0], tmp_path / "picture.jpg")
    finally:
        try_picture.__globals__[name] = kept


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGSEGV, "exit code -11"), (signal.SIGALRM, "a hang"), (signal.SIGPROF, "a hang")]
)
def test_a_crash_or_a_hang_costs_one_input(number: int, said: str) -> None:
    def one(draw: random.Random) -> str:
        if draw.getstate() == random.Random("stand-ins 2").getstate():
            os.kill(os.getpid(), number)
        return "read"

    FUZZ["attempts"].__globals__["KINDS"]["stand-ins"] = lambda folder: one
    counts, wrong = FUZZ["attempts"]("stand-ins", 0, 5)
    assert counts == {"stand-ins tried: read": 4, "stand-ins tried: wrong": 1}
    assert wrong == [f"stand-ins 2: {said}"]
