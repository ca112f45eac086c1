"""Tables, progress bars and suggestions for mistyped names."""

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_training.text import closest_name, print_table, progress_bar, suggest

# --- tables -----------------------------------------------------------------------------------------------------------


def printed(capsys: pytest.CaptureFixture[str], head: list[str], body: list[list[Any]]) -> list[str]:
    print_table(head, body)
    return capsys.readouterr().out.splitlines()


def test_columns_fit_their_cells_and_numbers_are_right_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, ["name", "n", "loss"], [["a", "5", "1e-05"], ["a long one", "1000", "-"]]) == [
        "name           n   loss",
        "a              5  1e-05",
        "a long one  1000      -",
    ]


def test_empty_column_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, ["path", "label", "error"], [["a", "", ""], ["b", "bee", ""]]) == [
        "path  label",
        "a",
        "b     bee",
    ]


def test_control_characters_in_names_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, ["a\tb"], [["\x1b[31mred"], ["\udcff"]]) == ["a\\tb", "\\x1b[31mred", "\\udcff"]


CELL = st.text(max_size=6)


@given(st.lists(st.tuples(st.text(min_size=1, max_size=6), CELL, CELL), min_size=1, max_size=5))
def test_each_row_is_one_line_for_any_text(body: list[tuple[str, str, str]]) -> None:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda text: lines.append(text))
        print_table(["one", "two", "three"], body)
    assert len(lines[0].split("\n")) == len(body) + 1


def test_table_has_borders_in_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    print_table(["name", "none", "n"], [["[bold]odd[/bold]", "", "5"], ["b", "", "10"]])
    shown = capsys.readouterr().out
    assert "[bold]odd[/bold]" in shown  # not interpreted as markup
    assert "none" not in shown
    assert "│" in shown
    assert "│  5 │" in shown.replace("\x1b[0m", "")


# --- bars -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terminal", "show", "shown"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_progress_bar_is_only_shown_in_a_terminal(
    terminal: bool, show: bool, shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("counting sheep", show) as update:
        update(1, None)
        update(2, 4)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("counting sheep" in captured.err) == shown
    assert bool(captured.err) == shown


def test_progress_is_a_line_now_and_then_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for show in (True, False):
        with progress_bar("counting sheep", show) as update:
            for done in range(1, 1001):
                now += 0.03125
                update(done, 1000)
    assert capsys.readouterr() == (
        "",
        "counting sheep: 320 of 1,000 (32%)\ncounting sheep: 640 of 1,000 (64%)\ncounting sheep: 960 of 1,000 (96%)\n",
    )


# --- names ------------------------------------------------------------------------------------------------------------

MODELS = ["LitCNN", "LitMLP", "LitDynamic", "LitTransfer"]


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("LitCNN", "LitCNN"),
        ("litcnn", "LitCNN"),
        ("LitCN", "LitCNN"),
        ("transfer", "LitTransfer"),
        ("xyz", None),
        ("", None),
    ],
)
def test_nearest_name_ignores_case(word: str, near: str | None) -> None:
    assert closest_name(word, MODELS) == near


def test_cutoff_is_the_minimum_similarity() -> None:
    assert closest_name("LitC", MODELS, cutoff=0.5) == "LitCNN"
    assert closest_name("LitC", MODELS, cutoff=0.99) is None
    assert closest_name("LitC", []) is None


def test_suggest_names_the_closest_or_lists_all() -> None:
    assert suggest("LitCN", MODELS) == "did you mean LitCNN?"
    assert suggest("xyz", MODELS) == "choose one of LitCNN, LitMLP, LitDynamic, LitTransfer"
    assert suggest("xyz", (name for name in MODELS)) == suggest("xyz", MODELS)
    many = [f"{number:02}" for number in range(20)]
    assert suggest("xyz", many) == f"choose one of {', '.join(many[:12])}, ..."
    assert not suggest("xyz", many[:12]).endswith("...")
