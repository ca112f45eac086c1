"""A failure during a run prints one line that says what to do."""

import errno
import os
import re
from dataclasses import replace

import pytest
import torch

from datamodules.photos.decode import BadPicture
from datamodules.text import command
from lit_training.cli.trouble import one_line_failures
from lit_training.errors import CheckpointError, TrainingError
from lit_training.runs.run import Run
from tests.support.fits import QUIET, SHAPES, parse


def run_of(line: str = "") -> Run:
    return parse(f"{SHAPES} {QUIET} --max_epochs 3 {line}").run


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_names_the_batch_size_and_the_flag_to_try(error: RuntimeError) -> None:
    run = run_of("--data.batch_size 64 --accumulate_grad_batches 3")
    said = "64 samples per step and device: --data.batch_size 32 --accumulate_grad_batches 6 gives the same"
    with pytest.raises(TrainingError, match=said), one_line_failures(run):
        raise error


def test_out_of_memory_with_one_sample_suggests_a_smaller_image() -> None:
    with pytest.raises(TrainingError, match=r"--data\.batch_size 1 "), one_line_failures(run_of("--data.batch_size 2")):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    run = run_of("--data.batch_size 1")
    said = "with 1 sample per step and device: one sample per step"
    with pytest.raises(TrainingError, match=said), one_line_failures(run):
        raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_written_is_named(number: int) -> None:
    said = rf"cannot write metrics.csv \({os.strerror(number)}\)"
    with pytest.raises(CheckpointError, match=said), one_line_failures(run_of()):
        raise OSError(number, os.strerror(number), "metrics.csv")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "no such file"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("gloo: closed by peer"),  # there is no other process
        ValueError("a bug"),
        KeyError("a bug"),
    ],
)
def test_other_errors_are_not_changed(error: Exception) -> None:
    with pytest.raises(type(error)) as kept, one_line_failures(run_of()):
        raise error
    assert kept.value is error


def test_batchnorm_on_one_image_says_what_to_change() -> None:
    with pytest.raises(TrainingError, match=r"one image .* --data.batch_size"), one_line_failures(run_of()):
        torch.nn.BatchNorm1d(2)(torch.zeros(1, 2))


def test_a_schedule_of_the_users_own_that_has_ended_says_what_to_change() -> None:
    run = run_of()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    run.model.configure_optimizers = lambda: (
        [optimizer],
        [{"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4), "interval": "step"}],
    )
    said = r"schedule has ended \(Tried to step 5 times.*: give it total_steps=self.trainer.estimated_stepping_batches"
    with pytest.raises(TrainingError, match=said), one_line_failures(run):
        run.trainer.fit(run.model, run.data)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ("lit_models.mlp.LitMLP", "holds a LitMLP, not a LitCNN: use --model LitMLP, or --resume never"),
        ("my_model.Wide", "holds a my_model.Wide, not a LitCNN: use --model my_model.Wide, or --resume never"),
        (
            "lit_models.cnn.LitCNN",
            "does not fit this LitCNN (size mismatch for net.fc3.bias): use the settings of that run",
        ),
    ],
)
def test_weights_of_another_network_are_named(saved: str, said: str) -> None:
    run = run_of()
    assert run.start is not None
    point = run.start.folder / "checkpoints" / "last.ckpt"
    point.parent.mkdir()
    torch.save({"lit": {"model_class": saved}}, point)
    run.trainer.start = replace(run.start, checkpoint=point)
    text = "Error(s) in loading state_dict for LitCNN:\n\tsize mismatch for net.fc3.bias.\n\tsize mismatch for x."
    with pytest.raises(CheckpointError, match=re.escape(said)), one_line_failures(run):
        raise RuntimeError(text)


def test_a_photo_lost_during_training_is_named() -> None:
    run = run_of()
    lost = BadPicture("ants/0.jpg", "unreadable", "No such file or directory")
    with pytest.raises(TrainingError) as begun, one_line_failures(run):
        raise lost
    said = "ants/0.jpg: unreadable (No such file or directory), but it was readable when the run started: restore it"
    assert str(begun.value) == f"{said}, then start again"
    assert run.start is not None
    point = run.start.folder / "checkpoints" / "last.ckpt"
    point.parent.mkdir()
    point.touch()
    with pytest.raises(TrainingError) as known, one_line_failures(run):
        raise lost
    assert str(known.value) == f"{said}, then go on with {command('fit.py')} --resume lightning_logs/version_0"
