"""flags.py turns a command line of fit.py into arguments for LightningCLI."""

import os
from pathlib import Path

import pytest

from lit_models import LitCNN, LitMLP
from lit_training.cli.flags import add_run_config, to_lightning_arguments
from lit_training.errors import CheckpointError, one_line_errors
from tests.support.fits import parse

DEFAULT_DATA = {"LitCNN": "ShapesDataModule", "LitMLP": "RandomDataModule", "LitDynamic": "RandomDataModule"}


@pytest.mark.parametrize("name", ["max_epochs", "trainer.max_epochs"])
def test_trainer_flags_have_two_spellings(name: str) -> None:
    assert parse(f"--{name} 3").trainer.max_epochs == 3
    assert parse(f"--{name}=3").trainer.max_epochs == 3


@pytest.mark.parametrize("text", ["max_epochs: 3", "trainer: {max_epochs: 3}"])
def test_yaml_accepts_both_spellings_and_flags_override_it(text: str) -> None:
    Path("some.yaml").write_text(f"{text}\nseed: 7\nmodel: LitCNN\n")
    cli = parse("--config some.yaml")
    assert (cli.trainer.max_epochs, cli.config["seed_everything"]) == (3, 7)
    assert parse("--max_epochs 5 --config some.yaml").trainer.max_epochs == 5
    Path("other.yaml").write_text("max_epochs: 4")
    assert parse("--config some.yaml --config other.yaml").trainer.max_epochs == 4


@pytest.mark.parametrize("flag", ["fast_dev_run", "barebones", "deterministic", "detect_anomaly"])
def test_a_boolean_flag_without_a_value_is_true(flag: str) -> None:
    assert parse(f"--{flag} --model LitMLP").config["trainer"][flag] is True
    assert isinstance(parse(f"--model LitMLP --{flag} false").model, LitMLP)


@pytest.mark.parametrize("flag", ["quiet", "report", "dashboard", "compile"])
def test_an_own_boolean_flag_without_a_value_is_true(flag: str) -> None:
    assert f"--{flag}=true" in to_lightning_arguments([f"--{flag}", "--model", "LitMLP"])


def test_a_model_has_default_data_and_data_has_a_default_model() -> None:
    default_data = {name: type(parse(f"--model {name}").datamodule).__name__ for name in DEFAULT_DATA}
    assert default_data == DEFAULT_DATA
    assert isinstance(parse("--data RandomDataModule").model, LitMLP)
    assert isinstance(parse("--data ShapesDataModule").model, LitCNN)


def test_a_configuration_may_name_a_folder_as_data(photo_folder: Path) -> None:
    Path("photos.yaml").write_text(f"data: {photo_folder}\nmodel: LitCNN\n")
    cli = parse("--config photos.yaml --data.image_size 32")
    assert isinstance(cli.model, LitCNN)
    assert cli.model.hparams["in_channels"] == 3


def test_arguments_of_a_class_may_come_before_the_class() -> None:
    assert parse("--model.hidden [3,4] --model LitMLP").model.hparams["hidden"] == (3, 4)


def test_a_name_that_is_not_utf8_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    folder = os.fsdecode(b"caf\xe9")
    Path(folder).mkdir()
    with pytest.raises(SystemExit, match="2"), one_line_errors("fit.py"):
        parse(f"--data {folder}")
    expected = "caf\\udce9 has characters that are not UTF-8: rename the file or folder"
    assert capfd.readouterr().err == f"fit.py: error: {expected}\n"


@pytest.mark.parametrize("typed", [[], ["--resume", "never"], ["--resume=auto"]])
def test_the_arguments_stay_the_same_if_resume_names_no_run(typed: list[str]) -> None:
    assert add_run_config(typed) == typed


@pytest.mark.parametrize("root", [["--default_root_dir", "runs"], ["--trainer.default_root_dir=runs"]])
def test_latest_adds_the_configuration_and_the_path_of_the_run(root: list[str]) -> None:
    run = Path("runs/lightning_logs/version_3")
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    typed = ["--resume", "latest", *root]
    assert add_run_config(typed) == [*typed, f"--resume={run}"]
    (run / "config.yaml").touch()
    assert add_run_config(typed) == ["--config", str(run / "config.yaml"), *typed, f"--resume={run}"]


def test_a_missing_run_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="--resume nowhere: there is no such run"):
        add_run_config(["--resume", "nowhere"])
