"""Text for messages."""

import subprocess
import sys
from pathlib import Path

import pytest

from datamodules.text import align_columns, command, first_names, plural, printable
from tests.support.commands import ROOT


@pytest.mark.parametrize(
    ("name", "shown"),
    [("größe 猫", "größe 猫"), ("a\x1b[31m", "a\\x1b[31m"), ("new\nline", "new\\nline"), ("na\udcefve", "na\\udcefve")],
)
def test_unprintable_characters_are_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert shown.isprintable()


def test_plural() -> None:
    assert plural(1, "picture") == "1 picture"
    assert plural(0, "picture") == "0 pictures"
    assert plural(2000, "class", "classes") == "2,000 classes"


def test_omitted_names_are_shown_as_dots() -> None:
    assert first_names(["a", "b\n"], 2) == "a, b\\n"
    assert first_names(["a", "b", "c"], 2) == "a, b, ..."


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [["name", "n"], ["a", "100"], ["longer", ""]]
    assert align_columns(rows) == ["name    n", "a       100", "longer"]
    assert align_columns(rows, right=[False, True]) == ["name      n", "a       100", "longer"]


def make_python(folder: Path) -> Path:
    """Make a program ``python`` that runs this Python."""
    folder.mkdir(parents=True)
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "python").chmod(0o755)
    return folder / "python"


@pytest.mark.parametrize(
    ("path", "start"), [("", "'my env/bin/python'"), ("other", "'my env/bin/python'"), ("my env/bin", "python")]
)
def test_a_command_works_in_a_new_shell(path: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``path`` is the shell's PATH: no Python, another Python, or this one."""
    python = make_python(Path("my env/bin").absolute())
    make_python(Path("other").absolute())
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(Path(path).absolute()) if path else "")
    line = command("check.py", "my photos", "--help")
    assert line.startswith(f"{start} ")
    shell = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=True)
    assert shell.stdout.startswith("usage: check.py")
    assert command("tensorboard", "--logdir", "x").startswith(start)
    monkeypatch.chdir(ROOT)
    assert command("fit.py").endswith(" scripts/fit.py")
    monkeypatch.chdir(ROOT / "scripts")
    assert command("fit.py").endswith(f" {ROOT}/scripts/fit.py")
