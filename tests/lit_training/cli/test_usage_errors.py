"""The error for a wrong command line is one line that names the wrong word and the fix."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_training.errors import one_line_errors
from tests.stress.odd_inputs import make_parse_function, random_command_line
from tests.support.fits import parse

WRONG = yaml.safe_load((Path(__file__).parents[1] / "wrong_inputs.yaml").read_text())
LINES = int(os.environ.get("FUZZ_COMMAND_LINES", "150"))
"""Number of random command lines; tests/stress/odd_inputs.py tries 10,000 more."""


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("case", WRONG["cases"], ids=lambda case: case["argv"])
def test_wrong_input_gets_one_line(case: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if case.get("unless") == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for name, text in WRONG["files"].items():
        path = tmp_path / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.write_text(text)
    before = files_in(tmp_path)
    with pytest.raises(SystemExit) as stopped, one_line_errors("fit.py"):
        parse(case["argv"])
    out, err = capfd.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("fit.py: error: ")
    assert case["culprit"] in err
    assert case["fix"] in err
    assert files_in(tmp_path) == before


def test_there_are_many_wrong_inputs() -> None:
    lines = [case["argv"] for case in WRONG["cases"]]
    assert len(lines) == len(set(lines)) >= 60


@pytest.fixture(scope="module")
def judge() -> Callable[[list[str]], str]:
    return make_parse_function()


@settings(
    max_examples=LINES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(draw=st.randoms(use_true_random=False))
def test_random_command_lines_parse_or_are_refused(judge: Callable[[list[str]], str], draw: Any) -> None:
    assert judge(random_command_line(draw)) in ("parsed", "refused")


def test_the_fuzzed_parser_distinguishes_right_wrong_and_crash(
    judge: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judge(["--max_epochs", "3"]) == "parsed"
    assert judge(["--max_epoch", "3"]) == "refused"

    def fail(*_: Any) -> None:
        raise KeyError("no error of a user")

    monkeypatch.setattr("lit_training.cli.parser.to_lightning_arguments", fail)
    with pytest.raises(AssertionError, match="KeyError"):
        judge([])
