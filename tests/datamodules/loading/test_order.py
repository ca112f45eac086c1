"""Samplers: order, distribution over ranks, padding."""

import itertools
from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule

from datamodules.loading import order as order_module
from datamodules.loading.order import CHUNK, PADDING, EvalSampler, Permutation, TrainSampler, gather_in_input_order
from datamodules.loading.seeds import combine_seeds
from datamodules.text import print_once
from lit_models import LitCNN
from tests.support.loaders import epoch_of, loader_of, rank_of

SEEDS = st.integers(-(2**63), 2**64)


@pytest.fixture(scope="module", autouse=True, params=["in memory", "in chunks"])
def way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test as for a small dataset, and as for one that is too large for a tensor of its order."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in chunks":
            patch.setattr(order_module, "MAX_SHUFFLED", 0)
            patch.setattr(order_module, "CHUNK", 7)
        yield


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


@given(st.integers(1, 60), st.integers(0, 5), SEEDS)
def test_epoch_has_every_index_once_in_an_order_fixed_by_seed_and_epoch(length: int, epoch: int, seed: int) -> None:
    def order(seed: int) -> list[int]:
        sampler = TrainSampler(length, 1, 0, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    keys = order(seed)
    assert sorted(keys) == list(range(epoch * length, (epoch + 1) * length))
    assert order(seed) == keys


@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 70), st.booleans())
def test_an_epoch_continues_at_any_key(length: int, ranks: int, start: int, shuffle: bool) -> None:
    sampler = TrainSampler(length, ranks, ranks - 1, 3, shuffle)
    whole = list(sampler)
    sampler.start = start
    assert torch.cat([torch.tensor([0]), *sampler.key_chunks()]).tolist()[1:] == whole[start:]
    assert list(sampler) == whole  # only one epoch is shortened


