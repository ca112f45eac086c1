"""The notebooks run without errors, their outputs are correct, and they are committed with their outputs.

``python -m tests.test_notebooks`` runs the notebooks again and stores their new outputs.
"""

import ast
import base64
import io
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

import datamodules
import lit_models
import lit_training
from lit_training.statistics import wilson_interval
from tests.support.commands import ENVIRONMENT, ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PUBLIC = {"datamodules": datamodules.__all__, "lit_models": lit_models.__all__, "lit_training": lit_training.__all__}
"""Package -> the names that a notebook may import from it."""
MACHINE_TEXT = re.compile(r"(?<![\w.])/(?:tmp|home|root|work|usr|opt|var|private|Users)\b|[A-Z]:\\|\x1b|0x[0-9a-f]{6,}")
"""Paths, colors and memory addresses, which are different on each machine or in each run."""
MAX_BYTES = 1_500_000
"""Maximum size of all notebooks together."""

by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(outputs: list[Any]) -> str:
    """Return the printed text and the text of displayed values."""
    return "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)


def images(outputs: list[Any]) -> list[Image.Image]:
    """Return the images in the outputs."""
    found = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in found]


def kinds(cell: Any) -> list[str]:
    """Return the kind of each output of a cell, as ``stdout`` or ``image/png``."""
    return [output.get("name") or next(iter(sorted(output.get("data", {}))), "error") for output in cell.outputs]


# --- rules for a notebook: each function returns the faults -----------------------------------------------------------


def find_private_imports(source: str) -> list[str]:
    """Return the imports of names that are private, or that are not public names of this project's packages."""
    wrong = []
    names: list[tuple[str, str | None]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(str(node.module), alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            package = module.partition(".")[0]
            private = any(part.startswith("_") for part in f"{module}.{name}".split("."))
            own = package in (*PUBLIC, "scripts", "tests")
            if private or (own and (module not in PUBLIC or (name is not None and name not in PUBLIC[module]))):
                wrong.append(f"line {node.lineno}: {module} {name}")
    return wrong


def prints_or_plots(source: str) -> bool:
    """Return True if a cell calls ``print``, ``show`` or ``display`` outside of its functions and classes."""
    tree = ast.parse(source)
    body = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    calls = [call.func for node in body for call in ast.walk(node) if isinstance(call, ast.Call)]
    return any(getattr(call, "id", getattr(call, "attr", "")) in ("print", "show", "display") for call in calls)


def find_output_faults(notebook: Any) -> list[str]:
    """Return the faults of the stored outputs of a notebook."""
    wrong = []
    for number, cell in enumerate(code_cells(notebook), start=1):
        if cell.execution_count != number:
            wrong.append(f"cell {number} was not run in order")
        if prints_or_plots(cell.source) and not cell.outputs:
            wrong.append(f"cell {number} has no output")
        if any(output.output_type == "error" or output.get("name") == "stderr" for output in cell.outputs):
            wrong.append(f"cell {number} holds an error or a warning")
        if found := MACHINE_TEXT.search(texts(cell.outputs)):
            wrong.append(f"cell {number} holds {found[0]}")
        if "execution" in cell.metadata:
            wrong.append(f"cell {number} holds times of this run")
    return wrong


# --- the committed files ----------------------------------------------------------------------------------------------


@by_notebook
def test_a_notebook_is_committed_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert code_cells(notebook)
    assert find_output_faults(notebook) == []


@by_notebook
def test_a_notebook_imports_public_names_only(path: Path) -> None:
    for cell in code_cells(nbformat.read(path, as_version=4)):
        assert find_private_imports(cell.source) == []


@by_notebook
def test_the_first_cell_says_what_the_reader_learns_and_how_long_it_takes(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert 3 <= len(re.findall(r"^- ", first.source, re.M)) <= 5
    assert re.search(r"\bminutes?\b", first.source)


def test_the_notebooks_and_their_figures_are_small() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) < MAX_BYTES
    for path in NOTEBOOKS:
        for cell in code_cells(nbformat.read(path, as_version=4)):
            for image in images(cell.outputs):
                assert max(image.size) <= 1000


# --- tests of the rules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("from lit_training import load", True),
        ("from datamodules import ImageFolderDataModule, ShapesDataModule", True),
        ("import torch.nn.functional as F", True),
        ("from lit_training import figures", False),
        ("from lit_training.cli.parser import silence_libraries", False),
        ("import lit_training.runs.folder", False),
        ("from lit_models import backbones", False),
        ("from datamodules import _MODULE_OF", False),
        ("def f():\n    from torch import _C", False),
        ("from scripts import fit", False),
    ],
)
def test_private_imports_are_found(line: str, allowed: bool) -> None:
    assert (find_private_imports(line) == []) is allowed


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("print(1)", True),
        ("for x in (1, 2):\n    plt.show()", True),
        ("show(files)", True),
        ("def show(x):\n    print(x)", False),
        ("class A:\n    def f(self):\n        print(1)", False),
        ("x = 1", False),
    ],
)
def test_cells_that_print_or_plot_are_found(source: str, expected: bool) -> None:
    assert prints_or_plots(source) is expected


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"outputs": []}, "no output"),
        ({"execution_count": 2}, "not run in order"),
        ({"metadata": {"execution": {"iopub.execute_input": "2026-01-01"}}}, "times"),
        ({"outputs": [nbformat.v4.new_output("stream", name="stderr", text="warning")]}, "a warning"),
        ({"outputs": [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]}, "an error"),
        ({"outputs": [nbformat.v4.new_output("stream", name="stdout", text="photos: /tmp/a/photos")]}, "/tmp"),
        ({"outputs": [nbformat.v4.new_output("execute_result", data={"text/plain": "<A at 0x7f00aa11>"})]}, "0x7f"),
    ],
)
def test_faults_of_outputs_are_found(change: dict[str, Any], fault: str) -> None:
    good = nbformat.v4.new_output("stream", name="stdout", text="in a/tmp of 3 photos\n")
    cell = nbformat.v4.new_code_cell("print(1)", outputs=[good], execution_count=1)
    assert find_output_faults(nbformat.v4.new_notebook(cells=[cell])) == []
    cell.update(change)
    [found] = find_output_faults(nbformat.v4.new_notebook(cells=[cell]))
    assert fault in found


