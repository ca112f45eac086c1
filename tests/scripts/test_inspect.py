"""scripts/describe.py, and that its name is nobody's trouble."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def inspect(*arguments: str) -> None:
    runpy.run_path(str(SCRIPTS / "describe.py"), run_name="by_path")["main"](list(arguments))


def test_a_class(capsys: pytest.CaptureFixture[str]) -> None:
    inspect("LitCNN", "--model.loss", "squared_error", "--model.in_channels", "1")
    shown = capsys.readouterr()
    assert shown.out.startswith("LitCNN: 61,706 trainable of 61,706 parameters")
    assert "1x16x10x10" in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ("LitCN", "there is no model LitCN: did you mean LitCNN?"),
        ("nowhere/run", "nowhere/run is not there"),
        ("LitCNN --model.los x", "los"),
        ("latest", "no run"),
        ("LitMLP --model.hidden [0]", "widths"),
    ],
)
def test_wrong_input_gets_one_line(line: str, culprit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        inspect(*line.split())
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err.startswith("describe.py: error: ")
    assert err.count("\n") == 1
    assert culprit in err


@pytest.mark.parametrize("where", ["beside the script", "in its folder"])
def test_scripts_still_find_the_standard_librarys_inspect(where: str, tmp_path: Path) -> None:
    """Python puts a script's folder, or the current one, before the standard library."""
    code = "import inspect, dataclasses; print(inspect.signature(lambda a, b=1: 0), inspect.__file__)"
    if where == "in its folder":
        command, place = [sys.executable, "-c", code], SCRIPTS
    else:
        command, place = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); {code}"], tmp_path
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("(a, b=1) ")
    assert Path(done.stdout.split()[-1]).parent == Path(os.__file__).parent


@pytest.mark.slow
def test_scripts_and_the_processes_of_several_devices_work_beside_it(tmp_path: Path) -> None:
    fit = "--max_epochs 1 --data.train_size 16 --data.val_size 11 --accelerator cpu --devices 2 --strategy ddp"
    commands = [
        ["fit.py", *fit.split(), "--trainer.callbacks+", "lit_training.inspection.DeviceReport"],
        ["describe.py", "LitCNN"],
    ]
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPTS / command[0]), *command[1:]],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    (trained, _), (described, problems) = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert problems == ""
    assert described.startswith("LitCNN: 62,006 trainable")
    for rank in (0, 1):
        size = "input size torch.Size([4, 3, 32, 32]) output size torch.Size([4, 10])"
        assert trained.count(f"In Model: {size} (rank {rank} of 2, cpu)") == 1
    board = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0"))
    board.Reload()
    pictures = ["training/samples", "validation/confusion_matrix", "validation/most_confident_mistakes"]
    assert sorted(board.Tags()["images"]) == pictures  # rank 0's alone, of what both ranks saw
    assert trained.count("Outside: input size torch.Size([8, 3, 32, 32]) output_size torch.Size([8, 10])") == 1
