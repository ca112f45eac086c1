"""What trains in a bare Trainer trains under fit.py. A feature that cannot serve it switches itself off and says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_models import LitCNN
from lit_training.callbacks.features import Features
from tests.support.commands import run, run_well
from tests.support.fits import SHAPES, SMALL_NET, fit, parse

KINDS = "tests.support.own_kinds"
RUN = Path("lightning_logs/version_0")


def fit_kinds(model: str = "Plain", data: str = "Data") -> str:
    return f"fit.py --model {KINDS}.{model} --data {KINDS}.{data} --max_epochs 1"


def best_epoch(folder: Path = RUN) -> int:
    return torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["epoch"] + 1


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ("Gan", "Data"),
        ("NoOptimizer", "AfterSetup"),
        ("LossOfShapeOne", "Sizes"),
        ("OtherMeanings", "Stream"),
        ("Lazy", "AfterSetup"),
    ],
)
def test_own_classes_of_any_kind_train(model: str, data: str) -> None:
    assert "epoch       1 of 1" in run_well(fit_kinds(model, data))


def test_lazy_layers_in_several_processes_are_refused() -> None:
    ended = run(f"{fit_kinds('Lazy', 'AfterSetup')} --accelerator cpu --devices 1 --strategy ddp")
    assert ended.code == 2
    assert "lazy layers (such as nn.LazyLinear) train in one process only: use --devices 1 without" in ended.err
    assert not Path("lightning_logs").exists()


def test_a_model_may_have_its_own_loaders() -> None:
    run_well(f"fit.py --model {KINDS}.OwnLoader --max_epochs 1")
    assert yaml.safe_load((RUN / "config.yaml").read_text())["data"] is None


# --- values from the data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["Plain", "NeedsClasses"])
def test_the_number_of_classes_comes_from_the_data(model: str) -> None:
    cli = parse(f"--model {KINDS}.{model} --data {KINDS}.Data --fast_dev_run true")
    assert (cli.model.hparams["num_classes"], cli.config["model"]["init_args"]["num_classes"]) == (3, 3)


def test_values_from_the_data_follow_kwargs() -> None:
    model = parse(f"--model {KINDS}.Wide --model.width 9 --data.channels 1 --fast_dev_run true").model
    assert (model.width, model.hparams["in_channels"], model.hparams["num_classes"]) == (9, 1, 10)


@pytest.mark.parametrize("data", ["AfterSetup", "NoneBeforeSetup"])
def test_values_that_the_data_does_not_have_yet(data: str) -> None:
    assert (
        f"{data} has no num_classes before its setup(): the model has --model.num_classes 5"
        in run(fit_kinds("Plain", data)).err
    )
    refused = run(fit_kinds("NeedsClasses", data))
    assert (refused.code, "--model.num_classes VALUE" in refused.err) == (2, True)
    assert run(f"{fit_kinds('NeedsClasses', data)} --model.num_classes 3").err == ""


# --- --monitor --------------------------------------------------------------------------------------------------------


def test_the_monitored_metric_decides(capsys: pytest.CaptureFixture[str]) -> None:
    out = run_well(f"{fit_kinds()} --max_epochs 3 --monitor valid/f1:max")
    assert "epoch       2 of 3\nvalid/f1    0.9\n" in out
    assert best_epoch() == 2
    assert yaml.safe_load((RUN / "config.yaml").read_text())["monitor"] == "valid/f1:max"
    assert "epoch       1 of 2\n" in run_well(f"{fit_kinds()} --max_epochs 4 --monitor valid/f1:min --early_stopping 1")
    table = run_well("compare.py lightning_logs/version_0 lightning_logs/version_1")
    assert [line.split()[1:] for line in table.splitlines() if line.startswith("valid/f1 ")] == [["0.9", "0.2"]]


def test_a_monitored_metric_that_is_not_logged_ends_the_run_and_loses_nothing() -> None:
    ended = run(f"{fit_kinds()} --max_epochs 3 --monitor f1:max")
    assert ended.code == 2
    assert "the model logs no f1, only valid/f1: choose one with --monitor NAME:max, or :min; go on with" in ended.err
    assert best_epoch() == 1
    assert "epoch       2 of 3\n" in run_well(f"fit.py --resume {RUN} --monitor valid/f1:max")


@pytest.mark.parametrize(
    "flags",
    [
        "--model LitCNN --monitor val_f1:max",
        "--model LitCNN --lr_scheduler ReduceLROnPlateau --monitor val_f1:max",
        "--model LitCNN --callbacks EarlyStopping --callbacks.monitor val_f1",
    ],
)
def test_a_metric_that_is_known_to_be_missing_is_refused_before_training(flags: str) -> None:
    ended = run(f"fit.py {flags} {SHAPES}")
    assert (ended.code, ended.out) == (2, "")
    assert "error: the model logs no val_f1, only train_loss, train_loss_step, val_loss, val_acc: choose" in ended.err
    assert not RUN.exists()


def test_without_its_usual_metric_a_run_goes_on() -> None:
    ended = run(f"fit.py --model {KINDS}.OwnSteps {SHAPES} --max_epochs 2")
    assert (ended.code, ended.err.count("\n"), best_epoch()) == (0, 2, 2)
    assert "no confusion matrix: validation_step of OwnSteps returns no dict" in ended.err
    assert "best.ckpt is the last epoch, because the model logs no val_acc, only macro_f1, train_loss" in ended.err
    stopped = run(f"fit.py --model {KINDS}.OwnSteps {SHAPES} --max_epochs 2 --early_stopping 1")
    assert (stopped.code, best_epoch(RUN.with_name("version_1"))) == (2, 1)
    assert "error: the model logs no val_acc, only macro_f1, train_loss: choose one with --monitor" in stopped.err


def test_a_schedule_follows_the_monitored_metric() -> None:
    model = fit(
        f"--model {KINDS}.OwnSteps {SHAPES} --max_epochs 4 --monitor macro_f1:max --dashboard false "
        "--lr_scheduler ReduceLROnPlateau --lr_scheduler.patience 0 --lr_scheduler.factor 0.5"
    ).model
    assert model.optimizers().param_groups[0]["lr"] == pytest.approx(0.001 / 8)  # it got worse three times


@pytest.mark.parametrize("monitor", ["f1", "f1:up", ":max"])
def test_a_monitor_needs_a_direction(monitor: str) -> None:
    ended = run(f"fit.py --monitor {monitor}")
    assert (ended.code, f"{monitor.partition(':')[0]}:max if larger is better" in ended.err) == (2, True)


# --- subclasses -------------------------------------------------------------------------------------------------------


def test_an_own_optimizer_may_ask_for_the_length_of_the_run() -> None:
    model = fit(f"--model {KINDS}.OwnSchedule {SHAPES} --max_epochs 2").model
    assert model.lr_schedulers().total_steps == 12


def test_evaluate_explains_what_it_needs_of_test_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run_well(f"fit.py {SHAPES} --max_epochs 1")
    monkeypatch.setattr(LitCNN, "test_step", lambda self, batch, batch_idx: {"loss": 1})
    ended = run("evaluate.py latest")
    assert (ended.code, "test_step of LitCNN returns no dict with output and target" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ("--data PHOTOS --model OwnForward", "OwnForward has its own forward"),
        ("--data PHOTOS --model OwnTrainingStep", "OwnTrainingStep has its own training_step"),
        ("--data PHOTOS --model OwnBatchHook", "OwnBatchHook has its own on_train_batch_start"),
        (
            "--data OwnTransfer --data.root PHOTOS --model LitTransfer",
            "OwnTransfer has its own on_after_batch_transfer",
        ),
        ("--data PHOTOS --callbacks LooksAtBatches", "LooksAtBatches has its own on_train_batch_start"),
        ("--data PHOTOS --model OwnOptimizer --model.average_flips true", ""),
    ],
)
def test_code_that_needs_pictures_turns_the_cached_features_off(
    classes: str, reason: str, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (
        classes.replace(" Own", f" {KINDS}.Own")
        .replace(" Looks", f" {KINDS}.Looks")
        .replace("PHOTOS", str(photo_folder))
    )
    data: Any = fit(f"{line} {SMALL_NET} --data.image_size 64 --max_epochs 1 --dashboard false").datamodule
    assert isinstance(data.sets["train"], Features) == (not reason)
    assert reason in capsys.readouterr().err


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_class_with_the_name_of_ours_needs_its_dotted_path() -> None:
    own = parse(f"--data {KINDS}.ShapesDataModule --fast_dev_run true").datamodule
    assert type(own).__module__ == KINDS
    assert type(parse("--data ShapesDataModule --fast_dev_run true").datamodule).__module__ == "datamodules.shapes"
    Path("mine.yaml").write_text("data: {class_path: ShapesDataModule}\n")
    assert type(parse("--config mine.yaml --fast_dev_run true").datamodule).__module__ == "datamodules.shapes"


@pytest.mark.parametrize("path", ["datamodules/cub.py", "lit_models/__init__.py", "lit_training.py"])
def test_code_that_our_packages_hide_is_refused(path: str) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).touch()
    name = Path(path).parts[0]
    ended = run(fit_kinds())
    assert (ended.code, f"cannot import {name} of this folder" in ended.err) == (2, True)
    assert f"rename it, for example to my_{name}" in ended.err
    run_well("fit.py --fast_dev_run true")  # it needs none of the user's code
