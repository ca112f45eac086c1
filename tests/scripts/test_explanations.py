"""Test the heat maps in the files that predict.py and evaluate.py write.

The network measures the amounts of red, green and blue. Each image has a square of each color, so it is known where the
heat map of each class must be hot.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image

from lit_models import LitCNN
from tests.support.batches import at, fit
from tests.support.commands import run, run_well
from tests.support.networks import evaluated
from tests.support.pipeline import HALF, Recipe, as_input, save_all

pytestmark = pytest.mark.figures
LENET = Recipe(32, 32, *HALF)
COLOURS = ("blue", "green", "red")  # classes 0, 1, 2: their channels are 2, 1, 0
CORNERS = {"upper left": (2, 2), "upper right": (2, 21), "lower left": (21, 2), "lower right": (21, 21)}


def squares(**places: tuple[str, int]) -> Image.Image:
    """Return a dark image with squares of the given colors, corners and brightness."""
    pixels = np.full((32, 32, 3), 20, np.uint8)
    for colour, (corner, level) in places.items():
        top, left = CORNERS[corner]
        pixels[top : top + 9, left : left + 9, ("red", "green", "blue").index(colour)] = level
    return Image.fromarray(pixels)


PICTURES = {  # the brightest color is the prediction
    "blue/0.png": squares(blue=("lower left", 160), green=("upper right", 185), red=("upper left", 140)),
    "blue/1.png": squares(blue=("upper left", 250), green=("upper right", 150), red=("lower right", 160)),
    "green/2.png": squares(blue=("upper left", 150), green=("lower right", 210), red=("lower left", 250)),
    "red/3.png": squares(blue=("upper right", 255), green=("lower left", 160), red=("lower right", 155)),
}
HOT = {"blue/0.png": "upper right", "blue/1.png": "upper left", "green/2.png": "lower left", "red/3.png": "upper right"}
ANSWERS = {"blue/0.png": "green", "blue/1.png": "blue", "green/2.png": "red", "red/3.png": "blue"}


def colour_counter() -> torch.nn.Module:
    """A LeNet whose outputs are the amounts of blue, green and red."""
    network = LitCNN(num_classes=3).net
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for label, channel in enumerate((2, 1, 0)):
            network.conv1.weight[channel, channel, 2, 2] = 1
            network.conv2.weight[channel, channel, 2, 2] = 1
            network.fc1.weight[label, 25 * channel : 25 * channel + 25] = 1
            network.fc2.weight[label, label] = 1
            network.fc3.weight[label, label] = 0.02
    return network.eval()


def heat_map(network: torch.nn.Module, picture: Image.Image) -> tuple[int, np.ndarray]:
    """Return the most probable class, and its Grad-CAM at the last convolution, computed by hand."""
    kept: list[torch.Tensor] = []
    hook = network.get_submodule("conv2").register_forward_hook(lambda _, given, output: kept.append(output))
    answers = network(torch.from_numpy(as_input(picture, LENET))[None])[0]
    hook.remove()
    label = int(answers.argmax())
    [gradient] = torch.autograd.grad(answers[label], kept[0])
    places = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu()
    heat = F.interpolate(places, (32, 32), mode="bilinear")[0, 0].detach()
    return label, (heat / heat.max()).numpy()


def drawn(file: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of a figure: an image of (32, 32, 3) in [0, 1], and the heat map beside it."""
    sheet = np.asarray(Image.open(file).convert("RGB"))
    inked = np.any(sheet < 250, axis=2)
    found = []
    for top, bottom in runs(inked.mean(1) > 0.5):
        for left, right in runs(inked[top:bottom].mean(0) > 0.95):
            both = Image.fromarray(sheet[top:bottom, left:right]).resize((64, 32), Image.Resampling.BOX)
            pixels = np.asarray(both) / 255
            found.append((pixels[:, :32], heat_of(2 * pixels[:, 32:] - pixels[:, :32])))
    return found


