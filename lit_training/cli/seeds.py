"""Run the same command with several seeds for ``--seeds``; print mean and standard deviation."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datamodules.machine import STOP_SIGNALS
from datamodules.text import command
from lit_training.cli.arguments import Parser, at_least
from lit_training.cli.fit import RESULT_FILE_VARIABLE
from lit_training.errors import UsageError
from lit_training.runs.folder import relative_path
from lit_training.trained.compare import format_metric, read_run, summarize_seeds


def run_seeds(arguments: list[str], count: int) -> int:
    """Run ``sys.argv[0]`` in a new process for each seed; print mean and standard deviation. Return 0.

    The first seed is the ``--seed`` in ``arguments``. If a run fails, print its output and return its exit code.
    """
    parser = Parser("fit.py", "")
    parser.add_argument("--seed", "--seed_everything", type=at_least(0), default=0)
    chosen, rest = parser.parse_known_args(arguments)
    runs = []
    for seed in range(chosen.seed, chosen.seed + count):
        started = time.monotonic()
        fit = [sys.executable, sys.argv[0], *rest, "--quiet", "--seed", str(seed)]
        with tempfile.TemporaryDirectory() as temporary:
            result_file = Path(temporary) / "run"
            code, output = _run(fit, {**os.environ, RESULT_FILE_VARIABLE: str(result_file)})
            folder = result_file.read_text("utf-8", errors="surrogateescape") if result_file.is_file() else None
        if code:
            print(output, end="", flush=True)
            return code
        if folder is None:
            raise UsageError("--seeds needs the folder of each run: leave --logger and --fast_dev_run out")
        runs.append(read_run(folder))
        metrics = "  ".join(f"{name} {format_metric(name, value)}" for name, value in runs[-1].best.items())
        duration, shown_folder = time.monotonic() - started, relative_path(Path(folder))
        print(f"seed {seed}  {metrics}  {duration:.0f} s  {shown_folder}", flush=True)
    print("\n" + "\n".join(summarize_seeds(runs)))
    print("+- shows the effect of --seed: other start weights, another order of the data, other augmentation.")
    if "data.seed" in runs[0].settings:
        both = command("fit.py", *rest, "--seed", 1, "--data.seed", 1)
        print("It does not show the effect of another split: all runs used the same validation data.")
        print(f"If fit.py makes the split, vary both seeds:\n  {both}")
    return 0


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a command, send it each signal that this process receives, and return its exit code and output."""
    process: subprocess.Popen[str] | None = None
    pending: list[int] = []

    def forward(number: int, frame: Any) -> None:
        if process is None:
            pending.append(number)
        elif os.name == "posix":  # on Windows the console sends the signal to both processes
            process.send_signal(number)

    old_handlers = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        options: dict[str, Any] = {"text": True, "encoding": "utf-8", "errors": "surrogateescape", "env": environment}
        # In the same session, the command would get Ctrl-C twice: from the terminal and from forward().
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, **options)
        for number in pending:
            process.send_signal(number)
        output, _ = process.communicate()
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
    code = process.returncode
    return (code if code >= 0 else 128 - code), output
