"""Runs of an older version of the code can be opened, and their results are the same as with that version."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import shapes
from lit_models import LitBase, LitCNN, LitDynamic, LitMLP
from lit_training import load
from lit_training.trained.compare import read_run
from tests.support.commands import ROOT, run_well

OLD = ROOT / "tests" / "fixtures" / "old_runs"
NUMBERS: dict[str, dict[str, Any]] = json.loads((OLD / "numbers.json").read_text())
MODELS: dict[str, type[LitBase]] = {"cnn": LitCNN, "mlp": LitMLP, "dynamic": LitDynamic}
pytestmark = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def run(name: str) -> Path:
    """A copy of the run's folder, because an evaluation writes to it."""
    return shutil.copytree(OLD / name, Path("runs") / name)


def inputs(name: str) -> list[str]:
    return [str(OLD / f"{number}.png") for number in range(3)] if name == "cnn" else [str(OLD / "rows.csv")]


def close(values: Any) -> Any:
    """Return an approximation for comparisons of 5 digits, because other processors may round differently."""
    return pytest.approx(values, rel=1e-5, abs=1e-6)


@pytest.fixture(autouse=True)
def old_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old runs were evaluated on shapes that varied more."""
    monkeypatch.setattr(shapes, "MIN_RADIUS", 7.0)
    monkeypatch.setattr(shapes, "MAX_SHIFT", 4.0)


def test_evaluation_is_the_same(name: str, run: Path) -> None:
    saved, then = load(run), NUMBERS[name]
    assert type(saved.model()) is MODELS[name]
    found = saved.evaluate(accelerator="cpu")
    assert (found.split, len(found.targets)) == (then["split"], then["samples"])
    assert found.loss == close(then["loss"])
    for now, before in zip(found.outputs, then["outputs"], strict=False):
        assert now.tolist() == close(before)
    if name == "cnn":
        assert list(found.class_names) == then["class_names"]
        assert int(found.confusion().trace()) == then["right"]
        assert len(then["outputs"]) == 4


def test_predictions_are_the_same(name: str, run: Path) -> None:
    answers: Any = load(run).predict(inputs(name), "cpu")
    then = NUMBERS[name]["predictions"]
    assert len(answers) == len(then) == 3
    for answer, before in zip(answers, then, strict=True):
        if name == "cnn":
            assert answer.probabilities == close(before)
            assert list(answer.probabilities)[:3] == list(before)[:3]
        else:
            assert list(answer.outputs) == close(before)


def test_scripts_accept_old_runs(name: str, run: Path) -> None:
    then = NUMBERS[name]
    assert f"{then['loss']:.4g}" in run_well(f"evaluate.py {run} --accelerator cpu")
    run_well(f"predict.py {run} {' '.join(inputs(name))} --output p.csv --accelerator cpu")
    with Path("p.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    column = "probability" if name == "cnn" else "output_1"
    firsts = [next(iter(before.values())) if name == "cnn" else before[0] for before in then["predictions"]]
    assert [float(row[column]) for row in rows] == pytest.approx(firsts, rel=1e-4)
    assert read_run(str(run)).best["val_loss"] == min(read_run(str(run)).curves["val_loss"].values())


def test_old_run_can_be_resumed(name: str, run: Path) -> None:
    """The old rows of metrics.csv stay, and the new rows are the same as with the older code."""
    if name == "cnn":
        assert not (run / "checkpoints" / "last.ckpt").exists()
        return
    before = (run / "metrics.csv").read_text().splitlines()
    out = run_well(f"fit.py --resume {run} --max_epochs 5 --accelerator cpu")
    assert "epoch 5/5" in out
    assert (run / "metrics.csv").read_text().splitlines()[: len(before)] == before
    assert list(read_run(str(run)).curves["val_loss"].values()) == close(NUMBERS[name]["to_five_epochs"])
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (5, 25)
