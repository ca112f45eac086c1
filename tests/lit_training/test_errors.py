"""Errors that the user can fix become one line; other errors keep their traceback."""

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import DataError
from datamodules.text import is_rank_zero
from lit_models import ModelError
from lit_training.errors import CheckpointError, TrainingError, UsageError, one_line_errors
from lit_training.runs.run import FitTrainer
from tests.support.commands import run


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


OLD_DRIVER = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError(OLD_DRIVER), "The NVIDIA driver on your system is too old (found version 11040)): update"),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors"),
            "upd",
        ),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), "unavailable): end other"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), "(CUDA out of memory): end"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "end other programs on it"),
    ],
)
def test_a_gpu_that_cannot_be_used_gets_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error comes when a model is moved to the GPU, or when the Trainer is built."""
    with pytest.raises(SystemExit, match="2"), one_line_errors("predict.py"):
        raise error
    printed = capfd.readouterr().err
    assert printed.startswith("predict.py: error: the GPU cannot be used (")
    assert line in printed
    assert printed.endswith(", or use --accelerator cpu\n")

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(FitTrainer, "__init__", fail)
    ended = run("fit.py --accelerator auto --logger false")
    assert (ended.code, ended.err) == (2, printed.replace("predict.py", "fit.py"))


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
