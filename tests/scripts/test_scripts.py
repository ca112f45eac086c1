"""Tests of all scripts: their --help, fast refusals, and names that hide no module."""

import subprocess
import sys
from pathlib import Path

import pytest

from lit_training.cli.help import FIT_HELP
from tests.support.commands import ENVIRONMENT, ROOT, run, run_well

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
LIGHT = [name for name in SCRIPTS if name != "benchmark.py"]
"""benchmark.py measures libraries, so it imports them first."""
LINES = {
    "export.py": "export.py latest",
    "check.py": "check.py x --wrong",
    "compare.py": "compare.py one",
    "describe.py": "describe.py",
    "evaluate.py": "evaluate.py",
    "fit.py": "fit.py --seeds many",
    "predict.py": "predict.py latest",
    "serve.py": "serve.py",
}
"""A command line for each script that argparse refuses."""


def imported(line: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a script as a program; return its result and the heavy modules that it imported."""
    name, *arguments = line.split()
    code = (
        "import atexit, runpy, sys\n"
        f"sys.argv = [{name!r}, *{arguments!r}]\n"
        "heavy = {'torch', 'torchvision', 'lightning', 'torchmetrics', 'jsonargparse'}\n"
        "heavy |= {'numpy', 'scipy', 'matplotlib', 'yaml', 'rich'}\n"
        "atexit.register(lambda: open('heavy', 'w').write(' '.join(heavy & set(sys.modules))))\n"
        f"runpy.run_path({str(ROOT / 'scripts' / name)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    return done, set(Path("heavy").read_text().split())


@pytest.mark.parametrize("name", LIGHT)
def test_help_imports_nothing_heavy(name: str) -> None:
    done, heavy = imported(f"{name} --help")
    assert (done.returncode, done.stderr, heavy) == (0, "", set())
    assert done.stdout.startswith(f"usage: {'python scripts/' * (name == 'fit.py')}{name}")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_fits_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    narrow = run_well(f"{name} --help")
    monkeypatch.setenv("COLUMNS", "1000")
    wide = run_well(f"{name} --help")
    assert max(map(len, narrow.splitlines())) <= 80
    assert narrow.split() == wide.split(), "a word is broken over two lines"
    usage_and_description = 2
    assert narrow.split("\n\n")[usage_and_description:] == wide.split("\n\n")[usage_and_description:], (
        "a help text wraps"
    )


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_fit_prints_its_short_help(flag: str) -> None:
    code, out, err = run(f"fit.py {flag}")
    assert (code, out.strip(), err) == (0, FIT_HELP.strip(), "")


@pytest.mark.parametrize("name", LIGHT)
def test_wrong_flags_are_refused_without_heavy_imports(name: str) -> None:
    done, heavy = imported(LINES[name])
    assert (done.returncode, done.stdout, heavy) == (2, "", set())
    assert done.stderr.startswith(f"{name}: error: ")
    assert done.stderr.count("\n") == 1


def test_no_script_hides_a_module_of_the_standard_library() -> None:
    """Python searches the folder of the script before the standard library."""
    assert {Path(name).stem for name in SCRIPTS} & set(sys.stdlib_module_names) == set()
