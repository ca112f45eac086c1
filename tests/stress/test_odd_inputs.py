"""Test that random images are read or refused, and that odd_inputs.py finds errors."""

import argparse
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from datamodules import DataError
from tests.stress import odd_inputs


def test_random_images_are_read_or_refused() -> None:
    """Try the first 2000 of the 100,000 images of odd_inputs.py."""
    counts, wrong = odd_inputs.try_inputs("pictures", 0, 2000)
    assert wrong == []
    assert sum(counts.values()) == 2000
    assert min(counts[f"pictures tried: {kind}"] for kind in ("read", "damaged", "truncated", "not a picture")) > 100


def test_valid_images_are_read(tmp_path: Path) -> None:
    files = odd_inputs.valid_pictures()
    assert len(set(files)) == len(files) >= 24
    assert {odd_inputs.try_picture(data, tmp_path / "picture.jpg") for data in files} == {"read"}


@pytest.mark.parametrize(
    ("name", "replacement", "said"),
    [
        ("read_pixels", KeyError("a bug"), "KeyError: 'a bug'"),
        ("read_pixels", DataError("no name in it"), "does not name the file"),
        ("read_picture", DataError("refused"), "inspect_picture accepts what read_picture refuses"),
        ("inspect_picture", RecursionError("deep"), "RecursionError: deep"),
    ],
)
def test_errors_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, replacement: Exception, said: str
) -> None:
    def fail(*_: Any) -> None:
        raise replacement

    monkeypatch.setattr(odd_inputs, name, fail)
    with pytest.raises(AssertionError, match=said):
        odd_inputs.try_picture(odd_inputs.valid_pictures()[0], tmp_path / "picture.jpg")


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGSEGV, "exit code -11"), (signal.SIGALRM, "a hang"), (signal.SIGPROF, "a hang")]
)
def test_crash_or_hang_costs_one_input(monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    def one(draw: random.Random) -> str:
        if draw.getstate() == random.Random("stand-ins 2").getstate():
            os.kill(os.getpid(), number)
        return "read"

    monkeypatch.setitem(odd_inputs.KINDS, "stand-ins", lambda folder: one)
    counts, wrong = odd_inputs.try_inputs("stand-ins", 0, 5)
    assert counts == {"stand-ins tried: read": 4, "stand-ins tried: wrong": 1}
    assert wrong == [f"stand-ins 2: {said}"]


def split_into_parts(**options: Any) -> list[tuple[str, int, int]]:
    usual = {"minutes": None, "pictures": 2500, "command_lines": 50, "first": 7}
    return list(odd_inputs.split_into_parts(argparse.Namespace(**{**usual, **options})))


def test_inputs_are_tried_in_parts() -> None:
    assert split_into_parts() == [
        *(("pictures", 7, 1000), ("pictures", 1007, 1000), ("pictures", 2007, 500)),
        ("command lines", 7, 50),
    ]


def test_both_kinds_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 60.0, 61.0])
    monkeypatch.setattr(odd_inputs.time, "monotonic", lambda: next(clock))
    kinds, firsts, counts = zip(*split_into_parts(minutes=1), strict=True)
    assert kinds == ("pictures", "command lines", "pictures")
    assert firsts == (firsts[0], firsts[0], firsts[0] + 1000)
    assert counts == (1000, 100, 1000)
