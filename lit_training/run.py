"""What every run of scripts/fit.py has around it by default, and what it says at the beginning and at the end."""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler

from datamodules.examination import available_cores
from datamodules.image_folder import ImageFolderDataModule
from datamodules.listing import counted
from lit_models import LitBase, LitTransfer
from lit_training.best import BestCheckpoint
from lit_training.checkpoints import AtomicCheckpointIO
from lit_training.console import EpochLines
from lit_training.dashboard import Dashboard, Throughput
from lit_training.features import FeatureCache
from lit_training.guards import FiniteGuard
from lit_training.intervals import wilson
from lit_training.messages import UsageError, is_rank_zero
from lit_training.provenance import Provenance
from lit_training.resume import ResumePoint, StepSeed
from lit_training.rundir import LOGS, ContinuedCSV, Start, choose

if TYPE_CHECKING:
    from lit_training.cli import FitCLI


STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
)


class NullProfiler(PassThroughProfiler):
    """Lightning opens some 30 profiling contexts a step; this makes them all the same empty one."""

    _nothing: contextlib.AbstractContextManager = contextlib.nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


class PhotoRecords(Callback):
    """Writes which photo went into which split (``split.csv``) and which were left out (``left_out.csv``)."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # asks all ranks
        photos = trainer.datamodule.photos  # type: ignore[attr-defined]
        if trainer.is_global_zero and folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            photos.write_split(Path(folder) / "split.csv")
            if photos.left_out:
                photos.write_left_out(Path(folder) / "left_out.csv")


def complete(config: dict[str, Any], cli: "FitCLI") -> dict[str, Any]:
    """Trainer arguments with this project's loggers, callbacks and plugins, where the user has not decided."""
    config = dict(config)
    _refuse_contradictions(config, cli)
    config["plugins"] = [*_listed(config["plugins"]), AtomicCheckpointIO()]
    config["profiler"] = config["profiler"] or NullProfiler()
    if config["num_sanity_val_steps"] is None:
        config["num_sanity_val_steps"] = 0
    if config["barebones"]:
        config["profiler"] = None
        return config
    config["enable_model_summary"] = bool(config["enable_model_summary"])  # announce() says it in a line
    root = config["default_root_dir"] or "."
    if config["logger"] in (None, True) and not config["fast_dev_run"]:
        start = cli.start = _start(root, cli)
        folder, name = str(start.run.parent.parent), start.run.parent.name
        board = TensorBoardLogger(
            folder, name=name, version=start.version, default_hp_metric=False, purge_step=start.step
        )
        config["logger"] = [board, ContinuedCSV(start)]
    monitor, mode = monitored(cli)
    callbacks: list[Callback] = [StepSeed(cli.config["seed_everything"]), FiniteGuard(), Throughput()]
    config["enable_progress_bar"] = not cli.quiet and config["enable_progress_bar"] is not False
    if config["enable_progress_bar"]:
        callbacks += [EpochLines(monitor, mode)]
    if isinstance(cli.model, LitTransfer):
        callbacks += [FeatureCache()]
    if isinstance(cli.datamodule, ImageFolderDataModule) and config["logger"] not in (None, False):
        callbacks += [PhotoRecords()]
    if config["logger"] not in (None, False) and not config["fast_dev_run"]:
        callbacks += [LearningRateMonitor(), SaveConfigCallback(cli.parser, cli.config, overwrite=True)]
        callbacks += [Dashboard(monitor, mode)] if cli.config["dashboard"] else []
    if config["enable_checkpointing"] is not False and not config["fast_dev_run"]:
        callbacks += [
            BestCheckpoint(monitor, mode),
        ]
        if cli.start is not None:
            callbacks[:0] = [ResumePoint(cli.watch)]  # first: what it saves is what the others have not touched yet
            callbacks += [Provenance(cli.start.run)]
    if (patience := cli.config.get("early_stopping")) is not None:
        callbacks += [EarlyStopping(monitor or "train_loss", mode=mode, patience=int(patience))]
    _silence_idle_hooks(callbacks)
    config["callbacks"] = [*callbacks[:1], *_listed(config["callbacks"]), *callbacks[1:]]
    return config


def _refuse_contradictions(config: dict[str, Any], cli: "FitCLI") -> None:
    unmet = [flag for flag in ("barebones", "fast_dev_run") if config[flag]]
    unmet += ["logger"] if config["logger"] not in (None, True) else []
    unmet += ["enable_checkpointing"] if config["enable_checkpointing"] is False else []
    if cli.resume != "never" and unmet:
        raise UsageError(f"--resume {cli.resume} needs the run's folder and its checkpoints: leave --{unmet[0]} out")
    if config["barebones"] and cli.config.get("early_stopping") is not None:
        raise UsageError("--early_stopping asks for what --barebones leaves out: drop one of the two")


def _silence_idle_hooks(callbacks: list[Callback]) -> None:
    """Take the empty hooks of a step off these callbacks: Lightning would call some 70 of them, 0.2 ms a step."""
    for callback in callbacks:
        for hook in STEP_HOOKS:
            if getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)  # Lightning calls what is callable


def _start(root: str, cli: "FitCLI") -> Start:
    """The run's folder and what it goes on from; rank 0 decides, and tells the others when they are connected."""
    if not is_rank_zero():
        return Start(Path(root) / LOGS / "version_0")
    return choose(cli.resume, root, cli.parser.dump(cli.config, skip_unset=False))


def monitored(cli: "FitCLI") -> tuple[str | None, str]:
    """The metric that decides which epoch is best, and whether more of it is better."""
    if not validates(cli):
        return "train_loss", "min"
    task = getattr(cli.model, "task", None)
    if task is None:  # a model that is not of this project may log anything: its last epoch counts as its best
        return None, "min"
    return ("val_acc", "max") if task == "classification" else ("val_loss", "min")


