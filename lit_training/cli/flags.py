"""Turn a command line of fit.py into the arguments that LightningCLI parses."""

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from lightning.pytorch import Trainer

import datamodules
import lit_models
from lit_training.cli.schedules import SCHEDULES
from lit_training.errors import UsageError
from lit_training.runs.folder import find_resume_target
from lit_training.runs.layout import CONFIG
from lit_training.text import closest_name, suggest

MODELS = {name: getattr(lit_models, name) for name in ("LitCNN", "LitMLP", "LitDynamic", "LitTransfer")}
DATA_MODULES = {name: getattr(datamodules, name) for name in datamodules.__all__ if name.endswith("DataModule")}
TRAINER_FLAGS = {name: p for name, p in inspect.signature(Trainer.__init__).parameters.items() if name != "self"}
TRAINER_BOOLEAN_FLAGS = {name for name, p in TRAINER_FLAGS.items() if bool in (p.annotation, *get_args(p.annotation))}
"""Flags of the Trainer that are true without a value."""
OWN_BOOLEAN_FLAGS = ("--quiet", "--dashboard")
SCHEDULE_PATHS = {kind.__name__: f"torch.optim.lr_scheduler.{kind.__name__}" for kind in SCHEDULES}
"""Full names, because Lightning has another ReduceLROnPlateau."""
MAX_CONFIG, MAX_DEPTH = 100_000, 20
"""Bytes and nesting depth of a configuration; usual ones have some thousand bytes."""


def to_lightning_arguments(arguments: list[str]) -> list[str]:
    """Turn a command line into the arguments that LightningCLI parses.

    ``--max_epochs 3`` becomes ``--trainer.max_epochs 3`` (in YAML too), ``--seed`` becomes ``--seed_everything``,
    ``--data DIR`` becomes an ImageFolderDataModule, and a bare ``--fast_dev_run`` is true. Configurations come first,
    so that flags override them. A missing model or data module is the usual partner of the other one.

    Raises:
        UsageError: the configuration cannot be read, the folder does not exist, or a name is not UTF-8.
    """
    configs: list[dict[str, Any]] = []
    flags: list[str] = []
    for flag, value in _pair_flags(arguments):
        if flag in ("--config", "-c"):
            configs.append(_read_config(value))
        elif flag == "--data" and value is not None and not _is_class(value):
            flags += [f"--data={_folder_data(value)['class_path']}", f"--data.root={value}"]
        else:
            flags.append(_spell_flag(flag, value))
    model, data = _named("model", configs, flags), _named("data", configs, flags)
    model = model or getattr(DATA_MODULES.get(data.rpartition(".")[2]), "default_model", "LitCNN")
    data = data or getattr(MODELS.get(model.rpartition(".")[2]), "default_data", "ShapesDataModule")
    # A class comes before its arguments, which may be in a configuration.
    partners = [f"--model={model}", f"--data={data}"]
    flags.sort(key=lambda flag: not re.match(r"--(model|data|optimizer|lr_scheduler)=", flag))
    front = [f"--config={yaml.safe_dump(config)}" for config in configs]
    return partners + front + flags


def _pair_flags(arguments: list[str]) -> list[tuple[str, str | None]]:
    """Split a command line into flags and their values, as ``--flag value`` or ``--flag=value``; None for no value."""
    pairs: list[tuple[str, str | None]] = []
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise UsageError(f"{argument} holds bytes that are not UTF-8: rename it")
        if pairs and pairs[-1][1] is None and not re.match(r"--[a-zA-Z]", argument):
            pairs[-1] = pairs[-1][0], argument
        elif argument.startswith("-") and "=" in argument:
            flag, _, value = argument.partition("=")
            pairs.append((flag, value))
        else:
            pairs.append((argument, None))
        if pairs[-1][1] == "--":  # argparse would drop the value
            raise UsageError(f"{pairs[-1][0]} needs a value other than --: leave {pairs[-1][0]} out, or see --help_all")
    return pairs


def _spell_flag(flag: str, value: str | None) -> str:
    name, dot, rest = flag.removeprefix("--").partition(".")
    if flag == "--seed":
        flag = "--seed_everything"
    elif flag.startswith("--") and name.rstrip("+") in TRAINER_FLAGS:
        flag = f"--trainer.{name}{dot}{rest}"
    if flag == "--lr_scheduler" and value in SCHEDULE_PATHS:
        value = SCHEDULE_PATHS[value]
    if value is None and (flag.removeprefix("--trainer.") in TRAINER_BOOLEAN_FLAGS or flag in OWN_BOOLEAN_FLAGS):
        value = "true"
    return flag if value is None else f"{flag}={value}"


