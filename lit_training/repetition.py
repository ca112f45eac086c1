"""The same command with several seeds: what a result owes to chance."""

import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

from datamodules.loading import SIGNALS
from lit_training import comparison
from lit_training.arguments import Parser, at_least


def repeat(arguments: list[str], count: int) -> int:
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
    folders = []
    for seed in range(chosen.seed, chosen.seed + count):
        started = time.monotonic()
        command = [sys.executable, sys.argv[0], *rest, "--quiet", "--seed", str(seed)]
        code, output = _run(command)
        if code:
            print(output, end="", flush=True)
            return code
        said = re.search(r"^run +(.+)$", output, re.MULTILINE)
        if said is None:
            print(
                "fit.py: error: --seeds reads each run's folder: leave --logger and --fast_dev_run out", file=sys.stderr
            )
            return 2
        folders.append(said[1])
        reached = [f"{name} {comparison.written(name, value)}" for name, value in comparison.read(said[1]).best.items()]
        print(f"seed {seed}  {'  '.join(reached)}  {time.monotonic() - started:.0f} s  {said[1]}", flush=True)
    print("\n" + "\n".join(comparison.spread([comparison.read(folder) for folder in folders])))
    return 0


def _run(command: list[str]) -> tuple[int, str]:
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
        )
        for number in waiting:
            process.send_signal(number)
        output, _ = process.communicate()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = process.returncode
    return (code if code >= 0 else 128 - code), output
