"""The same command with several seeds: what a result owes to chance."""

import re
import subprocess
import sys
import time

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
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="surrogateescape")
        if done.returncode:
            return done.returncode
        said = re.search(r"^run +(.+)$", done.stdout, re.MULTILINE)
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
