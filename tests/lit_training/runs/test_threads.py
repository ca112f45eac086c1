"""The number of threads: chosen by network, batch and cores, and kept by a resumed run."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn.parameter import is_lazy

from lit_models import LeNet, mlp
from lit_training.runs import threads
from lit_training.runs.threads import choose_threads
from tests.support.commands import ENVIRONMENT, run
from tests.support.fits import SHAPES, fit, parse

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "available_cores", lambda: 8)


@pytest.mark.usefixtures("eight_cores")
def test_small_work_gets_one_thread_and_large_work_the_cores_of_its_process() -> None:
    assert choose_threads(LeNet(), IMAGE, 4) == 1
    assert choose_threads(LeNet(), IMAGE, 128) == 2
    assert choose_threads(LeNet(), IMAGE, 4096) == 8
    assert choose_threads(LeNet(), IMAGE, 4096, processes=4) == 2
    assert choose_threads(mlp(), torch.zeros(1, 1000), 64) == 1


@pytest.mark.usefixtures("eight_cores")
def test_unknown_work_gets_all_cores() -> None:
    assert choose_threads(LeNet(), None, 4) == 8
    assert choose_threads(nn.Linear(3, 2), IMAGE, 4) == 8
    lazy = nn.LazyLinear(2)  # the training data must initialize it
    assert choose_threads(lazy, torch.zeros(1, 3), 4) == 8
    assert is_lazy(lazy.weight)
    assert choose_threads(LeNet(), IMAGE, None) == 8


def test_omp_num_threads_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choose_threads(LeNet(), IMAGE, 4096) == torch.get_num_threads() == 1


@pytest.mark.usefixtures("eight_cores")
def test_a_frozen_backbone_uses_more_threads_than_its_head(photo_folder: Path) -> None:
    line = f"--data {photo_folder} --model.weights none --accelerator cpu --logger false"
    assert parse(line).trainer.threads == (1, 8)  # type: ignore[attr-defined]
    assert parse(f"{line} --model.freeze false").trainer.threads == (8, 8)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("at_every_step")
def test_a_resumed_run_keeps_its_threads(copy_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_run(f"{SHAPES} --max_epochs 1", kill_at=3)
    assert yaml.safe_load((folder / "config.yaml").read_text())["threads"] == 1
    monkeypatch.setattr("lit_training.cli.parser.threads_of_new_run", lambda *_: (3, 3))
    trainer = fit(f"{SHAPES} --max_epochs 1 --resume auto").trainer
    assert (trainer.threads, torch.get_num_threads()) == ((1, 1), 1)  # type: ignore[attr-defined]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    refused = run(f"fit.py --resume {folder} --threads 2")
    assert (refused.code, "another --threads: leave it out" in refused.err) == (2, True)


@pytest.mark.usefixtures("at_every_step")
@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ((3, 1), "1 thread each (as the run began; a new run would use 3), precision"),
        ((1, 3), "1 thread each, precision"),
    ],
)
def test_a_resumed_run_says_if_a_new_run_would_train_with_other_threads(
    chosen: tuple[int, int], said: str, copy_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_run(f"{SHAPES} --max_epochs 1", kill_at=3)
    monkeypatch.setattr("lit_training.cli.parser.threads_of_new_run", lambda *_: chosen)
    assert said in run("fit.py --resume latest --threads auto").out


@pytest.mark.parametrize(
    ("given", "idle", "policy", "spins"),
    [
        ({}, True, "passive", "10000"),
        ({}, False, "passive", "-"),
        ({"OMP_WAIT_POLICY": "active"}, True, "active", "-"),
        ({"GOMP_SPINCOUNT": "7"}, True, "passive", "7"),
    ],
)
def test_threads_spin_for_a_moment_if_other_programs_are_idle(
    given: dict[str, str], idle: bool, policy: str, spins: str
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in names} | given
    code = (
        f"import os, sys, datamodules.machine; datamodules.machine.other_programs_are_idle = lambda: {idle}; "
        f"import lit_training; print(*[os.environ.get(name, '-') for name in {names}], 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.split() == [policy, spins, "False"]
