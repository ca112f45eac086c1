"""FitCLI builds a model, its data and a Trainer from a command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from lit_models import LitTransfer, ModelError
from lit_training.cli.flags import TRAINER_FLAGS
from lit_training.cli.parser import FitCLI
from lit_training.errors import one_line_errors
from tests.support.fits import parse
from tests.support.own_classes import write_own_classes


def test_values_from_the_data_are_arguments_of_the_model() -> None:
    cli = parse("--data.channels 1")
    assert (cli.model.hparams["in_channels"], cli.model.hparams["num_classes"]) == (1, 10)
    cli = parse("--model LitMLP --data.in_features 5 --data.out_features 2 --model.hidden []")
    assert dict(cli.model.hparams) == {"in_features": 5, "hidden": (), "out_features": 2, "lr": 1e-4}
    assert parse("--model.num_classes 10").model.hparams["num_classes"] == 10


def test_the_network_has_the_classes_of_the_folder(photo_folder: Path) -> None:
    cli = parse(f"--data {photo_folder} --model.weights none")
    assert isinstance(cli.model, LitTransfer)
    assert cli.datamodule.hparams["root"] == str(photo_folder)
    assert cli.model.hparams["num_classes"] == 2


@pytest.mark.parametrize(
    ("flags", "size"), [("--model.weights none", 32), ("--model LitCNN", 4), ("--model LitCNN --data.batch_size 7", 7)]
)
def test_the_default_batch_size_of_photos_is_that_of_the_model(photo_folder: Path, flags: str, size: int) -> None:
    cli = parse(f"--data {photo_folder} {flags}")
    assert (cli.datamodule.hparams["batch_size"], cli.config["data"]["init_args"]["batch_size"]) == (size, size)


def test_the_run_contains_model_data_and_trainer() -> None:
    cli = parse("--resume auto --quiet --timeout 3")
    run = cli.run
    assert (run.model, run.data, run.trainer) == (cli.model, cli.datamodule, cli.trainer)
    assert (run.resume, run.quiet, run.watch.timeout) == ("auto", True, 3.0)
    assert run.watch.trainer is cli.trainer
    assert cli.trainer.start is run.start  # type: ignore[attr-defined]


def test_constructor_errors_keep_their_type() -> None:
    with pytest.raises(ModelError, match="widths must be at least 1"):
        parse("--model LitMLP --model.hidden [0]")


def test_a_chosen_optimizer_keeps_groups_and_schedule() -> None:
    cli = parse("--model LitTransfer --model.weights none --data ShapesDataModule --optimizer Adam --optimizer.lr 1e-4")
    configured = cli.model.configure_optimizers()
    (group,) = configured["optimizer"].param_groups
    assert isinstance(configured["optimizer"], Adam)
    assert group["lr"] == 1e-4
    assert [id(p) for p in group["params"]] == [id(p) for p in cli.model.head.parameters()]
    assert isinstance(configured["lr_scheduler"], StepLR)


def test_the_model_has_a_default_optimizer() -> None:
    optimizer = parse("--model.lr 0.01").model.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, SGD)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.01, 0.9)


@pytest.mark.parametrize(
    "line",
    [
        "--max_epochs 2 --optimizer Adam --optimizer.lr 0.01 --lr_scheduler ReduceLROnPlateau --data.channels 1",
        "--model LitMLP --model.hidden [3,4] --data.steps 5 --gradient_clip_val 0.5 --seed 5",
        "--data PHOTOS --model.weights none --devices 2 --strategy ddp --accelerator cpu",
        "--callbacks EarlyStopping --callbacks.monitor val_loss",
    ],
)
def test_a_saved_configuration_parses_to_itself(line: str, photo_folder: Path) -> None:
    first = parse(line.replace("PHOTOS", str(photo_folder)))
    Path("config.yaml").write_text(first.parser.dump(first.config, skip_unset=False))
    again = parse("--config config.yaml")
    assert {**again.config.as_dict(), "config": None} == first.config.as_dict()


def test_help_all_shows_every_trainer_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("--help_all")
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(f"--{name}" in shown for name in TRAINER_FLAGS)
    assert "--model.help LitCNN" in shown


@pytest.mark.parametrize(("line", "argument"), [("--model.help LitCNN", "lr"), ("--optimizer.help Adam", "betas")])
def test_class_help(line: str, argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(line)
    assert stopped.value.code == 0
    assert argument in capsys.readouterr().out


def test_custom_classes_are_built(capsys: pytest.CaptureFixture[str]) -> None:
    write_own_classes()
    cli = parse("--model own_classes.Model --data own_classes.Data --model.width 3")
    assert type(cli.model).__name__ == "Model"
    assert cli.trainer.max_epochs == 1
    with pytest.raises(SystemExit), one_line_errors("fit.py"):
        parse("--model own_classes.Model --data own_classes.Data --optimizer Adam")
    assert "Model does not, leave" in capsys.readouterr().err


def test_same_seed_same_network() -> None:
    def first_weight(line: str) -> Any:
        return next(parse(line).model.parameters())

    assert torch.equal(first_weight("--seed 3"), first_weight("--seed 3"))
    assert not torch.equal(first_weight("--seed 3"), first_weight("--seed 4"))


def test_a_parser_can_be_built_again() -> None:
    """The other tests share one parser; a program builds its own."""
    first, second = FitCLI(["--max_epochs", "3"]), FitCLI(["--max_epochs", "3"])
    assert first.parser is not second.parser
    assert first.config["trainer"] == second.config["trainer"]
