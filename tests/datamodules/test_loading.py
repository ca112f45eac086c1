"""What a batch holds is a function of (seed, epoch, position): order, shares of ranks, padding, resume."""

import itertools
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loading.loader import ResumableLoader, make_loader, workers_for_decoding
from datamodules.loading.order import PADDING, TrainSampler
from datamodules.loading.seeds import mix, uniforms

SEEDS = st.integers(-(2**63), 2**64)


class Keys(Dataset):
    """Gives the keys themselves."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: int) -> Tensor:
        return torch.tensor(key)

    def __getitems__(self, keys: list[int]) -> Tensor:
        return torch.tensor(keys)


def rank_of(rank: int, ranks: int, overfit_batches: float = 0, device: str = "cpu") -> Any:
    return SimpleNamespace(
        world_size=ranks,
        global_rank=rank,
        overfit_batches=overfit_batches,
        num_devices=ranks,
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )


class KeysInMemory(Keys):
    """The keys, with what was asked for at once."""

    def __init__(self, length: int, samples_at_once: int) -> None:
        super().__init__(length)
        self.samples_at_once = samples_at_once
        self.asked: list[int] = []

    def __getitems__(self, keys: list[int]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        self.asked.append(len(keys))
        return torch.tensor(keys), -torch.tensor(keys)


def loader_of(length: int, batch_size: int = 3, trainer: Any = None, **more: Any) -> ResumableLoader:
    loader = make_loader(Keys(length), trainer, **{"batch_size": batch_size, "seed": 0, "train": True, **more})
    assert isinstance(loader, ResumableLoader)
    return loader


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def epoch_of(loader: ResumableLoader, epoch: int) -> list[list[int]]:
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [batch.tolist() for batch in loader]


# --- order --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(0, 5), SEEDS)
def test_an_epoch_draws_every_index_once_in_an_order_of_seed_and_epoch(length: int, epoch: int, seed: int) -> None:
    def order(seed: int) -> list[int]:
        sampler = TrainSampler(length, 1, 0, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    keys = order(seed)
    assert sorted(keys) == list(range(epoch * length, (epoch + 1) * length))
    assert order(seed) == keys


def test_seeds_and_epochs_differ() -> None:
    orders = set()
    for seed in range(10):
        for epoch in range(10):
            sampler = TrainSampler(30, 1, 0, seed)
            sampler.set_epoch(epoch)
            orders.add(tuple(key % 30 for key in sampler))
    assert len(orders) == 100


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 7), st.integers(0, 3), st.booleans())
def test_the_ranks_together_draw_what_one_process_draws(
    length: int, ranks: int, batch_size: int, epoch: int, shuffle: bool
) -> None:
    shares = [
        epoch_of(loader_of(length, batch_size, rank_of(rank, ranks), shuffle=shuffle), epoch) for rank in range(ranks)
    ]
    alone = flat(epoch_of(loader_of(length, batch_size * ranks, shuffle=shuffle), epoch))
    assert len({len(share) for share in shares}) == 1  # else a rank would wait for ever
    together = [sorted(flat(batches)) for batches in zip(*shares, strict=True)]
    padded = [alone[place % length] for place in range(-(-length // ranks) * ranks)]
    step = batch_size * ranks
    assert together == [sorted(padded[start : start + step]) for start in range(0, len(padded), step)]
    assert set(flat(together)) == set(alone)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 7))
def test_evaluation_covers_everything_once_and_pads(length: int, ranks: int, batch_size: int) -> None:
    loaders = [loader_of(length, batch_size, rank_of(rank, ranks), train=False) for rank in range(ranks)]
    shares = [epoch_of(loader, 3) for loader in loaders]
    alone = epoch_of(loader_of(length, batch_size, train=False), 3)
    assert flat(alone) == list(range(length))
    assert {len(share) for share in shares} == {len(loader) for loader in loaders} == {-(-len(alone) // ranks)}
    dealt = [batch for batches in zip(*shares, strict=True) for batch in batches]
    assert dealt == alone + [[PADDING]] * (len(dealt) - len(alone))  # the very batches of one process
    assert all(len(loader.sampler) == len(flat(share)) for loader, share in zip(loaders, shares, strict=True))  # type: ignore[arg-type]


def test_the_runs_seed_governs_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    for run in (None, "0", "1"):
        if run is not None:
            monkeypatch.setenv("PL_GLOBAL_SEED", run)
        orders.append(epoch_of(loader_of(20), 0))
    assert orders[0] == orders[1] != orders[2]


def test_overfitting_repeats_the_same_batches_in_order() -> None:
    loader = loader_of(6, trainer=rank_of(0, 1, overfit_batches=1))
    assert [[key % 6 for key in flat(epoch_of(loader, epoch))] for epoch in (0, 1)] == [list(range(6))] * 2


def test_a_pass_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    list(loader_of(10))
    list(loader_of(10, train=False))
    assert torch.equal(torch.get_rng_state(), state)


# --- resume -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 7), st.data())
def test_a_loader_goes_on_in_the_middle_of_an_epoch(length: int, ranks: int, batch_size: int, data: Any) -> None:
    trainer = rank_of(ranks - 1, ranks)
    whole = loader_of(length, batch_size, trainer)
    epochs = [epoch_of(whole, epoch) for epoch in (4, 5)]
    used = data.draw(st.integers(0, len(whole) - 1))
    first = loader_of(length, batch_size, trainer)
    first.sampler.set_epoch(4)  # type: ignore[attr-defined]
    batches = iter(first)
    # A batch counts as used when the next one is asked for.
    assert [next(batches).tolist() for _ in range(used + 1)] == epochs[0][: used + 1]
    assert first.state_dict() == {"batches": used}
    second = loader_of(length, batch_size, trainer)
    second.load_state_dict(first.state_dict())
    assert epoch_of(second, 4) == epochs[0][used:]
    assert epoch_of(second, 5) == epochs[1]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_with_workers_goes_on_too(num_workers: int) -> None:
    first, second = (loader_of(23, 4, num_workers=num_workers) for _ in range(2))
    want = epoch_of(loader_of(23, 4), 2)
    first.sampler.set_epoch(2)  # type: ignore[attr-defined]
    batches = iter(first)
    assert [next(batches).tolist() for _ in range(3)] == want[:3]
    assert first.state_dict() == {"batches": 2}  # workers are further ahead: what counts is what was used
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(0)  # type: ignore[attr-defined]
    resumed = iter(second)  # Lightning takes the iterator before it sets the epoch
    second.sampler.set_epoch(2)  # type: ignore[attr-defined]
    assert [batch.tolist() for batch in resumed] == want[2:]
    assert epoch_of(second, 3) == epoch_of(loader_of(23, 4), 3)
    assert [batch.tolist() for batch in batches] == want[3:]


# --- data in memory -----------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 3), st.integers(1, 40), st.integers(0, 100), st.booleans())
def test_data_in_memory_gives_the_same_batches_in_fewer_calls(
    length: int, ranks: int, batch_size: int, at_once: int, train: bool
) -> None:
    trainer = rank_of(ranks - 1, ranks)
    data = KeysInMemory(length, at_once)
    loader = make_loader(data, trainer, batch_size=batch_size, seed=0, train=train)
    loader.sampler.set_epoch(4)  # type: ignore[attr-defined]
    batches = list(loader)
    assert [keys.tolist() for keys, _ in batches] == epoch_of(loader_of(length, batch_size, trainer, train=train), 4)
    assert all(torch.equal(keys, -minus) for keys, minus in batches)
    assert max(data.asked) <= max(at_once, batch_size)
    assert len(data.asked) == -(-len(batches) // max(1, at_once // batch_size))


# --- random numbers -----------------------------------------------------------------------------------------------


@given(SEEDS, st.lists(st.integers(-1, 2**62), min_size=1, max_size=20), st.integers(1, 6))
def test_uniforms_are_a_function_of_seed_and_key(seed: int, keys: list[int], count: int) -> None:
    numbers = uniforms(seed, torch.tensor(keys), count)
    assert numbers.shape == (len(keys), count)
    assert numbers.dtype == torch.float32
    assert ((numbers >= 0) & (numbers < 1)).all()
    for row, key in zip(numbers, keys, strict=True):  # whatever the batch it is in
        assert torch.equal(row, uniforms(seed, torch.tensor([key]), count)[0])


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_uniforms_are_uniform_and_independent() -> None:
    numbers = uniforms(7, torch.arange(20_000), 5).numpy()
    # 99.99 % quantiles of chi-square with 99 degrees of freedom; five lanes, four pairs, two seeds
    for lane in range(5):
        assert chi_square(np.histogram(numbers[:, lane], 100, (0, 1))[0]) < 161.3
    for lane in range(4):
        pair = np.histogram2d(numbers[:, lane], numbers[:, lane + 1], 10, [(0, 1), (0, 1)])[0]
        assert chi_square(pair) < 161.3
    following = np.histogram2d(numbers[:-1, 0], numbers[1:, 0], 10, [(0, 1), (0, 1)])[0]
    other_seed = np.histogram2d(numbers[:, 0], uniforms(8, torch.arange(20_000), 5).numpy()[:, 0], 10)[0]
    assert max(chi_square(following), chi_square(other_seed)) < 161.3


@given(st.lists(SEEDS, min_size=1, max_size=4))
def test_mix_gives_seeds_that_torch_takes(numbers: list[int]) -> None:
    seed = mix(*numbers)
    assert 0 <= seed < 2**63
    assert mix(*numbers) == seed
    torch.Generator().manual_seed(seed)


def test_mix_tells_its_arguments_apart() -> None:
    seeds = {mix(a, b) for a in range(100) for b in range(100)} | {mix(a) for a in range(100)}
    assert len(seeds) == 10_100


# --- workers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "ranks", "beside_a_gpu", "on_the_cpu"),
    [(1, 1, 0, 0), (2, 1, 2, 0), (2, 2, 0, 0), (8, 2, 4, 1), (16, 1, 8, 4), (64, 1, 8, 8)],
)
def test_no_more_workers_than_cores(
    cores: int, ranks: int, beside_a_gpu: int, on_the_cpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.loading.available_cores", lambda: cores)
    assert workers_for_decoding(rank_of(0, ranks, device="cuda")) == beside_a_gpu
    assert workers_for_decoding(rank_of(0, ranks)) == on_the_cpu


def test_workers_outside_of_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.loading.available_cores", lambda: 64)
    assert workers_for_decoding(None) == 8


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["raise ValueError('mine')", "pass"])
def test_a_program_ends_with_workers_in_the_middle_of_an_epoch(tmp_path: Path, ending: str) -> None:
    script = tmp_path / "half.py"
    script.write_text(
        "import torch\n"
        "from datamodules import ShapesDataModule\n"
        "from datamodules.loading import make_loader\n"
        "data = ShapesDataModule(train_size=100)\n"
        "data.setup('fit')\n"
        "batches = iter(make_loader(data.sets['train'], None, batch_size=4, seed=0, train=True, num_workers=2))\n"
        f"next(batches)\n{ending}\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (0 if ending == "pass" else 1)
    assert ("ValueError: mine" in done.stderr) == (ending != "pass")
