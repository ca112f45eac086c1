import runpy
from pathlib import Path
from typing import Any

import pytest

from datamodules import ShapesDataModule
from lit_models import LitCNN

SCRIPT = Path(__file__).parents[2] / "scripts" / "evaluate.py"


@pytest.fixture(scope="module")
def main() -> Any:
    """The script's; scripts are no package."""
    return runpy.run_path(str(SCRIPT))["main"]


def test_the_checkpoint_alone_decides(main, bare, capsys):
    trainer = bare(max_epochs=1)
    trainer.fit(LitCNN(), ShapesDataModule(train_size=20, val_size=30))
    trainer.save_checkpoint("lightning_logs/version_3/checkpoints/best.ckpt")
    main(["latest"])
    said = capsys.readouterr().out
    assert "data        ShapesDataModule, test: 30 samples" in said
    assert "of 30 right)" in said
    assert "written     lightning_logs/version_3/evaluation/: predictions.csv" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["latest"], "no run under lightning_logs yet"),
        (["nowhere"], "nowhere is not there"),
        (["latest", "--date", "x"], "there is no --date: did you mean --data?"),
        ([], "required: RUN"),
        (["latest", "--accelerator", "cpu", "--devices", "0"], "--devices 0 is not a number of processes"),
        (["latest", "--accelerator", "cpu", "--devices", "many"], "--devices many is not a number of processes"),
        (["latest", "--accelerator", "cpu", "--devices", "5000"], "this machine has"),
    ],
)
def test_wrong_arguments_end_in_one_line(main, arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate.py: error: ")
    assert said in error
    assert error.count("\n") == 1
