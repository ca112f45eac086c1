"""The commands in the README work, and its links and folders exist."""

import re
import shlex
from pathlib import Path

import pytest

from lit_training.cli.parser import FitCLI
from tests.support import by_hand, printed
from tests.support.commands import ROOT, run_well

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"python scripts/(\w+\.py[^`\n#]*)", README)))
FIT = [command for command in COMMANDS if command.startswith("fit.py") and "..." not in command]
FLAGS = sorted(set(re.findall(r"(?<=`)--(?:model|data)\.[^`]+(?=`)", README)))


def test_commands_and_flags_are_found() -> None:
    assert len(FIT) >= 3
    assert len(FLAGS) >= 5


@pytest.mark.parametrize("command", [command for command in FIT if "--resume" not in command])
def test_fit_commands_are_accepted(command: str, photo_folder: Path) -> None:
    words = shlex.split(command.replace("path/to/photos", str(photo_folder)).replace("gpu", "cpu"))[1:]
    words = [str(ROOT / word) if word.startswith("scripts/") else word for word in words]
    FitCLI([*words, "--logger", "false"])


@pytest.mark.parametrize("flags", [flags for flags in FLAGS if " " in flags and "NAME" not in flags])
def test_flags_of_the_photo_table_are_accepted(flags: str, photo_folder: Path) -> None:
    FitCLI(["--data", str(photo_folder), *shlex.split(flags), "--logger", "false"])


def test_table_lists_all_scripts() -> None:
    told = set(re.findall(r"`scripts/(\w+\.py)", README))
    assert told == {path.name for path in (ROOT / "scripts").glob("*.py")}
    for name in told:
        assert "usage:" in run_well(f"{name} --help")


def test_links_folders_and_make_targets_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for folder in re.findall(r"^\| `(\w+/)` \|", README, re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert f"\n{target}:" in targets, target


@pytest.mark.slow
def test_train_predict_evaluate_check(photo_folder: Path) -> None:
    said = run_well("fit.py --data photos --model.weights none --data.image_size 64 --max_epochs 1 --accelerator cpu")
    assert "24 pictures in 2 classes" in said
    accuracy = printed.interval(said, "val_acc")
    assert accuracy == pytest.approx((accuracy[0], *by_hand.wilson(round(8 * accuracy[0]), 8)), abs=6e-4)
    assert ", n = 8)" in said
    predicted = run_well("predict.py latest photos/val/ants/0.jpg photos/val --output predictions.csv")
    assert predicted.count(".jpg") >= 9
    assert len(Path("predictions.csv").read_text().splitlines()) == 1 + 9
    assert printed.interval(run_well("evaluate.py latest"), "val_acc") == accuracy
    assert "24 pictures" in run_well("check.py photos")
