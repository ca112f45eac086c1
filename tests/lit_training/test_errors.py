"""Errors that the user can fix are one line; all others keep their traceback."""

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import DataError
from lit_models import ModelError
from lit_training.errors import CheckpointError, TrainingError, UsageError, is_rank_zero, one_line_errors


@pytest.mark.parametrize(
    "kind", [UsageError, CheckpointError, TrainingError, DataError, ModelError, MisconfigurationException]
)
def test_an_error_of_the_user_is_one_line(kind: type[Exception], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), one_line_errors("predict.py"):
        raise kind("wrong:\n  mend it")
    assert capfd.readouterr().err == "predict.py: error: wrong: mend it\n"


@pytest.mark.parametrize("kind", [KeyError, ValueError, RuntimeError, OSError])
def test_a_bug_keeps_its_traceback(kind: type[Exception]) -> None:
    with pytest.raises(kind), one_line_errors("predict.py"):
        raise kind("a bug")


def test_what_a_terminal_would_obey_is_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), one_line_errors("predict.py"):
        raise UsageError("no file \x1b[31mé\x07")
    assert capfd.readouterr().err == "predict.py: error: no file \\x1b[31mé\\x07\n"


def test_ctrl_c_is_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="130"), one_line_errors("predict.py"):
        raise KeyboardInterrupt
    assert capfd.readouterr().err == "predict.py: stopped\n"


@pytest.mark.parametrize(
    ("variables", "rank", "first"),
    [
        ({}, 0, True),
        ({"NODE_RANK": "1"}, 0, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, 0, False),  # one process a GPU, each started by hand
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, 0, True),
        ({"LOCAL_RANK": "1"}, 1, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, 0, True),  # torchrun
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, 2, False),
        ({"SLURM_PROCID": "0", "NODE_RANK": "1"}, 0, True),  # which Lightning does not read there
    ],
)
def test_one_process_speaks(variables: dict[str, str], rank: int, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    assert is_rank_zero() == first