def _is_class(value: str) -> bool:
    """Return True for the name of one of our data modules, or a dotted path of a class that is not a file."""
    return value in DATA_MODULES or ("." in value and not re.search(r"[/\\]|^[.~]", value) and not Path(value).exists())


def _folder_data(value: str) -> dict[str, Any]:
    """Return the configuration of the ImageFolderDataModule on a folder.

    Raises:
        UsageError: there is no such folder.
    """
    folder = Path(value).expanduser()
    if folder.is_dir():
        return {"class_path": "ImageFolderDataModule", "init_args": {"root": value}}
    if folder.exists():
        raise UsageError(f"--data {value} is a file: give the folder with a subfolder of images for each class")
    raise UsageError(f"--data {value}: there is no such folder or data module: {suggest(value, DATA_MODULES)}")


def _read_config(value: str | None) -> dict[str, Any]:
    """Read a YAML file in the form that LightningCLI parses: Trainer flags under ``trainer``, classes as class_path.

    Raises:
        UsageError: the file does not exist, or does not hold plain settings.
    """
    if value is None:
        raise UsageError("--config needs a YAML file: --config scripts/recipes/cnn_cifar10.yaml")
    config = _read_yaml(value)
    trainer = config.pop("trainer", None) or {}
    if not isinstance(trainer, dict):
        raise UsageError(f"--config {value}: trainer must hold settings such as 'max_epochs: 3', not {trainer}")
    trainer |= {name: config.pop(name) for name in list(config) if name in TRAINER_FLAGS}
    if trainer:
        config["trainer"] = trainer
    if "seed" in config:
        config["seed_everything"] = config.pop("seed")
    if isinstance(config.get("data"), str) and not _is_class(config["data"]):
        config["data"] = _folder_data(config["data"])
    for key in ("model", "data", "optimizer", "lr_scheduler"):
        if isinstance(config.get(key), str):
            config[key] = {"class_path": SCHEDULE_PATHS.get(config[key], config[key])}
        if not isinstance(config.get(key, {}), dict | None):
            raise UsageError(
                f"--config {value}: {key} must be a class name, or class_path and init_args, not {config[key]}"
            )
    return config


def _read_yaml(value: str) -> dict[str, Any]:
    path = Path(value).expanduser()
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "there is no such file"
        near = closest_name(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        hint = f"did you mean {path.parent / near}?" if near else "see the recipes in scripts/recipes"
        raise UsageError(f"--config {value}: {what}; {hint}")
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise UsageError(f"--config {value} is too large for a configuration: give a YAML file of settings")
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text):  # a few aliases can expand to gigabytes; deep nesting takes quadratic time
            if isinstance(event, yaml.AliasEvent):
                raise UsageError(f"--config {value} uses YAML aliases (*name): write the values out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UsageError(f"--config {value} is nested too deeply: a line looks like 'max_epochs: 3'")
        config = yaml.safe_load(text)
    except UsageError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UsageError(
            f"--config {value} is not plain YAML{line}: {error.problem}; a line looks like 'lr: 1'"
        ) from error
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise UsageError(f"--config {value} cannot be read: {error}; give a YAML file of settings") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise UsageError(f"--config {value} holds no settings: a line looks like 'max_epochs: 3'")
    return config


def _named(key: str, configs: list[dict[str, Any]], flags: list[str]) -> str:
    """Return the class that the flags, or else the configurations, give to ``key``; "" if there is none."""
    named = [str((config.get(key) or {}).get("class_path") or "") for config in configs]
    named += [flag.partition("=")[2] for flag in flags if flag.startswith((f"--{key}=", f"--{key}.class_path="))]
    return next(filter(None, reversed(named)), "")


def add_run_config(arguments: list[str]) -> list[str]:
    """Insert the configuration of the run that ``--resume`` names, and replace ``latest`` by the run's path.

    Raises:
        CheckpointError: there is no such run.
    """
    typed = dict(_pair_flags(arguments))
    resume = typed.get("--resume")
    if resume in (None, "never", "auto"):
        return arguments
    root = typed.get("--default_root_dir") or typed.get("--trainer.default_root_dir") or "."
    path = find_resume_target(resume, root)
    config = (path if path.is_dir() else path.parent.parent) / CONFIG
    return [*(["--config", str(config)] if config.is_file() else []), *arguments, f"--resume={path}"]
