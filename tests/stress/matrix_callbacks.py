"""The rows of the matrix for Lightning's callbacks."""

import pytest
import torch

from tests.stress.matrix import BATCHES, Row, Seen

NOT_TRAINED = {
    "BaseFinetuning": "a base class",
    "BasePredictionWriter": "a base class for predictions",
    "Callback": "a base class",
    "Checkpoint": "a base class",
    "ProgressBar": "a base class",
}
"""Exported by lightning.pytorch.callbacks, but nothing to train with."""


def callback(name: str, **arguments: object) -> str:
    """Return a configuration with one callback."""
    lines = [f"      {key}: {value}" for key, value in arguments.items()]
    path = name if "." in name else f"lightning.pytorch.callbacks.{name}"
    head = ["trainer:", "  callbacks:", f"  - class_path: {path}"]
    return "\n".join([*head, *(["    init_args:", *lines] if lines else [])]) + "\n"


def accumulates(seen: Seen) -> None:
    assert seen.last["global_step"] == BATCHES / 2 + BATCHES / 3


def logs_rates(seen: Seen) -> None:
    assert seen.column("lr-SGD") == [0.05] * len(seen.column("lr-SGD")) != []


def logs_device(seen: Seen) -> None:
    assert any("cpu_percent" in name for row in seen.rows for name in row), seen.rows[-1]


def prunes(seen: Seen) -> None:
    weight = seen.last["state_dict"]["head.weight"]
    assert 0 < (weight == 0).sum() < weight.numel()


def unfreezes(seen: Seen) -> None:
    groups = seen.last["optimizer_states"][0]["param_groups"]
    assert len(groups) == 2, groups


def saves_more(seen: Seen) -> None:
    names = sorted(path.name for path in (seen.run / "checkpoints").glob("step=*.ckpt"))
    assert names == [f"step={step}.ckpt" for step in (12, 4, 8)], names
    assert "ResumePoint" not in seen.last["callbacks"]


def finds_rate(seen: Seen) -> None:
    assert seen.last["optimizer_states"][0]["param_groups"][0]["lr"] != 0.05
    assert torch.isfinite(seen.last["state_dict"]["head.weight"]).all()


def finds_size(seen: Seen) -> None:
    assert seen.last["datamodule_hyper_parameters"]["batch_size"] == 8
    assert seen.last["global_step"] == 2 * 24 / 8


def stops_early(seen: Seen) -> None:
    assert seen.last["global_step"] == BATCHES
    assert seen.last["callbacks"]["EarlyStopping{'monitor': 'val_loss', 'mode': 'max'}"]["stopped_epoch"] == 0


def calls_function(seen: Seen) -> None:
    assert "epoch 1 begins" in seen.text


def shows_summary(seen: Seen) -> None:
    assert "Trainable params" in seen.text
    assert "backbone" in seen.text


def shows_bar(seen: Seen) -> None:
    assert f"{BATCHES}/{BATCHES}" in seen.text
    assert "epoch 1/2" not in seen.text
    assert "note: the lines of fit.py are off, because" in seen.text


def removes_its_file(seen: Seen) -> None:
    assert not list(seen.folder.rglob("on_exception.ckpt"))


def measures(seen: Seen) -> None:
    assert seen.column("train/device/samples_per_sec")


def counts_time(seen: Seen) -> None:
    (state,) = [value for name, value in seen.last["callbacks"].items() if name == "Timer"]
    assert state["time_elapsed"]["train"] > 0


def averages_weights(seen: Seen) -> None:
    saved = seen.checkpoint("best.ckpt")
    assert not torch.equal(saved["current_model_state"]["net.0.weight"], saved["state_dict"]["net.0.weight"])
    at_epoch = [row for row in seen.rows if row.get("epoch") == str(saved["epoch"])]
    validated = [float(row["val_loss"]) for row in at_epoch if "val_loss" in row]
    assert validated == [pytest.approx(seen.evaluate(), rel=1e-3)]
    shows_the_saved_weights(seen)


def ends_with_the_average(seen: Seen) -> None:
    best, last = (seen.checkpoint(name)["state_dict"]["net.0.weight"] for name in ("best.ckpt", "last.ckpt"))
    assert torch.equal(best, last)
    shows_the_saved_weights(seen)


def shows_the_saved_weights(seen: Seen) -> None:
    """best.ckpt is the network that was evaluated at the end."""
    assert seen.evaluate() == pytest.approx(seen.printed("val_loss"), rel=1e-3)
    assert "average the averaged weights are validated and saved in best.ckpt" in seen.text


