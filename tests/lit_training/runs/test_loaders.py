"""Runs with training loaders that are not from this project are resumed exactly, or the command says why not."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lit_models import LitDynamic
from lit_training.runs.loaders import StepSeed
from tests.support.fits import assert_same_weights, fit, fit_run, kill_and_resume, last
from tests.support.own_loaders import ROWS, Net

pytestmark = pytest.mark.usefixtures("at_every_step")

MODEL = "--model tests.support.own_loaders.Net"
DATA = "--data tests.support.own_loaders.OwnData --data.kind"


@pytest.mark.parametrize(
    "line",
    [
        f"{MODEL} {DATA} shuffled",
        f"{MODEL} {DATA} shuffled --reload_dataloaders_every_n_epochs 1",
        f"{MODEL} {DATA} 'own generators' --accumulate_grad_batches 2",
        f"{MODEL} {DATA} 'own sampler'",
        f"{MODEL} {DATA} weighted",
        f"{MODEL} {DATA} stream",
        f"{MODEL} {DATA} iterable",
        f"{MODEL} {DATA} dict",
        f"--model tests.support.own_loaders.ManualNet {DATA} shuffled",
        "--model tests.support.own_loaders.NoisyPictures --data ShapesDataModule --data.train_size 24",
        pytest.param(f"{MODEL} {DATA} 'own generators' --data.num_workers 2", marks=pytest.mark.slow),
        pytest.param(f"{MODEL} {DATA} stream --data.num_workers 1", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uninterrupted, resumed = kill_and_resume(f"{line} --max_epochs 3 --dashboard false", 2, 8, 16)
    assert last(resumed)["global_step"] > 0
    assert_same_weights(uninterrupted, resumed)
    assert "interruption" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["own generators", "own sampler"])
def test_a_finished_run_that_gets_more_epochs_goes_on_with_its_own_generators(kind: str) -> None:
    line = f"{MODEL} {DATA} '{kind}' --dashboard false"
    long = fit_run(f"{line} --max_epochs 3 --default_root_dir long")
    short = fit_run(f"{line} --max_epochs 1 --default_root_dir short")
    fit(f"--resume {short} --max_epochs 3")
    assert_same_weights(long, short)


def test_each_epoch_has_other_random_numbers() -> None:
    cli = fit(f"{MODEL} {DATA} shuffled --max_epochs 1 --logger false")
    loader: Any = cli.trainer.train_dataloader
    epochs = []
    for number in range(2):
        cli.trainer.fit_loop.epoch_progress.current.completed = number
        epochs.append(torch.cat(list(loader)))
    assert not torch.equal(epochs[0], epochs[1])


def test_an_iterator_is_named_at_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    fit(f"{MODEL} {DATA} iterator --max_epochs 1 --dashboard false")
    expected = "warning: the run may be different after an interruption: an iterator cannot start again\n"
    assert expected in capsys.readouterr().err


def test_other_batches_after_an_interruption_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{MODEL} {DATA} shuffled --max_epochs 1 --dashboard false --resume auto"
    fit(line, kill_at=3)
    ROWS.add_(1)
    try:
        fit(line)
    finally:
        ROWS.sub_(1)
    assert "warning: the training data gave another batch than before the interruption" in capsys.readouterr().err


@pytest.mark.slow
def test_persistent_workers_are_named_at_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    fit(f"{MODEL} {DATA} persistent --data.num_workers 1 --max_epochs 1 --dashboard false")
    assert "its loader has persistent_workers=True" in capsys.readouterr().err


def numbers_of_a_step(model: Any, rank: int, ranks: int, first: int) -> tuple[float, ...]:
    """Return what a rank draws in a step of a run that began with ``first`` processes."""
    strategy = SimpleNamespace(process_dataloader=None, root_device=torch.device("cpu"))
    loop, start = SimpleNamespace(setup_data=None, total_batch_idx=3), SimpleNamespace(processes=first)
    trainer: Any = SimpleNamespace(strategy=strategy, fit_loop=loop, start=start, world_size=ranks, global_rank=rank)
    seed = StepSeed(7)
    seed.setup(trainer, model, "fit")
    seed.on_train_batch_start(trainer, model, None, 0)
    return torch.rand(()).item(), np.random.rand(), random.random()


def test_each_rank_draws_other_numbers_in_a_step_unless_the_model_needs_the_same() -> None:
    of_two = [numbers_of_a_step(Net(), rank, 2, 2) for rank in (0, 1)]
    assert len({*of_two[0], *of_two[1]}) == 6
    of_four = [numbers_of_a_step(Net(), rank, 4, 2) for rank in range(4)]
    assert of_four == [of_two[0], of_two[0], of_two[1], of_two[1]]
    assert numbers_of_a_step(Net(), 0, 1, 2) == of_two[0]
    assert [numbers_of_a_step(LitDynamic(), rank, 2, 2) for rank in (0, 1)] == 2 * of_two[:1]
