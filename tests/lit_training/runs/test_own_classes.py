"""Find the class of a checkpoint by its dotted path, or say in one line why it cannot be imported."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule

from datamodules import ShapesDataModule
from lit_models import LitBase, LitCNN
from lit_training import load
from lit_training.errors import CheckpointError
from lit_training.runs.own_classes import find_class
from tests.support.own_classes import copy_examples, remember_imports
from tests.support.training import bare_trainer


@pytest.fixture(autouse=True)
def examples() -> Iterator[None]:
    copy_examples()
    with remember_imports():
        yield


@pytest.mark.parametrize("path", ["LitCNN", "lit_models.cnn.LitCNN", "lit_models.LitCNN"])
def test_a_class_of_the_project(path: str) -> None:
    assert find_class(path, LitBase) is LitCNN
    assert find_class("ShapesDataModule", LightningDataModule) is ShapesDataModule


def test_a_class_of_the_user_with_the_same_name() -> None:
    assert find_class("variants.LitCNN", LitBase).__module__ == "variants"
    assert find_class("variants.ShapesDataModule", LightningDataModule).__module__ == "variants"
    assert find_class("variants.Outer.Net", LitBase).__qualname__ == "Outer.Net"
    Path("pkg/models").mkdir(parents=True)
    Path("pkg/models/net.py").write_text("from my_model import Wide\nclass Net(Wide):\n    pass\n")
    assert find_class("pkg.models.net.Net", LitBase).__module__ == "pkg.models.net"


SOURCES = {
    "raises": "raise ValueError('no data\\nhere')",
    "ends": "import sys\nsys.exit(3)",
    "needs": "import a_package_that_is_missing",
    "typo": "class Net(:",
    "other": "from my_data import Halves\nNet = 3\ndef make():\n    class Net: pass\n    return Net",
}
IN_FOLDER = "run the command in the folder that has {0}.py or {0}/, unchanged since the training"


@pytest.mark.parametrize(
    ("path", "reason", "fix"),
    [
        ("renamed.Net", "No module named 'renamed'", IN_FOLDER),
        ("renamed.models.Net", "No module named 'renamed'", IN_FOLDER),
        ("raises.Net", "ValueError: no data here", IN_FOLDER),
        ("ends.Net", "SystemExit: 3", IN_FOLDER),
        ("needs.Net", "No module named 'a_package_that_is_missing'", IN_FOLDER),
        ("typo.Net", "SyntaxError", IN_FOLDER),
        ("other.Gone", "module 'other' has no attribute 'Gone'", IN_FOLDER),
        ("other.make.<locals>.Net", "has no attribute '<locals>'", "define the class in a file"),
        ("__main__.Net", "module '__main__' has no attribute 'Net'", "define the class in a file"),
        ("other.Net", "", "is not built on LitBase"),
        ("other.Halves", "", "is not built on LitBase"),
        ("other", "", "which this project does not have"),
        ("lit_models.mlp", "", "is not built on LitBase"),
        ("antigravity.Net", "", "which this project does not have"),
        ("..", "", "the checkpoint"),
        ("mine.\nNet", "", "the checkpoint"),
        (None, "", "the checkpoint contains None"),
        (["LitCNN"], "", "which this project does not have"),
    ],
)
def test_a_class_that_cannot_be_imported_is_one_line(path: Any, reason: str, fix: str) -> None:
    for name, source in SOURCES.items():
        Path(f"{name}.py").write_text(source)
    with pytest.raises(CheckpointError) as refused:
        find_class(path, LitBase)
    text = str(refused.value)
    assert reason in text
    assert fix.format(str(path).partition(".")[0]) in text
    assert "\n" not in text
    assert "antigravity" not in sys.modules


def save(model: Any, data: Any) -> Path:
    trainer = bare_trainer(max_epochs=1)
    trainer.fit(model, data)
    trainer.save_checkpoint("own.ckpt")
    return Path("own.ckpt")


@pytest.mark.parametrize("name", ["Named", "Wide"])
def test_a_run_of_lightnings_trainer_opens(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without fit.py, the arguments are the saved hyper-parameters that the constructor takes."""
    kind, data = find_class(f"variants.{name}", LitBase), find_class("my_data.Halves", LightningDataModule)(50)
    model = kind({"width": 5}) if name == "Named" else kind()
    opened = load(save(model, data))
    assert opened.data().hparams["batch_size"] == 50
    for _ in range(2):
        assert type(again := opened.model()) is kind
    for key, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight)
    assert capsys.readouterr().err.count("note: the model class is") == 1


def test_data_loaders_without_a_data_module() -> None:
    data = find_class("my_data.Halves", LightningDataModule)()
    data.setup("fit")
    opened = load(save(find_class("my_model.Wide", LitBase)(num_classes=2), data.train_dataloader()))
    assert type(opened.model()).__name__ == "Wide"
    with pytest.raises(CheckpointError, match="trained on data loaders without a data module"):
        opened.data()
