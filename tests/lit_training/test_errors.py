"""Errors that the user can fix become one line; other errors keep their traceback."""

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import DataError
from lit_models import ModelError
from lit_training.errors import CheckpointError, TrainingError, UsageError, is_rank_zero, one_line_errors


@pytest.mark.parametrize(
    "kind", [UsageError, CheckpointError, TrainingError, DataError, ModelError, MisconfigurationException]
)
def test_error_that_the_user_can_fix_is_one_line(kind: type[Exception], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), one_line_errors("predict.py"):
        raise kind("wrong:\n  fix it")
    assert capfd.readouterr().err == "predict.py: error: wrong: fix it\n"


@pytest.mark.parametrize("kind", [KeyError, ValueError, RuntimeError, OSError])
def test_bug_keeps_its_traceback(kind: type[Exception]) -> None:
    with pytest.raises(kind), one_line_errors("predict.py"):
        raise kind("a bug")


def test_control_characters_are_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), one_line_errors("predict.py"):
        raise UsageError("no file \x1b[31mé\x07")
    assert capfd.readouterr().err == "predict.py: error: no file \\x1b[31mé\\x07\n"


def test_an_error_without_a_text_has_its_name(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), one_line_errors("fit.py"):
        ProgressBar().enable()  # Lightning raises a NotImplementedError
    assert capfd.readouterr().err == "fit.py: error: ProgressBar: NotImplementedError; change or remove ProgressBar\n"


def test_ctrl_c_prints_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="130"), one_line_errors("predict.py"):
        raise KeyboardInterrupt
    assert capfd.readouterr().err == "predict.py: stopped\n"


@pytest.mark.parametrize(
    ("variables", "rank", "first"),
    [
        ({}, 0, True),
        ({"NODE_RANK": "1"}, 0, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, 0, False),  # one process per GPU, each started by hand
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, 0, True),
        ({"LOCAL_RANK": "1"}, 1, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, 0, True),  # torchrun
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, 2, False),
        ({"SLURM_PROCID": "0", "NODE_RANK": "1"}, 0, True),  # Lightning ignores SLURM_PROCID here
    ],
)
def test_is_rank_zero_is_true_in_one_process(
    variables: dict[str, str], rank: int, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    assert is_rank_zero() == first
