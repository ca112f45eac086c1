"""The split into training and validation photos: fit.py and evaluate.py on folders with and without a split.

Each image has its own color, so the batches show the images of each split.
"""

import csv
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from lit_models import LitCNN
from lit_training import load
from tests.support.batches import Batch, Seen, at, fit, together
from tests.support.commands import run, run_well
from tests.support.networks import evaluated, run_of, temperature_of, weights_of
from tests.support.photos import scene
from tests.support.pipeline import HALF, Recipe, coordinates, fill, levels

LENET = Recipe(32, 32, *HALF)
COUNTS = {"zebra": 30, "Ant": 10, "10": 5}  # in the order "10", "Ant", "zebra"
CLASSES = ("10", "Ant", "zebra")
COPIES = {"zebra/000.png": "zebra/z.png", "zebra/001.png": "zebra/y.png", "Ant/031.png": "Ant/copy.png"}


def numbered(number: int) -> Image.Image:
    return coordinates(3 * number + 3, 32, 32)


def numbers(batches: list[Batch]) -> list[int]:
    """Return the numbers of the images in these batches."""
    blue = levels(together(batches)[0], LENET)[:, 16, 16, 2]
    return [round(value / 3) - 1 for value in blue.tolist()]


def labelled(batches: list[Batch]) -> list[tuple[int, str]]:
    """Return the sorted numbers and class names of the images in these batches."""
    return sorted(zip(numbers(batches), [CLASSES[label] for label in together(batches)[1]], strict=True))


