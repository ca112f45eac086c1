"""From an image file to the printed probability, compared with a pipeline of PIL, numpy and the bare network.

Each test also checks that a wrong pipeline gives different probabilities for its images.
"""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lit_models import LitCNN
from tests.support.batches import fit
from tests.support.commands import run, run_well
from tests.support.networks import (
    best,
    build,
    evaluated,
    forget_calibration,
    predicted,
    probabilities,
    run_of,
    sharpen,
    weights_of,
    write_weights,
)
from tests.support.pipeline import HALF, IMAGENET, Recipe, as_input, detailed, resized, save_all

CLASSES = ("10", "Ant", "zebra")  # in the order of their indices
SIZES = ((128, 96), (201, 150), (97, 133), (64, 90), (150, 101), (300, 203))


class Case(NamedTuple):
    """A backbone, the preprocessing of its published weights, and the tolerance of a probability, because some pixels
    of PIL differ from torch's by one level. A network is ``blind`` to a mistake that changes it by less."""

    backbone: str
    recipe: Recipe
    tolerance: float
    flags: str = ""
    blind: str = ""


CASES = (
    Case("timm/test_efficientnet", Recipe(168, 160, *IMAGENET, "bicubic"), 0.001),
    Case("timm/test_resnet", Recipe(168, 160, *HALF), 0.003),
    Case("mobilenet_v3_small", Recipe(256, 224, *IMAGENET), 0.001, blind="std of BGR"),
    Case("mobilenet_v3_large", Recipe(99, 96, *IMAGENET), 0.001, "--data.image_size 96"),  # 96 * 232 / 224 = 99.4
    Case("efficientnet_b0", Recipe(110, 96, *IMAGENET, "bicubic"), 0.003, "--data.image_size 96"),
    Case("googlenet", Recipe(110, 96, *IMAGENET), 0.015, "--data.image_size 96"),
)


def photos() -> dict[str, Image.Image]:
    """Two training and two validation images per class, in the order of their names."""
    names = [f"{split}/{name}" for split in ("train", "val") for name in CLASSES for _ in range(2)]
    return {f"{name}/{n:02d}.png": detailed(n, *SIZES[n % len(SIZES)]) for n, name in enumerate(names)}


def wrong(recipe: Recipe) -> dict[str, Recipe]:
    """Return recipes with one mistake each."""
    other = "bicubic" if recipe.kind == "bilinear" else "bilinear"
    mistakes = {
        "another filter": recipe._replace(kind=other),
        "a pixel larger": recipe._replace(resize=recipe.resize + 1),
        "not cut": recipe._replace(resize=recipe.size),
    }
    if recipe.mean == HALF[0]:
        return mistakes | {"ImageNet's mean and std": recipe._replace(mean=IMAGENET[0], std=IMAGENET[1])}
    return mistakes | {
        "mean and std swapped": recipe._replace(mean=recipe.std, std=recipe.mean),
        "mean of BGR": recipe._replace(mean=recipe.mean[::-1]),
        "std of BGR": recipe._replace(std=recipe.std[::-1]),
    }


def stacked(pictures: Any, recipe: Recipe) -> np.ndarray:
    return np.stack([as_input(picture, recipe) for picture in pictures])


def check(network: nn.Module, case: Case) -> np.ndarray:
    """Check the probabilities of both scripts for the validation images against ``network``; return them."""
    names = [name for name in photos() if name.startswith("val")]
    pictures = [photos()[name] for name in names]
    wanted = probabilities(network, stacked(pictures, case.recipe))
    run_well("predict.py latest photos/val --output answers.json --top_k 3")
    answers = predicted(Path("answers.json"), CLASSES)
    assert list(answers) == [f"photos/{name}" for name in names]
    assert np.abs(np.array([*answers.values()]) - wanted).max() < case.tolerance
    run_well("evaluate.py latest")
    rows = evaluated(run_of() / "evaluation")
    assert list(rows) == names
    for (name, row), probability in zip(rows.items(), wanted, strict=True):
        assert row["label"] == name.split("/")[1]
        assert abs(float(row["probability"]) - probability[CLASSES.index(row["predicted"])]) < case.tolerance
        assert probability.max() - probability[CLASSES.index(row["predicted"])] < case.tolerance
    for mistake, recipe in wrong(case.recipe).items():
        apart = np.abs(probabilities(network, stacked(pictures, recipe)) - wanted).max()
        assert apart > 3 * case.tolerance or mistake == case.blind, f"the pictures do not show: {mistake}"
    return wanted


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.backbone)
def test_a_backbone_gets_the_preprocessing_of_its_weights(tmp_path: Path, case: Case) -> None:
    pictures, recipe = photos(), case.recipe
    save_all(tmp_path / "photos", pictures)
    weights = write_weights(tmp_path / "w.pth", case.backbone, torch.from_numpy(stacked(pictures.values(), recipe)))
    flags = "--model.weights w.pth --max_epochs 4 --model.lr 0.001"
    fit(f"--data photos --model.backbone {case.backbone} {flags} {case.flags}")
    network = build(case.backbone, len(CLASSES))
    network.load_state_dict(weights_of(best()))
    forget_calibration(best())
    head = {name for name, tensor in network.state_dict().items() if tensor.shape != weights[name].shape}
    assert len(head) == 2
    for name, tensor in network.state_dict().items():
        assert name in head or torch.equal(tensor, weights[name]), name  # read from the file, and frozen
    wanted = check(network, case)
    if case.backbone == "googlenet":
        network.transform_input = False
        assert np.abs(probabilities(network, validated(recipe)) - wanted).max() > 3 * case.tolerance


