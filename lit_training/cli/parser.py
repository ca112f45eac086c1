"""The command line of scripts/fit.py: LightningCLI with shorter flag names, more flags and one-line errors."""

import contextlib
import inspect
import logging
import re
import sys
import warnings
from argparse import SUPPRESS, ArgumentError
from functools import partial
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, Literal, NoReturn, get_args

import torch
from jsonargparse import Namespace, set_dumper, set_parsing_settings
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from datamodules.text import command
from lit_models import LitBase
from lit_models.base import read_attribute
from lit_training.cli.defaults import add_defaults, register_strategies
from lit_training.cli.flags import add_run_config, resolve_weights, to_lightning_arguments
from lit_training.cli.limits import check_trainer, explain_trainer_error
from lit_training.cli.schedules import ARGUMENTS_FROM_RUN, SCHEDULES, build_schedule, describe, uses
from lit_training.cli.usage_errors import explain_build_error, explain_parse_error
from lit_training.errors import CheckpointError, UsageError, exit_with_error, print_note
from lit_training.runs.folder import keep_global_batch
from lit_training.runs.foreign import with_default_attributes
from lit_training.runs.lightning_internals import actions_of
from lit_training.runs.own_classes import add_current_folder
from lit_training.runs.plain import hidden_arguments, is_writable, to_plain, to_yaml
from lit_training.runs.processes import Watch, bind_to_loopback, refuse_other_ranks
from lit_training.runs.run import Run
from lit_training.runs.threads import threads_of_new_run
from lit_training.runs.trainer import FitTrainer
from lit_training.text import expand_paths

ARGUMENTS_FROM_DATA = ("num_classes", "in_channels", "in_features", "out_features")
"""Constructor arguments of models. The data module has their values, as attributes with the same names."""
OWN_FLAGS: list[tuple[str, Any, Any, str]] = [
    ("resume", str, "never", "never, auto (newest run of the same command), latest, or the folder of a run."),
    ("photos", str | None, None, "With --resume RUN: the folder where the photos of the run are now."),
    ("monitor", str | None, None, "Metric of the best epoch, and max or min: --monitor val_f1:max."),
    ("early_stopping", PositiveInt | None, None, "Stop after this number of epochs without improvement."),
    ("timeout", PositiveFloat, 5.0, "End the run with an error after this number of minutes without a step."),
    ("quiet", bool, False, "Print only the result."),
    ("dashboard", bool, True, "Write images, graph and settings to TensorBoard."),
    ("threads", Literal["auto"] | PositiveInt, "auto", "Threads of each process; auto: by network, batch and cores."),
    ("seeds", PositiveInt, 1, "Train with this number of seeds; print mean and standard deviation."),
]
"""Flags that this project adds to Lightning's flags: name, type, default value, help text."""


class OneLineParser(LightningArgumentParser):
    """A parser that prints errors in one line and suggests the closest name for a mistyped name."""

    def add_class_arguments(self, class_type: Any, *args: Any, skip: Any = (), **options: Any) -> list[str]:
        """Leave default values that config.yaml cannot hold to the class, so that the file can be read again."""
        added = super().add_class_arguments(class_type, *args, skip={*skip, *hidden_arguments(class_type)}, **options)
        for action in actions_of(self):
            if not is_writable(action.default):
                action.default = SUPPRESS
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # in a nested parser: the outer parser prints the error
            super().error(message, ex)
        exit_with_error(self.prog, explain_parse_error(message, self))


