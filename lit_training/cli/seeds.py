"""``--seeds``: run the same command with several seeds, print mean and deviation."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datamodules.machine import SIGNALS
from lit_training.cli.arguments import Parser, at_least
from lit_training.cli.fit import RESULT_FILE
from lit_training.runs.folder import relative_path
from lit_training.trained.compare import format_metric, read_run, summarize_seeds


def run_seeds(arguments: list[str], count: int) -> int:
    """Run ``sys.argv[0]`` with ``arguments`` once for each seed, one after the other; print mean and deviation.

    Each run is a process of its own, so that it is what it would be alone, on any number of devices.

    Args:
        arguments: of the command; its ``--seed`` (default 0) is the first seed.
        count: how many seeds, counted up.

    Returns:
        The exit code: 0, or that of the first run that fails, which ends the series.
    """
    seeds = Parser("fit.py", "")
    seeds.add_argument("--seed", "--seed_everything", type=at_least(0), default=0)
    chosen, rest = seeds.parse_known_args(arguments)
    runs = []
    for seed in range(chosen.seed, chosen.seed + count):
        started = time.monotonic()
        command = [sys.executable, sys.argv[0], *rest, "--quiet", "--seed", str(seed)]
        with tempfile.TemporaryDirectory() as place:
            result = Path(place) / "run"
            code, output = _run(command, {**os.environ, RESULT_FILE: str(result)})
            folder = result.read_text(encoding="utf-8", errors="surrogateescape") if result.is_file() else None
        if code:
            print(output, end="", flush=True)
            return code
        if folder is None:
            hint = "leave --logger and --fast_dev_run out"
            print(f"fit.py: error: --seeds reads each run's folder: {hint}", file=sys.stderr)
            return 2
        runs.append(read_run(folder))
        reached = [f"{name} {format_metric(name, value)}" for name, value in runs[-1].best.items()]
        where = relative_path(Path(folder))
        print(f"seed {seed}  {'  '.join(reached)}  {time.monotonic() - started:.0f} s  {where}", flush=True)
    print("\n" + "\n".join(summarize_seeds(runs)))
    return 0


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit code and output of a command that gets the signals that are meant for this process.

    Each once: it is in a session of its own, where those for a whole group, as Ctrl-C, do not reach it too.
    """
    process: subprocess.Popen[str] | None = None
    waiting: list[int] = []

    def hand_on(number: int, frame: Any) -> None:
        if process is None:
            waiting.append(number)
        elif os.name == "posix":  # elsewhere a console's signal has reached it already
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            start_new_session=True,
            env=environment,
        )
        for number in waiting:
            process.send_signal(number)
        output, _ = process.communicate()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = process.returncode
    return (code if code >= 0 else 128 - code), output
