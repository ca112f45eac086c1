"""The wheel contains all packages: fit.py runs in an environment that has this project only as a wheel."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.commands import ENVIRONMENT, ROOT


@pytest.mark.slow
def test_fit_runs_from_the_wheel_in_another_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".git", ".venv", "lightning_logs", "build", "*.egg-info", "tests", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignore)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(source)]
    subprocess.run(build, cwd=tmp_path, check=True)
    (wheel,) = tmp_path.glob("lit_classics-*.whl")
    # The new environment contains the wheel and uses the libraries of this one. Its link to this project is ignored,
    # because Python reads .pth files only in its own site-packages.
    place = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    target = ["--no-deps", "--no-index", "--target", str(packages), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *target], check=True)
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    script = str(shutil.copy2(ROOT / "scripts" / "fit.py", tmp_path))
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}

    def python(*arguments: str) -> str:
        command = [str(place / "bin" / "python"), *arguments]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    for name in ("page.html", "examples/pictures.py", "examples/rows.py"):
        assert (packages / "lit_training" / "trained" / name).is_file()
    found = python("-c", "import lit_models, datamodules.photos, lit_training.cli as last; print(last.__file__)")
    assert found.startswith(str(packages))
    flags = "--data.train_size 12 --data.val_size 10 --max_epochs 1 --accelerator cpu"
    assert "val_acc" in python(script, *flags.split())
    run = tmp_path / "lightning_logs" / "version_0"
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert "val_acc" in (run / "report.html").read_text()  # the wheel has the templates
