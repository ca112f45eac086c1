"""Each device prints the shapes of the first batch, as in the tutorial "Data Parallelism"."""

from collections.abc import Callable

import pytest
from lightning.pytorch import Trainer

from datamodules import RandomDataModule
from lit_models import LitDynamic, LitMLP
from lit_training.callbacks.device_report import DeviceReport


@pytest.mark.parametrize("model", [LitMLP(5, (), 2), LitDynamic(5, 3, 2)], ids=["LitMLP", "LitDynamic"])
def test_only_the_first_step_is_reported(
    model: LitMLP | LitDynamic, bare: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    data = RandomDataModule(in_features=5, out_features=2, length=30, batch_size=30, steps=3)
    bare(max_epochs=2, callbacks=[DeviceReport()]).fit(model, data)
    assert capsys.readouterr().out.splitlines() == [
        "\tIn Model: input size torch.Size([30, 5]) output size torch.Size([30, 2]) (rank 0 of 1, cpu)",
        "Outside: input size torch.Size([30, 5]) output_size torch.Size([30, 2])",
    ]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_validation_batch_is_not_reported(bare: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]) -> None:
    data = RandomDataModule(in_features=5, out_features=2, length=12, batch_size=4, steps=2)
    bare(max_epochs=1, callbacks=[DeviceReport()], num_sanity_val_steps=1).fit(LitMLP(5, (), 2), data)
    assert "In Model: input size torch.Size([4, 5])" in capsys.readouterr().out
