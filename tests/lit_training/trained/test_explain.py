"""Heat maps are equal to Grad-CAM written by hand, and mark the known regions of simple networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from datamodules.files import OUTPUT_MARKER
from lit_models import LitCNN, LitMLP, LitTransfer
from lit_training.errors import UsageError
from lit_training.trained.explain import check_explainable, explain_predictions, grad_cam, put_side_by_side
from lit_training.trained.predict import predict


def test_heat_map_is_grad_cam() -> None:
    """The channels of the last convolution are weighted by the mean gradients of the class score."""
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
    torch.testing.assert_close(grad_cam(model, x, classes), expected.detach())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Corner(nn.Module):
    """The score of class 1 is the mean red of the upper left quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red = self.conv(x)[..., :16, :16].flatten(1).mean(1)
        return torch.stack([torch.zeros_like(red), red], 1)


def test_heat_map_marks_the_region_that_decides() -> None:
    model = LitCNN(num_classes=2)
    model.net = Corner()  # type: ignore[assignment]
    x = torch.zeros(1, 3, 32, 32)
    x[:, 0, 4:8, 4:8] = 1
    [heat] = grad_cam(model.eval(), x, torch.tensor([1]))
    assert heat[4:8, 4:8].min() == 1
    assert heat.sum() == 16


@pytest.mark.filterwarnings("ignore:weights=None")
def test_frozen_backbone_can_be_explained() -> None:
    heat = grad_cam(LitTransfer(weights=None).eval(), torch.randn(2, 3, 64, 64), torch.tensor([0, 3]))
    assert heat.shape == (2, 64, 64)
    assert 0 <= heat.min() <= heat.max() <= 1


class Patches(nn.Module):
    """A network with tokens like a vision transformer: a class token, then patches of 8 x 8 pixels.

    The score of class 1 is the red of the patch at (0, 2). The norm ``unread`` does not affect the scores, like the
    patch tokens after the last attention of a vision transformer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 4, 8, 8, bias=False)
        self.norm, self.unread = nn.LayerNorm(4), nn.LayerNorm(4)
        with torch.no_grad():
            self.embed.weight.zero_()[0, 0] = 1 / 64

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)  # (B, 16, 4)
        tokens = self.norm(torch.cat([torch.ones_like(tokens[:, :1]), tokens], 1))  # (B, 17, 4)
        red = tokens[:, 1 + 2, 0] + 0 * self.unread(tokens).sum((1, 2))
        return torch.stack([torch.zeros_like(red), red], 1)


def test_tokens_are_arranged_as_in_the_image() -> None:
    model = LitCNN(num_classes=2)
    model.net = Patches()  # type: ignore[assignment]
    x = torch.zeros(1, 3, 32, 32)
    x[:, 0, :8, 16:24] = 1
    [heat] = grad_cam(model.eval(), x, torch.tensor([1]))
    row, column = divmod(int(heat.argmax()), 32)
    assert row < 8
    assert 16 <= column < 24
    assert heat[16:].max() == 0
    assert heat[:, :8].max() == 0


def by_hand(model: nn.Module, layer: nn.Module, x: torch.Tensor, label: int) -> torch.Tensor:
    """Return Grad-CAM at a norm whose output is (B, 1 + 16, C), with the class token first, or (B, h, w, C)."""
    kept: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda *given: kept.append(given[2]))
    score = model(x.requires_grad_())[:, label].sum()
    hook.remove()
    [gradient] = torch.autograd.grad(score, kept[0])
    if gradient.ndim == 3:
        gradient, output = (tensor[:, 1:].unflatten(1, (4, 4)) for tensor in (gradient, kept[0]))
    else:
        output = kept[0]
    cam = (gradient.mean((1, 2), keepdim=True) * output).sum(3).relu().unsqueeze(1)
    cam = F.interpolate(cam, x.shape[-2:], mode="bilinear").squeeze(1)
    return (cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-12)).detach()


def networks() -> dict[str, Any]:
    """Return name -> (a small transformer, its usual layer for Grad-CAM)."""
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer as TimmTransformer
    from torchvision.models.vision_transformer import VisionTransformer

    small: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_classes": 5}
    timm_vit = TimmTransformer(**small, depth=2, num_heads=2)
    swin = SwinTransformer(**{**small, "patch_size": 4}, depths=(1, 1), num_heads=(2, 2), window_size=4)
    vit = VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5)
    nn.init.normal_(vit.heads.head.weight)  # initialized with zeros
    return {
        "timm vit": (timm_vit, timm_vit.blocks[-1].norm1),
        "timm swin": (swin, swin.norm),
        "torchvision vit": (vit, vit.encoder.layers[-1].ln_1),
    }


@pytest.mark.parametrize("name", ["timm vit", "timm swin", "torchvision vit"])
def test_transformers_are_explained_at_the_last_layer_whose_patches_matter(name: str) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    net, layer = networks()[name]
    model = LitCNN(num_classes=5)
    model.net = net
    x = torch.randn(2, 3, 32, 32)
    found = grad_cam(model.eval(), x, torch.tensor([3, 3]))
    torch.testing.assert_close(found, by_hand(model, layer, x, 3))
    assert found.amax((1, 2)).tolist() == [1, 1]
    assert found.std() > 0.05
    assert not any(module._forward_hooks for module in model.modules())


def test_network_without_feature_map_is_refused() -> None:
    model = LitCNN(num_classes=2)
    model.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))  # type: ignore[assignment]
    with pytest.raises(UsageError, match="no layer with a feature map"):
        grad_cam(model.eval(), torch.randn(1, 3, 32, 32), torch.tensor([0]))


def test_heat_map_is_to_the_right_of_its_image() -> None:
    pictures = torch.rand(2, 3, 8, 8)
    both = put_side_by_side(pictures, torch.rand(2, 8, 8))
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
    assert {path.name for path in (tmp_path / "out").iterdir()} == {OUTPUT_MARKER, "1_a.png", "3_b.png"}
    assert len(list(tmp_path.iterdir())) == 4  # nothing is written next to the photos


def test_other_models_are_refused() -> None:
    with pytest.raises(UsageError, match="not for LitMLP"):
        check_explainable(LitMLP())
    with pytest.raises(UsageError, match="not for LitCNN"):
        check_explainable(LitCNN(loss="squared_error"))