class FitCLI(LightningCLI):
    """Parse a command line (default: ``sys.argv[1:]``); build the data, the model and the Trainer of ``run``."""

    def __init__(self, arguments: list[str] | None = None) -> None:
        self.arguments = expand_paths(sys.argv[1:] if arguments is None else arguments)
        silence_libraries()
        try_integers_first()
        set_parsing_settings(config_read_mode_fsspec_enabled=False)  # --config must not read URLs
        set_dumper("yaml", to_yaml)
        add_current_folder()
        super().__init__(
            save_config_callback=None,
            parser_class=OneLineParser,
            parser_kwargs={"prog": "fit.py", "allow_abbrev": False},
            seed_everything_default=0,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, kind, default, help_text in OWN_FLAGS:
            parser.add_argument(f"--{name}", type=kind, default=default, help=help_text)
        parser.add_argument("--help_all", action="help", help="Show every flag; --model.help LitCNN shows a class.")
        options: dict[str, Any] = {"required": False, "instantiate": False}
        help_text = "Optimizer class and its arguments; the model keeps its parameter groups and its schedule."
        parser.add_subclass_arguments(Optimizer, "optimizer", skip={"params"}, help=help_text, **options)
        help_text = "Learning rate schedule class and its arguments; the schedule has the length of the run."
        options["skip"] = set(ARGUMENTS_FROM_RUN)
        parser.add_subclass_arguments(SCHEDULES, "lr_scheduler", help=help_text, **options)
        for action in actions_of(parser):  # --help_all then shows --max_epochs, not only --trainer.max_epochs
            if action.dest.startswith("trainer."):
                action.option_strings = [*action.option_strings, f"--{action.dest.removeprefix('trainer.')}"]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        arguments = to_lightning_arguments(add_run_config(self.arguments))
        self.required_from_data = _required_from_data(parser, arguments)
        arguments += [f"--model.{name}=1" for name in self.required_from_data]  # until the data is built
        self.config = parser.parse_args(arguments)
        typed = parser.parse_args(arguments, defaults=False).get("model", {}).get("init_args") or {}
        self.typed = {name: value for name, value in typed.items() if name not in self.required_from_data}
        self.resume = self.config.pop("resume")  # removed: it may change when a run is resumed
        self.quiet = self.config.pop("quiet")
        resolve_weights(self.config, self.resume)
        self.photos = photos = self.config.pop("photos")
        if photos is not None:
            if self.resume in ("never", "auto") or "root" not in (self.config["data"] or {}).get("init_args", {}):
                raise UsageError(f"--photos {photos} needs a run on photos: --resume RUN --photos {photos}, or --data")
            self.config["data"]["init_args"]["root"] = photos
        if (seeds := self.config.pop("seeds")) > 1:  # from a YAML file: scripts/fit.py handles the flag --seeds
            raise UsageError(f"seeds {seeds} works only on the command line: {command('fit.py', '--seeds', seeds)}")
        if not re.fullmatch(".+:(max|min)", monitor := self.config["monitor"] or "val_loss:min"):
            choices = f"--monitor {monitor.partition(':')[0]}:max if larger is better, otherwise :min"
            raise UsageError(f"--monitor {monitor} must be a metric's name and max or min: {choices}")
        seed = self.config["seed_everything"]
        if isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UsageError(f"--seed {seed} must be an integer from 0 to {2**32 - 1}: --seed 0")

    def instantiate_classes(self) -> None:
        # Users may choose their own classes: any LightningDataModule and any LightningModule.
        self.datamodule: LightningDataModule = self._build("data")  # None if the model has its own loaders
        self._fill_from_data()
        self.model: Any = self._build("model")
        with_default_attributes(self.datamodule).adapt_to(self.model)
        arguments = (self.config["data"] or {}).get("init_args") or {}
        if arguments.get("batch_size", 0) is None:  # the model has chosen it
            arguments["batch_size"] = with_default_attributes(self.datamodule).hparams.get("batch_size")
        if isinstance(self.model, LitBase):
            self.model.check_data(self.datamodule)
        watch = Watch(self.config["timeout"])
        self.run = Run(self.config, self.model, self.datamodule, watch, self.resume, self.quiet, self.photos)
        self._choose_optimizer()
        self.trainer = self.run.trainer = self.instantiate_trainer()

    def _build(self, key: str) -> Any:
        try:
            built = self.parser.instantiate(Namespace({key: self.config[key]}))[key]
        except ValueError as error:  # jsonargparse wraps the exception of the constructor
            cause: BaseException = error
            while isinstance(cause.__cause__, ValueError | TypeError):
                cause = cause.__cause__
            if isinstance(cause, TypeError):
                raise UsageError(f"--{key}: {cause}; --{key}.help CLASS shows its arguments") from error
            raise cause from None
        if built is None:  # the model has its own loaders
            return None
        init, others = (self.config[key].get(name) for name in ("init_args", "dict_kwargs"))
        with contextlib.suppress(Exception):  # they are not plain values
            built.constructor_arguments = to_plain({**vars(init or Namespace()), **(others or {})}, [])
        return built

    def _fill_from_data(self) -> None:
        """Copy :data:`ARGUMENTS_FROM_DATA` from the data module to the model's configuration."""
        model, name_of_data = self.config["model"], type(self.datamodule).__name__
        for name in (name for name in ARGUMENTS_FROM_DATA if name in (model.get("init_args") or {})):
            value = read_attribute(self.datamodule, name)
            if value is not None and self.typed.get(name, value) != value:
                hint = f"leave --model.{name} out"
                if self.resume not in ("never", "auto"):  # the value is in the configuration of the resumed run
                    hint = f"--resume {self.resume} needs the run's own --data, unchanged; or use --resume never"
                contradiction = f"--model.{name} {self.typed[name]} contradicts {name_of_data}"
                raise UsageError(f"{contradiction}, which has {name} {value}: {hint}")
            if value is not None:
                model["init_args"][name] = value
            elif name in self.required_from_data:
                raise UsageError(f"the model needs --model.{name} VALUE: {name_of_data} has none before its setup()")
            elif name not in self.typed and name in dir(self.datamodule):
                used = f"--model.{name} {model['init_args'][name]}"
                print_note(f"{name_of_data} has no {name} before its setup(): the model has {used}")

    def _choose_optimizer(self) -> None:
        """Set the model's optimizer and schedule. Raise a UsageError if one cannot be built, or has no effect."""
        flags = {"optimizer": "chosen_optimizer", "lr_scheduler": "chosen_schedule"}
        flags = {flag: attribute for flag, attribute in flags.items() if self.config.get(flag)}
        rule = "is for models built on LitBase that return build_optimizers()"
        rule += f": {type(self.model).__name__} has its own in configure_optimizers"
        if not isinstance(self.model, LitBase):
            for flag in flags:
                raise UsageError(f"--{flag} {rule}, leave --{flag} out")
            return
        # A user's own configure_optimizers may ask the Trainer, which does not exist yet, for the length of the run.
        lengths = {"estimated_stepping_batches": 1000, "num_training_batches": 100, "max_epochs": 10, "max_steps": -1}
        self.model.trainer = SimpleNamespace(**lengths)  # type: ignore[assignment]
        is_own = not type(self.model).configure_optimizers.__module__.startswith("lit_models.")
        rebuilt = {name: other for name in self._typed_arguments() if flags and (other := self._other_model(name))}
        for flag in flags if is_own else ["model", *flags]:
            kind = resolve_name(self.config[flag]["class_path"])
            arguments = dict(self.config[flag].get("init_args") or {})
            if flag == "optimizer":
                self.model.chosen_optimizer = partial(kind, **arguments)
            elif flag == "lr_scheduler":
                if arguments.get("step_size", 1) < 1:
                    raise UsageError("--lr_scheduler.step_size must be at least 1 epoch: --lr_scheduler.step_size 7")
                mode, monitor = arguments.get("mode", ""), self.config["monitor"] or ""
                is_typed = mode == "max" or "lr_scheduler.mode" in " ".join(self.arguments)  # the default is min
                if is_typed and monitor and not monitor.endswith(mode):
                    raise UsageError(f"--lr_scheduler.mode {mode} contradicts --monitor {monitor}: leave one out")
                schedule = partial(build_schedule, schedule=kind, arguments=arguments, run=self.run)
                self.model.chosen_schedule = lambda _: {}  # until it is certain that it is used
            try:
                self.model.configure_optimizers()
            except (TypeError, ValueError, RuntimeError, AttributeError) as error:
                raise UsageError(f"--{flag} {kind.__name__}: {error}; change this value") from error
            if flag in flags and not uses(self.model, flags[flag]):
                raise UsageError(f"--{flag} {rule}, leave --{flag} out")
            for name, other in rebuilt.items():
                other.chosen_optimizer, other.chosen_schedule = self.model.chosen_optimizer, self.model.chosen_schedule
                if describe(other) != describe(self.model):
                    continue
                value, is_known = self.typed[name], name in inspect.signature(kind).parameters
                fix = f"use --{flag}.{name} {value}" if is_known else f"leave --model.{name} out"
                raise UsageError(f"--model.{name} {value} has no effect beside --{flag} {kind.__name__}: {fix}")
        if "lr_scheduler" in flags:
            self.model.chosen_schedule = schedule
        self.model.trainer = None

    def _typed_arguments(self) -> list[str]:
        """Return the model's arguments on the command line, and those in files that differ from the default."""
        names = [argument.partition("=")[0].replace(".init_args", "") for argument in self.arguments]
        names = [name.removeprefix("--model.") for name in names]
        if self.resume in ("never", "auto"):  # else the values in the file may be those of the resumed run
            parameters = inspect.signature(type(self.model)).parameters
            names += [
                name for name in self.typed if name in parameters and self.typed[name] != parameters[name].default
            ]
        return [name for name in self.typed if name in names]

    def _other_model(self, name: str) -> Any:
        """Return the model with another value of an argument if its optimizers then differ, otherwise None."""
        value, parameter = self.typed[name], inspect.signature(type(self.model)).parameters.get(name)
        others = [2 * value or 1, not value] if isinstance(value, int | float) else []
        others += [parameter.default, *get_args(parameter.annotation)] if parameter else []
        for other_value in others:
            config = self.config["model"].clone()
            config["init_args"][name] = other_value
            with contextlib.suppress(Exception), torch.device("meta"):  # fast, and draws no random numbers
                other = self.parser.instantiate(Namespace(model=config))["model"]
                other.trainer = self.model.trainer
                other.configure_optimizers()
                if describe(other)[1] != describe(self.model)[1]:
                    return other
        return None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer_config, model_attributes = self.config["trainer"], with_default_attributes(self.model)
        check_trainer(trainer_config)
        try:
            config = dict(self.parser.instantiate(Namespace(trainer=trainer_config))["trainer"])
        except ValueError as error:
            if message := explain_build_error(str(error)):
                raise UsageError(message) from None
            raise
        if config["max_epochs"] is None and config["max_steps"] == -1 and config["max_time"] is None:
            config["max_epochs"] = trainer_config["max_epochs"] = model_attributes.default_epochs
        config_yaml = self.parser.dump(self.config, skip_unset=False)
        save_config = SaveConfigCallback(self.parser, self.config, overwrite=True)
        register_strategies(model_attributes.skips_layers)
        try:
            trainer = FitTrainer(**add_defaults(config, self.run, config_yaml, save_config))
            refuse_other_ranks(trainer)
            if (start := self.run.start) is not None and not start.finished:
                typed = any(re.match(r"--data\.(init_args\.)?batch_size\b", word) for word in self.arguments)
                self.run.start = start = keep_global_batch(start, self.config, trainer.world_size, typed)
                for name, done in (("max_epochs", start.epoch), ("max_steps", start.step)):
                    if (limit := config[name]) in range(done):
                        raise UsageError(f"--{name} {limit}: the run has done {done} already: --{name} {done + 1}")
        except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
            if self.run.start is not None:
                self.run.start.remove_if_new()
            if isinstance(error, CheckpointError | UsageError):
                raise
            raise UsageError(explain_trainer_error(error, config)) from error
        trainer.start = start = self.run.start
        given, chosen = self.config["threads"], threads_of_new_run(trainer, self.model, self.datamodule)
        trainer.chosen_threads = chosen if given == "auto" else (int(given), int(given))
        here, own = trainer.world_size, (start and start.threads) or trainer.chosen_threads
        self.config["threads"] = own[0]  # SaveConfigCallback writes it to config.yaml
        share = [count * (start.processes if start else here) // here for count in own]  # all together have the same
        trainer.threads = max(1, share[0]), max(1, share[1])
        self.run.watch.trainer = trainer
        bind_to_loopback(trainer)
        return trainer


def _required_from_data(parser: LightningArgumentParser, arguments: list[str]) -> list[str]:
    """Return the required arguments of the model that are missing, if they are in :data:`ARGUMENTS_FROM_DATA`."""
    parser.exit_on_error = False
    try:
        parser.parse_args(arguments)
    except ArgumentError as error:
        missing = re.search(r'key "model".* required: ([\w, ]+)', str(error), re.DOTALL)
        return [name for name in ARGUMENTS_FROM_DATA if missing and name in missing[1].split(", ")]
    finally:
        parser.exit_on_error = True
    return []


def try_integers_first() -> None:
    """Let jsonargparse try int before float for the Trainer's arguments, so that 2 stays an integer.

    typing caches unions: if another package wrote ``Optional[Union[float, int]]`` first, Lightning has this order too.
    """
    annotations = inspect.unwrap(Trainer.__init__).__annotations__
    for name, kind in annotations.items():
        if {int, float} <= {*get_args(kind)}:
            annotations[name] = int | kind
    annotations["strategy"] = Strategy | str  # in Lightning's order, DDPStrategy is a text


def silence_libraries() -> None:
    """Hide most messages of Lightning and torch. Print other warnings in one line, without the path of the file."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("callbacks", "tuner", "profilers"):  # summaries and results that the user asked for
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\..*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(lightning|torch)\..*")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
