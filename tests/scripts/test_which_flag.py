"""Each typed flag takes effect, or is refused or named in one line."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_training.callbacks.resume import ResumePoint
from tests.support import fits
from tests.support.commands import run, run_well
from tests.support.own_classes import remember_imports

ROWS = "--data RandomDataModule --data.steps 2 --quiet --accelerator cpu --devices 1 --dashboard false"
PLATEAU = "--model LitMLP --lr_scheduler ReduceLROnPlateau"
MINE = '''
from functools import partial
import torch
from typing import Literal
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR
from lit_models import LitMLP

class Own(LitMLP):
    """Never uses --optimizer."""
    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches
        sgd = SGD(self.parameters(), self.hparams["lr"])
        return [sgd], [LambdaLR(sgd, lambda step: 1 - step / steps)]

class Half(LitMLP):
    """Uses --optimizer, and never --lr_scheduler."""
    def __init__(self, in_features: int = 1000, out_features: int = 10, rate: float = 1e-5, fast: bool = False,
                 decay: float = 0.0):
        super().__init__(in_features, (2,), out_features)
        self.rate, self.fast, self.decay = rate, fast, decay
    def configure_optimizers(self):
        groups = [{"params": list(self.parameters()), "weight_decay": self.decay}]
        sgd = partial(SGD, lr=self.rate, momentum=0.9, nesterov=bool(self.fast))
        return self.build_optimizers(sgd, groups)["optimizer"]

class Wide(LitMLP):
    """The rate depends on the width; __init__ chooses the class of the optimizer."""
    def __init__(self, in_features: int = 1000, out_features: int = 10, width: int = 2, kind: str = "adam",
                 order: Literal["slow", "fast"] = "slow"):
        super().__init__(in_features, (width,), out_features)
        self.rate, self.kind = 0.1 / width, {"adam": Adam, "sgd": SGD}[kind]
        self.order = order
    def configure_optimizers(self):
        rate = self.rate * 2 if self.order == "fast" else self.rate
        return self.build_optimizers(lambda groups: self.kind(groups, lr=rate), self.parameters())

class Lazy(LitMLP):
    def __init__(self, **options):
        super().__init__(**options)
        self.net[-1] = torch.nn.LazyLinear(10)

class Nan(LitMLP):
    def __init__(self, in_features: int = 1000, out_features: int = 10, head_lr: float = 0.002, skip_lr: bool = False):
        super().__init__(in_features, (2,), out_features)
        self.automatic_optimization = not skip_lr
    def training_step(self, batch, batch_idx):
        return {"loss": self(batch[0]).sum() * torch.nan}
'''


@pytest.fixture(autouse=True)
def own_classes() -> Iterator[None]:
    Path("mine.py").write_text(MINE)
    Path("rates.yaml").write_text("{model: {class_path: LitCNN, init_args: {lr: 0.1}}, optimizer: Adam}")
    with remember_imports():
        yield


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (
            "--model mine.Own --optimizer Adam",
            "--optimizer is for models built on LitBase that return build_optimizers()",
        ),
        ("--model mine.Own --optimizer SGD --optimizer.lr 1e-4", "Own does not, leave --optimizer out"),
        ("--model mine.Own --lr_scheduler OneCycleLR", "leave --lr_scheduler out"),
        ("--model mine.Half --lr_scheduler OneCycleLR", "leave --lr_scheduler out"),
        (
            "--model mine.Half --optimizer Adam --model.rate 1e-5",
            "--model.rate 1e-05 has no effect beside --optimizer Adam",
        ),
        ("--model mine.Half --optimizer Adam --model.fast true", "leave --model.fast out"),
        ("--model LitMLP --optimizer Adam --model.lr 1e-4", "use --optimizer.lr 0.0001"),
        ("--model mine.Lazy --optimizer Adam --model.lr 1e-4", "use --optimizer.lr 0.0001"),
        ("--model mine.Wide --optimizer AdamW --model.kind sgd", "leave --model.kind out"),
        ("--model mine.Wide --optimizer AdamW --model.order slow", "leave --model.order out"),
        (f"{PLATEAU} --lr_scheduler.mode min --monitor f1:max", "--lr_scheduler.mode min contradicts --monitor f1:max"),
        (f"{PLATEAU} --lr_scheduler.mode max --monitor f1:min", "--lr_scheduler.mode max contradicts --monitor f1:min"),
    ],
)
def test_a_flag_that_the_models_optimizer_does_not_use_is_refused(flags: str, answer: str) -> None:
    ended = run(f"fit.py {ROWS} {flags}")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended
    assert answer in ended.err
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    "flags",
    [
        "--model mine.Own",
        "--model mine.Half --optimizer Adam --model.decay 0.1",  # it is in the parameter groups
        "--model mine.Half --model.rate 1e-6",
        "--model mine.Wide --optimizer Adam --model.width 4",  # it changes the network too
        "--model mine.Lazy --optimizer Adam --model.hidden [5]",
        f"{PLATEAU} --lr_scheduler.mode max --monitor train_loss:max",
        "--model LitMLP --lr_scheduler OneCycleLR --model.lr 1e-6",
    ],
)
def test_a_flag_that_the_models_optimizer_uses_is_accepted(flags: str) -> None:
    run_well(f"fit.py {ROWS} {flags}")
    again = f"fit.py --config lightning_logs/version_0/config.yaml {ROWS}"  # the file has all defaults
    assert run_well(again).splitlines()[-2] == run_well(again).splitlines()[-2]


def test_an_argument_in_a_file_is_refused_too_and_defaults_are_not() -> None:
    assert (
        "--model.lr 0.1 has no effect beside --optimizer Adam: use --optimizer.lr 0.1"
        in run("fit.py --config rates.yaml").err
    )
    transfer = "--model LitTransfer --model.weights none --data ShapesDataModule --model.gamma 0.5"
    fits.parse(f"{transfer} --optimizer AdamW")  # it keeps the model's schedule
    ended = run(f"fit.py {transfer} --lr_scheduler OneCycleLR")
    assert "--model.gamma 0.5 has no effect beside --lr_scheduler OneCycleLR: leave --model.gamma out" in ended.err


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        ("", "Try --model.head_lr 0.0002, or --gradient_clip_val 1"),
        ("--model.head_lr 70", "Try --model.head_lr 0.1, or --gradient_clip_val 1"),
        ("--optimizer Adam", "Try --optimizer.lr 0.0001, or --gradient_clip_val 1"),
        ("--optimizer AdamW --optimizer.lr 0.5 --lr_scheduler OneCycleLR", "Try --optimizer.lr 0.05, or"),
        ("--gradient_clip_val 0.5", "Try --model.head_lr 0.0002\n"),
        ("--model.skip_lr true --model.head_lr 0", "learning rate 0.0001; the last good checkpoint is kept.\n"),
    ],
)
def test_the_advice_after_nan_names_the_rate_that_the_run_used(flags: str, advice: str) -> None:
    ended = run(f"fit.py {ROWS} --model mine.Nan {flags}")
    assert ended.code == 2
    assert advice in ended.err


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 2 epochs that was killed in the second."""
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", 1e9)
    return fits.fit_run(
        "--model LitMLP --data.in_features 6 --data.steps 4 --max_epochs 2 --dashboard false", kill_at=6
    )


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        ("--resume RUN --default_root_dir elsewhere", "goes on in its own folder: leave --default_root_dir out"),
        ("--resume RUN --max_steps 3", "--max_steps 3: the run has done 6 already: --max_steps 7"),
        ("--resume RUN --max_epochs 0", "--max_epochs 0: the run has done 1 already: --max_epochs 2"),
        ("--resume RUN --model.lr 3", "was started with another --model"),
        (
            "--resume copy.ckpt --model LitMLP --data.in_features 6 --data.steps 4 --model.lr 3",
            "--model.lr 0.0001, not 3.0",
        ),
    ],
)
def test_a_flag_that_a_resume_would_ignore_is_refused(flags: str, answer: str, killed: Path) -> None:
    Path("copy.ckpt").write_bytes((killed / "checkpoints" / "last.ckpt").read_bytes())
    ended = run(f"fit.py {flags.replace('RUN', str(killed))}")
    assert ended.code == 2
    assert answer in ended.err
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]


def test_flags_of_a_finished_run_are_named(killed: Path) -> None:
    run_well("fit.py --resume latest --quiet --default_root_dir .")
    out = run_well("fit.py --resume latest --gradient_clip_val=1 --seed 0")
    assert "nothing to do (without effect: --gradient_clip_val, --seed); for a new run" in out
    assert "nothing to do; for a new run" in run_well("fit.py --resume latest")
