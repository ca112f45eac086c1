"""Classes whose default values no YAML file can hold train, resume with --resume latest, and are evaluated."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lit_training.callbacks.resume import ResumePoint
from tests.support.commands import run, run_well
from tests.support.fits import SHAPES, assert_same_end, fit, fit_run
from tests.support.own_classes import remember_imports

RUN = Path("lightning_logs/version_0")
OWN = """
import enum, functools
import numpy as np, torch
from lightning.pytorch import Callback
from lit_models import LitBase

class When(str, enum.Enum):
    AT_START = "start"

class Kind(enum.Enum):
    ONE = 1
    TWO = 2

class Base(LitBase):
    def __init__(self, mean=np.zeros(3, "float32"), act: type = torch.nn.ReLU, lr: float = np.float64(0.05)):
        super().__init__()
        self.save_hyperparameters("lr")
        self.register_buffer("mean", torch.as_tensor(mean).view(3, 1, 1))
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10), act())
        self.make_metrics(10)

    def forward(self, x):
        return self.net(x - self.mean)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams["lr"])

class Net(Base):
    def __init__(self, scale=np.float32(0.5), init=functools.partial(torch.nn.init.normal_, std=0.1), **others):
        super().__init__(**others)
        assert isinstance(scale, np.float32) and isinstance(init, functools.partial)

class Mine(Callback):
    def __init__(self, when: str = When.AT_START, device: torch.device = torch.device("cpu"), kind: Kind = Kind.ONE,
                 call=lambda x: x + 1, parts=(np.zeros(2),), count: int = 3):
        assert (when is When.AT_START, device.type, call(1), len(parts), count) == (True, "cpu", 2, 1, 4)
        print("kind", kind)
"""
LINE = f"--model mine.Net --data ShapesDataModule {SHAPES} --max_epochs 2"
CALLBACK = "--callbacks+ mine.Mine --callbacks.count 4 --callbacks.kind TWO"


@pytest.fixture(autouse=True)
def own_classes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", 1e9)  # a resume point before each step
    Path("mine.py").write_text(OWN)
    with remember_imports():
        sys.path.append(str(Path.cwd()))
        yield


def test_a_run_with_odd_defaults_resumes_and_is_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    uninterrupted = fit_run(f"{LINE} {CALLBACK} --default_root_dir uninterrupted")
    fit(f"{LINE} {CALLBACK}", kill_at=8)
    fit("--resume latest")
    assert_same_end(uninterrupted, RUN)
    assert capsys.readouterr().out.count("kind Kind.TWO") == 3
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["model"]["init_args"] == {"act": "torch.nn.ReLU", "lr": 0.05}
    (callback,) = config["trainer"]["callbacks"]
    assert callback["init_args"] == {"kind": "TWO", "count": 4}
    assert "test_acc" in run_well("evaluate.py latest")


def test_an_array_is_no_flag() -> None:
    ended = run(f"fit.py {LINE} --model.mean [1,2,3]")
    assert ended.code == 2
    assert "error: --model.mean: Net has no argument mean; choose one of" in ended.err
