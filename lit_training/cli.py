"""The command line of scripts/fit.py: LightningCLI with short spellings, values from the data, one-line errors."""

import difflib
import inspect
import json
import logging
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

import datamodules
import lit_models
from lit_models import LitBase
from lit_training import run
from lit_training.messages import UsageError, fail
from lit_training.schedules import FROM_THE_RUN, SCHEDULES, schedule_factory

MODELS = {name: getattr(lit_models, name) for name in ("LitCNN", "LitMLP", "LitDynamic", "LitTransfer")}
DATA = {name: getattr(datamodules, name) for name in datamodules.__all__ if name.endswith("DataModule")}
TRAINER_FLAGS = {name: p for name, p in inspect.signature(Trainer.__init__).parameters.items() if name != "self"}
FROM_DATA = ("num_classes", "in_channels", "in_features", "out_features")
"""Constructor arguments of models that the data decides."""


# --- short spellings ----------------------------------------------------------------------------------------------


def spell_out(arguments: list[str]) -> list[str]:
    """Rewrite what people type into what LightningCLI parses.

    ``--max_epochs 3`` becomes ``--trainer.max_epochs 3`` (in YAML too), ``--seed`` becomes ``--seed_everything``,
    ``--data DIR`` the ImageFolderDataModule on it, a bare ``--fast_dev_run`` is true. Configurations come first, so
    that flags win over them, and a model or data module that is not named is the other's usual partner.

    Raises:
        UsageError: a configuration that cannot be read, a folder that is not there.
    """
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
        if argument in ("--config", "-c"):
            configs.append(_read_config(value))
        elif argument == "--data" and value is not None and not _is_class(value):
            flags += _spell_data(value)
        else:
            flags += _spell_flag(argument, value)
    model, data = _named("model", configs, flags), _named("data", configs, flags)
    partners = []
    if not model:
        model = str(getattr(DATA.get(str(data).rsplit(".", 1)[-1]), "default_model", "LitCNN"))
        partners += ["--model", model]
    if not data:
        partners += ["--data", str(getattr(MODELS.get(model.rsplit(".", 1)[-1]), "default_data", "ShapesDataModule"))]
    front = [part for config in configs for part in ("--config", json.dumps(config))]
    # A partner stands before everything: arguments of the class may come from a configuration or from a flag.
    return partners + front + flags


def _spell_flag(argument: str, value: str | None) -> list[str]:
    name, dot, rest = argument.removeprefix("--").partition(".")
    if argument in ("--seed", "--seed_everything"):
        argument = "--seed_everything"
    elif argument.startswith("--") and name.rstrip("+") in TRAINER_FLAGS:
        argument = f"--trainer.{name}{dot}{rest}"
    if value is None and argument.removeprefix("--trainer.") in TRAINER_FLAGS:
        kinds = get_args(TRAINER_FLAGS[argument.removeprefix("--trainer.")].annotation)
        value = "true" if bool in kinds else None
    return [argument] if value is None else [f"{argument}={value}"]


def _is_class(value: str) -> bool:
    """Whether a value of ``--data`` is meant as a class: one of ours, or a dotted path that is no file's."""
    return value in DATA or ("." in value and "/" not in value and not Path(value).exists())


def _spell_data(value: str) -> list[str]:
    folder = Path(value).expanduser()
    if folder.is_dir():
        return ["--data=ImageFolderDataModule", f"--data.root={value}"]
    if folder.exists():
        raise UsageError(f"--data {value} is a file: give the folder that holds a subfolder of pictures for each class")
    guess = difflib.get_close_matches(value, DATA, n=1)
    if guess or "/" not in value:
        hint = f"did you mean {guess[0]}?" if guess else f"choose one of {', '.join(DATA)}, or give a folder"
        raise UsageError(f"--data {value} is neither a folder nor a data module: {hint}")
    raise UsageError(f"--data {value}: there is no such folder")


def _read_config(value: str | None) -> dict[str, Any]:
    """A YAML file as LightningCLI wants it: flat Trainer flags under ``trainer``, classes as class_path."""
    if value is None:
        raise UsageError("--config needs a YAML file: --config scripts/recipes/cnn_cifar10.yaml")
    path = Path(value).expanduser()
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        raise UsageError(f"--config {value}: there is no such file" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"--config {value} is not YAML that can be read: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"--config {value} holds no settings: a line looks like 'max_epochs: 3'")
    trainer = dict(config.pop("trainer", None) or {})
    for name in [name for name in config if name in TRAINER_FLAGS]:
        trainer[name] = config.pop(name)
    if "seed" in config:
        config["seed_everything"] = config.pop("seed")
    if isinstance(config.get("data"), str) and not _is_class(config["data"]):
        _spell_data(config["data"])  # says what is wrong
        config["data"] = {"class_path": "ImageFolderDataModule", "init_args": {"root": config["data"]}}
    for key in ("model", "data", "optimizer", "lr_scheduler"):
        if isinstance(config.get(key), str):
            config[key] = {"class_path": config[key]}
    return {**config, "trainer": trainer} if trainer else config


def _named(key: str, configs: list[dict[str, Any]], flags: list[str]) -> str | None:
    """The class that the command line or a configuration names for ``key``."""
    for flag in reversed(flags):
        if flag.startswith((f"--{key}=", f"--{key}.class_path=")):
            return flag.split("=", 1)[1]
    for config in reversed(configs):
        if isinstance(config.get(key), dict) and config[key].get("class_path"):
            return config[key]["class_path"]
    return None


# --- parsing ------------------------------------------------------------------------------------------------------


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are one line, with the nearest name where one was mistyped."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(self.prog, explain(message, self))


def explain(message: str, parser: LightningArgumentParser) -> str:
    """One line out of jsonargparse's many: culprit, reason, nearest name."""
    names = sorted({o.removeprefix("--trainer.") for a in parser._actions for o in a.option_strings if o[:2] == "--"})
    names = [name if name.startswith("--") else f"--{name}" for name in names]
    unknown = re.search(r"[Uu]nrecognized arguments?: (\S+)", message)
    if unknown:
        flag = unknown[1].split("=")[0]
        near = difflib.get_close_matches(flag, names, n=1) if flag.startswith("--") else []
        hint = f"did you mean {near[0]}?" if near else "see --help, or --help_all for every flag"
        return f"there is no flag {flag}: {hint}" if flag.startswith("-") else f"{flag} follows no flag: {hint}"
    klass = re.search(r'Parser key "(model|data|optimizer|lr_scheduler)":', message)
    given = re.search(r"Given value(?: type)?: (\S+)", message)
    if klass and given and ("import path" in message or "no attribute" in message):
        key = klass[1]
        known = {
            "model": list(MODELS),
            "data": list(DATA),
            "lr_scheduler": [c.__name__ for c in SCHEDULES],
        }.get(key, [c.__name__ for c in Optimizer.__subclasses__()])
        name = given[1].strip("'\"{}")
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known[:12])}"
        return f"there is no --{key} {name}: {hint}"
    return " ".join(line.strip(" -") for line in message.splitlines() if line.strip())


