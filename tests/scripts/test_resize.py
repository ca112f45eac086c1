"""``--data.resize``: fit, evaluate, predict and explain see the whole of a long picture if it is padded or squashed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lit_models import LitCNN
from tests.support.batches import fit, together
from tests.support.commands import run, run_well
from tests.support.networks import best, evaluated, predicted, probabilities, run_of, sharpen
from tests.support.pipeline import HALF, IMAGENET, Recipe, detailed, levels, save_all

LONG, SHORT = 240, 60
NOTE = "the usual picture is 4.0 times as long as wide, and the square center crop cuts off 75% of it"


def strips() -> dict[str, Image.Image]:
    """Return strips whose class shows only at their ends: red at both, or blue. Half of them stand upright."""
    pictures = {}
    for number, name in enumerate(f"{split}/{label}" for split in ("train", "val") for label in "ab" for _ in range(3)):
        strip = detailed(7, LONG, SHORT)
        end = Image.new("RGB", (24, SHORT), "red" if name.endswith("a") else "blue")
        strip.paste(end, (0, 0))
        strip.paste(end, (LONG - 24, 0))
        strip.putpixel((LONG // 2, number), (number, number, number))  # no copies
        pictures[f"{name}/{number:02}.png"] = strip.transpose(Image.Transpose.ROTATE_90) if number % 3 == 1 else strip
    return pictures


def shown(picture: Image.Image, method: str, size: int, mean: tuple[float, ...] = HALF[0]) -> np.ndarray:
    """Return what the network must see, (S, S, 3) levels."""
    if method == "squash":
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR), float)
    scale = size / LONG
    small = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BILINEAR)
    square = np.full((size, size, 3), np.round(255 * np.array(mean)))
    left, top = (size - small.width) // 2, (size - small.height) // 2
    square[top : top + small.height, left : left + small.width] = small
    return square


@pytest.mark.parametrize("method", ["pad", "squash"])
def test_every_command_sees_the_whole_picture(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save_all(tmp_path / "photos", strips())
    seen = fit(f"--data photos --model LitCNN --max_epochs 1 --data.resize {method}")
    assert NOTE not in seen.said
    recipe = Recipe(32, 32, *HALF)
    names = [name for name in strips() if name.startswith("val")]
    wanted = np.stack([shown(strips()[name], method, 32) for name in names])
    assert np.abs(levels(together(seen.final)[0], recipe) - wanted).max() < 1.02
    inputs = ((wanted / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32)
    network = LitCNN(num_classes=2).net
    sharpen(best(), network, "fc3", inputs)
    expected = probabilities(network, inputs)
    drawn: list[Tensor] = []

    def note_pictures(pictures: Tensor, maps: Tensor) -> Tensor:
        drawn.append(pictures)
        return torch.cat([pictures, pictures], dim=3)

    monkeypatch.setattr("lit_training.trained.explain.put_side_by_side", note_pictures)
    run_well("predict.py latest photos/val --output answers.json --explain")
    answers = np.array([*predicted(Path("answers.json"), ("a", "b")).values()])
    assert np.abs(answers - expected).max() < 0.02
    assert np.abs(torch.cat(drawn).permute(0, 2, 3, 1).numpy() * 255 - wanted).max() < 1.02
    run_well("evaluate.py latest")
    rows = evaluated(run_of() / "evaluation")
    assert [float(row["probability"]) for row in rows.values()] == pytest.approx(expected.max(1).tolist(), abs=0.02)


def test_the_crop_is_the_default_and_a_note_says_what_it_cuts_off(tmp_path: Path) -> None:
    save_all(tmp_path / "photos", strips())
    seen = fit("--data photos --model LitCNN --max_epochs 1")
    assert f"note: {NOTE}: --data.resize pad or --data.resize squash keeps all of it\n" in seen.said
    shape = levels(together(seen.final)[0], Recipe(32, 32, *HALF))
    assert (np.abs(shape - (255, 0, 0)).max(-1) > 60).all()  # no red end
    save_all(tmp_path / "photos", {f"train/b/wide{n}.png": detailed(n, 96, 60) for n in range(30)})  # cuts off 38 %
    assert "center crop cuts off" not in fit("--data photos --model LitCNN --max_epochs 1").said
    save_all(tmp_path / "photos", {f"train/a/wide{n}.png": detailed(n, 102, 60) for n in range(70)})  # cuts off 41 %
    assert "1.7 times as long as wide, and the square" in fit("--data photos --model LitCNN --max_epochs 1").said


@pytest.mark.parametrize("method", ["pad", "squash"])
def test_augmentation_keeps_the_picture_and_the_cache_keeps_the_pixels(tmp_path: Path, method: str) -> None:
    save_all(tmp_path / "photos", strips())
    flags = "--model.backbone shufflenet_v2_x0_5 --model.weights none --data.image_size 72 --data.augment true"
    line = f"--data photos {flags} --max_epochs 2 --data.resize {method}"
    plain, cached = fit(line), fit(f"{line} --data.cache true")
    fit(
        f"--data photos {flags} --max_epochs 1 --data.resize {'squash' if method == 'pad' else 'pad'} --data.cache true"
    )
    again = fit(f"{line} --data.cache true")
    for other in (cached, again):
        for one, two in ((plain.train[0], other.train[0]), (plain.final, other.final)):
            assert np.array_equal(together(one)[0], together(two)[0])
    recipe = Recipe(82, 72, *IMAGENET)
    first, second = (levels(together(epoch)[0], recipe) for epoch in plain.train)
    assert not np.array_equal(first, second)
    labels = together(plain.train[0])[1]
    for picture, label in zip(first, labels, strict=True):
        channel = 0 if label == 0 else 2
        pure = (picture[..., channel] > 240) & (np.delete(picture, channel, 2).max(-1) < 60)
        assert pure.sum() > 40  # both ends, or most of them
        assert (pure[:36].any() and pure[36:].any()) or (pure[:, :36].any() and pure[:, 36:].any())


def test_an_unknown_way_to_resize_is_refused(tmp_path: Path) -> None:
    save_all(tmp_path / "photos", strips())
    ended: Any = run("fit.py --data photos --data.resize stretch")
    assert ended.code == 2
    assert re.search(r"^fit.py: error: .*resize.*stretch", ended.err)


def test_a_long_picture_whose_center_is_blank_is_named_unless_all_of_it_is_used(tmp_path: Path) -> None:
    pictures = {name.replace("train", "photos"): picture for name, picture in strips().items() if "train" in name}
    page = Image.new("RGB", (LONG, SHORT), "white")
    page.paste(detailed(3, SHORT, SHORT), (0, 0))
    save_all(tmp_path, {**pictures, "photos/a/page.png": page})
    flags = (
        "fit.py --data photos --model LitCNN --data.image_size 32 --max_epochs 1 --accelerator cpu --dashboard false"
    )
    note = "1 picture blank or nearly blank as the network sees it: still used (a/page.png)"
    assert note in run_well(flags)
    assert "blank" not in run_well(f"{flags} --data.resize pad")
    assert "a/page.png" in run("check.py photos").out
