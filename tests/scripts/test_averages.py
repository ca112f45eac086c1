"""Averaged weights and averaged outputs: what fit.py validates is what best.ckpt, evaluate.py and predict.py give.

The parts of photos_best.yaml: EMAWeightAveraging, --model.average_flips, --model.mix and --model.label_smoothing.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_training import load
from tests.support.batches import at, fit
from tests.support.commands import run_well
from tests.support.networks import best, build, evaluated, predicted, temperature_of, weights_of, write_weights
from tests.support.pipeline import IMAGENET, Recipe, as_input, detailed, fill

BACKBONE = "timm/test_efficientnet"
RECIPE = Recipe(76, 72, *IMAGENET, "bicubic")
COUNTS = {"train/a": 6, "train/b": 3, "val/a": 3, "val/b": 3}
TRAIN = 9
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])
LINE = f"--data photos --data.image_size 72 --model.backbone {BACKBONE} --model.weights w.pth --model.lr 0.05"
TUNED = f"{LINE} --model.freeze false --model.unfreeze_epoch 1 --model.mix both --model.label_smoothing 0.1"
AVERAGED = "--callbacks+ EMAWeightAveraging --callbacks.decay 0.8"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with at(tmp_path_factory.mktemp("averages")) as here:
        fill(here / "photos", COUNTS, picture)
        yield here


@pytest.fixture(scope="module")
def inputs(folder: Path) -> Tensor:
    """The inputs of all photos, computed by hand. The pretrained weights fit them."""
    arrays = [as_input(picture(number), RECIPE) for number in range(TRAIN + len(LABELS))]
    inputs = torch.from_numpy(np.stack(arrays))
    write_weights(folder / "w.pth", BACKBONE, inputs, classes=2)
    return inputs


@pytest.fixture(autouse=True)
def in_folder(folder: Path, inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def picture(number: int) -> Any:
    return detailed(number, 96 + number, 81)


def outputs(checkpoint: Path, x: Tensor, flips: bool = True) -> Tensor:
    """Return the outputs of a checkpoint's network, averaged over each picture and its mirror image."""
    network = build(BACKBONE, 2)
    network.load_state_dict(weights_of(checkpoint))
    with torch.no_grad():
        plain, mirrored = network.eval()(x), network(x.flip(-1))
    return (plain + mirrored) / 2 if flips else plain


def val_losses(run_folder: Path) -> list[float]:
    with (run_folder / "metrics.csv").open(newline="") as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]


def printed(text: str, name: str) -> float:
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).split()[1])


def test_what_was_validated_is_saved_evaluated_and_predicted(inputs: Tensor) -> None:
    flags = f"{AVERAGED} --model.average_flips true --data.balance loss --data.batch_size 4 --max_epochs 3"
    seen = fit(f"{TUNED} {flags}")
    assert seen.said.count("averaged weights are validated") == 1
    saved = torch.load(best(), weights_only=True)
    trained = seen.weights[saved["epoch"] + 1]["net.classifier.weight"]
    assert not torch.equal(saved["state_dict"]["net.classifier.weight"], trained)
    wanted, plain = outputs(best(), inputs[TRAIN:]), outputs(best(), inputs[TRAIN:], flips=False)
    loss, accuracy = float(F.cross_entropy(wanted, LABELS)), float((wanted.argmax(1) == LABELS).float().mean())
    assert abs(loss - float(F.cross_entropy(plain, LABELS))) > 0.005
    assert val_losses(seen.run)[saved["epoch"]] == pytest.approx(loss, abs=1e-3)
    assert printed(seen.said, "val_loss") == pytest.approx(loss, abs=1e-3)
    assert printed(seen.said, "val_acc") == pytest.approx(accuracy, abs=1e-4)
    said = run_well(f"evaluate.py {seen.run}")
    assert all(printed(said, name) == printed(seen.said, name) for name in ("val_acc", "val_loss"))
    wanted = wanted / temperature_of(best())
    sure = [float(row["probability"]) for row in evaluated(seen.run / "evaluation").values()]
    assert np.abs(sure - wanted.softmax(1).amax(1).numpy()).max() < 0.003
    run_well(f"predict.py {seen.run} photos/val --output answers.json")
    answers = predicted(Path("answers.json"), ("a", "b"))
    assert np.abs([*answers.values()] - wanted.softmax(1).numpy()).max() < 0.003
    for path, probabilities in answers.items():
        answer: Any = load(str(seen.run)).predict(path)
        assert answer.probability == pytest.approx(max(probabilities), abs=1e-4)


def test_features_of_both_views_are_cached_apart_from_those_of_one(inputs: Tensor) -> None:
    for flips in (False, True):
        seen = fit(f"{LINE} --max_epochs 1 --model.average_flips {flips}".lower())
        assert "used again" not in seen.said
        assert seen.val[0][0][0].ndim == 2  # features
        loss = float(F.cross_entropy(outputs(best(), inputs[TRAIN:], flips), LABELS))
        other = float(F.cross_entropy(outputs(best(), inputs[TRAIN:], not flips), LABELS))
        assert abs(loss - other) > 0.005
        assert val_losses(seen.run) == [pytest.approx(loss, abs=1e-3)]
    assert "used again" in fit(f"{LINE} --max_epochs 1 --model.average_flips true").said


def test_what_was_validated_is_saved_if_the_average_changes_at_the_end_of_the_epoch(inputs: Tensor) -> None:
    seen = fit(f"{TUNED} {AVERAGED} --callbacks.update_starting_at_epoch 0 --max_epochs 2 --dashboard false")
    loss = float(F.cross_entropy(outputs(best(), inputs[TRAIN:], flips=False), LABELS))
    epoch = torch.load(best(), weights_only=True)["epoch"]
    assert val_losses(seen.run)[epoch] == pytest.approx(loss, abs=1e-3)
