"""The DataLoader: resume in the middle of an epoch, data in memory, number of workers."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from datamodules.loading.device import TwoStageDataset
from datamodules.loading.loader import count_decoding_workers, make_loader
from tests.support.commands import ENVIRONMENT
from tests.support.loaders import epoch_of, loader_of, rank_of

# --- resume -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 7), st.data())
def test_loader_resumes_in_the_middle_of_an_epoch(length: int, ranks: int, batch_size: int, data: Any) -> None:
    trainer = rank_of(ranks - 1, ranks)
    uninterrupted = loader_of(length, batch_size, trainer)
    epochs = [epoch_of(uninterrupted, epoch) for epoch in (4, 5)]
    used = data.draw(st.integers(0, len(uninterrupted) - 1))
    first = loader_of(length, batch_size, trainer)
    first.sampler.set_epoch(4)  # type: ignore[attr-defined]
    batches = iter(first)
    # A batch counts as used when the next one is requested.
    assert [next(batches).tolist() for _ in range(used + 1)] == epochs[0][: used + 1]
    assert first.state_dict() == {"batches": used}
    second = loader_of(length, batch_size, trainer)
    second.load_state_dict(first.state_dict())
    assert epoch_of(second, 4) == epochs[0][used:]
    assert epoch_of(second, 5) == epochs[1]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_with_workers_resumes_too(num_workers: int) -> None:
    first, second = (loader_of(23, 4, num_workers=num_workers) for _ in range(2))
    want = epoch_of(loader_of(23, 4), 2)
    first.sampler.set_epoch(2)  # type: ignore[attr-defined]
    batches = iter(first)
    assert [next(batches).tolist() for _ in range(3)] == want[:3]
    assert first.state_dict() == {"batches": 2}  # only used batches count, although the workers have loaded more
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(0)  # type: ignore[attr-defined]
    resumed = iter(second)  # Lightning calls iter() before it sets the epoch
    second.sampler.set_epoch(2)  # type: ignore[attr-defined]
    assert [batch.tolist() for batch in resumed] == want[2:]
    assert epoch_of(second, 3) == epoch_of(loader_of(23, 4), 3)
    assert [batch.tolist() for batch in batches] == want[3:]


# --- data in memory -----------------------------------------------------------------------------------------------


class KeysInMemory(TwoStageDataset):
    """A dataset of its keys, which records the number of keys per call."""

    def __init__(self, length: int, samples_per_fetch: int) -> None:
        self.length, self.samples_per_fetch = length, samples_per_fetch
        self.keys_per_call: list[int] = []

    def __len__(self) -> int:
        return self.length

    def read(self, keys: Tensor) -> tuple[Tensor, ...]:
        self.keys_per_call.append(len(keys))
        return keys, -keys


@given(st.integers(1, 300), st.integers(1, 3), st.integers(1, 40), st.integers(0, 100), st.booleans())
def test_data_in_memory_gives_the_same_batches_in_fewer_calls(
    length: int, ranks: int, batch_size: int, samples_per_fetch: int, train: bool
) -> None:
    trainer = rank_of(ranks - 1, ranks)
    data = KeysInMemory(length, samples_per_fetch)
    loader = make_loader(data, trainer, batch_size=batch_size, seed=0, train=train)
    loader.sampler.set_epoch(4)  # type: ignore[attr-defined]
    batches = list(loader)
    assert [keys.tolist() for keys, _ in batches] == epoch_of(loader_of(length, batch_size, trainer, train=train), 4)
    assert all(torch.equal(keys, -minus) for keys, minus in batches)
    assert max(data.keys_per_call) <= max(samples_per_fetch, batch_size)
    assert len(data.keys_per_call) == -(-len(batches) // max(1, samples_per_fetch // batch_size))


class Doubled(KeysInMemory):
    """A subclass of a user, which changes the batches."""

    def __getitems__(self, keys: list[int]) -> tuple[Tensor, ...]:
        return tuple(2 * tensor for tensor in super().__getitems__(keys))


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_subclass_with_its_own_batches_is_respected(num_workers: int) -> None:
    loader = make_loader(Doubled(5, 100), None, batch_size=2, seed=0, train=False, num_workers=num_workers)
    assert [keys.tolist() for keys, _ in loader] == [[0, 2], [4, 6], [8]]


# --- workers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "ranks", "beside_a_gpu", "on_the_cpu"),
    [(1, 1, 0, 0), (2, 1, 2, 0), (2, 2, 0, 0), (8, 2, 4, 1), (16, 1, 14, 4), (64, 4, 14, 4)],
)
def test_number_of_workers(
    cores: int, ranks: int, beside_a_gpu: int, on_the_cpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.loading.loader.available_cores", lambda: cores)
    assert count_decoding_workers(rank_of(0, ranks, device="cuda")) == beside_a_gpu
    assert count_decoding_workers(rank_of(0, ranks)) == on_the_cpu


def test_number_of_workers_without_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.loading.loader.available_cores", lambda: 64)
    assert count_decoding_workers(None) == 56


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["raise ValueError('mine')", "pass"])
def test_program_exits_with_workers_in_the_middle_of_an_epoch(tmp_path: Path, ending: str) -> None:
    script = tmp_path / "half.py"
    script.write_text(
        "import torch\n"
        "from datamodules import ShapesDataModule\n"
        "from datamodules.loading.loader import make_loader\n"
        "data = ShapesDataModule(train_size=100)\n"
        "data.setup('fit')\n"
        "batches = iter(make_loader(data.sets['train'], None, batch_size=4, seed=0, train=True, num_workers=2))\n"
        f"next(batches)\n{ending}\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == (0 if ending == "pass" else 1)
    assert ("ValueError: mine" in done.stderr) == (ending != "pass")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "code", "printed"),
    [
        ("for number in loader.STOP_SIGNALS: os.kill(os.getpid(), number)", 0, "25 batches"),
        ("os.kill(os.getppid(), signal.SIGKILL); time.sleep(0.5)", -signal.SIGKILL, ""),
    ],
    ids=["signals", "the program ends"],
)
def test_worker_that_starts_survives_signals_but_not_the_program(
    tmp_path: Path, event: str, code: int, printed: str
) -> None:
    script = tmp_path / "start.py"
    script.write_text(
        "import os, signal, time\n"
        "from datamodules import ShapesDataModule\n"
        "from datamodules.loading import loader\n"
        "prepare_worker = loader.prepare_worker\n"
        f"def prepare_later(worker):\n    {event}\n    prepare_worker(worker)\n"
        "loader.prepare_worker = prepare_later\n"
        "data = ShapesDataModule(train_size=100)\n"
        "data.setup('fit')\n"
        "made = loader.make_loader(data.sets['train'], None, batch_size=4, seed=0, train=True, num_workers=1)\n"
        "print(len(list(made)), 'batches')\n"
        "assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
    )
    # the pipes are closed, so that this returns, when the last worker has ended
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (code, printed), done.stderr
