"""The command line of scripts/fit.py: LightningCLI with shorter flag names, more flags and one-line errors."""

import contextlib
import inspect
import logging
import re
import sys
import warnings
from argparse import SUPPRESS
from functools import partial
from pkgutil import resolve_name
from typing import Any, Literal, NoReturn, get_args

from jsonargparse import Namespace, set_dumper, set_parsing_settings
from jsonargparse.typing import PositiveFloat, PositiveInt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from datamodules.image_folder import ImageFolderDataModule
from datamodules.text import command, print_note
from lit_models import LitBase
from lit_models.base import read_attribute
from lit_training.cli.defaults import add_defaults, register_strategies
from lit_training.cli.flags import add_run_config, resolve_weights, to_lightning_arguments
from lit_training.cli.folds import check_flags, refuse_unsuited
from lit_training.cli.limits import check_trainer, explain_trainer_error
from lit_training.cli.optimizers import ARGUMENTS_FROM_RUN, SCHEDULES, choose_optimizer
from lit_training.cli.usage_errors import explain_build_error, explain_parse_error, explain_wrong_value, given_values
from lit_training.errors import CheckpointError, UsageError, exit_with_error, frames_of
from lit_training.runs.folder import keep_settings
from lit_training.runs.lightning_internals import actions_of
from lit_training.runs.own_classes import add_current_folder, with_default_attributes
from lit_training.runs.plain import hidden_arguments, is_writable, to_plain, to_yaml
from lit_training.runs.processes import Watch, bind_to_loopback, refuse_other_ranks
from lit_training.runs.run import FitTrainer, Run
from lit_training.runs.threads import threads_of_new_run
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
    ("report", bool, True, "Write report.html and MODEL_CARD.md after training."),
    ("dashboard", bool, True, "Write images, graph and settings to TensorBoard."),
    ("compile", bool | Literal["default", "reduce-overhead"], False, "Compile forward; true: CUDA graphs too."),
    ("threads", Literal["auto"] | PositiveInt, "auto", "Threads of each process; auto: by network, batch and cores."),
    ("folds", int | None, None, "Measure the accuracy with this number of folds; then train on all pictures."),
    ("repeats", PositiveInt | None, None, "Number of times that the pictures are divided into folds (default: 1)."),
    ("seeds", PositiveInt, 1, "Train with this number of seeds; print mean and standard deviation."),
]
"""Flags that this project adds to Lightning's flags: name, type, default value, help text."""


