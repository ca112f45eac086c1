"""fit.py with a pretrained backbone: the weights it loads, the layers it trains and when, and their inputs.

The weights file has a head with as many classes as the photos; fit.py must not load this head.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.support.batches import Seen, at, fit, together
from tests.support.commands import run, run_well
from tests.support.networks import build, evaluated, features, predicted, temperature_of, weights_of, write_weights
from tests.support.pipeline import IMAGENET, Recipe, as_input, detailed, fill

BACKBONE, HEAD = "timm/test_efficientnet", "net.classifier"
RECIPE = Recipe(76, 72, *IMAGENET, "bicubic")  # 72 * 168 / 160 = 75.6
COUNTS = {"train/a": 5, "train/b": 4, "val/a": 3, "val/b": 3}
TRAIN, VAL = 9, 6
LINE = f"--data photos --data.image_size 72 --model.backbone {BACKBONE} --model.weights w.pth --model.lr 0.01"
TUNED = f"{LINE} --model.freeze false --model.momentum 0.9 --model.backbone_lr_factor 1.0"


def picture(number: int) -> Any:
    return detailed(number, 96 + number, 81)


class Workspace(NamedTuple):
    """The tensors of the weights file, and the inputs of all photos, computed by hand."""

    folder: Path
    weights: dict[str, Tensor]
    inputs: np.ndarray


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Working folder with photos and weights."""
    with at(tmp_path_factory.mktemp("backbones")) as here:
        fill(here / "photos", COUNTS, picture)
        inputs = np.stack([as_input(picture(number), RECIPE) for number in range(TRAIN + VAL)])
        weights = write_weights(here / "w.pth", BACKBONE, torch.from_numpy(inputs), classes=2)
        yield Workspace(here, {f"net.{name}": tensor for name, tensor in weights.items()}, inputs)


@pytest.fixture(autouse=True)
def in_workspace(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)


@pytest.fixture(scope="module")
def frozen(workspace: Workspace) -> Seen:
    return fit(f"{LINE} --max_epochs 3")


@pytest.fixture(scope="module")
def tuned(workspace: Workspace) -> Seen:
    """A run that trains all layers without random crops. The learning rates fall after two epochs."""
    flags = "--data.augment false --model.backbone_lr_factor 0.1 --model.step_size 2 --model.gamma 0.5"
    return fit(f"{TUNED} --max_epochs 3 {flags}")


@pytest.fixture(scope="module")
def thawed(workspace: Workspace) -> Seen:
    """A run that trains the head for two epochs, then all layers."""
    return fit(f"{TUNED} --model.unfreeze_epoch 2 --max_epochs 4 --data.augment false")


