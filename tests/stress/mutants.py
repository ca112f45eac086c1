"""Write bugs into the code, one at a time, and check that a test fails: ``make mutants``.

``mutants.yaml`` lists bugs, each with tests that should fail. Each bug is written into a copy of the project. The
listed tests run first. If they pass, all fast tests run. If these pass too, the bug SURVIVED: a test is missing.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import yaml

ROOT = Path(__file__).resolve().parents[2]
MUTANTS_FILE = Path(__file__).with_name("mutants.yaml")
IGNORED_FILES = shutil.ignore_patterns(
    ".git", ".venv", "lightning_logs", "data", "__pycache__", ".*_cache", "*.egg-info"
)
NAMED_TESTS_SECONDS, ALL_TESTS_SECONDS = 300, 1200
"""Time limits for the listed tests and for all tests. If tests run longer, the bug counts as noticed."""


@dataclass(frozen=True)
class Mutant:
    """A bug: ``old`` in ``file`` is replaced by ``new``. ``what`` describes the bug; ``tests`` should then fail."""

    file: str
    old: str
    new: str
    what: str
    tests: list[str]

    def plant(self, tree: Path) -> None:
        """Write the bug into ``tree``, a copy of the project."""
        path = tree / self.file
        source = path.read_text(encoding="utf-8")
        assert source.count(self.old) == 1, f"{self.file}: {self.old!r} occurs {source.count(self.old)} times"
        path.write_text(source.replace(self.old, self.new), encoding="utf-8")

    def restore(self, tree: Path) -> None:
        """Remove the bug from ``tree``."""
        shutil.copy2(ROOT / self.file, tree / self.file)


def read_mutants() -> list[Mutant]:
    """Read the bugs in mutants.yaml."""
    return [Mutant(**entry) for entry in yaml.safe_load(MUTANTS_FILE.read_text(encoding="utf-8"))]


def any_test_fails(tree: Path, arguments: list[str], limit: float) -> bool:
    """Run pytest in ``tree``. Return True if a test or an import fails, or after ``limit`` seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode not in (0, 1):  # 1: a test failed; other codes: pytest could not run the tests
        if re.search(r"Error|error", output) and process.returncode in (2, 3, 4) and "no tests ran" not in output:
            return True  # the bug breaks an import
        raise RuntimeError(f"pytest ended with code {process.returncode} for {arguments}:\n{output[-2000:]}")
    return process.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="try only bugs whose file or description matches this regex")
    parser.add_argument("--minutes", type=float, default=60, help="start no further bug after this time (default 60)")
    parser.add_argument("--jobs", type=int, default=2, help="bugs to test at the same time (default 2)")
    parser.add_argument("--named", action="store_true", help="run only the tests listed for each bug")
    chosen = parser.parse_args()
    mutants = [m for m in read_mutants() if re.search(chosen.only, f"{m.file} {m.what}")]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(chosen.jobs):
            trees.put(shutil.copytree(ROOT, Path(place, str(number)), ignore=IGNORED_FILES))

        def test(mutant: Mutant) -> str:
            tree = trees.get()
            try:
                if time.monotonic() - started > 60 * chosen.minutes:
                    return "not tried"
                mutant.plant(tree)
                if any_test_fails(tree, mutant.tests, NAMED_TESTS_SECONDS):
                    return "noticed"
                if not chosen.named and any_test_fails(tree, ["-m", "not slow", "tests"], ALL_TESTS_SECONDS):
                    return "noticed by another test"
                return "SURVIVED"
            finally:
                mutant.restore(tree)
                trees.put(tree)

        results = []
        with ThreadPoolExecutor(chosen.jobs) as threads:
            for mutant, result in zip(mutants, threads.map(test, mutants), strict=True):
                results.append(result)
                print(f"{result:<24} {mutant.file}: {mutant.what}", flush=True)
    tried = [result for result in results if result != "not tried"]
    noticed = sum(result != "SURVIVED" for result in tried)
    share = noticed / max(len(tried), 1)
    print(f"\n{noticed} of {len(tried)} bugs noticed ({share:.1%}), {len(results) - len(tried)} not tried")
    return 0 if noticed == len(tried) else 1


if __name__ == "__main__":
    sys.exit(main())
