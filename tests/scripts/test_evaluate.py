"""Test the output and the errors of scripts/evaluate.py."""

from collections.abc import Callable

import pytest
from lightning.pytorch import Trainer

from datamodules import ShapesDataModule
from lit_models import LitCNN
from tests.support.commands import run, run_well


def test_the_checkpoint_is_enough_to_evaluate(bare: Callable[..., Trainer]) -> None:
    trainer = bare(max_epochs=1)
    trainer.fit(LitCNN(), ShapesDataModule(train_size=20, val_size=30))
    trainer.save_checkpoint("lightning_logs/version_3/checkpoints/best.ckpt")
    out = run_well("evaluate.py latest")
    assert "data        ShapesDataModule, test: 30 samples" in out
    assert "of 30 right)" in out
    assert "written     lightning_logs/version_3/evaluation/: predictions.csv" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("latest", "no run under lightning_logs yet"),
        ("nowhere", "nowhere does not exist"),
        ("latest --date x", "there is no --date: did you mean --data?"),
        ("", "required: RUN"),
        ("latest --accelerator cpu --devices 0", "--devices 0 must be an integer of at least 1"),
        ("latest --accelerator cpu --devices many", "--devices many must be an integer of at least 1"),
        ("latest --accelerator cpu --devices 5000", "this machine has"),
    ],
)
def test_wrong_arguments_get_one_line(line: str, message: str) -> None:
    code, out, err = run(f"evaluate.py {line}")
    assert (code, out) == (2, "")
    assert err.startswith("evaluate.py: error: ")
    assert message in err
    assert err.count("\n") == 1
