"""After Ctrl-C, and if nobody reads their output, scripts end without traceback and with the exit code of the shell."""

import os
import signal
import time
from pathlib import Path

import pytest

from lit_training.errors import one_line_errors
from tests.support.commands import run_well, start
from tests.support.printed import read_csv

CLOSED_PIPE = "141"


@pytest.mark.parametrize("ending", ["return", "exit", "print"])
def test_closed_pipe_is_noticed_before_python_ends(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        with pytest.raises(SystemExit, match=CLOSED_PIPE), one_line_errors("check.py"):  # noqa: PT012
            print("text", flush=ending == "print")
            if ending == "exit":
                raise SystemExit(1)
        monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("line", ["fit.py --help", "describe.py LitCNN"])
def test_no_traceback_if_nobody_reads(line: str) -> None:
    process = start(line)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(300), "Traceback" in err or "ignored" in err) == (141, False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk_gets_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        process = start("check.py --help", stdout=full)
        _, err = process.communicate(timeout=300)
    line = "check.py: error: the output cannot be written (No space left on device): free disk space, then repeat\n"
    assert (process.returncode, err) == (2, line)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.6, 1.0, 1.5, 2.0])
def test_ctrl_c_during_the_imports(seconds: float) -> None:
    process = start("describe.py LitCNN")
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) in ((130, "describe.py: stopped\n"), (130, ""), (0, ""))


@pytest.mark.slow
def test_a_stopped_export_leaves_no_files() -> None:
    run_well("fit.py --max_epochs 1 --data.train_size 64 --data.val_size 64 --dashboard false --report false")
    process = start("export.py latest --to model.onnx")
    while process.poll() is None and not list(Path().glob(".export.*/model")):  # wait until it writes its files
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 128 + signal.SIGTERM
    assert [path.name for path in Path().iterdir()] == ["lightning_logs"]


@pytest.mark.slow
def test_training_goes_on_if_nobody_reads() -> None:
    process = start("fit.py --max_epochs 3 --data.train_size 64 --data.val_size 64 --dashboard false")
    assert process.stdout is not None
    assert process.stderr is not None
    while not process.stdout.readline().startswith("epoch 1"):
        pass
    process.stdout.close()
    assert (process.stderr.read(), process.wait(300)) == ("", 141)
    rows = read_csv(Path("lightning_logs/version_0/metrics.csv"))
    assert {row["epoch"] for row in rows if "epoch" in row} == {"0", "1", "2"}
