"""Turn a command line of fit.py into the arguments that LightningCLI parses."""

import contextlib
import inspect
import os
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

import yaml
from lightning.pytorch import LightningModule, Trainer

import datamodules
import lit_models
from datamodules.text import print_note
from lit_training.cli.fit import RESULT_FILE_VARIABLE
from lit_training.cli.optimizers import SCHEDULES
from lit_training.errors import UsageError
from lit_training.runs.folder import find_checkpoint, find_resume_target, run_folder
from lit_training.runs.layout import CONFIG
from lit_training.text import closest_name, expand_paths, suggest

MODEL_NAMES = ("LitCNN", "LitMLP", "LitDynamic", "LitTransfer", "LitAirbench")
MODELS = {name: getattr(lit_models, name) for name in MODEL_NAMES}
DATA_MODULES = {name: getattr(datamodules, name) for name in datamodules.__all__ if name.endswith("DataModule")}
TRAINER_FLAGS = {name: flag.annotation for name, flag in inspect.signature(Trainer).parameters.items()}
TRAINER_BOOLEAN_FLAGS = {name for name, kind in TRAINER_FLAGS.items() if bool in (kind, *get_args(kind))}
OWN_BOOLEAN_FLAGS = ("--quiet", "--dashboard", "--report", "--compile")
CLASS_PATHS = {kind.__name__: f"torch.optim.lr_scheduler.{kind.__name__}" for kind in SCHEDULES}
CLASS_PATHS |= {name: f"lit_models.{name}" for name in MODELS} | {name: f"datamodules.{name}" for name in DATA_MODULES}
"""Class name -> full name. Other classes may have the same name: Lightning's ReduceLROnPlateau, or a user's class."""
PROJECT = Path(lit_models.__file__).resolve().parents[1]
MAX_CONFIG_BYTES = 100_000  # usual configuration files have a few thousand bytes


def to_lightning_arguments(arguments: list[str]) -> list[str]:
    """Return arguments for LightningCLI: the classes of model and data, then configurations, then flags.

    ``--max_epochs 3`` becomes ``--trainer.max_epochs=3``, ``--seed`` becomes ``--seed_everything``, ``--data DIR``
    becomes an ImageFolderDataModule, and a boolean flag without a value becomes true. A model without ``--data`` gets
    its ``default_data``, or none if it has a ``train_dataloader``. Data without ``--model`` gets its ``default_model``.
    """
    configs: list[dict[str, Any]] = []
    flags: list[str] = []
    for flag, value in _split_flags(arguments):
        if flag in ("--config", "-c"):
            configs.append(_read_config(value))
        elif flag == "--data" and value is not None and not _looks_like_class(value):
            flags += [f"--data={_image_folder_config(value)['class_path']}", f"--data.root={value}"]
        else:
            flags.append(_to_lightning_flag(flag, value))
    model, data = _class_name_for("model", configs, flags), _class_name_for("data", configs, flags)
    if {model, data} - {"", *CLASS_PATHS.values()}:
        _refuse_hidden_modules()
    data_class = _find_class(data)
    model = model or getattr(data_class, "default_model", "LitCNN")
    model_class = _find_class(model)
    if getattr(model_class, "train_dataloader", None) in (None, LightningModule.train_dataloader):
        data = data or getattr(model_class, "default_data", "ShapesDataModule")
    # jsonargparse must read a class before its arguments, and a configuration may have arguments without a class.
    class_flags = [f"--{key}={CLASS_PATHS.get(name, name)}" for key, name in (("model", model), ("data", data)) if name]
    flags.sort(key=lambda flag: not re.match(r"--(model|data|optimizer|lr_scheduler)=", flag))
    config_flags = [f"--config={yaml.safe_dump(config)}" for config in configs]
    return class_flags + config_flags + flags


def _find_class(path: str) -> Any:
    """Import a class, or return None. LightningCLI then explains what is wrong with the name."""
    with contextlib.suppress(ImportError, AttributeError, ValueError):  # other errors are bugs in the user's module
        return resolve_name(path)
    return None