SEVERAL = """trainer:
  callbacks:
  - class_path: lightning.pytorch.callbacks.RichProgressBar
  - class_path: lightning.pytorch.callbacks.Timer
    init_args: {duration: 00:01:00:00}
  - class_path: lightning.pytorch.callbacks.LearningRateMonitor
  - class_path: lightning.pytorch.callbacks.RichModelSummary
  - class_path: lightning.pytorch.callbacks.EarlyStopping
    init_args: {monitor: val_loss, patience: 5}
"""

ROWS = [
    Row("BackboneFinetuning", yaml=callback("BackboneFinetuning", unfreeze_backbone_at_epoch=1), effect=unfreezes),
    Row("BatchSizeFinder", yaml=callback("BatchSizeFinder", max_trials=3), effect=finds_size, kills=(1, 4)),
    Row("DeviceStatsMonitor", yaml=callback("DeviceStatsMonitor", cpu_stats="true"), effect=logs_device),
    Row("EarlyStopping", yaml=callback("EarlyStopping", monitor="val_loss", mode="max", patience=1), kills=(3,)),
    Row(
        "EMAWeightAveraging",
        yaml=callback("EMAWeightAveraging", decay=0.9),
        effect=averages_weights,
        model="parts.Classifier",
    ),
    Row(
        "GradientAccumulationScheduler",
        yaml=callback("GradientAccumulationScheduler", scheduling="{0: 2, 1: 3}"),
        effect=accumulates,
    ),
    Row("LambdaCallback", yaml=callback("LambdaCallback", on_train_epoch_start="parts.say"), effect=calls_function),
    Row(
        "LearningRateFinder",
        "--data.batch_size 1",
        yaml=callback("LearningRateFinder", num_training_steps=40, max_lr=0.1),
        effect=finds_rate,
        kills=(3, 30),
    ),
    Row("LearningRateMonitor", yaml=callback("LearningRateMonitor"), effect=logs_rates),
    Row(
        "ModelCheckpoint",
        yaml=callback("ModelCheckpoint", every_n_train_steps=4, save_top_k=-1, save_last="true", filename="'{step}'"),
        effect=saves_more,
    ),
    Row(
        "ModelPruning",
        yaml=callback("ModelPruning", pruning_fn="l1_unstructured", amount=0.3),
        effect=prunes,
        differs="a checkpoint holds no masks: after a resume, pruned weights change until the next pruning",
    ),
    Row("ModelSummary", yaml=callback("ModelSummary", max_depth=2), effect=shows_summary),
    Row("OnExceptionCheckpoint", yaml=callback("OnExceptionCheckpoint", dirpath="."), effect=removes_its_file),
    Row("RichModelSummary", yaml=callback("RichModelSummary", max_depth=2), effect=shows_summary),
    Row("RichProgressBar", yaml=callback("RichProgressBar"), effect=shows_bar),
    Row("RichProgressBar with Timer and others", yaml=SEVERAL, effect=shows_bar),
    Row("SpikeDetection", yaml=callback("SpikeDetection")),
    Row(
        "StochasticWeightAveraging",
        yaml=callback("StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=1),
        effect=ends_with_the_average,
        model="parts.Classifier",
    ),
    Row(
        "ThroughputMonitor",
        yaml=callback("ThroughputMonitor", batch_size_fn="parts.size", window_size=2),
        effect=measures,
        stands_back="its counts begin again after a resume, as in a bare Trainer",
    ),
    Row("Timer", yaml=callback("Timer", duration="00:01:00:00"), effect=counts_time),
    Row("TQDMProgressBar", yaml=callback("TQDMProgressBar"), effect=shows_bar),
    Row(
        "EMAWeightAveraging with update_starting_at_epoch",
        yaml=callback("EMAWeightAveraging", decay=0.5, update_starting_at_epoch=0),
        effect=averages_weights,
        model="parts.Classifier",
    ),
    Row("WeightAveraging", yaml=callback("WeightAveraging"), effect=averages_weights, model="parts.Classifier"),
    Row("pytorch_lightning names", yaml=callback("pytorch_lightning.callbacks.LearningRateMonitor"), effect=logs_rates),
    Row("LBFGS", model="parts.LBFGS"),
    Row(
        "ReduceLROnPlateau without its metric",
        model="parts.Plateau",
        refused="conditioned on metric val_accuracy which is not available. Available metrics are: [",
        stands_back="the run stops after its first epoch, with the names of the metrics",
    ),
    Row("schedule by step", model="parts.BySteps"),
]