def test_only_long_epochs_have_another_order_than_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old runs must resume with the order of the version that began them."""
    monkeypatch.setattr(order_module, "MAX_SHUFFLED", 60)
    for length in (60, 61):
        before = torch.randperm(length, generator=torch.Generator().manual_seed(combine_seeds(3, 0)))
        assert (list(TrainSampler(length, 1, 0, 3)) == before.tolist()) == (length == 60)


def test_an_epoch_of_a_hundred_million_begins_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "CHUNK", CHUNK)
    sampler = TrainSampler(10**8, 3, 2, 0)
    sampler.start = 30_000_000
    first = next(sampler.key_chunks())
    assert len(first) == CHUNK == len(first.unique())
    assert Permutation(10**8, torch.default_generator).shifts.numel() < 100_000
    assert list(itertools.islice(EvalSampler(10**8, 3, 2, 100), 101)) == [*range(200, 300), 500]
    shares = [len(EvalSampler(10**8 + 1, 3, rank, 100)) for rank in range(3)]
    assert sum(shares) == 10**8 + 1 + 1  # the last batch has one sample, on rank 1; rank 2 gets padding


def test_long_orders_look_uniform() -> None:
    """Each index comes as often to each place, and neighbours in the order are independent."""
    length, seeds = 100, 500
    places = torch.arange(length)
    orders = torch.stack(
        [Permutation(length, torch.Generator().manual_seed(seed))(places) for seed in range(seeds)]
    )  # (seeds, length)

    def unevenness(numbers: torch.Tensor, kinds: int) -> float:
        """Return chi square by its degrees of freedom, which is near 1 for random numbers."""
        counts, expected = numbers.flatten().bincount(minlength=kinds), numbers.numel() / kinds
        return float(((counts - expected) ** 2 / expected).sum() / (kinds - 1))

    assert 0.9 < unevenness(orders * length + places, length**2) < 1.1
    steps = (orders[:, 1:] - orders[:, :-1]) % length  # 1 .. length - 1
    assert 0.5 < unevenness(steps - 1, length - 1) < 1.5
    assert 0.9 < unevenness((places[1:] - 1) * (length - 1) + steps - 1, (length - 1) ** 2) < 1.1
    long = Permutation(999_983, torch.Generator().manual_seed(1))(
        torch.arange(0, 999_983)
    ).double()  # a prime: the grid has cells to skip
    assert len(long.unique()) == len(long)
    assert float(long.max()) == 999_982
    for step in (1, 2, 999, 1000, 1001):  # near the grid's sides
        assert abs(float(torch.corrcoef(torch.stack([long[:-step], long[step:]]))[0, 1])) < 0.005


def test_orders_differ_between_seeds_and_epochs() -> None:
    orders = set()
    for seed in range(10):
        for epoch in range(10):
            sampler = TrainSampler(30, 1, 0, seed)
            sampler.set_epoch(epoch)
            orders.add(tuple(key % 30 for key in sampler))
    assert len(orders) == 100


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 7), st.integers(0, 3), st.booleans())
def test_batches_of_all_ranks_make_up_those_of_one_process(
    length: int, ranks: int, batch_size: int, epoch: int, shuffle: bool
) -> None:
    shares = [
        epoch_of(loader_of(length, batch_size, rank_of(rank, ranks), shuffle=shuffle), epoch) for rank in range(ranks)
    ]
    alone = flat(epoch_of(loader_of(length, batch_size * ranks, shuffle=shuffle), epoch))
    assert len({len(share) for share in shares}) == 1  # otherwise a rank would wait forever
    together = [sorted(flat(batches)) for batches in zip(*shares, strict=True)]
    padded = [alone[place % length] for place in range(-(-length // ranks) * ranks)]
    step = batch_size * ranks
    assert together == [sorted(padded[start : start + step]) for start in range(0, len(padded), step)]
    assert set(flat(together)) == set(alone)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 7))
def test_evaluation_has_every_sample_once_and_padding(length: int, ranks: int, batch_size: int) -> None:
    loaders = [loader_of(length, batch_size, rank_of(rank, ranks), train=False) for rank in range(ranks)]
    shares = [epoch_of(loader, 3) for loader in loaders]
    alone = epoch_of(loader_of(length, batch_size, train=False), 3)
    assert flat(alone) == list(range(length))
    assert {len(share) for share in shares} == {len(loader) for loader in loaders} == {-(-len(alone) // ranks)}
    dealt = [batch for batches in zip(*shares, strict=True) for batch in batches]
    assert dealt == alone + [[PADDING]] * (len(dealt) - len(alone))  # exactly the batches of one process
    assert all(len(loader.sampler) == len(flat(share)) for loader, share in zip(loaders, shares, strict=True))  # type: ignore[arg-type]


def test_order_depends_on_the_seed_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []
    for run in (None, "0", "1"):
        if run is not None:
            monkeypatch.setenv("PL_GLOBAL_SEED", run)
        orders.append(epoch_of(loader_of(20), 0))
    assert orders[0] == orders[1] != orders[2]


def test_overfitting_repeats_the_same_batches_in_order() -> None:
    loader = loader_of(6, trainer=rank_of(0, 1, overfit_batches=1))
    assert [[key % 6 for key in flat(epoch_of(loader, epoch))] for epoch in (0, 1)] == [list(range(6))] * 2


def test_loading_does_not_change_the_global_generator() -> None:
    state = torch.get_rng_state()
    list(loader_of(10))
    list(loader_of(10, train=False))
    assert torch.equal(torch.get_rng_state(), state)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 7), st.integers(1, 40))
def test_results_of_all_ranks_are_in_input_order(length: int, ranks: int, batch_size: int, limit: int) -> None:
    """Also if the ranks used only some of their batches."""
    shares = [
        torch.tensor(list(EvalSampler(length, ranks, rank, batch_size)))[: limit * batch_size, None]
        for rank in range(ranks)
    ]
    loader = SimpleNamespace(dataset=range(length), batch_sampler=SimpleNamespace(batch_size=batch_size))
    handed_over: list[torch.Tensor] = []

    def hand_over(rows: torch.Tensor) -> torch.Tensor:
        handed_over.append(rows)
        return rows[None]

    strategy = SimpleNamespace(root_device="cpu", all_gather=hand_over)
    trainer = SimpleNamespace(world_size=ranks, strategy=strategy)
    for share in shares:
        gather_in_input_order(trainer, share, loader)
    strategy.all_gather = lambda rows: torch.stack(handed_over)
    seen = min(length, limit * batch_size * ranks)
    for share in shares:
        assert gather_in_input_order(trainer, share, loader).flatten().tolist() == list(range(seen))


@pytest.mark.parametrize(
    ("model", "length", "last"),
    [(LightningModule(), 7, [6]), (LitCNN(), 7, [PADDING]), (LightningModule(), 12, [8, 9, 10, 11])],
)
def test_a_model_that_does_not_know_the_padding_gets_the_last_sample_again(
    model: LightningModule, length: int, last: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss of the target -1 would be an error, or NaN."""
    print_once.cache_clear()
    trainer = rank_of(2, 3)
    trainer.lightning_module = model
    assert epoch_of(loader_of(length, 4, trainer, train=False), 0) == [last]
    note = "note: LightningModule is not built on LitBase: its evaluation on 3 devices counts the last sample 2 times\n"
    assert capsys.readouterr().err == note * (last == [6])
