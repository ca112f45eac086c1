"""Export backbones and compare their ONNX files with the networks: ``python tests/stress/exports.py [BACKBONE...]``."""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from datamodules import Preprocessing
from datamodules.loading.memory import normalize
from datamodules.photos.dataset import PhotoFiles, read_pixels
from lit_models import LitTransfer
from lit_training.trained import export
from tests.support.photos import scene

BACKBONES = (
    "resnet18",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "timm/tf_efficientnet_lite0",
    "convnext_tiny",
    "vit_b_16",
)
COUNT = 12


def write_photos(folder: Path) -> list[str]:
    """Write smooth photos with some noise, of different sizes."""
    files, random = [], np.random.default_rng(0)
    for number in range(COUNT):
        picture = np.array(scene(number, tuple(random.integers(150, 600, 2).tolist())), np.int64)
        picture += random.integers(-20, 20, picture.shape)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        files.append(str(folder / f"{number}.png"))
    return files


@torch.no_grad()
def random_network(backbone: str, files: list[str]) -> LitTransfer:
    """Return a random network whose probabilities for these photos are neither all equal nor all 0 or 1."""
    torch.manual_seed(0)
    model = LitTransfer(backbone, num_classes=2, weights="none", freeze=False).eval()
    model.class_names = ("a", "b")
    spec = Preprocessing.from_dict(model.preprocessing)
    photos = PhotoFiles(Path(), np.array([]), torch.zeros(0), spec, (), 0)
    x = normalize(torch.stack([photos.transform_pixels(read_pixels(file)) for file in files]), spec.mean, spec.std)
    norms = [one for one in model.modules() if isinstance(one, torch.nn.BatchNorm2d)]
    for norm in norms:  # give it the statistics of these photos, or the activations become very small or large
        norm.train()
        norm.momentum = 1.0
    model(x)
    model.eval()
    head: torch.nn.Linear = model.head  # type: ignore[assignment]
    difference = model(x)[:, 1] - model(x)[:, 0]
    for weight in (head.weight, head.bias):
        weight.mul_(2 / difference.std())
    difference = model(x)[:, 1] - model(x)[:, 0]
    head.bias[1] -= difference.median()
    return model


def compare(backbone: str) -> str:
    """Export a network and compare it with its ONNX file. Raise a UsageError if an answer differs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_network(backbone, files := write_photos(folder))
        export.build_onnx(model, folder / export.MODEL)
        shutil.copy(Path(export.__file__).parent / "examples" / "pictures.py", folder / export.EXAMPLE)
        return export.compare_answers(model, folder, files)


if __name__ == "__main__":
    for backbone in sys.argv[1:] or BACKBONES:
        print(f"{backbone}: {compare(backbone)}", flush=True)