class FitCLI(LightningCLI):
    """Parses, fills in what the data decides, builds model, data and Trainer. ``scripts/fit.py`` does the rest."""

    def __init__(self, arguments: list[str] | None = None) -> None:
        self.arguments = sys.argv[1:] if arguments is None else arguments
        quiet_libraries()
        super().__init__(
            save_config_callback=None,
            parser_class=OneLineParser,
            parser_kwargs={"prog": "fit.py"},
            seed_everything_default=0,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_subclass_arguments(
            Optimizer,
            "optimizer",
            skip={"params"},
            required=False,
            instantiate=False,
            help="Class and arguments of the optimizer; the parameter groups and the schedule stay the model's.",
        )
        parser.add_subclass_arguments(
            SCHEDULES,
            "lr_scheduler",
            skip=FROM_THE_RUN,
            required=False,
            instantiate=False,
            help="Class and arguments of the learning rate schedule; its length is the run's.",
        )
        for action in parser._actions:  # shown in --help_all; parsed by spell_out
            if action.dest.startswith("trainer."):
                action.option_strings = [*action.option_strings, f"--{action.dest.removeprefix('trainer.')}"]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            spelled = spell_out(self.arguments)
        except UsageError as error:
            parser.error(str(error))
        self.config = parser.parse_args(spelled)
        self.typed = parser.parse_args(spelled, defaults=False)

    def _set_seed(self) -> None:
        from lightning.pytorch import seed_everything

        seed_everything(self.config["seed_everything"], workers=True, verbose=False)

    def before_instantiate_classes(self) -> None:
        """Fill in what the data decides, before the model exists: its hyper-parameters then hold it too."""
        data = _build(self.config["data"])
        _, model_class = _class_of(self.config["model"])
        typed = vars(self.typed).get("model", {}).get("init_args") or {}
        for name in FROM_DATA:
            if name not in inspect.signature(model_class).parameters or not hasattr(data, name):
                continue
            value = getattr(data, name)
            if name in typed and typed[name] != value:
                raise UsageError(
                    f"--model.{name} {typed[name]} contradicts {type(data).__name__}, which has {name} {value}: "
                    f"leave --model.{name} out"
                )
            self.config["model"]["init_args"][name] = value

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate_classes(self.config)
        self.model: LitBase = self.config_init["model"]
        self.datamodule: LightningDataModule = self.config_init["data"]
        if hasattr(self.datamodule, "follow"):
            self.datamodule.follow(self.model)
        self.model.check_data(self.datamodule)
        if choice := self.config.get("optimizer"):
            self.model.chosen_optimizer = _factory(choice)
        if choice := self.config.get("lr_scheduler"):
            self.model.chosen_schedule = schedule_factory(*_class_of(choice)[1:], choice.get("init_args"), self.model)
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = dict(self.config_init["trainer"])
        if config["max_epochs"] is None and config["max_steps"] == -1 and config["max_time"] is None:
            config["max_epochs"] = self.model.default_epochs
            self.config["trainer"]["max_epochs"] = config["max_epochs"]
        try:
            config = run.complete(config, self)
            trainer = Trainer(**config)
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise UsageError(_explain_trainer(error, config)) from error
        if isinstance(trainer.strategy, DDPStrategy) and self.model.skips_layers:
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        return trainer

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Nothing: the model's own method asks ``chosen_optimizer`` and ``chosen_schedule``."""


def quiet_libraries() -> None:
    """No adverts and no advice that this project has already followed: what is to be said, the run itself says."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\..*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(lightning|torch)\..*")


def _class_of(config: Any) -> tuple[str, type]:
    path = config["class_path"]
    module, _, name = path.rpartition(".")
    return path, getattr(sys.modules[module], name)


def _build(config: Any) -> Any:
    return _class_of(config)[1](**(config.get("init_args") or {}))


def _factory(config: Any) -> Any:
    optimizer, arguments = _class_of(config)[1], dict(config.get("init_args") or {})
    return lambda groups: optimizer(groups, **arguments)


def _explain_trainer(error: Exception, config: dict[str, Any]) -> str:
    if "No supported gpu backend found" in str(error) or (
        "accelerator" in str(error).lower() and "gpu" in str(config["accelerator"])
    ):
        return f"--accelerator {config['accelerator']}: no GPU is seen here; use --accelerator cpu, or auto"
    return str(error)