def is_head(name: str) -> bool:
    return name.startswith(f"{HEAD}.")


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Return the names of the tensors that training changed, without the batch counters of BatchNorm."""
    names = [name for name in before if not name.endswith("num_batches_tracked")]
    return {name for name in names if not torch.equal(before[name], after[name])}


def others(weights: dict[str, Tensor]) -> set[str]:
    return {name for name in weights if not is_head(name)}


def test_weights_are_loaded_into_all_layers_except_the_head(
    workspace: Workspace, frozen: Seen, tuned: Seen, thawed: Seen
) -> None:
    for seen in (frozen, tuned, thawed):
        assert moved(workspace.weights, seen.weights[0]) == {f"{HEAD}.weight", f"{HEAD}.bias"}
        assert torch.equal(
            seen.weights[0][f"{HEAD}.weight"], frozen.weights[0][f"{HEAD}.weight"]
        )  # initialized from the seed


@pytest.mark.parametrize("form", ["safetensors", "nested"])
def test_every_file_format_of_the_same_weights_gives_the_same_run(
    workspace: Workspace, frozen: Seen, form: str
) -> None:
    plain = torch.load("w.pth", weights_only=True)
    if form == "safetensors":
        save_file(plain, "w.safetensors")
    else:
        torch.save({"state_dict": plain}, "nested.pth")
    file = "w.safetensors" if form == "safetensors" else "nested.pth"
    assert not moved(fit(f"{LINE} --model.weights {file} --max_epochs 1").weights[1], frozen.weights[1])


def test_without_weights_the_seed_initializes_the_network(workspace: Workspace) -> None:
    line = f"{LINE} --model.weights none --max_epochs 1"
    zero, again, one = (fit(f"{line} --seed {seed}").weights[0] for seed in (0, 0, 1))
    assert not moved(zero, again)
    assert {HEAD + ".weight", "net.conv_stem.weight"} <= moved(zero, one)
    assert "net.conv_stem.weight" in moved(zero, workspace.weights)


def test_a_frozen_backbone_does_not_change_and_the_head_learns(workspace: Workspace, frozen: Seen) -> None:
    for before, after in zip(frozen.weights, frozen.weights[1:], strict=False):
        assert moved(before, after) == {f"{HEAD}.weight", f"{HEAD}.bias"}
    assert frozen.in_training == [set()] * 3
    assert frozen.learning == [{f"{HEAD}.weight", f"{HEAD}.bias"}] * 3
    saved = {f"net.{name}": tensor for name, tensor in weights_of(frozen.run / "checkpoints/best.ckpt").items()}
    assert saved.keys() == workspace.weights.keys()
    assert all(is_head(name) for name in moved(saved, workspace.weights))


def test_the_head_learns_from_features_of_images_without_augmentation(workspace: Workspace, frozen: Seen) -> None:
    """The features are computed once, in evaluation mode, with the weights of the file."""
    network = build(BACKBONE, 2)
    network.load_state_dict({name.removeprefix("net."): tensor for name, tensor in workspace.weights.items()})
    wanted = features(network, torch.from_numpy(workspace.inputs)).numpy()
    unlike = np.abs(wanted[:, None] - wanted[None]).max(2) + 9 * np.eye(len(wanted))
    for epoch in frozen.train:
        inputs, labels = together(epoch)
        assert inputs.shape == (TRAIN, wanted.shape[1])
        apart = np.abs(inputs[:, None] - wanted[None, :TRAIN]).max(2)
        numbers = apart.argmin(1)
        assert sorted(numbers) == list(range(TRAIN))
        assert apart.min(1).max() < 0.1 * unlike.min()
        assert labels.tolist() == [int(number >= COUNTS["train/a"]) for number in numbers]
    inputs, labels = together(frozen.val[0])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    if inputs.ndim == 2:  # otherwise the inputs are images
        assert np.abs(inputs - wanted[TRAIN:]).max() < 0.1 * unlike.min()


def test_features_are_cached_only_if_they_are_the_same_in_every_epoch(
    workspace: Workspace, tuned: Seen, thawed: Seen
) -> None:
    cropped = fit(f"{LINE} --data.augment true --max_epochs 2")
    for seen in (cropped, tuned, thawed):
        assert all(x.shape[1:] == (3, 72, 72) for epoch in seen.train for x, _ in epoch)
    assert cropped.in_training == [set()] * 2
    assert moved(cropped.weights[0], cropped.weights[2]) == {f"{HEAD}.weight", f"{HEAD}.bias"}


def test_fine_tuning_trains_all_layers_on_random_crops(workspace: Workspace, tuned: Seen) -> None:
    assert others(workspace.weights) - moved(tuned.weights[0], tuned.weights[1]) <= {
        name for name in workspace.weights if name.endswith("num_batches_tracked")
    }
    assert all(norms > {"net.bn1"} for norms in tuned.in_training)
    unlike = np.abs(workspace.inputs[:TRAIN, None] - workspace.inputs[None, :TRAIN]).mean((2, 3, 4)) + 9 * np.eye(TRAIN)
    cropped = fit(f"{TUNED} --max_epochs 1")
    for seen, plain in ((tuned, True), (cropped, False)):
        x = together(seen.train[0])[0]
        apart = np.abs(x[:, None] - workspace.inputs[None, :TRAIN]).mean((2, 3, 4)).min(1)
        assert (apart < 0.05 * unlike.min()).all() == plain
        assert (apart > 0.3 * unlike.min()).sum() >= (0 if plain else TRAIN - 2)
        assert np.abs(together(seen.final)[0] - workspace.inputs[TRAIN:]).mean() < 0.01


def test_the_backbone_is_frozen_until_unfreeze_epoch(workspace: Workspace, thawed: Seen) -> None:
    for epoch, (before, after) in enumerate(zip(thawed.weights, thawed.weights[1:], strict=False)):
        changed = moved(before, after)
        assert {f"{HEAD}.weight", f"{HEAD}.bias"} <= changed
        if epoch < 2:
            assert len(changed) == 2
            assert not thawed.in_training[epoch]
            assert thawed.learning[epoch] == {f"{HEAD}.weight", f"{HEAD}.bias"}
        else:
            assert {"net.conv_stem.weight", "net.bn1.weight", "net.bn1.running_mean"} <= changed
            assert "net.bn1" in thawed.in_training[epoch]
            assert thawed.learning[epoch] == {name for name in workspace.weights if name.endswith(("weight", "bias"))}


def test_the_learning_rate_of_the_backbone_is_a_fraction_of_that_of_the_head(workspace: Workspace, tuned: Seen) -> None:
    assert tuned.rates == [pytest.approx({"head": rate, "backbone": rate / 10}) for rate in (0.01, 0.01, 0.005)]
    line = f"{TUNED} --data.augment false --max_epochs 1 --limit_train_batches 1"
    steps = [fit(f"{line} --model.backbone_lr_factor {factor}").weights for factor in (1.0, 0.1)]
    (whole, tenth) = ({name: after[name] - before[name] for name in before} for before, after in steps)
    assert torch.equal(whole[f"{HEAD}.weight"], tenth[f"{HEAD}.weight"])
    for name in ("net.conv_stem.weight", "net.bn1.bias"):
        assert whole[name].abs().max() > 1e-4
        torch.testing.assert_close(tenth[name], whole[name] / 10, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("flags", ["", "--model.freeze false --data.augment false"])
def test_validation_evaluation_and_prediction_use_evaluation_mode(workspace: Workspace, flags: str) -> None:
    """Validation, evaluate.py and predict.py return the outputs of the checkpoint in evaluation mode."""
    seen = fit(f"{LINE} --max_epochs 1 {flags}")
    network = build(BACKBONE, 2)
    network.load_state_dict(weights_of(seen.run / "checkpoints/best.ckpt"))
    inputs, labels = torch.from_numpy(workspace.inputs[TRAIN:]), torch.tensor([0, 0, 0, 1, 1, 1])
    with torch.no_grad():
        wanted, other = network.eval()(inputs), network.train()(inputs)
    assert (other.softmax(1) - wanted.softmax(1)).abs().max() > 0.01
    with (seen.run / "metrics.csv").open(newline="") as file:
        [loss] = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    assert loss == pytest.approx(float(F.cross_entropy(wanted, labels)), abs=1e-3)
    assert abs(loss - float(F.cross_entropy(other, labels))) > 0.003
    run_well(f"predict.py {seen.run} photos/val --output answers.json")
    wanted = wanted / temperature_of(seen.run / "checkpoints/best.ckpt")
    answers = [*predicted(Path("answers.json"), ("a", "b")).values()]
    assert np.abs(answers - wanted.softmax(1).numpy()).max() < 0.003
    run_well(f"evaluate.py {seen.run}")
    sure = [float(row["probability"]) for row in evaluated(seen.run / "evaluation").values()]
    assert np.abs(sure - wanted.softmax(1).amax(1).numpy()).max() < 0.003


def test_weights_of_another_network_are_refused(workspace: Workspace) -> None:
    ended = run(f"fit.py {LINE} --model.backbone timm/test_resnet --max_epochs 1")
    assert ended.code == 2
    assert "w.pth does not contain weights of timm/test_resnet" in ended.err
