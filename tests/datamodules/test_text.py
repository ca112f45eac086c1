"""Text for messages."""

import pytest

from datamodules.text import align_columns, first_names, plural, printable


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
