"""``load(...)`` in notebooks and programs: embeddings, heat maps, class names, and how a prediction shows itself."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolderDataModule
from lit_models import LitCNN
from lit_training import Prediction, load
from lit_training.errors import UsageError
from tests.support.ants_and_bees import write_photos
from tests.support.training import own_caches, train_and_save


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run on photos of ants and bees. Its photos are in ``photos`` beside it."""
    workspace = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patch:
        own_caches(workspace, patch)
        data = ImageFolderDataModule(str(write_photos(workspace / "photos")), image_size=32, num_workers=0)
        torch.manual_seed(0)
        train_and_save(workspace / "run", LitCNN(num_classes=2, lr=0.01), data, max_epochs=6)
    return load(workspace / "run")


@pytest.fixture
def photos(saved: Any) -> Path:
    return saved.folder.parent / "photos"


def test_embeddings_are_the_inputs_of_the_last_layer(saved: Any, photos: Path) -> None:
    files = [photos / "val/ants/0.jpg", photos / "val/bees/1.jpg"]
    found = saved.features([*files, Image.open(files[0]), np.asarray(Image.open(files[1]))])
    assert found.shape == (4, 84)
    assert torch.equal(found[:2], found[2:])
    logits = saved.model().net.fc3(found[:2])
    for probabilities, file in zip(logits.softmax(1).tolist(), files, strict=True):
        assert list(saved.predict(file).probabilities.values()) == pytest.approx(sorted(probabilities)[::-1], abs=1e-6)
    assert saved.features(photos / "val").shape == (8, 84)
    with pytest.raises(UsageError, match=r"missing\.jpg: no such file"):
        saved.features("missing.jpg")


def test_a_heat_map_shows_what_speaks_for_a_class(saved: Any, photos: Path) -> None:
    half = np.asarray(Image.open(photos / "val/ants/0.jpg")).copy()  # red: ants
    half[:, 24:] = np.asarray(Image.open(photos / "val/bees/0.jpg"))[:, 24:]  # blue: bees
    ants, bees = (saved.explain(half, label) for label in ("ants", "bees"))
    assert ants.shape == bees.shape == (32, 32)
    assert ants.dtype == np.float32
    assert (ants.min(), ants.max()) == (0, 1)
    assert ants[:, :16].mean() > 2 * ants[:, 16:].mean()
    assert bees[:, 16:].mean() > 2 * bees[:, :16].mean()
    assert np.array_equal(saved.explain(half), ants if saved.predict(half).label == "ants" else bees)
    with pytest.raises(UsageError, match="there is no class wasps"):
        saved.explain(half, "wasps")


def test_class_names_are_in_the_order_of_the_outputs(saved: Any) -> None:
    assert saved.class_names == ("ants", "bees")


def test_a_prediction_shows_picture_and_bars(saved: Any, photos: Path, tmp_path: Path) -> None:
    name = tmp_path / "<b>&.jpg"
    name.write_bytes((photos / "val/bees/2.jpg").read_bytes())
    for image in (name, Image.open(name), np.asarray(Image.open(name))):
        answer = saved.predict(image)
        html = answer._repr_html_()
        assert "<b>" not in html
        assert f"{answer.probability:.1%} bees" in html
        widths = [float(width) for width in re.findall(r"width:([\d.]+)em", html)]
        assert widths == pytest.approx([12 * share for share in answer.probabilities.values()], abs=0.006)
        [picture] = re.findall(r"base64,([^\"]*)", html)
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))), float)
        assert abs(shown - np.asarray(Image.open(name), float)).mean() < 12
    assert "&lt;b&gt;&amp;.jpg" in saved.predict(name)._repr_html_()
    odd = Prediction("not utf-8: \udcff", probabilities={"<script>\n\udcfe": 1.0})._repr_html_()
    assert "not utf-8: \\udcff" in odd
    assert "&lt;script&gt;\\n\\udcfe" in odd
    [missing] = saved.predict(["missing.jpg"])
    assert "no such file" in missing._repr_html_()
    assert "<img" not in missing._repr_html_()
