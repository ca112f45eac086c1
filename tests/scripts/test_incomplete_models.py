"""A subclass of LitBase without metrics or forward, or with odd outputs, gets one line that says what to write."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.commands import run, run_well
from tests.support.own_classes import remember_imports

FIT = "fit.py --accelerator cpu --dashboard false --report false --max_epochs 1 --data.train_size 8 --data.val_size 4"
OWN = """
import torch
from torch import nn
from lit_models import LitBase

class Whole(LitBase):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.preprocessing = {"image_size": 32, "resize_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))
        self.measure(num_classes)

    def measure(self, num_classes):
        self.make_metrics(num_classes)

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return self.build_optimizers(lambda groups: torch.optim.SGD(groups, 0.05), self.parameters())

class NoMetrics(Whole):
    measure = print

class NoAccuracy(Whole):
    def measure(self, num_classes):
        self.make_metrics()

class OwnValidation(NoAccuracy):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self(batch[0]), batch[1]))

class NoForward(Whole):
    forward = LitBase.forward

class Pair(Whole):
    def forward(self, x):
        return self.net(x), x

class Flat(Whole):
    def forward(self, x):
        return self.net(x).sum(1)

class FewOutputs(Whole):
    def forward(self, x):
        return self.net(x)[:, :2]

class Losses(Whole):
    def training_step(self, batch, batch_idx):
        return torch.ones(3, requires_grad=True)

class OddPrediction(Whole):
    def predict_step(self, batch, batch_idx=0):
        return self(batch).argmax(1)
"""


@pytest.fixture(autouse=True)
def incomplete() -> Iterator[None]:
    Path("incomplete.py").write_text(OWN)
    with remember_imports():
        yield


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("NoMetrics", "NoMetrics has no val_loss: end its __init__ with self.make_metrics(num_classes)"),
        ("NoAccuracy", "NoAccuracy has no val_acc: end its __init__ with self.make_metrics(num_classes)"),
        ("NoForward", "NoForward has no forward: define forward(self, x), which returns"),
        ("Pair", "the loss of Pair cannot use outputs tuple and targets (4,) torch.int64 ("),
        ("Flat", "the loss of Flat cannot use outputs (4,) torch.float32 and targets (4,) torch.int64 ("),
        ("FewOutputs", "outputs (4, 2) torch.float32 and targets (4,) torch.int64 (Target "),
        ("Losses", "training_step must return a loss of one number, such as loss.mean()"),
    ],
)
def test_training_says_what_to_write(model: str, said: str) -> None:
    ended = run(f"{FIT} --model incomplete.{model}")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert said in ended.err
    assert not list(Path().glob("lightning_logs/version_*")), "a failed start leaves nothing"


def test_evaluation_and_prediction_say_it_too() -> None:
    run_well(f"{FIT} --model incomplete.OwnValidation")
    ended = run("evaluate.py latest --accelerator cpu")
    assert (ended.code, ended.err.count("error:")) == (2, 1)
    assert "OwnValidation has no test_acc: end its __init__ with self.make_metrics(num_classes)" in ended.err
    run_well(f"{FIT} --model incomplete.OddPrediction")
    Image.new("RGB", (32, 32)).save("a.png")
    ended = run("predict.py latest a.png --accelerator cpu")
    assert (ended.code, ended.err.count("error:")) == (2, 1)
    assert "predict_step of OddPrediction returns no tensor (B, K): return super().predict_step(batch)" in ended.err
