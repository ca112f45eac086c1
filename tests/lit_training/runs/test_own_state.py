"""What the user's model, callbacks and data change in their own attributes is restored after a kill."""

from itertools import islice
from typing import Any

import pytest
import torch

from tests.support.fits import assert_same_weights, fit, fit_run, kill_and_resume, rows

pytestmark = pytest.mark.usefixtures("at_every_step")

MODULE = "tests.support.own_state"


@pytest.mark.parametrize(
    "line",
    [
        f"--model {MODULE}.Counters --data {MODULE}.Data",
        f"--model {MODULE}.Odd --data {MODULE}.Data",
        f"--model {MODULE}.Validated --data {MODULE}.Noisy",
        f"--model {MODULE}.Averages --data {MODULE}.Data",
        f"--model {MODULE}.Averages --data {MODULE}.Data --accumulate_grad_batches 2",
        f"--model {MODULE}.Net --data {MODULE}.Data --trainer.callbacks {MODULE}.Level",
        f"--model tests.support.own_slots.Slots --data {MODULE}.Data",
        f"--model {MODULE}.Net --data {MODULE}.Data --trainer.callbacks tests.support.own_slots.Settings",
        f"--model {MODULE}.Net --data {MODULE}.Data --data.kind split",
        f"--model {MODULE}.Net --data {MODULE}.Data --data.kind split --reload_dataloaders_every_n_epochs 2",
        f"--model {MODULE}.Net --data {MODULE}.Data --data.kind weighted",
        f"--model {MODULE}.Net --data {MODULE}.Data --data.kind hard",
        f"--model {MODULE}.Net --data {MODULE}.Data --data.kind stream",
    ],
)
def test_a_killed_run_ends_as_an_uninterrupted_one(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    uninterrupted, killed = kill_and_resume(f"{line} --max_epochs 3 --dashboard false --log_every_n_steps 1", 3, 9, 10)
    assert_same_weights(uninterrupted, killed)
    assert rows(uninterrupted) == rows(killed)
    assert "interruption" not in capsys.readouterr().err


def test_a_finished_run_that_gets_more_epochs_goes_on_with_its_counters() -> None:
    line = f"--model {MODULE}.Counters --data {MODULE}.Data --dashboard false"
    long = fit_run(f"{line} --max_epochs 3 --default_root_dir long")
    short = fit_run(f"{line} --max_epochs 1 --default_root_dir short")
    fit(f"--resume {short} --max_epochs 3")
    assert_same_weights(long, short)


def test_an_iterator_is_named_at_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    fit(f"--model {MODULE}.Endless --data {MODULE}.Data --max_epochs 1 --dashboard false")
    expected = "note: the run may be different after an interruption: the position of more.source cannot be saved\n"
    assert expected in capsys.readouterr().err


def test_a_loader_that_begins_an_epoch_again_gives_the_same_batches() -> None:
    cli = fit(f"--model {MODULE}.Net --data {MODULE}.Data --data.kind stream --max_epochs 1 --logger false")
    loader: Any = cli.trainer.train_dataloader
    cli.trainer.fit_loop.epoch_progress.current.completed = 1
    begins = [torch.cat([rows for rows, _ in islice(loader, 2)]) for _ in range(3)]
    assert begins[0].any()
    assert all(torch.equal(begins[0], begin) for begin in begins)
