"""What several ranks made of the batches dealt out to them, back in the order of the data."""

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.loading.order import EvalSampler, in_input_order


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 7), st.integers(1, 40))
def test_rows_of_all_ranks_come_in_input_order(length: int, ranks: int, batch_size: int, limit: int) -> None:
    """Also where the ranks have gone through some of their batches alone."""
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
        in_input_order(trainer, share, loader)
    strategy.all_gather = lambda rows: torch.stack(handed_over)
    seen = min(length, limit * batch_size * ranks)
    for share in shares:
        assert in_input_order(trainer, share, loader).flatten().tolist() == list(range(seen))