def validated(recipe: Recipe) -> np.ndarray:
    return stacked([picture for name, picture in photos().items() if name.startswith("val")], recipe)


def test_lenet_gets_images_of_32_pixels(tmp_path: Path) -> None:
    save_all(tmp_path / "photos", photos())
    fit("--data photos --model LitCNN --max_epochs 1")
    network, case = LitCNN(num_classes=3).net, Case("", Recipe(32, 32, *HALF), 0.01, blind="not cut")  # resized to 32
    sharpen(best(), network, "fc3", validated(case.recipe))
    check(network, case)


def test_flags_of_predict_do_not_change_the_probabilities(tmp_path: Path) -> None:
    """Each image keeps its own prediction for any batch size, and if a file in the middle cannot be read."""
    save_all(tmp_path / "photos", photos())
    fit("--data photos --model LitCNN --max_epochs 1")
    sharpen(best(), LitCNN(num_classes=3).net, "fc3", validated(Recipe(32, 32, *HALF)))
    names = [*photos()][::-1]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    inputs = [f"photos/{name}" for name in names]
    inputs[5:5] = ["broken.png"]
    results = {}
    for flags in ("", "--top_k 1", "--top_k 2 --batch_size 1", "--top_k 3 --batch_size 4", "--top_k 99"):
        ended = run(f"predict.py latest {' '.join(inputs)} --output answers.json {flags}")
        assert ended.code == 1
        results[flags] = json.loads(Path("answers.json").read_text())
    whole = results[""]
    assert [answer["path"] for answer in whole] == inputs
    assert [*whole[5]] == ["path", "error"]
    assert len({answer["probability"] for answer in whole if "top" in answer}) == len(names)
    for flags, answers in results.items():
        many = min(int(flags.split()[1]), 3) if flags else 3
        for answer, wanted in zip(answers, whole, strict=True):
            assert answer["path"] == wanted["path"]
            if "top" in wanted:
                assert [entry["label"] for entry in answer["top"]] == [e["label"] for e in wanted["top"]][:many]
                for entry, other in zip(answer["top"], wanted["top"], strict=False):
                    assert entry["probability"] == pytest.approx(other["probability"], abs=2e-5)
    run(f"predict.py latest {' '.join(inputs)} --output answers.csv --top_k 2 --batch_size 1")
    with Path("answers.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row, answer in zip(rows, results["--top_k 2 --batch_size 1"], strict=True):
        top = [(row["label"], row["probability"]), (row["label_2"], row["probability_2"])]
        assert top == [(e["label"], f"{e['probability']:.6f}") for e in answer.get("top", [])] or row["error"]


def test_a_network_with_one_channel_gets_gray_photos(tmp_path: Path) -> None:
    run_well("fit.py --data.channels 1 --data.train_size 40 --max_epochs 1 --accelerator cpu --dashboard false")
    save_all(tmp_path / "photos", photos())
    pictures = [resized(picture, Recipe(32, 32, *HALF)) for name, picture in photos().items() if name.startswith("val")]

    def grey(red: float, green: float, blue: float) -> np.ndarray:
        levels = (np.stack(pictures) @ (red, green, blue)).astype(int)
        return ((levels / 255 - 0.5) / 0.5).astype(np.float32)[:, None]

    network = LitCNN(in_channels=1).net
    sharpen(best(), network, "fc3", grey(0.2989, 0.587, 0.114))
    run_well("predict.py latest photos/val --output answers.json --top_k 10")
    shapes = ("disc", "square", "triangle", "plus", "ring", "frame", "half", "bar", "star", "crescent")
    answers = np.array([*predicted(Path("answers.json"), shapes).values()])
    assert np.abs(answers - probabilities(network, grey(0.2989, 0.587, 0.114))).max() < 0.01
    for wrong_share in ((0.114, 0.587, 0.2989), (1 / 3, 1 / 3, 1 / 3)):
        assert np.abs(answers - probabilities(network, grey(*wrong_share))).max() > 0.03
