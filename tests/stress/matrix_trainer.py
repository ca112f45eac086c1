"""The rows of the matrix for Lightning's loggers, profilers, plugins, strategies and precisions, and the Trainer."""

import ast
import csv
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.stress.matrix import BATCHES, Row, Seen

SETTINGS = "trainer:\n  callbacks:\n  - class_path: parts.Settings\n"
SAVER = """trainer:
  callbacks:
  - class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args:
      filename: "{epoch}"
      save_top_k: -1
"""
LOGGERS = """trainer:
  logger:
  - class_path: lightning.pytorch.loggers.CSVLogger
    init_args:
      save_dir: tables
      name: mine
      version: one
  - class_path: lightning.pytorch.loggers.TensorBoardLogger
    init_args:
      save_dir: curves
      name: mine
  callbacks:
  - class_path: parts.Settings
"""
PROFILER = """trainer:
  profiler:
    class_path: lightning.pytorch.profilers.AdvancedProfiler
    init_args:
      filename: calls
"""
MISSING = "refused in one line, which says what to install"
NO_GPU = "refused on a CPU"


def says(text: str, seen: Seen) -> None:
    assert text in seen.text, seen.text


def settings(seen: Seen, **expected: Any) -> dict[str, Any]:
    """Return what the callback Settings printed last, and compare it."""
    found = ast.literal_eval(re.findall("settings (.*)", seen.text)[-1])
    assert {name: found[name] for name in expected} == expected, found
    return found


def has(**expected: Any) -> Callable[[Seen], None]:
    def check(seen: Seen) -> None:
        settings(seen, **expected)

    return check


def ends(step: int, seen: Seen) -> None:
    assert seen.last["global_step"] == step


def validates(steps: list[int], seen: Seen) -> None:
    assert [int(row["step"]) for row in seen.rows if "val_loss" in row] == steps, seen.rows


def logs(steps: list[int], seen: Seen) -> None:
    assert [int(row["step"]) for row in seen.rows if "train_loss" in row] == steps, seen.rows


def writes_tables(seen: Seen) -> None:
    """Each step is in one of the files: no start deletes that of an earlier one."""
    steps = set()
    for path in seen.folder.glob("tables/mine/*/metrics*.csv"):
        with path.open(newline="") as file:
            steps |= {int(row["step"]) for row in csv.DictReader(file) if row.get("train_loss")}
    assert steps == set(range(2 * BATCHES)), steps


def writes_curves(seen: Seen) -> None:
    assert len(list(seen.folder.glob("curves/mine/version_*/events*"))) >= 1
    assert len(seen.column("train_loss")) == 2 * BATCHES


def writes_both(seen: Seen) -> None:
    writes_tables(seen)
    writes_curves(seen)
    settings(seen, loggers=["CSVLogger", "TensorBoardLogger", "MetricsCSV"], logger="CSVLogger")


def reports(name: str, seen: Seen) -> None:
    """One report of this process, on training alone."""
    assert seen.text.count("Profiler Report") == 1 == seen.text.count("FIT Profiler Report"), seen.text[-3000:]
    assert name in seen.text


def writes_report(seen: Seen) -> None:
    (path,) = seen.run.glob("fit-calls*.txt")
    assert "run_training_epoch" in path.read_text()


def saves_for_user(seen: Seen) -> None:
    for epoch in (0, 1):
        saved = seen.checkpoint(f"epoch={epoch}.ckpt")
        assert saved["global_step"] == BATCHES * (epoch + 1)
        assert "ResumePoint" not in saved["callbacks"]
    assert "ResumePoint" in seen.last["callbacks"]


def has_type(kind: torch.dtype, seen: Seen) -> None:
    assert {weight.dtype for weight in seen.last["state_dict"].values()} == {kind}


def clips(limit: float, seen: Seen) -> None:
    assert settings(seen)["largest"] <= limit * 1.01


def repeats_batch(seen: Seen) -> None:
    ends(4, seen)
    assert len(set(settings(seen)["first"])) <= 1  # a resumed process begins no epoch


def redraws(seen: Seen) -> None:
    assert seen.text.count("draws rows") >= 2