def _refuse_hidden_modules() -> None:
    """Raise a UsageError if Python code in the current folder has the name of a package of this project."""
    packages = ("datamodules", "lit_models", "lit_training")
    for path in map(Path, (*packages, *(f"{name}.py" for name in packages))):
        if Path.cwd() != PROJECT and (path.is_file() or any(path.glob("*.py"))):
            problem = f"fit.py cannot import {path} of this folder, because its own package has the same name"
            raise UsageError(f"{problem}: rename it, for example to my_{path}")


def _split_flags(arguments: list[str]) -> list[tuple[str, str | None]]:
    """Return a pair (flag, value) for each ``--flag value`` and ``--flag=value``. A flag without a value has None."""
    pairs: list[tuple[str, str | None]] = []
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise UsageError(f"{argument} has characters that are not UTF-8: rename the file or folder")
        flag, equals, value = argument.partition("=")
        if pairs and pairs[-1][1] is None and not re.match(r"--[a-zA-Z]", argument):
            pairs[-1] = pairs[-1][0], argument
        else:
            pairs.append((flag, value) if equals and flag.startswith("-") else (argument, None))
        if pairs[-1][1] == "" and "." not in pairs[-1][0]:
            raise UsageError(f"{pairs[-1][0]} needs a value: {pairs[-1][0]} VALUE")
        if pairs[-1][1] == "--":  # argparse would drop this value
            raise UsageError(f"{pairs[-1][0]} needs a value other than --: leave {pairs[-1][0]} out, or see --help_all")
    return pairs


def _to_lightning_flag(flag: str, value: str | None) -> str:
    """Return ``--flag=value`` with the names that LightningCLI uses."""
    name, dot, rest = flag.removeprefix("--").partition(".")
    if flag == "--seed":
        flag = "--seed_everything"
    elif flag.startswith("--") and name.rstrip("+") in TRAINER_FLAGS:
        flag = f"--trainer.{name}{dot}{rest}"
    if flag.removesuffix(".class_path") in ("--model", "--data", "--lr_scheduler"):
        value = CLASS_PATHS.get(value or "", value)
    if value is None and (flag.removeprefix("--trainer.") in TRAINER_BOOLEAN_FLAGS or flag in OWN_BOOLEAN_FLAGS):
        value = "true"
    if value is None and flag.startswith("--") and rest not in ("", "help"):
        short = flag.replace("--trainer.", "--")
        raise UsageError(f"{short} needs a value: {short} VALUE")
    return flag if value is None else f"{flag}={value}"


def _looks_like_class(value: str) -> bool:
    """Return True for a data module of this project, and for ``package.Class`` if it is not a path."""
    return value in DATA_MODULES or ("." in value and not re.search(r"[/\\]|^[.~]", value) and not Path(value).exists())


def _image_folder_config(root: str) -> dict[str, Any]:
    folder = Path(root).expanduser()
    if root and folder.is_dir():
        return {"class_path": "datamodules.ImageFolderDataModule", "init_args": {"root": root}}
    if root and folder.exists():
        raise UsageError(f"--data {root} is a file: give the folder with a subfolder of images for each class")
    raise UsageError(f"--data {root}: there is no such folder or data module: {suggest(root, DATA_MODULES)}")


def _read_config(path_text: str | None) -> dict[str, Any]:
    """Read a YAML file. For LightningCLI, move Trainer flags to ``trainer`` and class names to ``class_path``."""
    if path_text is None:
        raise UsageError("--config needs a YAML file: --config scripts/recipes/cnn_cifar10.yaml")
    config = _read_yaml(path_text)
    trainer = config.pop("trainer", None) or {}
    if not isinstance(trainer, dict):
        raise UsageError(f"--config {path_text}: trainer must have settings such as 'max_epochs: 3', but is {trainer}")
    trainer |= {name: config.pop(name) for name in list(config) if name in TRAINER_FLAGS}
    if trainer:
        config["trainer"] = trainer
    if "seed" in config:
        config["seed_everything"] = config.pop("seed")
    if isinstance(config.get("data"), str) and not _looks_like_class(config["data"]):
        config["data"] = _image_folder_config(config["data"])
    for key in ("model", "data", "optimizer", "lr_scheduler"):
        if isinstance(config.get(key), str):
            config[key] = {"class_path": config[key]}
        if not isinstance(config.get(key, {}), dict | None):
            allowed = "a class name, or class_path and init_args"
            raise UsageError(f"--config {path_text}: {key} must be {allowed}, but is {config[key]}")
        if "class_path" in (config.get(key) or {}):
            config[key]["class_path"] = CLASS_PATHS.get(str(config[key]["class_path"]), config[key]["class_path"])
    return config


