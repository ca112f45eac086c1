"""What is exported of own networks, and how its answers are compared with theirs."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from datamodules import Preprocessing
from lit_models import LitBase, LitTransfer
from lit_training.errors import UsageError
from lit_training.trained import export
from tests.support.photos import scene


class Own(LitBase):
    """A network whose arguments do not say the number of its outputs."""

    def __init__(self, in_features: int = 6) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(in_features, 3)
        self.make_metrics(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x if x.ndim == 2 else x.mean((2, 3)))


@pytest.mark.parametrize(("task", "ndim"), [("classification", 1), ("regression", 3)])
def test_own_networks_on_rows_and_pictures(task: Any, ndim: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = Own(6 if ndim == 1 else 3).eval()
    model.task, model.sample_ndim, model.class_names = task, ndim, None
    model.preprocessing = Preprocessing(32, 36).to_dict() if ndim == 3 else None
    assert export.describe_network(model)["license_of_weights"] == "unknown"
    export.build_onnx(model, tmp_path / export.MODEL)
    name = "rows.py" if ndim == 1 else "pictures.py"
    shutil.copy(Path(export.__file__).parent / "examples" / name, tmp_path / export.EXAMPLE)
    np.save("rows.npy", np.random.default_rng(0).standard_normal((4, 6)))
    scene(1).save("picture.png")
    said = export.compare_answers(model, tmp_path, ["rows.npy" if ndim == 1 else "picture.png"])
    same = "the same class for each, " * (task == "classification")
    assert said.startswith(f"{'4 rows' if ndim == 1 else '1 picture'}: {same}the largest difference is ")


def test_large_outputs_may_differ_by_a_share_and_small_ones_by_an_amount(tmp_path: Path) -> None:
    model = Own().eval()
    model.task, model.sample_ndim = "regression", 1
    np.save(tmp_path / "rows.npy", np.ones((1, 6), np.float32))
    for factor, allowed, refused in ((1e6, 4e-4, 6e-4), (1e-6, 4e-4, 6e-4)):
        torch.nn.init.constant_(model.layer.weight, factor)
        torch.nn.init.zeros_(model.layer.weight[0])
        torch.nn.init.zeros_(model.layer.bias)
        for difference, is_refused in ((allowed, False), (refused, True)):
            value = 6 * factor
            answer = {"path": "", "outputs": [0.0, value + difference * max(1.0, value), value]}
            (tmp_path / export.EXAMPLE).write_text(f"print({json.dumps(answer)!r})")
            with pytest.raises(UsageError, match=r"0\.0006: row 1") if is_refused else contextlib.nullcontext():
                export.compare_answers(model, tmp_path, [str(tmp_path / "rows.npy")])


@pytest.mark.parametrize("is_tied", [False, True])
def test_weights_of_own_networks_are_whole(is_tied: bool, tmp_path: Path) -> None:
    model = Own()
    model.net = nn.Linear(6, 3)  # a part of the network, beside model.layer
    if is_tied:
        model.net.weight = model.layer.weight
    export._write_weights(model, tmp_path / "own.safetensors")
    found = load_file(tmp_path / "own.safetensors")
    assert sorted(found) == ["layer.bias", "layer.weight", "net.bias", "net.weight"]
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_facts_have_no_path_of_this_machine() -> None:
    model = LitTransfer("resnet18", num_classes=2, weights="none", freeze=False)
    model.hparams["weights"] = "/home/me/my weights.pth"
    assert export.describe_network(model)["license_of_weights"] == "that of my weights.pth"