class OneLineParser(LightningArgumentParser):
    """A parser that prints errors in one line and suggests the closest name for a mistyped name."""

    def add_class_arguments(self, class_type: Any, *args: Any, skip: Any = (), **options: Any) -> list[str]:
        """Leave default values that config.yaml cannot hold to the class, so that the file can be read again."""
        try_integers_first(class_type)
        added = super().add_class_arguments(class_type, *args, skip={*skip, *hidden_arguments(class_type)}, **options)
        for action in actions_of(self):
            if not is_writable(action.default):
                action.default = SUPPRESS
            if action.dest in ARGUMENTS_FROM_DATA and issubclass(class_type, LightningModule):
                action.required = False
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
        inspect.unwrap(Trainer.__init__).__annotations__["strategy"] = Strategy | str  # else DDPStrategy is a text
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
        options: dict[str, Any] = {"required": False, "instantiate": False, "skip": {"params", *ARGUMENTS_FROM_RUN}}
        help_text = "Optimizer class and its arguments; the model keeps its parameter groups and its schedule."
        parser.add_subclass_arguments(Optimizer, "optimizer", help=help_text, **options)
        help_text = "Learning rate schedule class and its arguments; the schedule has the length of the run."
        parser.add_subclass_arguments(SCHEDULES, "lr_scheduler", help=help_text, **options)
        for action in actions_of(parser):  # --help_all then shows --max_epochs, not only --trainer.max_epochs
            if action.dest.startswith("trainer."):
                action.option_strings = [*action.option_strings, f"--{action.dest.removeprefix('trainer.')}"]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(to_lightning_arguments(add_run_config(self.arguments)))
        # Flags on the command line, and values in files. A file may hold all default values: only others count.
        self.typed = {word.partition("=")[0].replace(".init_args", "") for word in self.arguments}
        given = dict(given_values(self.config.as_dict()))
        self.typed |= {flag for flag in given if flag.startswith(("--model.", "--lr_scheduler."))}
        # These may change when a run is resumed, so they are not part of its configuration.
        self.start_flags = {name: self.config.pop(name) for name in ("resume", "quiet", "photos", "report")}
        self.resume, photos = self.start_flags["resume"], self.start_flags["photos"]
        resolve_weights(self.config, self.resume)
        if photos is not None:
            if self.resume in ("never", "auto") or "root" not in (self.config["data"] or {}).get("init_args", {}):
                raise UsageError(f"--photos {photos} needs a run on photos: --resume RUN --photos {photos}, or --data")
            self.config["data"]["init_args"]["root"] = photos
        if (seeds := self.config.pop("seeds")) > 1:  # from a YAML file: scripts/fit.py handles the flag --seeds
            raise UsageError(f"seeds {seeds} works only on the command line: {command('fit.py', '--seeds', seeds)}")
        check_flags(self.config)
        if not re.fullmatch(".+:(max|min)", monitor := self.config["monitor"] or "val_loss:min"):
            choices = f"--monitor {monitor.partition(':')[0]}:max if larger is better, otherwise :min"
            raise UsageError(f"--monitor {monitor} must be a metric's name and max or min: {choices}")
        both = self.config["monitor"] and "--lr_scheduler.mode" in self.typed
        if both and not monitor.endswith(mode := self.config["lr_scheduler"]["init_args"]["mode"]):
            raise UsageError(f"--lr_scheduler.mode {mode} contradicts --monitor {monitor}: leave one out")
        seed = self.config["seed_everything"]
        if isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UsageError(f"--seed {seed} must be an integer from 0 to {2**32 - 1}: --seed 0")

    def instantiate_classes(self) -> None:
        # Users may choose their own classes: any LightningDataModule and any LightningModule.
        self.datamodule: LightningDataModule = self.build("data")  # None if the model has its own loaders
        has_folder = isinstance(self.datamodule, ImageFolderDataModule)
        if has_folder and self.resume not in ("never", "auto") and not self.datamodule.root.is_dir():
            problem = f"the photos of the run are not in {self.datamodule.root}"
            raise UsageError(f"{problem}: give their folder with --photos DIR")
        self._fill_from_data()
        self.model: Any = self.build("model")
        if self.config["folds"]:
            refuse_unsuited(self.model, self.datamodule)
            self.datamodule.trains_on_all = True
        with_default_attributes(self.datamodule).adapt_to(self.model)
        arguments = (self.config["data"] or {}).get("init_args") or {}
        if arguments.get("batch_size", 0) is None:  # the model has chosen it
            arguments["batch_size"] = with_default_attributes(self.datamodule).hparams.get("batch_size")
        if isinstance(self.model, LitBase):
            self.model.check_data(self.datamodule)
        self.run = Run(self.config, self.model, self.datamodule, Watch(self.config["timeout"]), **self.start_flags)
        choose_optimizer(self.run, self.parser, self.typed)
        self.trainer = self.run.trainer = self.instantiate_trainer()

    def build(self, key: str) -> Any:
        """Build ``data``, ``model`` or (a dict) the arguments of the ``trainer`` from the configuration."""
        try:
            built = self.parser.instantiate(Namespace({key: self.config[key]}))[key]
        except ValueError as error:  # jsonargparse wraps the exception of the constructor
            cause: BaseException = error
            while (is_wrapped := frames_of(cause)[0][1].startswith("jsonargparse.")) and cause.__cause__:
                cause = cause.__cause__
            if is_wrapped and isinstance(cause, TypeError):
                raise UsageError(f"--{key}: {cause}; --{key}.help CLASS shows its arguments") from error
            message = explain_build_error(str(error)) if is_wrapped else explain_wrong_value(cause, self.config)
            if message:
                raise UsageError(message) from error
            raise cause from None
        if key == "trainer":
            return dict(built)
        with contextlib.suppress(Exception):  # the model has its own loaders, or the arguments are not plain values
            init, others = (self.config[key].get(name) for name in ("init_args", "dict_kwargs"))
            built.constructor_arguments = to_plain({**vars(init or Namespace()), **(others or {})}, [])
        return built

    def _fill_from_data(self) -> None:
        """Copy :data:`ARGUMENTS_FROM_DATA` from the data module to the model's configuration."""
        arguments, data = self.config["model"].get("init_args") or {}, type(self.datamodule).__name__
        parameters = inspect.signature(resolve_name(self.config["model"]["class_path"])).parameters
        for name in (name for name in ARGUMENTS_FROM_DATA if name in arguments):
            given, value = arguments[name], read_attribute(self.datamodule, name)
            flag, is_typed = f"--model.{name}", f"--model.{name}" in self.typed
            if value is not None and is_typed and given != value:
                hint = f"leave {flag} out"
                if self.resume not in ("never", "auto"):  # the value is in the configuration of the resumed run
                    hint = f"--resume {self.resume} needs the run's own --data, unchanged; or use --resume never"
                raise UsageError(f"{flag} {given} contradicts {data}, which has {name} {value}: {hint}")
            if value is not None:
                arguments[name] = value
            elif given is None and name in parameters and parameters[name].default is inspect.Parameter.empty:
                raise UsageError(f"the model needs {flag} VALUE: {data} has none before its setup()")
            elif not is_typed and name in dir(self.datamodule):
                print_note(f"{data} has no {name} before its setup(): the model has {flag} {given}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer_config, model_attributes = self.config["trainer"], with_default_attributes(self.model)
        check_trainer(trainer_config)
        config = self.build("trainer")
        if config["max_epochs"] is None and config["max_steps"] == -1 and config["max_time"] is None:
            config["max_epochs"] = trainer_config["max_epochs"] = model_attributes.default_epochs
        if self.config["folds"]:  # the last training, on all pictures
            config["limit_val_batches"] = 0
        dump_config = partial(self.parser.dump, self.config, skip_unset=False)
        register_strategies(model_attributes.skips_layers)
        try:
            trainer = FitTrainer(**add_defaults(config, self.run, dump_config))
            refuse_other_ranks(trainer)
            if self.config["folds"] and trainer.world_size > 1:
                nodes = " --num_nodes 1" * (trainer.num_nodes > 1)
                raise UsageError(f"--folds trains on one device: --devices 1{nodes}")
            if (start := self.run.start) is not None and not start.finished:
                self.run.start = start = keep_settings(start, self.config, trainer.world_size, self.typed)
                for name, done in (("max_epochs", start.epoch), ("max_steps", start.step)):
                    if (limit := config[name]) in range(done) and not start.trained:
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
        self.config["threads"] = own[0]  # RunRecords writes it to config.yaml
        share = [count * (start.processes if start else here) // here for count in own]  # all together have the same
        trainer.threads = max(1, share[0]), max(1, share[1])
        self.run.watch.trainer = trainer
        bind_to_loopback(trainer)
        return trainer


def try_integers_first(kind: Any) -> None:
    """Let jsonargparse try int before float for the arguments of a class, so that 2 stays an integer.

    typing caches unions: if another package wrote ``Optional[Union[float, int]]`` first, Lightning has this order too.
    """
    annotations = getattr(inspect.unwrap(kind.__init__), "__annotations__", {})  # built-in functions have none
    for name, annotation in annotations.items():
        if all(kind in get_args(annotation) for kind in (int, float)):  # a Callable has a list there: no set
            annotations[name] = int | annotation


def silence_libraries() -> None:
    """Hide most messages of Lightning and torch. Print other warnings in one line, without the path of the file."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("callbacks", "tuner", "profilers"):  # summaries and results that the user asked for
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"lightning\..*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(lightning|torch)\..*")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
