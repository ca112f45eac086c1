"""What LitTransfer knows of backbones: name -> network, last layer, weights, preprocessing.

``resnet18`` and every other classification network of torchvision, and ``timm/NAME`` with the extra ``timm``.
"""

import difflib
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from lit_models.base import ModelError

TIMM = "timm/"
AUXILIARY = ("AuxLogits", "aux1", "aux2")  # heads of inception_v3 and googlenet that only training used


def build(backbone: str, num_classes: int) -> tuple[nn.Module, str]:
    """A network with random weights and ``num_classes`` outputs, and the name of its last layer.

    The new last layer stands where the old one stood: ``state_dict`` keys are the architecture's own.

    Raises:
        ModelError: an unknown name, or timm is not installed.
    """
    if backbone.startswith(TIMM):
        network = _timm().create_model(_timm_name(backbone), pretrained=False, num_classes=num_classes)
        head_name = network.default_cfg["classifier"]
        if not isinstance(head_name, str):
            raise ModelError(f"{backbone} has several heads ({', '.join(head_name)}): choose a backbone with one")
        # timm draws some heads so wide that a few epochs do not bring them back; torch's own draw is narrow.
        network.get_submodule(head_name).reset_parameters()
        return network, head_name
    network = models.get_model(_torchvision_name(backbone), weights=None, **_options(backbone))
    if backbone in ("inception_v3", "googlenet"):
        network.transform_input = True  # the published weights want pictures rescaled from ImageNet's mean and std
        network.aux_logits = False
    for name in AUXILIARY:
        if hasattr(network, name):
            setattr(network, name, None)
    layers = dict(network.named_modules())
    head_name = next(
        (name for name in reversed(layers) if isinstance(layers[name], nn.Linear)),
        # squeezenet has no linear layer: its last 1x1 convolution gives the classes
        [name for name in layers if isinstance(layers[name], nn.Conv2d)][-1],
    )
    old = layers[head_name]
    bias = old.bias is not None
    head: nn.Module
    if isinstance(old, nn.Linear):
        head = nn.Linear(old.in_features, num_classes, bias=bias)
    else:
        assert isinstance(old, nn.Conv2d)
        head = nn.Conv2d(old.in_channels, num_classes, kernel_size=1, bias=bias)
    network.set_submodule(head_name, head)
    return network, head_name


def load(network: nn.Module, head_name: str, backbone: str, weights: str) -> None:
    """Read pretrained weights into all of ``network`` but its head.

    Args:
        weights: ``DEFAULT`` (torchvision's or timm's best, from the cache or the network) or the path of a ``.pth``
            or ``.safetensors`` state dict. Nothing in a file is executed.

    Raises:
        ModelError: no such file, no network, or a state dict of another architecture.
    """
    state = fetch(backbone) if weights == "DEFAULT" else _read(Path(weights).expanduser())
    dropped = (f"{head_name}.", *(f"{name}." for name in AUXILIARY))
    state = {_today(name): tensor for name, tensor in state.items() if not name.startswith(dropped)}
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(dropped)}
    # num_batches_tracked is younger than some published files, and nothing here uses it.
    missing = sorted(name for name in own.keys() - state.keys() if not name.endswith(".num_batches_tracked"))
    unexpected = sorted(state.keys() - own.keys())
    reshaped = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    if missing or unexpected or reshaped:
        faults = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
        told = "; ".join(f"{kind} {_some(names)}" for kind, names in faults.items() if names)
        raise ModelError(
            f"{weights} does not hold weights of {backbone}: {told} (choose the --model.backbone they are of)"
        )
    for name, tensor in state.items():  # load_state_dict would ask mnasnet's files for a version, which few have
        own[name].copy_(tensor)


def fetch(backbone: str) -> dict[str, Tensor]:
    """The published weights, from the local cache, else downloaded into it with a progress bar.

    Raises:
        ModelError: no network and nothing in the cache; says which file to fetch from where.
    """
    if backbone.startswith(TIMM):
        name = _timm_name(backbone)
        try:
            return _timm().create_model(name, pretrained=True).state_dict()
        except (OSError, RuntimeError) as error:
            source = _timm().models.get_pretrained_cfg(name)
            raise ModelError(
                _no_weights(backbone, f"https://huggingface.co/{source.hf_hub_id}", "model.safetensors", error)
            ) from error
    published = models.get_model_weights(_torchvision_name(backbone)).DEFAULT
    try:
        return published.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # the network, the disk, the hash and the unpickler each have their own ways to fail
        raise ModelError(_no_weights(backbone, published.url, published.url.rsplit("/", 1)[1], error)) from error


def preprocessing(backbone: str, network: nn.Module) -> dict[str, Any]:
    """How the published weights expect their pictures, as plain values (see :class:`~lit_models.base.LitBase`)."""
    if backbone.startswith(TIMM):
        config = _timm().data.resolve_data_config({}, model=network)
        size, mean, std = config["input_size"][-1], config["mean"], config["std"]
        resize_size, interpolation = int(size / config["crop_pct"]), config["interpolation"]
    else:
        transform = models.get_model_weights(_torchvision_name(backbone)).DEFAULT.transforms()
        size, mean, std = transform.crop_size[0], transform.mean, transform.std
        resize_size, interpolation = transform.resize_size[0], transform.interpolation.value
    return {
        "image_size": size,
        "resize_size": resize_size,
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "interpolation": interpolation,
    }


def _today(name: str) -> str:
    """The present name of a tensor in torchvision's published files, of which densenet's and vit's keep older ones."""
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
    return re.sub(r"mlp\.linear_([12])\.", lambda found: "mlp.0." if found[1] == "1" else "mlp.3.", name)


def _torchvision_name(backbone: str) -> str:
    known = models.list_models(module=models)
    if backbone in known:
        return backbone
    hint = _did_you_mean(backbone, known) or f": choose one of {_some(known)} or timm/NAME"
    raise ModelError(f"torchvision has no classification network {backbone!r}{hint}")


def _did_you_mean(name: str, known: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {prefix}{near[0]}?" if near else ""


def _options(backbone: str) -> dict[str, Any]:
    if backbone in ("inception_v3", "googlenet"):
        return {"init_weights": False}  # else half a minute goes into what torchvision itself advises against
    if backbone.startswith("vit_"):  # has a place for each patch: as many as in the pictures of the published weights
        return {"image_size": models.get_model_weights(backbone).DEFAULT.meta["min_size"][0]}
    return {}


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError("timm/NAME backbones need timm: pip install 'lit-classics[timm]'") from error
    return timm


def _timm_name(backbone: str) -> str:
    name = backbone.removeprefix(TIMM)
    if _timm().is_model(name):
        return name
    raise ModelError(f"timm has no model {name!r}{_did_you_mean(name, _timm().list_models(), TIMM)}")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"no weights file {path}: give DEFAULT, none or the path of a .pth or .safetensors file")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own ways to be broken
        raise ModelError(f"{path} is not a state dict that can be read safely ({type(error).__name__})") from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(
            f"{path} holds no state dict (names -> tensors): save one with torch.save(net.state_dict(), ...)"
        )
    return state


def _no_weights(backbone: str, url: str, file: str, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"cannot get the weights of {backbone} ({reason}): fetch {url} and pass --model.weights path/to/{file}, "
        "or train from random weights with --model.weights none --model.freeze false"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
