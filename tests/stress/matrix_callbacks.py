"""The rows of the matrix for Lightning's callbacks."""

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


def averages(seen: Seen) -> None:
    state = seen.last["callbacks"]
    assert any("average" in str(value.keys()) for value in state.values()), state.keys()


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


ROWS = [
    Row("BackboneFinetuning", yaml=callback("BackboneFinetuning", unfreeze_backbone_at_epoch=1), effect=unfreezes),
    Row("BatchSizeFinder", yaml=callback("BatchSizeFinder", max_trials=2), effect=finds_size, kills=(1, 4)),
    Row("DeviceStatsMonitor", yaml=callback("DeviceStatsMonitor", cpu_stats="true"), effect=logs_device),
    Row("EMAWeightAveraging", yaml=callback("EMAWeightAveraging", decay=0.9), effect=averages),
    Row(
        "GradientAccumulationScheduler",
        yaml=callback("GradientAccumulationScheduler", scheduling="{0: 2, 1: 3}"),
        effect=accumulates,
    ),
    Row("LearningRateFinder", yaml=callback("LearningRateFinder", num_training_steps=20), effect=finds_rate),
    Row("LearningRateMonitor", yaml=callback("LearningRateMonitor"), effect=logs_rates),
    Row(
        "ModelCheckpoint",
        yaml=callback("ModelCheckpoint", every_n_train_steps=4, save_top_k=-1, save_last="true", filename="'{step}'"),
        effect=saves_more,
    ),
    Row("ModelPruning", yaml=callback("ModelPruning", pruning_fn="l1_unstructured", amount=0.3), effect=prunes),
    Row("StochasticWeightAveraging", yaml=callback("StochasticWeightAveraging", swa_lrs=0.01, swa_epoch_start=1)),
]
