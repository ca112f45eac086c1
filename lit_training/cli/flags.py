"""Turn what people type into what LightningCLI parses."""

import inspect
import itertools
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from lightning.pytorch import Trainer

import datamodules
import lit_models
from lit_training.cli.schedules import SCHEDULES
from lit_training.errors import UsageError
from lit_training.runs.folder import find_target
from lit_training.runs.layout import CONFIG
from lit_training.text import nearest, suggest

MODELS = {name: getattr(lit_models, name) for name in ("LitCNN", "LitMLP", "LitDynamic", "LitTransfer")}
DATA = {name: getattr(datamodules, name) for name in datamodules.__all__ if name.endswith("DataModule")}
TRAINER_FLAGS = {name: p for name, p in inspect.signature(Trainer.__init__).parameters.items() if name != "self"}
SWITCHES = {name for name, p in TRAINER_FLAGS.items() if bool in (p.annotation, *get_args(p.annotation))}
"""Flags of the Trainer that may stand without a value."""
OWN_SWITCHES = ("--quiet", "--dashboard")
SCHEDULE_PATHS = {kind.__name__: f"torch.optim.lr_scheduler.{kind.__name__}" for kind in SCHEDULES}
"""Whole names, for Lightning has a ReduceLROnPlateau too."""
MAX_CONFIG, MAX_DEPTH = 100_000, 20
"""Bytes, of which a configuration has some thousands, and collections within each other."""


def expand_flags(arguments: list[str]) -> list[str]:
    """Rewrite what people type into what LightningCLI parses.

    ``--max_epochs 3`` becomes ``--trainer.max_epochs 3`` (in YAML too), ``--seed`` becomes ``--seed_everything``,
    ``--data DIR`` the ImageFolderDataModule on it, a bare ``--fast_dev_run`` is true. Configurations come first, so
    that flags win over them, and a model or data module that is not named is the other's usual partner.

    Raises:
        UsageError: a configuration that cannot be read, a folder that is not there, a name that is not UTF-8.
    """
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise UsageError(f"{argument} holds bytes that are not UTF-8: rename it")
    configs: list[dict[str, Any]] = []
    flags: list[str] = []
    position = 0
    while position < len(arguments):
        argument, value = arguments[position], None
        position += 1
        if argument.startswith("-") and "=" in argument:
            argument, value = argument.split("=", 1)
        elif position < len(arguments) and not re.match(r"--[a-zA-Z]", arguments[position]):
            value = arguments[position]
            position += 1
        if value == "--":  # argparse would take the value away
            raise UsageError(f"{argument} needs a value, and -- is none: leave {argument} out, or see --help_all")
        if argument in ("--config", "-c"):
            configs.append(_read_config(value))
        elif argument == "--data" and value is not None and not _is_class(value):
            flags += [f"--data={_folder_data(value)['class_path']}", f"--data.root={value}"]
        else:
            flags.append(_spell_flag(argument, value))
    model, data = _named("model", configs, flags), _named("data", configs, flags)
    partners = []
    if not model:
        model = str(getattr(DATA.get(str(data).rsplit(".", 1)[-1]), "default_model", "LitCNN"))
        partners.append(f"--model={model}")
    if not data:
        data = str(getattr(MODELS.get(model.rsplit(".", 1)[-1]), "default_data", "ShapesDataModule"))
        partners.append(f"--data={data}")
    flags.sort(key=lambda flag: not re.match(r"--(model|data|optimizer|lr_scheduler)=", flag))  # before its arguments
    front = [f"--config={yaml.safe_dump(config)}" for config in configs]
    # A partner stands before everything: arguments of the class may come from a configuration or from a flag.
    return partners + front + flags


def _spell_flag(argument: str, value: str | None) -> str:
    name, dot, rest = argument.removeprefix("--").partition(".")
    if argument == "--seed":
        argument = "--seed_everything"
    elif argument.startswith("--") and name.rstrip("+") in TRAINER_FLAGS:
        argument = f"--trainer.{name}{dot}{rest}"
    if argument == "--lr_scheduler" and value in SCHEDULE_PATHS:
        value = SCHEDULE_PATHS[value]
    if value is None and (argument.removeprefix("--trainer.") in SWITCHES or argument in OWN_SWITCHES):
        value = "true"
    return argument if value is None else f"{argument}={value}"


def _is_class(value: str) -> bool:
    """Whether a value of ``--data`` is meant as a class: one of ours, or a dotted path that is no file's."""
    return value in DATA or ("." in value and not re.search(r"[/\\]|^[.~]", value) and not Path(value).exists())