def runs(wanted: np.ndarray) -> list[tuple[int, int]]:
    """Return the start and the end of each group of neighboring True values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], wanted.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if b - a > 20]


def heat_of(colours: np.ndarray) -> np.ndarray:
    """Return the values from 0 to 1 that the colors of a heat map stand for."""
    scale = colormaps["jet"](np.linspace(0, 1, 101))[:, :3]
    return np.abs(colours[:, :, None] - scale).sum(3).argmin(2) / 100


def check(shown: tuple[np.ndarray, np.ndarray], name: str) -> None:
    """Check that the figure shows this image, and that it is hot at the color of the predicted class."""
    picture, heat = shown
    assert np.abs(picture - np.asarray(PICTURES[name]) / 255).mean() < 0.02
    label, wanted = heat_map(colour_counter(), PICTURES[name])
    assert COLOURS[label] == ANSWERS[name]
    top, left = CORNERS[HOT[name]]
    inside = np.zeros((32, 32), bool)
    inside[top - 2 : top + 11, left - 2 : left + 11] = True
    assert np.mean(heat[inside] > 0.5) > 0.25
    assert np.mean(heat[~inside] > 0.2) < 0.03
    assert np.abs(heat - wanted).mean() < 0.006  # the map of the layer before differs more
    assert heat.max() > 0.95  # each map has its own scale


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Working folder with the images and a run of the network that measures colors."""
    with at(tmp_path_factory.mktemp("explained")) as here:
        save_all(here / "photos/val", PICTURES)
        save_all(here / "photos/train", {f"{name}/t.png": squares(**{name: ("lower left", 99)}) for name in COLOURS})
        checkpoint = fit("--data photos --model LitCNN --max_epochs 1").run / "checkpoints/best.ckpt"
        content = torch.load(checkpoint, weights_only=True)
        content["state_dict"] |= {f"net.{name}": value for name, value in colour_counter().state_dict().items()}
        torch.save(content, checkpoint)
        yield here


@pytest.fixture(autouse=True)
def in_workspace(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)


def test_heat_maps_of_predictions_are_hot_at_the_predicted_class(workspace: Path) -> None:
    """The files have the numbers of the inputs; the first input cannot be read."""
    names = ["red/3.png", "blue/1.png", "green/2.png", "blue/0.png"]
    (workspace / "broken.png").write_bytes(b"no picture")
    run_well("predict.py latest photos/val/green/2.png --explain")  # the next call removes its 1_2.png
    PICTURES["red/3.png"].save(workspace / "explanations/1_of_the_user.png")
    ended = run("predict.py latest broken.png " + " ".join(f"photos/val/{name}" for name in names) + " --explain")
    assert ended.code == 1
    drawings = sorted(file.name for file in (workspace / "explanations").glob("[!.]*"))
    assert drawings == ["1_of_the_user.png", "2_3.png", "3_1.png", "4_2.png", "5_0.png"]
    for number, name in enumerate(names, start=2):
        [shown] = drawn(workspace / "explanations" / f"{number}_{Path(name).name}")
        check(shown, name)


@pytest.mark.parametrize("flags", ["", "--data photos/val"])
def test_heat_maps_of_mistakes_are_hot_at_the_predicted_class(workspace: Path, flags: str) -> None:
    """The most confident mistake comes first; correct predictions are left out."""
    run_well(f"evaluate.py latest --explain {flags}")
    folder = workspace / "lightning_logs/version_0/evaluation" / ("val" if flags else "")
    rows = {name.removeprefix("val/"): row for name, row in evaluated(folder).items()}
    assert {name: row["predicted"] for name, row in rows.items()} == ANSWERS
    wrong = sorted((-float(row["probability"]), name) for name, row in rows.items() if row["right"] == "0")
    assert {name for _, name in wrong} == {"blue/0.png", "green/2.png", "red/3.png"}
    assert len({probability for probability, _ in wrong}) == 3
    assert [name for _, name in wrong] != sorted(name for _, name in wrong)  # not in the order of the files
    shown = drawn(folder / "explained.png")
    assert len(shown) == 3
    for one, (_, name) in zip(shown, wrong, strict=True):
        check(one, name)


def test_an_input_with_a_long_name_gets_a_heat_map(workspace: Path) -> None:
    picture = (
        workspace / f"{'long' * 62}ish.png"
    )  # 255 characters, as many as a name can have; a number comes before it
    PICTURES["red/3.png"].save(picture)
    run_well(f"predict.py latest {picture} --explain")
    [drawing] = (workspace / "explanations").glob("1_long*.png")
    check(drawn(drawing)[0], "red/3.png")
