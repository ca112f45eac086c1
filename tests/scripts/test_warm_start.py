"""Start from the weights of an earlier run, with ``--model.weights``."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.support.commands import run, run_well

SMALL = "--model.backbone mobilenet_v3_small"
FLAGS = "--data.image_size 32 --dashboard false --data.num_workers 0 --accelerator cpu --max_epochs 1"
FIRST = Path("lightning_logs/version_0/checkpoints/best.ckpt")


def write_photos(folder: str, *names: str) -> None:
    for label, name in enumerate(names):
        for number in range(5):
            pixels = np.random.default_rng([label, number]).integers(0, 256, (32, 32, 3), np.uint8)
            file = Path(folder, name, f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)


def start(line: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Run fit.py with a learning rate of 0: best.ckpt has the weights of the start. Return stdout and these weights."""
    out = run_well(f"fit.py {line} {FLAGS} --model.lr 0")
    [folder] = re.findall(r"^run +(\S+)", out, re.MULTILINE)
    return out, torch.load(Path(folder, "checkpoints/best.ckpt"), weights_only=True)["state_dict"]


@pytest.fixture
def first() -> dict[str, torch.Tensor]:
    """Weights of the first run: the classes ants, bees and cats."""
    write_photos("old", "ants", "bees", "cats")
    return start(f"--data old {SMALL} --model.weights none")[1]


def head_of(weights: dict[str, torch.Tensor], prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
    return weights[f"net.{prefix}.weight"], weights[f"net.{prefix}.bias"]


def test_known_classes_keep_their_rows_and_a_new_class_begins_anew(first: dict[str, torch.Tensor]) -> None:
    write_photos("new", "Bees", "aphids", "bees", "cats")
    out, second = start(f"--data new {SMALL} --model.weights latest --seed 1")
    text = "backbone; known classes: bees, cats; new: Bees, aphids; left out: ants"
    assert f"weights of {FIRST}: {text}\n" in out
    config = yaml.safe_load(Path("lightning_logs/version_1/config.yaml").read_text())
    assert config["model"]["init_args"]["weights"] == str(FIRST)
    for old, new in zip(head_of(first, "classifier.3"), head_of(second, "classifier.3"), strict=True):
        assert torch.equal(new[2:], old[1:])
        assert not any(torch.equal(row, other) for row in new[:2] for other in old)
    body = {name for name in first if name.startswith("net.") and "classifier.3" not in name}
    assert all(torch.equal(first[name], second[name]) for name in body)
    again = run_well(f"fit.py --resume lightning_logs/version_1 {FLAGS.replace('epochs 1', 'epochs 2')}")
    assert "weights of " not in again  # a resumed run does not read them again


@pytest.mark.parametrize(("backbone", "head"), [("squeezenet1_1", "classifier.1"), ("timm/test_vit", "head")])
def test_rows_of_other_heads(backbone: str, head: str) -> None:
    """The head is a convolution, or a network of timm."""
    size = "--data.image_size 160" if "vit" in backbone else ""
    write_photos("old", "ants", "bees")
    write_photos("new", "aphids", "bees")
    _, first = start(f"--data old --model.backbone {backbone} --model.weights none {size}")
    _, second = start(
        f"--data new --model.backbone {backbone} --model.weights lightning_logs/version_0 {size} --seed 1"
    )
    for old, new in zip(head_of(first, head), head_of(second, head), strict=True):
        assert torch.equal(new[1], old[1])
        assert not torch.equal(new[0], old[0])


def test_checkpoints_that_do_not_fit_get_one_line(first: dict[str, torch.Tensor]) -> None:
    run_well(f"fit.py --data old --model LitCNN {FLAGS}")
    content = torch.load(FIRST, weights_only=True)
    content["lit"]["class_names"] = [*"abcdefghijkl"]
    torch.save(content, "damaged.ckpt")
    write_photos("wide", *"abcdefghijkl")
    for flags, words in {
        f"--model.weights {FIRST} --model.backbone resnet18": "--model.backbone mobilenet_v3_small",
        f"--model.weights latest {SMALL}": "is a checkpoint of lit_models.cnn.LitCNN, not mobilenet_v3_small",
        f"--model.weights damaged.ckpt {SMALL}": "damaged.ckpt is damaged",
        f"--model.weights old {SMALL}": "old has no best.ckpt or last.ckpt",
        f"--model.weights latest {SMALL} --resume auto": "could change with --resume auto or --seeds: give light",
        f"--model.weights gone.ckpt {SMALL}": "no weights file gone.ckpt",
    }.items():
        ended = run(f"fit.py --data wide {flags} {FLAGS}")
        assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
        assert words in ended.err
    assert not Path("lightning_logs/version_2").exists()
