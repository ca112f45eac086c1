"""The short help is plain text; the tests compare it with the parser."""

import re
import shlex
from pathlib import Path

import pytest

from lit_training.cli.flags import DATA_MODULES, MODELS, TRAINER_FLAGS, to_lightning_arguments
from lit_training.cli.help import FIT_HELP
from lit_training.cli.optimizers import SCHEDULES
from lit_training.cli.parser import FitCLI
from tests.support.fits import parse

OURS = {
    "folds",
    "repeats",
    "report",
    "compile",
    "config",
    "data",
    "dashboard",
    "early_stopping",
    "help",
    "help_all",
    "lr_scheduler",
    "model",
    "monitor",
    "optimizer",
    "photos",
    "print_config",
    "quiet",
    "resume",
    "seed_everything",
    "seeds",
    "threads",
    "timeout",
    "trainer",
}
"""All flags that fit.py adds to the Trainer's flags. A new flag must be in README, help and CHANGELOG."""

VALUES = {"HOW": "never", "NAME": "", "N": "2", "X": "0.1", "DIR": ".", "FILE": "some.yaml", "MODEL": "LitCNN"}
VALUES |= {"DATA": "ShapesDataModule"}


@pytest.fixture(scope="module")
def cli() -> FitCLI:
    return parse("--logger false")


def test_the_help_fits_on_one_screen() -> None:
    lines = FIT_HELP.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80


def test_the_help_lists_all_classes() -> None:
    for name in [*MODELS, *DATA_MODULES, *(schedule.__name__ for schedule in SCHEDULES)]:
        assert re.search(rf"\b{name}\b", FIT_HELP), name


@pytest.mark.parametrize(("flag", "value"), re.findall(r"(?<![\w-])--([a-z_.]+)(?: ([A-Z]+|false|\d+)\b)?", FIT_HELP))
def test_every_flag_in_the_help_parses(flag: str, value: str, cli: FitCLI, tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text("max_epochs: 1")
    names = {"optimizer": "Adam", "lr_scheduler": "CosineAnnealingLR", "accelerator": "cpu", "monitor": "val_f1:max"}
    value = VALUES.get(value, value) or names.get(flag, "")
    typed = shlex.split(f"--{flag} {value}") + ["--optimizer", "Adam"] * flag.startswith("optimizer.")
    if flag in ("help_all", "model.help"):
        with pytest.raises(SystemExit, match="0"):
            cli.parser.parse_args(to_lightning_arguments(typed))
    else:
        cli.parser.parse_args(to_lightning_arguments(typed))


def test_the_help_and_the_parser_have_the_same_defaults(cli: FitCLI) -> None:
    defaults = cli.parser.get_defaults()
    assert "default 0" in FIT_HELP
    assert defaults["seed_everything"] == 0
    assert "never (default)" in FIT_HELP
    assert defaults["resume"] == "never"
    assert "auto (default)" in FIT_HELP
    assert defaults["trainer"]["accelerator"] == "auto"


def test_fit_adds_only_these_flags(cli: FitCLI) -> None:
    flags = {option[2:] for action in cli.parser._actions for option in action.option_strings if option[:2] == "--"}
    of_trainer = {flag for flag in flags if flag.removeprefix("trainer.").split(".")[0].rstrip("+") in TRAINER_FLAGS}
    flags -= of_trainer | {"print_shtab"}  # jsonargparse adds it if shtab is installed
    assert {flag for flag in flags if not flag.endswith(".help")} == OURS