ROWS = [
    Row("CSVLogger", "--logger CSVLogger --logger.save_dir tables --logger.name mine", effect=writes_tables),
    Row(
        "TensorBoardLogger", "--logger TensorBoardLogger --logger.save_dir curves --logger.name mine", "", writes_curves
    ),
    Row("several loggers", yaml=LOGGERS, effect=writes_both),
    *(
        Row(name, f"--logger {name}", refused=f"pip install -U '{package}", stands_back=MISSING)
        for name, package in (("MLFlowLogger", "mlflow"), ("WandbLogger", "wandb"), ("CometLogger", "comet"))
    ),
    *(
        Row(
            name,
            f"--logger lightning.pytorch.loggers.{name}",
            refused=name,
            stands_back="is no Logger of this Lightning",
        )
        for name in ("LitLogger", "NeptuneLogger")
    ),
    Row("SimpleProfiler", "--profiler simple", effect=partial(reports, "run_training_epoch")),
    Row("AdvancedProfiler", yaml=PROFILER, effect=writes_report),
    Row("PyTorchProfiler", "--profiler pytorch", effect=partial(reports, "Self CPU time total")),
    Row("XLAProfiler", "--profiler xla", refused="pip install -U 'torch_xla", stands_back=MISSING),
    Row("AsyncCheckpointIO", "--plugins AsyncCheckpointIO", SAVER, saves_for_user),
    Row("TorchCheckpointIO", "--plugins TorchCheckpointIO", SAVER, saves_for_user),
    Row("XLACheckpointIO", "--plugins XLACheckpointIO", refused="pip install -U 'torch_xla", stands_back=MISSING),
    Row("TorchSyncBatchNorm", "--plugins TorchSyncBatchNorm"),
    Row(
        "LightningEnvironment",
        "--plugins LightningEnvironment --strategy ddp",
        SETTINGS,
        has(environment="LightningEnvironment"),
    ),
    Row("MPIEnvironment", "--plugins MPIEnvironment", refused="pip install -U 'mpi4py", stands_back=MISSING),
    Row(
        "LSFEnvironment", "--plugins LSFEnvironment", refused="LSB_DJOB_RANKFILE", stands_back="refused outside of LSF"
    ),
    Row("precision 32-true", "--precision 32-true", effect=partial(has_type, torch.float32)),
    Row("precision 64-true", "--precision 64-true", effect=partial(has_type, torch.float64)),
    Row("precision 16-true", "--precision 16-true", effect=partial(has_type, torch.float16)),
    Row(
        "precision 16-mixed",
        "--precision 16-mixed",
        effect=partial(says, "precision bf16-mixed"),
        stands_back="on a CPU Lightning trains with bf16-mixed; the line `device` says it",
    ),
    Row("DoublePrecision", "--plugins DoublePrecision", effect=partial(has_type, torch.float64)),
    Row("HalfPrecision", "--plugins HalfPrecision", effect=partial(has_type, torch.float16)),
    Row("precision transformer-engine", "--precision transformer-engine", refused="transformer_", stands_back=MISSING),
    Row(
        "BitsandbytesPrecision",
        "--plugins BitsandbytesPrecision --plugins.mode nf4",
        refused="pip install -U 'bitsandbytes'",
        stands_back=MISSING,
    ),
    Row("strategy single_device", "--strategy single_device", SETTINGS, has(strategy="SingleDeviceStrategy")),
    Row("strategy ddp", "--strategy ddp", SETTINGS, has(strategy="DDPStrategy")),
    Row("DDPStrategy", "--strategy DDPStrategy --strategy.static_graph true", SETTINGS, has(strategy="DDPStrategy")),
    *(
        Row(f"strategy {name}", f"--strategy {name}", SETTINGS, has(strategy="DDPStrategy"), stands_back="becomes ddp")
        for name in ("ddp_spawn", "ddp_fork", "ddp_notebook", "DDPStrategy --strategy.start_method spawn")
    ),
    Row("strategy fsdp", "--strategy fsdp", refused="requires a GPU", stands_back=NO_GPU),
    Row("strategy deepspeed", "--strategy deepspeed", refused="pip install -U deepspeed", stands_back=MISSING),
    Row("strategy xla", "--strategy xla", refused="pip install -U 'torch_xla", stands_back=MISSING),
    Row(
        "ModelParallelStrategy",
        "--strategy ModelParallelStrategy",
        refused="you are required to override the `configure_model()` hook",
        stands_back="refused for a model without `configure_model`",
    ),
    Row("overfit_batches", "--overfit_batches 2", SETTINGS, repeats_batch, kills=(1, 3)),
    Row("detect_anomaly", "--detect_anomaly true", SETTINGS, has(anomaly=True)),
    Row("deterministic", "--deterministic true", SETTINGS, has(deterministic=True, warns=False)),
    Row("deterministic warn", "--deterministic warn", SETTINGS, has(deterministic=True, warns=True)),
    Row("benchmark", "--benchmark true", SETTINGS, has(benchmark=True)),
    Row("inference_mode", "--inference_mode false", SETTINGS, has(inference=False)),
    Row("limit_train_batches", "--limit_train_batches 4", effect=partial(ends, 8), kills=(2, 6)),
    Row("limit_val_batches", "--limit_val_batches 0", effect=partial(validates, [])),
    Row("val_check_interval", "--val_check_interval 0.5", effect=partial(validates, [2, 5, 8, 11])),
    Row(
        "val_check_interval across epochs",
        "--val_check_interval 5 --check_val_every_n_epoch null",
        effect=partial(validates, [4, 9]),
    ),
    Row("check_val_every_n_epoch", "--check_val_every_n_epoch 2", effect=partial(validates, [11])),
    Row("num_sanity_val_steps", "--num_sanity_val_steps 1", effect=partial(validates, [5, 11])),
    Row("log_every_n_steps", "--log_every_n_steps 4", effect=partial(logs, [3, 7, 11])),
    Row("gradient_clip_val", "--gradient_clip_val 0.01", SETTINGS, partial(clips, 0.01)),
    Row("accumulate_grad_batches", "--accumulate_grad_batches 2", effect=partial(ends, 6)),
    Row("sync_batchnorm", "--sync_batchnorm true", model="parts.Classifier", effect=partial(ends, 12)),
    Row(
        "sync_batchnorm with ddp",
        "--sync_batchnorm true --strategy ddp",
        model="parts.Classifier",
        refused="--sync_batchnorm needs GPUs: leave it out",
        stands_back=NO_GPU,
    ),
    Row(
        "reload_dataloaders_every_n_epochs",
        "--reload_dataloaders_every_n_epochs 1 --data parts.Redrawn",
        effect=redraws,
    ),
    Row("max_time", "--max_time 00:01:00:00", effect=partial(ends, 12)),
    Row("min_epochs", "--min_epochs 2 --max_epochs 3 --max_time 00:01:00:00", effect=partial(ends, 18)),
    Row("max_steps", "--max_steps 11", effect=partial(ends, 11)),
    Row("enable_model_summary", "--enable_model_summary true", effect=partial(says, "Trainable params")),
]
"""Each part that Lightning ships and that runs on a CPU, and the Trainer's arguments."""
