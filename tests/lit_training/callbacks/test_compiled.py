"""--compile: the same weights and names as without it, the same result after a kill, and one line if it cannot work."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from datamodules.text import print_once
from lit_training.callbacks import compiled
from lit_training.callbacks.compiled import CompileForward
from tests.support.commands import run
from tests.support.fits import SHAPES, SMALL_NET, assert_same_end, fit, fit_run, kill_and_resume, last
from tests.support.own_classes import remember_imports

OWN = """
import torch
from torch import nn
from torch.nn.functional import mse_loss
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

class Rows(LightningDataModule):
    def setup(self, stage):
        x = torch.randn(25, 4, generator=torch.Generator().manual_seed(1))
        self.rows = TensorDataset(x, x.sum(1, keepdim=True))
    def train_dataloader(self):
        return DataLoader(self.rows, 4, shuffle=True)
    def val_dataloader(self):
        return DataLoader(self.rows, 4)

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.last, self.kept = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3)), nn.Linear(8, 1), []
    def forward(self, x):
        return {"y": self.last(self.net(x))}
    def training_step(self, batch, batch_idx):
        assert not torch.compiler.is_compiling()
        return mse_loss(self(batch[0])["y"], batch[1])
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", mse_loss(self(batch[0])["y"], batch[1]))
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

class Uncalled(Net):
    def training_step(self, batch, batch_idx):
        return mse_loss(self.last(self.net(batch[0])), batch[1])

class Wrong(Net):
    def forward(self, x):
        return self.last(x)

class Lengths(Net):
    def training_step(self, batch, batch_idx):
        length = 1 + (batch_idx + 7 * self.current_epoch) % 13
        return mse_loss(self(batch[0].repeat(4, 1)[:length])["y"], batch[1].repeat(4, 1)[:length])
"""
DATA = "--data mine.Rows --max_epochs 2"


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Begin each fit without compiled code, as a new process does. Do not generate C++, which is slow."""
    begin: Callable[..., None] = CompileForward.on_fit_start

    def on_fit_start(self: CompileForward, trainer: Any, pl_module: Any) -> None:
        torch._dynamo.reset()
        counters.clear()
        begin(self, trainer, pl_module)

    monkeypatch.setattr(CompileForward, "on_fit_start", on_fit_start)
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    Path("mine.py").write_text(OWN)
    print_once.cache_clear()
    with remember_imports():
        yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def largest_difference(run_folder: Path, other: Path) -> float:
    one, two = last(run_folder)["state_dict"], last(other)["state_dict"]
    assert list(one) == list(two)
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


FROZEN = f"--data photos --model LitTransfer {SMALL_NET} --data.image_size 32"
CASES = {
    "LeNet": f"{SHAPES} --max_epochs 2",
    "own": f"{DATA} --model mine.Net",
    "dynamic": "--model LitDynamic --max_steps 30",
    "averaged and accumulated": f"{SHAPES} --max_epochs 1 --callbacks+ EMAWeightAveraging --accumulate_grad_batches 2",
    "bfloat16": f"{SHAPES} --max_epochs 1 --precision bf16-mixed",
    "frozen": f"{FROZEN} --max_epochs 2",
    "partly frozen": f"{FROZEN} --max_epochs 2 --model.freeze false --model.unfreeze_epoch 1",
}


SLOW = pytest.param("partly frozen", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [SLOW if name == "partly frozen" else name for name in CASES])
def test_compiled_and_uncompiled_runs_have_the_same_weights(name: str, photo_folder: Path) -> None:
    line = CASES[name]
    plain = fit_run(f"{line} --default_root_dir plain")
    assert largest_difference(plain, fit_run(f"{line} --default_root_dir compiled --compile true")) < 1e-6
    assert 2 <= graphs() <= 8  # one at least for training and one for validation


@pytest.mark.parametrize("name", ["own", "dynamic"])
def test_a_killed_compiled_run_resumes_exactly(name: str, at_every_step: None) -> None:
    assert_same_end(*kill_and_resume(f"{CASES[name]} --compile true", 3, 8))
    assert graphs() >= 2


@pytest.mark.slow
def test_generated_code_resumes_exactly(at_every_step: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    line = f"{DATA} --model mine.Net"
    uninterrupted, resumed = kill_and_resume(f"{line} --compile true", 3, 8)
    assert_same_end(uninterrupted, resumed)
    assert largest_difference(fit_run(f"{line} --default_root_dir plain"), resumed) < 1e-6


def test_a_process_group_calls_the_compiled_forward() -> None:
    line = f"{DATA} --model mine.Net --compile true"
    fit(f"{line} --default_root_dir one")
    on_one_device = graphs()
    assert fit(f"{line} --strategy ddp --devices 1").trainer.global_step == 14
    assert graphs() == on_one_device >= 2  # the parts of a compiled training_step would be more
    torch.distributed.destroy_process_group()


def test_without_a_compiler_one_line_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    ended = run(f"fit.py {DATA} --model mine.Net --compile --accelerator cpu")
    assert ended.code == 2
    assert ended.err.splitlines()[-1].startswith("fit.py: error: --compile: torch cannot compile Net (")
    assert "leave --compile out, or install its compiler (g++)" in ended.err
    assert not list(Path().glob("lightning_logs/version_*"))


def test_a_forward_that_is_wrong_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(f"fit.py {DATA} --model mine.Wrong --compile --accelerator cpu")


def test_a_training_step_that_does_not_call_forward_is_named() -> None:
    ended = run(f"fit.py {DATA} --model mine.Uncalled --compile --accelerator cpu")
    line = "--compile has no effect: training_step of Uncalled does not call self(...)"
    assert (ended.code, ended.err.count(line)) == (0, 1)


def test_too_many_shapes_are_said_once() -> None:
    ended = run(f"fit.py {DATA} --model mine.Lengths --compile --accelerator cpu")
    assert (ended.code, ended.err.count("forward gets too many kinds of input: not all are compiled")) == (0, 1)


def test_a_run_keeps_its_choice(at_every_step: None) -> None:
    fit(f"{DATA} --model mine.Net --compile default", kill_at=3)
    assert fit(f"{DATA} --model mine.Net --compile true").run.start.folder.name == "version_1"  # type: ignore[union-attr]
    ended = run("fit.py --resume lightning_logs/version_0 --compile false --accelerator cpu")
    assert (ended.code, "was started with another --compile: leave it out" in ended.err) == (2, True)
    shutil.rmtree("lightning_logs/version_1")
    assert run("fit.py --resume latest --accelerator cpu").code == 0
    assert run(f"fit.py {DATA} --model mine.Net --compile fast").err.count("--compile fast: ") == 1
