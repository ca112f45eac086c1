"""Generated and split data, from the flags of fit.py to the batches: shapes, random rows and CIFAR10.

Training, validation and test data must be separate, and must follow the flags.
"""

import hashlib
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from datamodules import CIFAR10DataModule, RandomDataModule, ShapesDataModule
from lit_models import LitCNN
from tests.support.batches import at, fit, together
from tests.support.commands import run_well
from tests.support.networks import evaluated, forget_calibration, probabilities, weights_of
from tests.support.pipeline import HALF, Recipe, levels

LENET = Recipe(32, 32, *HALF)


def rows_of(loader: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return all batches of a loader as one."""
    return together(list(loader))


def keys(inputs: np.ndarray) -> list[bytes]:
    return [x.tobytes() for x in inputs]


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The data of each split from the data module, without a run."""
    data = ShapesDataModule(train_size=60, val_size=130)
    data.setup("fit")
    data.setup("test")
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    return {split: rows_of(loader) for split, loader in loaders.items()}


def test_each_split_has_different_shapes_of_all_classes(shapes: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    all_keys = [key for inputs, _ in shapes.values() for key in keys(inputs)]
    assert len({*all_keys}) == 60 + 130 + 130
    for split, (inputs, labels) in shapes.items():
        assert Counter(labels.tolist()) == dict.fromkeys(range(10), len(labels) // 10)
        assert -1 <= inputs.min() < -0.95
        assert 0.95 < inputs.max() <= 1
        assert labels.tolist() not in (sorted(labels.tolist()), [n % 10 for n in range(len(labels))]), split


def test_shapes_depend_only_on_the_seed_of_the_data(
    tmp_path: Path, shapes: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Augmentation changes only training images; evaluate.py uses the test split."""
    sizes = "--data.train_size 60 --data.val_size 130 --max_epochs 2"
    plain = fit(f"{sizes} --seed 3")
    changed = fit(f"{sizes} --data.augment true")
    other = fit(f"{sizes} --data.seed 1")
    assert sorted(keys(together(plain.train[0])[0])) == sorted(keys(shapes["train"][0]))
    assert keys(together(plain.train[0])[0]) != keys(together(plain.train[1])[0])
    assert not {*keys(together(changed.train[0])[0])} & {*keys(together(changed.train[1])[0])}
    for seen in (plain, changed):
        for epoch in (*seen.val, seen.final):
            assert [len(labels) for _, labels in epoch] == [100, 30]
            assert keys(together(epoch)[0]) == keys(shapes["val"][0])
    assert not {*keys(together(other.final)[0])} & {*keys(shapes["val"][0])}
    forget_calibration(plain.run / "checkpoints/best.ckpt")
    run_well(f"evaluate.py {plain.run}")
    network = LitCNN().net
    network.load_state_dict(weights_of(plain.run / "checkpoints/best.ckpt"))
    inputs, labels = shapes["test"]
    wanted = probabilities(network, inputs)
    rows = evaluated(plain.run / "evaluation")
    names = ShapesDataModule.class_names
    assert [names.index(row["label"]) for row in rows.values()] == labels.tolist()
    assert [names.index(row["predicted"]) for row in rows.values()] == wanted.argmax(1).tolist()
    assert np.abs([float(row["probability"]) for row in rows.values()] - wanted.max(1)).max() < 1e-5


# --- random rows ------------------------------------------------------------------------------------------------------

LINEAR: dict[str, Any] = {
    "in_features": 5,
    "out_features": 2,
    "length": 70,
    "batch_size": 30,
    "steps": 0,
    "target": "linear",
}


def flags(arguments: dict[str, Any]) -> str:
    return " ".join(f"--data.{name} {value}" for name, value in arguments.items())


def test_each_split_draws_new_rows_of_the_same_linear_map(tmp_path: Path) -> None:
    data = RandomDataModule(**LINEAR)
    data.setup("fit")
    train, val, test = map(rows_of, (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()))
    assert len({key for inputs, _ in (train, val, test) for key in keys(inputs)}) == 3 * 70
    the_map = np.linalg.lstsq(*train, rcond=None)[0]
    for inputs, targets in (train, val, test):
        assert 0.85 < inputs.std() < 1.15
        assert abs(inputs.mean()) < 0.15
        assert 0.08 < (targets - inputs @ the_map).std() < 0.12  # the standard deviation of the noise is 0.1
    assert np.abs(the_map).mean() > 0.3

    seen = fit(f"--data RandomDataModule {flags(LINEAR)} --max_epochs 2 --seed 2 --model.hidden []")
    assert sorted(keys(together(seen.train[0])[0])) == sorted(keys(train[0]))
    assert [len(y) for _, y in seen.train[0]] == [30, 30, 10]
    assert keys(together(seen.train[0])[0]) != keys(together(seen.train[1])[0])
    assert keys(together(seen.final)[0]) == keys(val[0])
    # evaluate.py prints the loss of the test rows.
    said = run_well(f"evaluate.py {seen.run}")
    weights = weights_of(seen.run / "checkpoints/best.ckpt")
    [weight], [bias] = ([t for t in weights.values() if t.ndim == n] for n in (2, 1))
    losses = [((x @ weight.numpy().T + bias.numpy() - y) ** 2).sum() for x, y in (test, val)]
    [printed] = re.findall(r"^test_loss +(\S+)$", said, re.M)
    assert float(printed) == pytest.approx(losses[0], rel=1e-3)
    assert losses[1] != pytest.approx(losses[0], rel=1e-2)


def test_another_seed_draws_different_rows_and_another_map(tmp_path: Path) -> None:
    maps = []
    for seed in (0, 1):
        x, y = together(fit(f"--data RandomDataModule {flags(LINEAR)} --data.seed {seed} --max_epochs 1").train[0])
        maps.append(np.linalg.lstsq(x, y, rcond=None)[0])
    assert np.abs(maps[0] - maps[1]).max() > 0.3


@pytest.mark.parametrize("target", ["random", "count"])
def test_steps_repeat_the_rows_in_order(tmp_path: Path, target: str) -> None:
    """Four batches of four from ten rows; each epoch starts at the first row. Validation uses the ten rows."""
    line = "--data RandomDataModule --data.in_features 3 --data.out_features 2 --data.length 10"
    seen = fit(f"{line} --data.batch_size 4 --data.steps 4 --data.target {target} --max_epochs 2")
    inputs, targets = together(seen.final)
    assert len({*keys(inputs)}) == 10
    order = [*range(10), *range(6)]
    for epoch in seen.train:
        assert [len(y) for _, y in epoch] == [4] * 4
        assert np.array_equal(together(epoch)[0], inputs[order])
        assert np.array_equal(together(epoch)[1], targets[order])
    if target == "count":
        assert np.array_equal(targets, [[1, 2]] * 10)
    else:
        assert 0.5 < targets.std() < 1.5
        assert len({*keys(targets)}) == 10


def test_the_default_is_the_fixed_batch_of_the_tutorial(tmp_path: Path) -> None:
    seen = fit("--data RandomDataModule --max_epochs 1 --data.steps 3")
    shapes = [(tuple(x.shape), tuple(y.shape)) for x, y in seen.train[0]]
    assert shapes == [((64, 1000), (64, 10))] * 3
    assert all(torch.equal(x, seen.train[0][0][0]) for x, _ in seen.train[0])
    assert RandomDataModule().hparams["steps"] == 500


# --- CIFAR10 ----------------------------------------------------------------------------------------------------------

NAMES = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]]
SHARES = (0.19, 0.01, *[0.1] * 8)
"""Class sizes: uneven, so that equal fractions differ from equal numbers."""


def cifar_pixels(numbers: np.ndarray) -> np.ndarray:
    """Return images with their number in the first two red pixels and a mark in each channel: (N, 3072) uint8, as in
    the official files."""
    pixels = np.zeros((len(numbers), 3, 1024), np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = numbers // 256, numbers % 256
    pixels[:, 1, 5], pixels[:, 2, 40] = 100, 200  # green in the first row, blue in the second
    return pixels.reshape(len(numbers), -1)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, np.ndarray]]:
    """The files of CIFAR10 with generated images, and the labels of all 60,000 images."""
    with at(tmp_path_factory.mktemp("cifar10")) as here, pytest.MonkeyPatch.context() as patch:
        folder = here / "data" / CIFAR10.base_folder
        folder.mkdir(parents=True)
        labels = np.random.default_rng(0).choice(10, 60_000, p=SHARES)
        md5 = {}
        contents: dict[str, Any] = {"batches.meta": {"label_names": list(CIFAR10DataModule.class_names)}}
        for part, name in enumerate(NAMES):
            numbers = np.arange(10_000) + 10_000 * part
            contents[name] = {"data": cifar_pixels(numbers), "labels": labels[numbers].tolist()}
        for name, content in contents.items():
            data = pickle.dumps(content)
            (folder / name).write_bytes(data)
            md5[name] = hashlib.md5(data).hexdigest()
        patch.setattr(CIFAR10, "train_list", [[name, md5[name]] for name in NAMES[:5]])
        patch.setattr(CIFAR10, "test_list", [[NAMES[5], md5[NAMES[5]]]])
        patch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
        del contents
        yield here, labels
        for file in here.rglob("*"):
            if file.is_file():
                file.unlink()  # 360 MB


CIFAR = "--data CIFAR10DataModule --data.val_size 900 --data.batch_size 50 --limit_train_batches 20"


def numbers_of(batches: Any) -> np.ndarray:
    """Return the numbers of the images; check the channels and the layout."""
    pixels = levels(together(batches)[0], LENET).round().astype(int)
    assert (pixels[:, 0, 5, 1] == 100).all()
    assert (pixels[:, 1, 8, 2] == 200).all()
    assert (np.delete(pixels.reshape(len(pixels), -1), [0, 3, 16, 122], axis=1) == 0).all()
    return pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 1, 0]


def test_cifar10_is_split_by_class_and_keeps_its_own_test_images(
    official: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, labels = official
    monkeypatch.chdir(here)
    seen = fit(f"{CIFAR} --max_epochs 2")
    val = numbers_of(seen.final)
    first, second = (numbers_of(epoch) for epoch in seen.train)
    for numbers, batches in ((val, seen.final), (first, seen.train[0]), (second, seen.train[1])):
        assert len({*numbers.tolist()}) == len(numbers)
        assert numbers.max() < 50_000
        assert together(batches)[1].tolist() == labels[numbers].tolist()
    assert len(val) == 900
    assert len(first) == 1000
    assert val.tolist() == numbers_of(seen.val[0]).tolist()
    assert first.tolist() != second.tolist()
    assert not {*val.tolist()} & {*first.tolist(), *second.tolist()}
    shares = np.bincount(labels[:50_000], minlength=10) * 900 / 50_000
    assert np.abs(np.bincount(labels[val], minlength=10) - shares).max() < 1.5
    assert abs(val.mean() - 25_000) < 2000  # from all of the files
    assert abs(first.mean() - 25_000) < 2000

    other = fit(f"{CIFAR} --max_epochs 1 --data.seed 1 --data.augment true")
    again = fit(f"{CIFAR} --max_epochs 1 --seed 1")
    assert numbers_of(again.final).tolist() == val.tolist()
    assert numbers_of(again.train[0]).tolist() != first.tolist()
    assert len({*numbers_of(other.final).tolist()} & {*val.tolist()}) < 100
    assert np.mean(levels(together(other.train[0])[0], LENET)[:, 0, 5, 1] > 50) < 0.3  # shifted

    forget_calibration(seen.run / "checkpoints/best.ckpt")
    run_well(f"evaluate.py {seen.run}")
    rows = evaluated(seen.run / "evaluation")
    names = CIFAR10DataModule.class_names
    assert [names.index(row["label"]) for row in rows.values()] == labels[50_000:].tolist()
    network = LitCNN().net
    network.load_state_dict(weights_of(seen.run / "checkpoints/best.ckpt"))
    pictures = cifar_pixels(np.arange(50_000, 50_200)).reshape(-1, 3, 32, 32).astype(np.float32) / 127.5 - 1
    wanted = probabilities(network, pictures)
    for row, probability in zip([*rows.values()][:200], wanted, strict=True):
        assert abs(float(row["probability"]) - probability.max()) < 1e-4
