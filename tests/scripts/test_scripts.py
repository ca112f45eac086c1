"""What all scripts have in common: help before anything heavy is imported, and names that hide no module."""

import subprocess
import sys
from pathlib import Path

import pytest

from lit_training.cli.help import FIT_HELP
from tests.support.commands import ENVIRONMENT, ROOT, run

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
LIGHT = [name for name in SCRIPTS if name != "benchmark.py"]
"""benchmark.py times libraries, so that it imports them first."""
LINES = {
    "check.py": "check.py x --wrong",
    "compare.py": "compare.py one",
    "describe.py": "describe.py",
    "evaluate.py": "evaluate.py",
    "fit.py": "fit.py --seeds many",
    "predict.py": "predict.py latest",
}
"""Command lines that argparse refuses."""


def imported(line: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run a script as a program; return how it ended, and what heavy modules it imported."""
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
def test_help_comes_before_heavy_imports(name: str) -> None:
    done, heavy = imported(f"{name} --help")
    assert (done.returncode, done.stderr, heavy) == (0, "", set())
    assert done.stdout.startswith(f"usage: {'python scripts/' * (name == 'fit.py')}{name}")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_of_fit_fits_a_screen(flag: str) -> None:
    code, out, err = run(f"fit.py {flag}")
    assert (code, out.strip(), err) == (0, FIT_HELP.strip(), "")


@pytest.mark.parametrize("name", LIGHT)
def test_wrong_flags_are_refused_before_heavy_imports(name: str) -> None:
    done, heavy = imported(LINES[name])
    assert (done.returncode, done.stdout, heavy) == (2, "", set())
    assert done.stderr.startswith(f"{name}: error: ")
    assert done.stderr.count("\n") == 1


def test_no_script_hides_a_module_of_the_standard_library() -> None:
    """Python puts a script's folder, or the current one, before the standard library."""
    assert {Path(name).stem for name in SCRIPTS} & set(sys.stdlib_module_names) == set()
