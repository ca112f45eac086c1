"""Every recipe parses, builds offline and starts with its command; small recipes are trained."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from lit_training.cli.parser import FitCLI
from tests.support.forks import Fork

RECIPES = sorted((Path(__file__).parents[2] / "scripts" / "recipes").glob("*.yaml"))
PLACE = "--data path/to/photos"


def command(recipe: Path, photo_folder: Path) -> list[str]:
    """Return the arguments of fit.py from the first lines of the recipe, with paths that exist here."""
    line = next(line for line in recipe.read_text().splitlines() if "python scripts/fit.py" in line)
    arguments = line.split("scripts/fit.py", 1)[1].replace(f"scripts/recipes/{recipe.name}", shlex.quote(str(recipe)))
    return shlex.split(arguments.replace(PLACE, f"--data {shlex.quote(str(photo_folder))}"))


def test_every_experiment_of_the_tutorials_has_a_recipe() -> None:
    names = {recipe.stem for recipe in RECIPES}
    assert names >= {
        "cifar10_laptop",
        "cifar10_speedrun",
        "cnn_cifar10",
        "cnn_random_picture",
        "dynamic",
        "linear_ddp",
        "mlp",
        "photos_best",
        "transfer_finetune",
        "transfer_frozen",
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_starts_with_its_command(recipe: Path) -> None:
    lines = recipe.read_text().splitlines()
    assert len(lines) <= 30
    head = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    assert f"python scripts/fit.py --config scripts/recipes/{recipe.name}" in head
    assert re.search(r"CPU|GPU|were not measured", head)
    assert re.search(r"\+- .*\(\d+ seeds\)|were not measured", head)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_command_of_a_recipe_builds_offline(recipe: Path, photo_folder: Path) -> None:
    cli = FitCLI([*command(recipe, photo_folder), "--accelerator", "cpu"])
    settings = yaml.safe_load(recipe.read_text())
    for key in ("model", "data"):
        named = settings.get(key)
        if named is not None:
            name = named if isinstance(named, str) else named.get("class_path")
            assert name is None or cli.config[key]["class_path"].rsplit(".", 1)[1] == name
            built = cli.model if key == "model" else cli.datamodule
            for argument, value in (named.get("init_args", {}) if isinstance(named, dict) else {}).items():
                kept = built.hparams[argument]
                assert (list(kept) if isinstance(kept, tuple) else kept) == value
    for name in ("max_epochs", "max_steps"):
        assert name not in settings or getattr(cli.trainer, name) == settings[name]


@pytest.mark.slow
def test_the_recipe_for_photos_trains_as_a_program(photo_folder: Path) -> None:
    """In this process the tests replace Watch.start, so a run has no sockets, which cannot be copied."""
    (recipe,) = (recipe for recipe in RECIPES if recipe.stem == "photos_best")
    line = shlex.join(command(recipe, photo_folder))
    process = Fork(f"fit.py {line} --model.weights none --data.image_size 64 --max_epochs 4 --accelerator cpu")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "epoch 4/4" in out


SMALL = [recipe for recipe in RECIPES if recipe.stem in ("cnn_random_picture", "dynamic", "linear_ddp", "mlp")]


@pytest.mark.parametrize("recipe", SMALL, ids=lambda path: path.stem)
def test_a_small_recipe_learns(recipe: Path) -> None:
    single = ["--strategy", "auto", "--devices", "1", "--accelerator", "cpu", "--quiet", "--max_epochs", "3"]
    steps = ["--max_steps", "60", "--logger", "false", "--enable_checkpointing", "false"]
    cli = FitCLI(["--config", str(recipe), *single, *steps, "--limit_val_batches", "1"])
    cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    before = float(cli.trainer.callback_metrics["val_loss"])
    cli.trainer.fit(cli.model, cli.datamodule)
    cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    assert float(cli.trainer.callback_metrics["val_loss"]) < 0.8 * before


def test_the_frozen_recipe_trains_a_head(photo_folder: Path) -> None:
    recipe = next(recipe for recipe in RECIPES if recipe.stem == "transfer_frozen")
    flags = "--model.weights none --data.image_size 32 --max_epochs 1 --limit_train_batches 2 --logger false --quiet"
    cli = FitCLI([*command(recipe, photo_folder), *flags.split(), "--enable_checkpointing", "false"])
    before = {name: value.clone() for name, value in cli.model.state_dict().items()}
    cli.trainer.fit(cli.model, cli.datamodule)
    moved = {name for name, value in cli.model.state_dict().items() if not value.equal(before[name])}
    assert {name for name in moved if name.startswith("net.")} == {"net.fc.weight", "net.fc.bias"}