def validates(cli: "FitCLI") -> bool:
    return cli.config["trainer"]["limit_val_batches"] != 0 and getattr(cli.datamodule.hparams, "val_size", 1) != 0


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def announce(cli: "FitCLI") -> None:
    """Data, device, batch and model, before anything is trained."""
    if not is_rank_zero() or cli.quiet:
        return
    trainer, model, data = cli.trainer, cli.model, cli.datamodule
    if cli.start is not None and cli.start.finished:
        print(f"{_relative(cli.start.run)} is at its end: nothing to do (--resume never trains anew)", flush=True)
        return
    if cli.start is not None and cli.start.checkpoint is not None:
        print(f"resume  {_relative(cli.start.checkpoint)}, after step {cli.start.step}")
    if hasattr(data, "report"):
        print(data.report())
    name = type(data).__name__
    shape = f": samples of {' x '.join(map(str, data.sample_shape))}" if hasattr(data, "sample_shape") else ""
    classes = getattr(data, "class_names", ())
    what = counted(len(classes), "class", "classes") if classes else getattr(model, "task", "")
    print(f"data    {', '.join(filter(None, (name + shape, what)))}")
    device, count = type(trainer.accelerator).__name__.removesuffix("Accelerator"), trainer.world_size
    batch = data.hparams.get("batch_size", 0)
    accumulate, devices = trainer.accumulate_grad_batches, counted(count, "device")
    together = f"; global batch = {batch * count * accumulate} ({batch} x {devices} x {accumulate} accumulated)"
    print(f"device  {count} x {device}, precision {trainer.precision}{together if batch else ''}")
    if isinstance(data, ImageFolderDataModule):
        workers = data.num_workers(data.dataset("train"))
        why = (
            counted(available_cores(), "core")
            if workers
            else "the pictures are in memory, or the network has the cores"
        )
        print(f"workers {workers} to decode pictures ({why}; --data.num_workers)")
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = f", weights {cli.model.hparams['weights']}" if "weights" in cli.model.hparams else ""
    print(
        f"model   {type(model).__name__}: {trainable:,} trainable of {total:,} parameters{weights}",
        flush=True,
    )


def load_weights(cli: "FitCLI") -> None:
    """Read pretrained weights before what takes long: a missing file, or no network, is said at once. A run that goes
    on has them in its checkpoint.

    Raises:
        ModelError: see :func:`lit_models.backbones.load`.
    """
    goes_on = cli.start is not None and (cli.start.finished or cli.start.checkpoint is not None)
    if isinstance(cli.model, LitTransfer) and is_rank_zero() and not goes_on:
        cli.model.load_pretrained()


@contextlib.contextmanager
def no_partial_run(cli: "FitCLI") -> Iterator[None]:
    """Remove the run's directory, made on the way, when it fails before its first step."""
    try:
        yield
    except Exception:
        if cli.start is not None and is_rank_zero() and cli.trainer.global_step <= cli.start.step:
            cli.start.undo()
        raise


def report(cli: "FitCLI") -> None:
    """Evaluate the best checkpoint; print the result, where the run lies and what to type next."""
    trainer, model = cli.trainer, cli.model
    paths = [getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks]
    best = next((path for path in paths if path), "")
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    skipped = trainer.barebones or trainer.fast_dev_run  # type: ignore[attr-defined]
    if isinstance(model, LitBase) and validates(cli) and not skipped:
        with _without_loggers(trainer):  # the evaluation is no point of the curves
            # Without a checkpoint it is the weights as they are now.
            options: dict[str, Any] = {"ckpt_path": best, "weights_only": True} if best else {}
            metrics |= trainer.validate(model, cli.datamodule, verbose=False, **options)[0]
    folder = trainer.log_dir  # asks all ranks
    if not trainer.is_global_zero:
        return
    print()
    if "val_acc" in metrics:
        accuracy, n = metrics["val_acc"], getattr(model, "samples_evaluated", None)
        if n is None:  # a model that is not of this project: of how many samples is not known
            print(f"val_acc     {accuracy:.4f}")
        else:
            low, high = wilson(round(accuracy * n), n)
            print(f"val_acc     {accuracy:.4f}  (95 % interval {low:.3f} to {high:.3f}, n = {n})")
    for name in ("val_loss", "train_loss"):
        if name in metrics:
            print(f"{name:<10}  {metrics[name]:.4g}")
    if not metrics:
        print("nothing was measured")
    if trainer.loggers and folder is not None:
        print(f"run         {_relative(Path(folder))}")
    if best and not cli.quiet:
        _print_next(model, Path(best), bool(trainer.loggers))


def _print_next(model: Any, best: Path, logged: bool) -> None:
    """What to type next, ready to paste."""
    print(f"checkpoint  {_relative(best)}\n\nnext:")
    run = best.parent.parent
    name = "latest" if run.parent.resolve() == Path(LOGS).resolve() else shlex.quote(str(_relative(run)))
    if isinstance(model, LitBase):
        inputs = "PICTURE_OR_FOLDER..." if model.sample_ndim == 3 else "ROWS.csv"
        print(f"  python scripts/evaluate.py {name}\n  python scripts/predict.py {name} {inputs}")
    if logged:
        print(f"  tensorboard --logdir {shlex.quote(str(_relative(run.parent)))}", flush=True)


@contextlib.contextmanager
def _without_loggers(trainer: Trainer) -> Iterator[None]:
    loggers, trainer.loggers = trainer.loggers, []
    try:
        yield
    finally:
        trainer.loggers = loggers


def _relative(path: Path) -> Path:
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(Path.cwd())
    return path
