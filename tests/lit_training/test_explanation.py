"""Heat maps: held against Grad-CAM written by hand, and a network whose eyes are known."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from lit_models import LitCNN, LitMLP, LitTransfer
from lit_training import explanation
from lit_training.explanation import beside, explain_predictions, heat_maps
from lit_training.messages import UsageError
from lit_training.prediction import predict

pytest.importorskip("captum")


def test_it_is_grad_cam() -> None:
    """Gradients of the class, averaged over places, weigh the channels of the last convolution."""
    torch.manual_seed(3)
    model = LitCNN().eval()
    x, classes = torch.randn(3, 3, 32, 32), torch.tensor([1, 0, 7])
    kept: list[torch.Tensor] = []
    hook = model.net.conv2.register_forward_hook(lambda *given: kept.append(given[2]))
    scores = model(x)[torch.arange(3), classes].sum()
    hook.remove()
    [gradient] = torch.autograd.grad(scores, kept[0])
    cam = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu()
    cam = F.interpolate(cam, (32, 32), mode="bilinear").squeeze(1)
    expected = cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-12)
    torch.testing.assert_close(heat_maps(model, x, classes), expected.detach())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Corner(nn.Module):
    """Class 1 is how red the upper left quarter is."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Conv2d(3, 1, 1, bias=False)
        with torch.no_grad():
            self.eye.weight.copy_(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red = self.eye(x)[..., :16, :16].flatten(1).mean(1)
        return torch.stack([torch.zeros_like(red), red], 1)


def test_the_map_is_hot_where_the_network_looks() -> None:
    model = LitCNN(num_classes=2)
    model.net = Corner()  # type: ignore[assignment]
    x = torch.zeros(1, 3, 32, 32)
    x[:, 0, 4:8, 4:8] = 1
    [heat] = heat_maps(model.eval(), x, torch.tensor([1]))
    assert heat[4:8, 4:8].min() == 1
    assert heat.sum() == 16


@pytest.mark.filterwarnings("ignore:weights=None")
def test_a_frozen_backbone_can_be_explained() -> None:
    heat = heat_maps(LitTransfer(weights=None).eval(), torch.randn(2, 3, 64, 64), torch.tensor([0, 3]))
    assert heat.shape == (2, 64, 64)
    assert 0 <= heat.min() <= heat.max() <= 1


def test_beside() -> None:
    pictures = torch.rand(2, 3, 8, 8)
    both = beside(pictures, torch.rand(2, 8, 8))
    assert both.shape == (2, 3, 8, 16)
    assert torch.equal(both[..., :8], pictures)
    assert 0 <= both.min() <= both.max() <= 1


def test_predictions_are_drawn(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    model = LitCNN().eval()
    files = [str(tmp_path / f"{name}.png") for name in ("a", "broken", "b")]
    assert explain_predictions(model, list(predict(model, files)), tmp_path / "out") == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"1_a.png", "3_b.png"}
    assert len(list(tmp_path.iterdir())) == 4  # nothing among the photos themselves


def test_what_cannot_be_explained_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not for LitMLP"):
        explanation.check(LitMLP())
    with pytest.raises(UsageError, match="not for LitCNN"):
        explanation.check(LitCNN(loss="squared_error"))
    real = __import__

    def without_captum(name: str, *given: Any) -> Any:
        if name.startswith("captum"):
            raise ImportError(name)
        return real(name, *given)

    monkeypatch.setattr("builtins.__import__", without_captum)
    with pytest.raises(UsageError, match=r"pip install -e '\.\[explain\]'"):
        explanation.check(LitCNN())