def _folder_data(value: str) -> dict[str, Any]:
    """The ImageFolderDataModule of a folder.

    Raises:
        UsageError: there is no such folder.
    """
    folder = Path(value).expanduser()
    if folder.is_dir():
        return {"class_path": "ImageFolderDataModule", "init_args": {"root": value}}
    if folder.exists():
        raise UsageError(f"--data {value} is a file: give the folder that holds a subfolder of pictures for each class")
    if "/" in value:
        raise UsageError(f"--data {value}: there is no such folder; give one that holds a subfolder for each class")
    raise UsageError(f"--data {value} is neither a folder nor a data module: {suggest(value, DATA)}")


def _read_config(value: str | None) -> dict[str, Any]:
    """A YAML file as LightningCLI wants it: flat Trainer flags under ``trainer``, classes as class_path.

    Raises:
        UsageError: a file that is not there, or that holds anything but plain settings.
    """
    if value is None:
        raise UsageError("--config needs a YAML file: --config scripts/recipes/cnn_cifar10.yaml")
    config = _read_yaml(value)
    trainer = config.pop("trainer", None) or {}
    if not isinstance(trainer, dict):
        raise UsageError(f"--config {value}: under trainer stand its settings, such as 'max_epochs: 3', not {trainer}")
    flat = {name: config.pop(name) for name in list(config) if name in TRAINER_FLAGS}
    if trainer | flat:
        config["trainer"] = trainer | flat
    if "seed" in config:
        config["seed_everything"] = config.pop("seed")
    if isinstance(config.get("data"), str) and not _is_class(config["data"]):
        config["data"] = _folder_data(config["data"])
    for key in ("model", "data", "optimizer", "lr_scheduler"):
        if isinstance(config.get(key), str):
            config[key] = {"class_path": SCHEDULE_PATHS.get(config[key], config[key])}
        if not isinstance(config.get(key, {}), dict | None):
            raise UsageError(f"--config {value}: {key} is a class name, or class_path and init_args, not {config[key]}")
    return config


def _read_yaml(value: str) -> dict[str, Any]:
    path = Path(value).expanduser()
    if not path.is_file():
        what = "that is a folder" if path.is_dir() else "there is no such file"
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        hint = f"did you mean {path.parent / near}?" if near else "recipes lie in scripts/recipes"
        raise UsageError(f"--config {value}: {what}; {hint}")
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise UsageError(f"--config {value} is larger than any configuration: give a YAML file of settings")
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text):  # a few aliases can stand for gigabytes, and brackets cost their square in time
            if isinstance(event, yaml.AliasEvent):
                raise UsageError(f"--config {value} uses YAML aliases (*name): write the values out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UsageError(f"--config {value} is nested too deep: a line looks like 'max_epochs: 3'")
        config = yaml.safe_load(text)
    except yaml.constructor.ConstructorError as error:
        raise UsageError(f"--config {value} may hold plain values only: {error.problem}; remove the tag") from error
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UsageError(f"--config {value} is not YAML{line}: {error.problem}; a line looks like 'lr: 1'") from error
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise UsageError(f"--config {value} cannot be read: {error}; give a YAML file of settings") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise UsageError(f"--config {value} holds no settings: a line looks like 'max_epochs: 3'")
    return config


def _named(key: str, configs: list[dict[str, Any]], flags: list[str]) -> str | None:
    """The class that the command line or a configuration names for ``key``."""
    for flag in reversed(flags):
        if flag.startswith((f"--{key}=", f"--{key}.class_path=")):
            return flag.split("=", 1)[1]
    for config in reversed(configs):
        if isinstance(config.get(key), dict) and config[key].get("class_path"):
            return str(config[key]["class_path"])
    return None


def with_run_config(arguments: list[str]) -> list[str]:
    """Put the configuration of the run that ``--resume`` names before the arguments: nobody has to type it again.

    ``latest`` is replaced by the run that it stands for.

    Raises:
        CheckpointError: it is not there.
    """
    resume = _last_value(arguments, "--resume")
    if resume in (None, "never", "auto"):
        return arguments
    path = find_target(resume, _last_value(arguments, "--default_root_dir", "--trainer.default_root_dir") or ".")
    config = (path if path.is_dir() else path.parent.parent) / CONFIG
    return [*(["--config", str(config)] if config.is_file() else []), *arguments, f"--resume={path}"]


def _last_value(arguments: list[str], *flags: str) -> str | None:
    """What was typed last for any of these flags, as ``--flag value`` or ``--flag=value``."""
    value = None
    for argument, after in itertools.zip_longest(arguments, arguments[1:]):
        name, equals, joined = argument.partition("=")
        if name in flags:
            value = joined if equals else after
    return value