# --- running them -----------------------------------------------------------------------------------------------------


def execute(path: Path) -> Any:
    """Run a notebook in an empty folder; return it with its new outputs."""
    notebook = nbformat.read(path, as_version=4)
    metadata = notebook.metadata.copy()
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=240, record_timing=False, resources=resources).execute()
    notebook.metadata = metadata  # without the version of Python
    for cell in code_cells(notebook):
        cell.outputs = merge_prints(cell.outputs)
    return notebook


def merge_prints(outputs: list[Any]) -> list[Any]:
    """Join neighboring outputs of the same stream, because the kernel splits them at random."""
    merged: list[Any] = []
    for output in outputs:
        if merged and output.output_type == "stream" and output.get("name") == merged[-1].get("name"):
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def execute_all() -> dict[str, Any]:
    """Run all notebooks at the same time, each in its own kernel; return number -> notebook with new outputs."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(NOTEBOOKS)) as threads:
        for name in ("OMP_NUM_THREADS", "PYTHONPATH"):
            patch.setenv(name, ENVIRONMENT[name])
        return dict(zip([path.stem[0] for path in NOTEBOOKS], threads.map(execute, NOTEBOOKS), strict=True))


@pytest.fixture(scope="module")
def executed() -> dict[str, Any]:
    return execute_all()


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


@pytest.mark.slow
@by_notebook
def test_a_notebook_runs_and_its_stored_outputs_are_of_the_same_kind(path: Path, executed: dict[str, Any]) -> None:
    """The texts may differ, because accuracies depend on the processor and messages on the version."""
    fresh, stored = executed[path.stem[0]], nbformat.read(path, as_version=4)
    assert find_output_faults(fresh) == []
    for new, old in zip(code_cells(fresh), code_cells(stored), strict=True):
        assert kinds(new) == kinds(old), new.source


@pytest.mark.slow
def test_raw_loops_and_trainer_end_with_the_same_weights(executed: dict[str, Any]) -> None:
    text = texts(outputs_of(executed["1"]))
    assert text.count("largest difference between the weights: 0.0\n") == 6
    assert "MseLoss <- Addmm <- Relu <- Addmm <- AccumulateGrad" in text.replace("<- T ", "")


@pytest.mark.slow
def test_the_photo_classifier_is_better_than_chance_and_its_interval_is_right(executed: dict[str, Any]) -> None:
    text = texts(outputs_of(executed["2"]))
    found = re.search(r"(\d+) of (\d+) photos right: accuracy (\S+), 95 % interval (\S+) to (\S+)\n", text)
    assert found, text
    right, total = int(found[1]), int(found[2])
    low, high = wilson_interval(right, total)
    assert (total, found[3]) == (36, f"{right / total:.2f}")
    assert (found[4], found[5]) == (f"{low:.2f}", f"{high:.2f}")
    assert low > 1 / 3
    assert len(images(outputs_of(executed["2"]))) == 5  # photos, losses, confusion, mistakes, predictions


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="one device: no fork")
def test_two_devices_share_the_rows_and_bring_the_weights_back(executed: dict[str, Any]) -> None:
    text = texts(outputs_of(executed["3"]))
    for device in range(2):
        line = f"In Model: input size torch.Size([15, 5]), output size torch.Size([15, 2]) (device {device})\n"
        assert text.count(line) == 1
    assert text.count("Outside: 30 rows in one step\n") == 1
    assert float(text.partition("largest change of a weight: ")[2].split()[0]) > 0.1
    error = float(text.partition("mean squared error: ")[2].split()[0])
    assert error < 0.05  # the noise alone is 0.01, the error of the first weights about 5


@pytest.mark.slow
def test_importing_the_packages_does_nothing_else(tmp_path: Path) -> None:
    code = """
import logging, os, pkgutil, random, signal, sys, warnings
import numpy, torch, lightning.pytorch, torchvision, torch.utils.tensorboard  # their side effects are not tested
def state():
    return [list(warnings.filters), logging.getLogger("lightning.pytorch").level, signal.getsignal(signal.SIGTERM),
            torch.get_num_threads(), torch.get_rng_state().sum().item(), random.getstate(), sys.path[:],
            {**os.environ, "OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": ""}, torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled()]
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


if __name__ == "__main__":
    for path, notebook in zip(NOTEBOOKS, execute_all().values(), strict=True):
        nbformat.write(notebook, path)
