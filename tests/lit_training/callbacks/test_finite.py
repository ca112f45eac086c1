"""A run whose loss or weights are NaN or infinite stops, and its last good checkpoint is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_training.cli.parser import FitCLI
from lit_training.errors import TrainingError
from tests.support.fits import QUIET, SMALL_NET, parse
from tests.support.fits import SHAPES as SIX_BATCHES

SHAPES = f"{SIX_BATCHES} --max_epochs 3 {QUIET} --log_every_n_steps 4"


def spoil(cli: FitCLI, batch_number: int, value: float) -> None:
    """Multiply the loss of one batch by ``value``. The batches are counted over all epochs."""
    step = cli.model.training_step

    def training_step(batch: Any, batch_idx: int) -> torch.Tensor:
        loss = step(batch, batch_idx)
        return loss * value if cli.trainer.fit_loop.total_batch_idx == batch_number else loss

    cli.model.training_step = training_step


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_of_nan_or_infinity_stops_the_run_and_names_step_batch_and_rate(value: float) -> None:
    cli = parse(f"{SHAPES} --model.lr 0.02")
    spoil(cli, 8, value)
    batches: dict[int, list[float]] = {}
    cli.model.on_train_batch_start = lambda batch, batch_idx: batches.update(
        {cli.trainer.fit_loop.total_batch_idx: batch[0].sum((1, 2, 3)).tolist()}
    )
    with pytest.raises(TrainingError) as error:
        cli.trainer.fit(cli.model, cli.datamodule)
    said = str(error.value)
    assert f"the loss became {value} at step 9 (epoch 2, batch 2: samples " in said
    assert (
        "learning rate 0.02; the last good checkpoint is kept. Try --model.lr 0.002, or --gradient_clip_val 1" in said
    )
    indices = [int(part) for part in said.split("samples ")[1].split(")")[0].split(", ")]
    images = cli.datamodule.sets["train"].__getitems__(indices)[0]  # type: ignore[attr-defined]
    assert images.sum((1, 2, 3)).tolist() == batches[8]
    assert max(batches) < 8 + 4  # within one logging interval


def test_all_checkpoints_of_a_stopped_run_have_finite_weights() -> None:
    cli = parse(f"{SHAPES} --model.lr 2.5 --gradient_clip_val 1e-9")
    spoil(cli, 17, torch.nan)
    with pytest.raises(TrainingError, match=r"step 18 .* Try --model.lr 0\.1$"):  # at most 0.1, and it clips already
        cli.trainer.fit(cli.model, cli.datamodule)
    for path in Path("lightning_logs/version_0/checkpoints").iterdir():
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(weight.isfinite().all() for weight in weights.values())


def test_weights_that_overflow_with_a_finite_loss_stop_the_run() -> None:
    cli = parse(SHAPES)

    def overflow(*_: Any) -> None:
        if cli.trainer.fit_loop.total_batch_idx == 5:
            cli.model.net.fc3.bias.data[0] = torch.inf

    cli.model.on_train_batch_end = overflow
    with pytest.raises(TrainingError, match="weights became NaN or infinite at step 6 or up to 2 steps before"):
        cli.trainer.fit(cli.model, cli.datamodule)


def test_the_files_of_a_batch_with_nan_loss_are_named(photo_folder: Path) -> None:
    line = f"--data {photo_folder} {SMALL_NET} --model.freeze false --data.image_size 72 --data.num_workers 0"
    cli = parse(f"{QUIET} {line} --max_epochs 1")
    spoil(cli, 1, torch.nan)
    with pytest.raises(TrainingError) as error:
        cli.trainer.fit(cli.model, cli.datamodule)
    names = str(error.value).split("files ")[1].split(")")[0].split(", ")
    assert len(names) == 4
    assert all((photo_folder / name).is_file() for name in names)


def test_the_losses_of_several_steps_are_checked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """``item()`` waits for the GPU. The guard calls it every 4 steps, after each epoch and before each checkpoint."""
    cli = parse(f"{SHAPES} --max_epochs 1 --logger false --enable_checkpointing false")
    checks = 0
    item = torch.Tensor.item

    def counting(tensor: torch.Tensor) -> Any:
        nonlocal checks
        checks += tensor.dtype == torch.bool
        return item(tensor)

    monkeypatch.setattr(torch.Tensor, "item", counting)
    cli.trainer.fit(cli.model, cli.datamodule)
    assert checks == 2
