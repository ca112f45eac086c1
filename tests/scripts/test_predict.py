import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datamodules import ImageFolderDataModule
from lit_models import LitCNN

SCRIPT = Path(__file__).parents[2] / "scripts" / "predict.py"


@pytest.fixture(scope="module")
def main() -> Any:
    """The script's; scripts are no package."""
    return runpy.run_path(str(SCRIPT))["main"]


@pytest.fixture
def run(bare, photo_folder, tmp_path, monkeypatch):
    """A run under lightning_logs, trained on a copy of the photos that is gone, then, with all else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gone = tmp_path / "gone"
    shutil.copytree(photo_folder, gone)
    trainer = bare(max_epochs=6)
    trainer.fit(LitCNN(num_classes=2, lr=0.01), ImageFolderDataModule(str(gone), image_size=32, num_workers=0))
    trainer.save_checkpoint("lightning_logs/version_0/checkpoints/best.ckpt")
    shutil.rmtree(gone)


def test_new_photos_are_named_after_the_old_ones_are_gone(main, run, photo_folder, capsys):
    assert main(["latest", "photos/val/bees", "photos/val/ants/0.jpg", "--output", "out.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["path", "label", "probability", "label_2", "probability_2"]
    assert [line.split()[1] for line in lines[1:6]] == ["bees"] * 4 + ["ants"]
    assert lines[-1] == "written: out.json"
    written = json.loads(Path("out.json").read_text())
    files = [row["path"] for row in written]
    assert files == [*(f"photos/val/bees/{number}.jpg" for number in range(4)), "photos/val/ants/0.jpg"]
    assert [row["label"] for row in written] == ["bees"] * 4 + ["ants"]
    assert all(abs(sum(entry["probability"] for entry in row["top"]) - 1) < 1e-5 for row in written)


def test_exit_codes_tell_how_much_was_read(main, run, photo_folder, capsys):
    assert main(["latest", "missing.jpg", "photos/val/ants/1.jpg", "--top_k", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["path", "label", "probability", "error"]
    assert lines[1].split(maxsplit=1) == ["missing.jpg", "no such file"]
    with pytest.raises(SystemExit) as stop:
        main(["latest", "missing.jpg"])
    assert stop.value.code == 2
    assert "missing.jpg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["latest", "x.jpg"], "no run under lightning_logs yet"),
        (["nowhere.ckpt", "x.jpg"], "nowhere.ckpt is not there"),
        (["latest", "x.jpg", "--output", "x.txt"], "--output x.txt ends in neither .csv nor .json"),
        (["latest", "x.jpg", "--outptu", "x.csv"], "there is no --outptu: did you mean --output?"),
        (["latest", "x.jpg", "--top_k", "0"], "0 is no whole number from 1 up"),
        (["latest", "x.jpg", "--batch_size", "many"], "many is no whole number from 1 up"),
        (["latest", "x.jpg", "--accelerator", "tpu"], "invalid choice: 'tpu'"),
        (["latest"], "required: INPUT"),
    ],
)
def test_wrong_arguments_end_in_one_line(main, arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("predict.py: error: ")
    assert said in error
    assert error.count("\n") == 1


def test_help_needs_no_torch():
    script = str(SCRIPT)
    command = [sys.executable, "-X", "importtime", script, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage: predict.py" in done.stdout
    assert "torch" not in done.stderr
