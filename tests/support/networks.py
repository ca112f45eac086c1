"""Build backbones of torchvision and timm, with weights that distinguish images, and read the results of a run."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torchvision import models

GOOGLE = {"googlenet": {"aux_logits": False, "transform_input": True, "init_weights": False}}


def build(backbone: str, classes: int) -> Any:
    """Build the network of ``--model.backbone`` without this project."""
    if backbone.startswith("timm/"):
        return timm.create_model(backbone.removeprefix("timm/"), num_classes=classes)
    return models.get_model(backbone, num_classes=classes, **GOOGLE.get(backbone, {}))


def write_weights(file: Path, backbone: str, inputs: Tensor, classes: int = 1000) -> dict[str, Tensor]:
    """Write random weights to ``file``, with BatchNorm statistics from ``inputs``. Return the weights.

    Without these statistics, the features of all images would be nearly equal.
    """
    torch.manual_seed(99)  # different from the seeds of the runs
    network = build(backbone, classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        network.train()(inputs)
    torch.save(network.state_dict(), file)
    return network.state_dict()


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    """Return the network's weights in a checkpoint, without the prefix ``net.``."""
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}


def temperature_of(checkpoint: Path) -> float:
    """Return the number by which the logits are divided before they become probabilities."""
    return float(torch.load(checkpoint, weights_only=True)["lit"]["calibration"]["temperature"])


def forget_calibration(checkpoint: Path) -> None:
    """Remove the temperature from a checkpoint: the probabilities are then the softmax of the logits."""
    content = torch.load(checkpoint, weights_only=True)
    content["lit"]["calibration"] = None
    torch.save(content, checkpoint)


def sharpen(checkpoint: Path, network: nn.Module, head: str, inputs: np.ndarray) -> None:
    """Rescale the last layer of a checkpoint and of ``network``, so that the outputs for ``inputs`` are different.

    After a short training, the outputs for all images would be nearly equal.
    """
    network.load_state_dict(weights_of(checkpoint))
    layer = network.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        answers = network.eval()(torch.from_numpy(inputs))
        layer.bias.sub_(answers.mean(0)).div_(answers.std(0))
        layer.weight.div_(answers.std(0)[:, None])
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"] |= {f"net.{name}": tensor for name, tensor in network.state_dict().items()}
    content["lit"]["calibration"] = None  # that of the weights before
    torch.save(content, checkpoint)


def run_of(folder: Path = Path()) -> Path:
    """Return the newest run in a folder."""
    runs = (folder / "lightning_logs").glob("version_*")
    return max(runs, key=lambda run: int(run.name.removeprefix("version_")))


def best(folder: Path = Path()) -> Path:
    """Return the best checkpoint of the newest run."""
    return run_of(folder) / "checkpoints" / "best.ckpt"


def features(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the input of the last linear layer of a network in evaluation mode."""
    seen: list[Tensor] = []
    head = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    hook = head.register_forward_hook(lambda _, given, answer: seen.append(given[0]))
    with torch.no_grad():
        network.eval()(inputs)
    hook.remove()
    return seen[0]


def probabilities(network: nn.Module, inputs: np.ndarray) -> np.ndarray:
    """Return the probabilities of a network in evaluation mode, (N, K)."""
    with torch.no_grad():
        return network.eval()(torch.from_numpy(inputs)).softmax(1).numpy()


def predicted(file: Path, names: tuple[str, ...]) -> dict[str, list[float]]:
    """Read the JSON of predict.py: image -> probability of each class."""
    found = {}
    for answer in json.loads(file.read_text()):
        top = {entry["label"]: entry["probability"] for entry in answer["top"]}
        assert list(top.values()) == sorted(top.values(), reverse=True)
        assert (answer["label"], answer["probability"]) == next(iter(top.items()))
        found[answer["path"]] = [top[name] for name in names]
    return found


def evaluated(folder: Path) -> dict[str, dict[str, str]]:
    """Read predictions.csv of evaluate.py: path -> row."""
    with (folder / "predictions.csv").open(newline="", encoding="utf-8-sig") as file:
        return {row["path"]: row for row in csv.DictReader(file)}
