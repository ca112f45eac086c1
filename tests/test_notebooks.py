"""The notebooks run and show the results that their text describes; imports have no side effects."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.commands import ENVIRONMENT, ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Run all notebooks at the same time, each in its own kernel; return the outputs of their cells."""
    place = tmp_path_factory.mktemp("notebooks")

    def run(path: Path) -> list[Any]:
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(place)}}).execute()
        return [output for cell in notebook.cells for output in cell.get("outputs", [])]

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(NOTEBOOKS)) as threads:
        for name in ("OMP_NUM_THREADS", "PYTHONPATH"):
            patch.setenv(name, ENVIRONMENT[name])
        return dict(zip([path.stem[0] for path in NOTEBOOKS], threads.map(run, NOTEBOOKS), strict=True))


def said(outputs: list[Any]) -> str:
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


@pytest.mark.slow
def test_plain_loops_and_trainer_give_the_same_weights(outputs: dict[str, list[Any]]) -> None:
    text = said(outputs["1"])
    assert text.count("largest difference of two weights: 0.0\n") == 6
    assert "MseLoss <- Addmm <- Relu <- Addmm" in text


@pytest.mark.slow
def test_photos_give_a_confusion_matrix_and_predictions(outputs: dict[str, list[Any]]) -> None:
    text = said(outputs["2"])
    assert "120 pictures in 3 classes" in text
    assert text.count("\nepoch ") + text.startswith("epoch ") >= 7
    assert len(text.splitlines()) < 40
    pictures = [output.data["image/png"] for output in outputs["2"] if "image/png" in output.get("data", {})]
    assert len(pictures) == 2


@pytest.mark.slow
def test_several_devices(outputs: dict[str, list[Any]]) -> None:
    text = said(outputs["3"])
    assert text.count("In Model: input size torch.Size([15, 5]) output size torch.Size([15, 2])") == 2
    assert text.count("Outside: input size torch.Size([30, 5]) output_size torch.Size([30, 2])") == 1
    moved = float(text.partition("weights moved by up to ")[2].split()[0])
    error = float(text.partition("mean squared error on rows it has not seen: ")[2].split()[0])
    assert moved > 0.1
    assert error < 0.05  # the noise is 0.01, the initial error about 5


@pytest.mark.slow
def test_imports_have_no_side_effects(tmp_path: Path) -> None:
    code = """
import logging, os, pkgutil, random, signal, sys, warnings
import numpy, torch, lightning.pytorch, torchvision, torch.utils.tensorboard  # their side effects are allowed
def state():
    return [list(warnings.filters), logging.getLogger("lightning.pytorch").level, signal.getsignal(signal.SIGTERM),
            torch.get_num_threads(), torch.get_rng_state().sum().item(), random.getstate(), sys.path[:],
            dict(os.environ), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()]
before = state()
import datamodules, lit_models, lit_training
for package in (datamodules, lit_models, lit_training):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        __import__(module.name)
assert {"datamodules.photos.scan", "lit_training.cli.parser", "lit_training.runs.folder"} <= set(sys.modules)
for name, one, other in zip("filters level signal threads rng random path environ dtype det".split(), before, state()):
    assert one == other, name
"""
    place = tmp_path / "place"
    place.mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=place, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(place.iterdir())
