"""Backbones: head, features, preprocessing and weights."""

import hashlib
import io
import os
import re
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from lit_models import LitTransfer, ModelError, backbones

pytestmark = pytest.mark.filterwarnings("ignore:weights=None")

NAMES = models.list_models(module=models)
SMALLEST = {  # one network per family, with a picture size in pixels that it accepts
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 16,
    "efficientnet_v2_s": 16,
    "googlenet": 16,
    "inception_v3": 80,
    "maxvit_t": 224,
    "mnasnet0_5": 16,
    "mobilenet_v2": 16,
    "mobilenet_v3_small": 16,
    "regnet_x_400mf": 16,
    "regnet_y_400mf": 16,
    "resnet18": 16,
    "resnext50_32x4d": 16,
    "shufflenet_v2_x0_5": 16,
    "squeezenet1_1": 32,
    "swin_t": 16,
    "swin_v2_t": 16,
    "vgg11": 32,
    "vit_b_32": 224,
    "wide_resnet50_2": 16,
}


class EmptyOnMeta(TorchFunctionMode):
    """Create weights without memory or values. (torch.device("meta") also breaks the arithmetic of regnet.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        return func(*args, **{**options, "device": "meta"} if func is torch.empty else options)


def test_every_torchvision_family_is_tested() -> None:
    def family(name: str) -> str:
        return re.match(r"wide_resnet|resnext|mobilenet_v\d|efficientnet_v2|swin_v2|regnet_.|[a-z]+", name)[0]  # type: ignore[index]

    assert {family(name) for name in NAMES} == {family(name) for name in SMALLEST}
    assert len(NAMES) >= 80


@pytest.mark.parametrize("name", NAMES)
def test_every_network_gets_a_new_head(name: str) -> None:
    with EmptyOnMeta():
        network, head_name = backbones.build(name, 7)
    head = network.get_submodule(head_name)
    assert isinstance(head, nn.Linear | nn.Conv2d)
    fan_out, fan_in = head.weight.shape[:2]
    assert fan_out == 7
    # The other layers are unchanged: with 1000 outputs it is the published network without auxiliary heads.
    own = sum(parameter.numel() for parameter in network.parameters())
    published = models.get_model_weights(name).DEFAULT.meta["num_params"]
    auxiliary = (
        3_326_696 if name == "inception_v3" else 0
    )  # torchvision counts the auxiliary head of inception_v3, but not those of googlenet
    assert own + (1000 - 7) * (fan_in + (head.bias is not None)) == published - auxiliary


@pytest.mark.parametrize(
    ("name", "side"),
    [
        pytest.param(name, side, marks=[pytest.mark.slow] if name in ("maxvit_t", "vgg11", "vit_b_32") else [])
        for name, side in SMALLEST.items()
    ],
)
def test_every_family_runs(name: str, side: int) -> None:
    model = LitTransfer(name, 7, weights=None)
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        output, features = model(x), model.features(x)
        assert output.shape == (2, 7)
        assert output.isfinite().all()
        if name.startswith("squeezenet"):  # its pooling comes after the head
            assert features is None
        else:
            assert features is not None
            assert features.ndim == 2
            assert torch.equal(model.head(features), output)
            assert torch.equal(model(features), output)
        # The features are the same in training mode and in evaluation mode.
        assert torch.equal(model.train()(x), output)
        assert torch.equal(model.eval()(x), output)


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_matches_the_published_weights(name: str) -> None:
    transform = models.get_model_weights(name).DEFAULT.transforms()
    spec = backbones.preprocessing(name, nn.Identity())
    picture = torch.randint(256, (3, spec["resize_size"] + 9, spec["resize_size"] + 30), dtype=torch.uint8)
    assert transform(picture).shape == (3, spec["image_size"], spec["image_size"])
    pixels = picture[:, :1, :1].expand(3, spec["image_size"], spec["image_size"]) / 255
    want = (pixels - torch.tensor(spec["mean"]).view(3, 1, 1)) / torch.tensor(spec["std"]).view(3, 1, 1)
    torch.testing.assert_close(transform(picture[:, :1, :1].expand(3, 600, 600)), want)
    assert spec["interpolation"] == transform.interpolation.value


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet81", "did you mean resnet18"),
        ("fasterrcnn_resnet50_fpn", "torchvision"),
        ("timm/resnet81", "did you mean timm/resnet18"),
        ("timm/resnet18.no_such_tag", "did you mean timm/resnet18"),
        ("timm/timm/resnet18", "timm has no classification network"),
        ("timm/hf-hub:someone/model", "timm has no classification network"),  # nothing is fetched
    ],
)
def test_unknown_name_suggests_the_closest_one(name: str, words: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with pytest.raises(ModelError, match=words):
        backbones.build(name, 2)


def test_a_timm_backbone_has_features_and_head() -> None:
    pytest.importorskip("timm")
    model = LitTransfer("timm/test_resnet", 5, weights=None)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.features(x)
        assert features is not None
        assert torch.equal(model.head(features), model(x))
    assert {name for name, p in model.net.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
    assert set(backbones.preprocessing("resnet18", model.net)) == set(model.preprocessing or {})


# --- weights ------------------------------------------------------------------------------------------------------

SMALL = "shufflenet_v2_x0_5"


def other_values(network: nn.Module) -> dict[str, Tensor]:
    """Return a state dict of the network with other values."""
    return {
        name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor + 3
        for name, tensor in network.state_dict().items()
    }


@pytest.mark.parametrize("kind", ["pth", "safetensors", "nested"])
@pytest.mark.parametrize("classes", [5, 1000])
def test_weights_file_is_loaded_except_for_the_head(kind: str, classes: int) -> None:
    network, head_name = backbones.build(SMALL, 5)
    state = other_values(backbones.build(SMALL, classes)[0])
    path = f"weights.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": state} if kind == "nested" else state, path)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    backbones.load(network, head_name, SMALL, path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith("fc.") else state[name]), name


def test_mismatch_message_lists_missing_unexpected_and_wrong_shapes() -> None:
    network, head_name = backbones.build(SMALL, 5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = other_values(network)
    state["conv9.0.weight"] = state.pop("conv5.0.weight")
    state["conv1.0.weight"] = torch.zeros(1, 2, 3, 4)
    torch.save(state, "weights.pth")
    with pytest.raises(ModelError) as refusal:
        backbones.load(network, head_name, SMALL, "weights.pth")
    assert str(refusal.value) == (
        "weights.pth does not contain weights of shufflenet_v2_x0_5: "
        "missing conv5.0.weight; unexpected conv9.0.weight; "
        "wrong shape conv1.0.weight (choose the matching --model.backbone)"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    torch.save(backbones.build("mnasnet0_5", 5)[0].state_dict(), "weights.pth")
    with pytest.raises(ModelError, match=r"missing .*5 more; unexpected .* and \d+ more"):
        backbones.load(network, head_name, SMALL, "weights.pth")


def test_unreadable_weights_files_are_refused(tmp_path: Path) -> None:
    network, head_name = backbones.build(SMALL, 5)
    Path("broken.pth").write_bytes(b"not a zip file")
    Path("broken.safetensors").write_bytes(b"\x00" * 20)
    torch.save([1, 2], "list.pth")
    torch.save({"model": nn.Linear(1, 1)}, "objects.pth")  # unpickling it would execute code
    for path, words in {
        "nowhere.pth": "no weights file nowhere.pth",
        "broken.pth": "read safely",
        "broken.safetensors": "read safely",
        "list.pth": r"is not a state dict \(names",
        "objects.pth": "read safely",
    }.items():
        with pytest.raises(ModelError, match=words) as refusal:
            backbones.load(network, head_name, SMALL, path)
        assert "\n" not in str(refusal.value)


def test_published_files_in_older_formats_are_loaded() -> None:
    """Older tensor names (densenet, vit), no num_batches_tracked, no version number (mnasnet)."""
    dense = models.DenseNet(4, (2, 1), 8, num_classes=3)
    vit = models.VisionTransformer(32, 16, 2, 1, 8, 8, num_classes=3)
    for network, head_name, new, old in (
        (dense, "classifier", r"(denselayer\d\.(?:norm|conv))([12])\.", r"\1.\2."),
        (vit, "heads.head", r"mlp\.0\.", "mlp.linear_1."),
        (models.mnasnet0_5(num_classes=3), "classifier.1", "nothing", "nothing"),
    ):
        state = other_values(network)
        aged = {re.sub(new, old, name).replace("mlp.3.", "mlp.linear_2."): value for name, value in state.items()}
        aged = {name: value for name, value in aged.items() if not name.endswith("num_batches_tracked")}
        assert aged.keys() != state.keys()
        torch.save(aged, "old.pth")
        backbones.load(network, head_name, "it", "old.pth")
        for name, tensor in network.state_dict().items():
            if not name.startswith(head_name) and not name.endswith("num_batches_tracked"):
                assert torch.equal(tensor, state[name]), name


def cached() -> Path:
    published = models.get_model_weights(SMALL).DEFAULT
    folder = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / published.url.rsplit("/", 1)[1]


def test_default_weights_come_from_the_cache() -> None:
    state = other_values(models.get_model(SMALL))
    torch.save(state, cached())
    network, head_name = backbones.build(SMALL, 5)
    backbones.load(network, head_name, SMALL, "DEFAULT")
    assert torch.equal(network.state_dict()["conv1.0.weight"], state["conv1.0.weight"])
    assert network.state_dict()["fc.weight"].shape == (5, 1024)


def no_network(*_: Any, **__: Any) -> Any:
    raise urllib.error.URLError("[Errno -3] Temporary failure in name resolution")


def wrong_file(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
    raise RuntimeError(f'invalid hash value (expected "{hash_prefix}", got "{hashlib.sha256(b"").hexdigest()}")')


def broken_cache(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(100)}, whole)
    Path(dst).write_bytes(whole.getvalue()[:300])


@pytest.mark.parametrize("download", [no_network, wrong_file, broken_cache])
def test_failed_download_gives_one_message_that_says_what_to_do(monkeypatch: Any, download: Any) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(ModelError) as refusal:
        backbones.fetch(SMALL)
    url = models.get_model_weights(SMALL).DEFAULT.url
    message = str(refusal.value)
    assert f"download {url} and give --model.weights path/to/{url.rsplit('/', 1)[1]}" in message
    assert "--model.weights none --model.freeze false" in message
    assert SMALL in message
    assert "\n" not in message
