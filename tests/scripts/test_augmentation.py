"""``--data.augment`` from the command line to the batches, the printed line, config.yaml and the checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from lit_training import load
from tests.support.batches import Seen, at, fit, together
from tests.support.commands import run, run_well
from tests.support.pipeline import IMAGENET, Recipe, assert_same_levels, coordinates, fill, levels

LINE = "--data photos --model.backbone shufflenet_v2_x0_5 --model.weights none --data.image_size 72 --max_epochs 1"
OWN = """
from datamodules import ImageFolderDataModule
class Mine(ImageFolderDataModule):
    def __init__(self, root: str, augment: bool = True) -> None:
        super().__init__(root, augment=augment)
"""


@pytest.fixture(autouse=True)
def photos(tmp_path: Path) -> None:
    fill(tmp_path / "photos", {"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 2}, lambda n: coordinates(5 * n + 5))


def mirrored(seen: Seen) -> list[bool]:
    """Return True for each training picture of the first epoch whose columns run backwards."""
    return [bool(picture[36, 60, 0] < picture[36, 12, 0]) for picture in levels(together(seen.train[0])[0], RECIPE)]


RECIPE = Recipe(82, 72, *IMAGENET)


def test_flip_alone_keeps_the_center_crop_and_validation_is_plain(tmp_path: Path) -> None:
    seen = fit(f"{LINE} --data.augment FLIP,flip")
    hint = "if a mirrored picture is another class: --data.augment crop"
    assert f"\naugment flip (--data.augment false turns it off; {hint})\n" in seen.said
    assert 0 < sum(mirrored(seen)) < 12
    inputs, _ = together(seen.train[0])
    numbers = (levels(inputs, RECIPE)[..., 2].mean((1, 2)) - 5) / 5
    for x, number, is_mirrored in zip(inputs, numbers.round().astype(int), mirrored(seen), strict=True):
        assert_same_levels(x[..., ::-1] if is_mirrored else x, RECIPE, coordinates(5 * number + 5))
    for number, x in enumerate(together(seen.final)[0], start=12):
        assert_same_levels(x, RECIPE, coordinates(5 * number + 5))
    run_well("evaluate.py latest")


def test_names_from_yaml_are_saved_as_plain_values(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data:\n  init_args:\n    augment: [Color, crop]\n")
    seen = fit(f"{LINE} --config run.yaml")
    assert "\naugment crop,color (--data.augment false turns it off)\n" in seen.said
    assert not any(mirrored(seen))
    assert yaml.safe_load((seen.run / "config.yaml").read_text())["data"]["init_args"]["augment"] == ["Color", "crop"]
    saved = load(seen.run)
    assert saved.checkpoint["datamodule_hyper_parameters"]["augment"] == ["Color", "crop"]
    assert saved.data().augment == ("crop", "color")  # type: ignore[attr-defined]
    cached = fit(f"{LINE} --data.augment crop,color")
    assert np.array_equal(together(cached.train[0])[0], together(seen.train[0])[0])  # the order does not matter


def test_off_and_the_default_are_printed_too() -> None:
    off = "augment off (--data.augment true, or some of crop,flip,rotate,color,trivial)\n"
    assert off in fit(LINE).said
    assert off in fit(f"{LINE} --model.freeze false --data.augment none").said
    assert "augment crop,flip (" in fit(f"{LINE} --model.freeze false").said
    assert "augment flip,shift,cutout (" in fit("--data photos --model LitCNN --data.augment true --max_epochs 1").said
    assert "augment" not in fit("--model LitMLP --max_epochs 1").said


def test_a_data_module_of_the_users_own_passes_a_boolean(tmp_path: Path) -> None:
    (tmp_path / "own_augment.py").write_text(OWN)
    with at(tmp_path):
        line = "--data own_augment.Mine --data.root photos --model LitTransfer --model.weights none --max_epochs 1"
        assert "augment crop,flip (" in fit(line).said
        assert "augment off (" in fit(f"{line} --data.augment false").said


def test_an_unknown_name_gets_one_line() -> None:
    ended = run("fit.py --data photos --data.augment flip,spin")
    line = "there is no augmentation spin: --data.augment true, false, or some of crop,flip,rotate,color,trivial"
    assert (ended.code, ended.err) == (2, f"fit.py: error: {line}\n")
    assert not Path("lightning_logs").exists()
