"""``--lr_scheduler``: schedules use the learning rate and the length of the run."""

import copy
import math
import socket

import pytest

from lit_training.errors import UsageError
from tests.support.fits import QUIET, fit, parse

TINY = f"{QUIET} --data.train_size 20 --data.val_size 8 --logger false --enable_checkpointing false"


def rates(line: str) -> list[float]:
    """Train; return the learning rate of each step."""
    cli = parse(f"{TINY} --model.lr 0.1 {line}")
    seen: list[float] = []

    def note(*_: object) -> None:
        seen.append(cli.trainer.optimizers[0].param_groups[0]["lr"])

    cli.model.on_train_batch_start = note
    cli.trainer.fit(cli.model, cli.datamodule)
    return seen


@pytest.mark.parametrize("validation", ["", "--check_val_every_n_epoch 2", "--limit_val_batches 0"])
def test_step_lr_is_divided_after_each_step_size_epochs(validation: str) -> None:
    seen = rates(f"--max_epochs 3 --lr_scheduler StepLR --lr_scheduler.step_size 1 {validation}")
    assert seen == pytest.approx([0.1] * 5 + [0.01] * 5 + [0.001] * 5)


@pytest.mark.parametrize("limit", ["--max_epochs 4", "--max_steps 20", "--max_steps 18"])
def test_cosine_has_the_length_of_the_run(limit: str) -> None:
    seen = rates(f"{limit} --lr_scheduler CosineAnnealingLR")
    assert seen[::5] == pytest.approx([0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)])


def test_one_cycle_peaks_at_the_models_rate_and_ends_with_the_run() -> None:
    seen = rates("--max_epochs 4 --accumulate_grad_batches 2 --lr_scheduler OneCycleLR")
    assert max(seen) == pytest.approx(0.1, rel=0.02)
    assert seen[0] == pytest.approx(0.1 / 25)
    assert seen[-1] == pytest.approx(0.1 / 25e4)  # 3 optimizer steps an epoch, the 12th at the lowest rate


def test_one_cycle_needs_the_length_of_the_run() -> None:
    cli = parse(f"{TINY} --max_time 00:00:00:10 --lr_scheduler OneCycleLR")
    with pytest.raises(UsageError, match="needs the run's length: --max_epochs 5"):
        cli.trainer.fit(cli.model, cli.datamodule)


@pytest.mark.parametrize(
    ("line", "halvings"),
    [("", 3), ("--limit_val_batches 0", 3), ("--check_val_every_n_epoch 2", 1)],
)
def test_plateau_halves_the_rate_if_the_loss_does_not_improve(line: str, halvings: int) -> None:
    plateau = "--lr_scheduler ReduceLROnPlateau --lr_scheduler.patience 0 --lr_scheduler.factor 0.5"
    seen = rates(f"--max_epochs 5 {plateau} --lr_scheduler.threshold 0.9 {line}")  # no improvement is large enough
    assert seen[-1] == pytest.approx(0.1 * 0.5**halvings)


def test_optimizer_and_schedule_may_both_be_chosen() -> None:
    cli = fit(f"{TINY} --max_epochs 1 --optimizer AdamW --lr_scheduler OneCycleLR")
    assert type(cli.trainer.optimizers[0]).__name__ == "AdamW"


def test_a_model_with_a_schedule_can_be_copied_while_the_run_has_open_sockets() -> None:
    """EMAWeightAveraging copies the model."""
    cli = parse(f"{QUIET} --lr_scheduler OneCycleLR")
    with socket.socket() as cli.run.watch._signal_socket:
        copied = copy.deepcopy(cli.model)
    assert copied.net is not cli.model.net
    assert copied.chosen_schedule.keywords["run"] is cli.run