def _read_yaml(path_text: str) -> dict[str, Any]:
    """Read a YAML file with settings. Raise a UsageError for other files, and for files that are slow to parse."""
    path = Path(path_text).expanduser()
    if not path.is_file():
        problem = "this is a folder" if path.is_dir() else "there is no such file"
        closest = closest_name(path.name, [file.name for file in path.parent.glob("*.y*ml")])
        hint = f"did you mean {path.parent / closest}?" if closest else "see the recipes in scripts/recipes"
        raise UsageError(f"--config {path_text}: {problem}; {hint}")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UsageError(f"--config {path_text} is too large for a configuration: give a YAML file with settings")
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)  # a RecursionError ends deep nesting, which is slow to parse
        has_alias = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        has_tag = isinstance(error, yaml.constructor.ConstructorError)
        hint = "remove the tag" if has_tag else "write lines such as 'max_epochs: 3'"
        raise UsageError(f"--config {path_text} is not plain YAML{line}: {error.problem}; {hint}") from error
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise UsageError(f"--config {path_text} cannot be read: {error}; give a YAML file with settings") from error
    if has_alias:  # it could expand to gigabytes
        raise UsageError(f"--config {path_text} has YAML aliases (*name): replace each alias with its value")
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise UsageError(f"--config {path_text} has no settings: write lines such as 'max_epochs: 3'")
    return expand_paths(config)


def _class_name_for(key: str, configs: list[dict[str, Any]], flags: list[str]) -> str:
    """Return the class name of the model or the data (``key``), or "". Flags override configurations."""
    names = [str((config.get(key) or {}).get("class_path") or "") for config in configs]
    names += [flag.partition("=")[2] for flag in flags if flag.startswith((f"--{key}=", f"--{key}.class_path="))]
    return next(filter(None, reversed(names)), "")


def add_run_config(arguments: list[str]) -> list[str]:
    """If ``--resume`` is not ``never`` or ``auto``, add the configuration file and the path of the run to resume.

    ``--config FILE`` comes first, so that flags override it. ``--resume=PATH`` comes last and replaces ``latest``.
    """
    typed = dict(_split_flags(arguments))
    resume = typed.get("--resume")
    if resume in (None, "never", "auto"):
        return arguments
    root = typed.get("--default_root_dir") or typed.get("--trainer.default_root_dir")
    path = find_resume_target(resume, root or ".")
    config = (path if path.is_dir() else run_folder(path)) / CONFIG
    if root and config.is_file() and not config.resolve().is_relative_to(Path(root).resolve()):
        raise UsageError(f"--resume {resume} goes on in its own folder: leave --default_root_dir out")
    if path.is_dir() and not config.is_file():
        print_note(f"{config} is missing, so repeat all flags of the run: only those of this command count")
    return [*(["--config", str(config)] if config.is_file() else []), *arguments, f"--resume={path}"]


def resolve_weights(config: Any, resume: str) -> None:
    """If a LitTransfer's ``weights`` are a run's folder or ``latest``, replace them by the path of the checkpoint."""
    model, root = config["model"], config["trainer"]["default_root_dir"] or "."
    weights = str((model.get("init_args") or {}).get("weights"))
    is_transfer = issubclass(resolve_name(model["class_path"]), lit_models.LitTransfer)
    if is_transfer and (weights == "latest" or Path(weights).expanduser().is_dir()):
        model["init_args"]["weights"] = file = str(find_checkpoint(weights, root))
        if weights == "latest" and (resume == "auto" or RESULT_FILE_VARIABLE in os.environ):
            raise UsageError(f"--model.weights latest could change with --resume auto or --seeds: give {file}")