def split_of(run: Path) -> dict[str, list[tuple[int, str]]]:
    """Return the same for each split of split.csv; a copy has the number of its original."""
    copies = {copy: picture for picture, copy in COPIES.items()}
    found: dict[str, list[tuple[int, str]]] = {"train": [], "val": [], "test": []}
    with (run / "split.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = copies.get(row["path"], row["path"])
            found[row["split"]].append((int(Path(name).stem), row["label"]))
    return {split: sorted(rows) for split, rows in found.items()}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Working folder; ``photos`` holds 48 images without a split, three of them copies of others."""
    with at(tmp_path_factory.mktemp("split")) as here:
        fill(here / "photos", COUNTS, numbered)
        for picture, copy in COPIES.items():
            shutil.copy(here / "photos" / picture, here / "photos" / copy)
        yield here


@pytest.fixture(autouse=True)
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)


def trained(flags: str = "") -> tuple[Seen, Path]:
    """Train on the photos; return the batches and the folder of the run."""
    return fit(f"--data photos --model LitCNN --max_epochs 1 {flags}"), run_of()


@pytest.fixture(scope="module")
def default(workspace: Path) -> tuple[Seen, Path]:
    return trained()


def check_split(seen: Seen, run: Path, shares: dict[str, int]) -> list[tuple[int, str]]:
    """Check that the splits are separate, complete and equal to split.csv; return the validation images."""
    train, val = labelled(seen.train[0]), labelled(seen.final)
    assert {"train": train, "val": val, "test": []} == split_of(run)
    assert not {*train} & {*val}
    assert len(train) + len(val) == 48
    assert Counter(name for _, name in val) == shares
    return val


def test_a_fifth_of_each_class_is_validation_data(default: tuple[Seen, Path]) -> None:
    check_split(*default, {"zebra": 6, "Ant": 2, "10": 1})
    assert "20% of each class became val (seed 0)" in default[0].said


def test_the_split_depends_on_the_seed_of_the_data_only(default: tuple[Seen, Path]) -> None:
    first = labelled(default[0].final)
    assert labelled(trained("--seed 5")[0].final) == first
    others = [check_split(*trained(f"--data.seed {seed}"), {"zebra": 6, "Ant": 2, "10": 1}) for seed in (1, 2, 3)]
    assert len({tuple(split) for split in (first, *others)}) == 4
    assert len({*first, *others[0], *others[1], *others[2]}) > 18  # random images, not the first ones of each class


def test_val_size_and_split_file_choose_the_split(default: tuple[Seen, Path]) -> None:
    seen, run = trained("--data.val_size 0.4 --data.seed 7")
    val = check_split(seen, run, {"zebra": 13, "Ant": 4, "10": 2})  # 12.8 of 32 are 13, 4.4 of 11 are 4
    again, _ = trained(f"--data.split_file {run}/split.csv")
    assert labelled(again.final) == val
    assert labelled(again.train[0]) == labelled(seen.train[0])


def test_evaluation_uses_the_validation_data(default: tuple[Seen, Path]) -> None:
    seen, run = default
    said = run_well(f"evaluate.py {run}")
    rows = evaluated(run / "evaluation")
    assert sorted((int(Path(path).stem), row["label"]) for path, row in rows.items()) == labelled(seen.final)
    assert "val: 9 samples" in said


def test_split_folders_are_used_as_they_are(tmp_path: Path) -> None:
    """One class has more images in val than in train; test has other images."""
    counts = {"train/zebra": 4, "train/Ant": 3, "train/10": 2, "val/zebra": 1, "val/Ant": 40, "val/10": 1}
    fill(tmp_path / "own", counts | {"test/zebra": 2, "test/10": 3, "test/Ant": 1}, numbered)
    seen = fit(f"--data {tmp_path}/own --model LitCNN --max_epochs 1 --data.augment true")
    assert sorted(seen.train[0][0][1].tolist() + seen.train[0][1][1].tolist() + seen.train[0][2][1].tolist()) == [
        *(0, 0, 1, 1, 1, 2, 2, 2, 2)
    ]
    for epoch in (*seen.val, seen.final):
        assert [len(labels) for _, labels in epoch] == [32, 10]
        assert labelled(epoch) == [(9, "zebra"), *((n, "Ant") for n in range(10, 50)), (50, "10")]
    said = run_well("evaluate.py latest")
    names = [f"test/10/{n:03d}.png" for n in (53, 54, 55)] + ["test/Ant/056.png"]
    rows = evaluated(run_of() / "evaluation")
    assert list(rows) == [*names, "test/zebra/051.png", "test/zebra/052.png"]
    assert [row["label"] for row in rows.values()] == ["10"] * 3 + ["Ant"] + ["zebra"] * 2
    assert "test: 6 samples" in said
    run_well(f"evaluate.py latest --data {tmp_path}/own/val")  # more than one batch
    rows = evaluated(run_of() / "evaluation" / "val")
    assert [(int(Path(path).stem), row["label"]) for path, row in rows.items()] == [
        (50, "10"),
        *((n, "Ant") for n in range(10, 50)),
        (9, "zebra"),
    ]


def test_evaluation_uses_the_folder_of_data(default: tuple[Seen, Path], tmp_path: Path) -> None:
    """The folder has two of the three classes: their names count, not their indices."""
    fill(tmp_path / "other", {"zebra": 3, "Ant": 2}, lambda number: numbered(number + 60))
    run_well(f"evaluate.py {default[1]} --data {tmp_path}/other")
    rows = evaluated(default[1] / "evaluation" / "other")
    assert [(path, row["label"]) for path, row in rows.items()] == [
        *((f"Ant/{n:03d}.png", "Ant") for n in (3, 4)),
        *((f"zebra/{n:03d}.png", "zebra") for n in (0, 1, 2)),
    ]
    network = LitCNN(num_classes=3).net
    checkpoint = default[1] / "checkpoints" / "best.ckpt"
    network.load_state_dict(weights_of(checkpoint))
    pictures = [np.asarray(numbered(n + 60)) for n in (3, 4, 0, 1, 2)]
    inputs = torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)
    with torch.no_grad():
        wanted = (network(inputs) / temperature_of(checkpoint)).softmax(1)
    for row, probability in zip(rows.values(), wanted, strict=True):
        assert row["predicted"] == CLASSES[probability.argmax()]
        assert abs(float(row["probability"]) - float(probability.max())) < 2e-4
        assert row["right"] == str(int(row["predicted"] == row["label"]))


def test_an_image_in_two_classes_and_a_broken_file_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path / "own", {"Ant": 12, "zebra": 12, "10": 4}, numbered)
    shutil.copy(tmp_path / "own/Ant/003.png", tmp_path / "own/zebra/twin.png")
    (tmp_path / "own/zebra/broken.png").write_bytes(b"no picture")
    seen = fit(f"--data {tmp_path}/own --model LitCNN --max_epochs 1")
    assert sorted(numbers(seen.train[0]) + numbers(seen.final)) == [0, 1, 2, *range(4, 28)]


@pytest.mark.parametrize("balance", ["none", "loss"])
def test_rare_classes_have_more_weight_in_the_training_loss_only(tmp_path: Path, balance: str) -> None:
    """One class is rare in train and common in val. The learning rate is 0, so the weights do not change."""
    counts = {"train/zebra": 12, "train/Ant": 2, "train/10": 1, "val/zebra": 1, "val/Ant": 9, "val/10": 5}
    fill(tmp_path / "own", counts, numbered)
    flags = f"--data.batch_size 15 --model.lr 0 --data.balance {balance}"
    seen = fit(f"--data {tmp_path}/own --model LitCNN --max_epochs 1 {flags}")
    network = LitCNN(num_classes=3).net
    network.load_state_dict({name.removeprefix("net."): tensor for name, tensor in seen.weights[0].items()})
    shares = torch.tensor([15 / 3 / 1, 15 / 3 / 2, 15 / 3 / 12]) if balance == "loss" else None
    with torch.no_grad():
        (train,), (val,) = (
            [F.cross_entropy(network(x), y, weight=w) for x, y in batches]
            for batches, w in ((seen.train[0], shares), (seen.final, None))
        )
    with (run_of() / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows if row["train_loss"]] == [pytest.approx(float(train), abs=1e-5)]
    assert [float(row["val_loss"]) for row in rows if row["val_loss"]] == [pytest.approx(float(val), abs=1e-5)]
    even = F.cross_entropy(network(seen.train[0][0][0]), seen.train[0][0][1])
    assert balance == "none" or abs(float(even - train)) > 0.01


def test_run_of_a_version_without_group_keeps_only_copies_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for row in range(12):  # in each class, small copies of three of six pictures, which --data.group near would find
        picture, copy = (Path("photos", "ab"[row % 2], f"{kind}{row}.png") for kind in "pq")
        picture.parent.mkdir(parents=True, exist_ok=True)
        scene(row).save(picture)
        if row < 6:
            scene(row).resize((80, 60)).save(copy)
    line = "fit.py --data photos --data.image_size 32 --model LitCNN --seed 3"
    near, exact = (run_well(f"{line} --max_epochs 1 --data.group {how}") for how in ("near", "exact"))
    assert "(--data.group near)" in near
    assert "(--data.group" not in exact
    folder = Path("lightning_logs/version_1")
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("    group: exact\n", ""))
    checkpoint = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    del checkpoint["datamodule_hyper_parameters"]["group"]
    torch.save(checkpoint, folder / "checkpoints/best.ckpt")
    split = (folder / "split.csv").read_text()
    assert split != Path("lightning_logs/version_0/split.csv").read_text()
    assert load(folder).data().hparams["group"] == "exact"
    assert "version_1 has finished" in run_well(f"{line} --max_epochs 1 --resume auto")
    refused = run(f"fit.py --resume {folder} --max_epochs 2 --data.group near").err
    assert "version_1 began without --data.group: leave it out, or use --resume never" in refused
    assert "(--data.group" not in run_well(f"fit.py --resume {folder} --max_epochs 2")
    assert "group: exact" in (folder / "config.yaml").read_text()
    assert (folder / "split.csv").read_text() == split
