"""Pretrained networks for LitTransfer: all classification networks of torchvision, and ``timm/NAME`` (needs timm)."""

import difflib
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from lit_models.base import ModelError

TIMM = "timm/"
AUXILIARY = ("AuxLogits", "aux1", "aux2")  # extra heads of inception_v3 and googlenet, for training from scratch


def build(backbone: str, num_classes: int) -> tuple[nn.Module, str]:
    """Build a network with random weights and ``num_classes`` outputs; return it and the name of its last layer.

    Raises:
        ModelError: the name is unknown, or timm is not installed.
    """
    if backbone.startswith(TIMM):
        timm, name = _import_timm(), backbone.removeprefix(TIMM)
        known = [TIMM + known for known in timm.list_models()]
        if not timm.is_model(name):  # for other names create_model would ask the model hub
            raise ModelError(_unknown("timm", backbone, known))
        try:
            network = timm.create_model(name, pretrained=False, num_classes=num_classes)
        except RuntimeError as error:  # unknown tag after the dot
            raise ModelError(_unknown("timm", backbone, known)) from error
        head_name = network.default_cfg["classifier"]
        if not isinstance(head_name, str):
            raise ModelError(f"{backbone} has several heads ({', '.join(head_name)}): choose a backbone with one")
    else:
        known = models.list_models(module=models)
        if backbone not in known:
            raise ModelError(_unknown("torchvision", backbone, known))
        network = models.get_model(backbone, weights=None, num_classes=num_classes, **_options(backbone))
        layers = dict(network.named_modules())
        # squeezenet has no linear layer; its last convolution computes the classes
        kind = nn.Linear if any(isinstance(layer, nn.Linear) for layer in layers.values()) else nn.Conv2d
        head_name = [name for name, layer in layers.items() if isinstance(layer, kind)][-1]
    # Some libraries initialize the head with values too large to train in a few epochs; torch's defaults are small.
    network.get_submodule(head_name).reset_parameters()
    return network, head_name


def load(network: nn.Module, head_name: str, backbone: str, weights: str) -> None:
    """Load pretrained weights into ``network``, except for its head.

    Args:
        weights: ``DEFAULT`` (the best weights of torchvision or timm, from the cache or downloaded), or the path of a
            ``.pth`` or ``.safetensors`` state dict. No code in the file is executed.

    Raises:
        ModelError: the file is missing or holds another architecture, or the download failed.
    """
    state = fetch(backbone) if weights == "DEFAULT" else _read(Path(weights).expanduser())
    dropped = (f"{head_name}.", *(f"{name}." for name in AUXILIARY))
    state = {_current_name(name): tensor for name, tensor in state.items() if not name.startswith(dropped)}
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(dropped)}
    # Some published files are older than num_batches_tracked, which is not used here.
    missing = sorted(name for name in own.keys() - state.keys() if not name.endswith(".num_batches_tracked"))
    unexpected = sorted(state.keys() - own.keys())
    reshaped = sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape)
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": reshaped}
    listed = "; ".join(f"{problem} {_first_names(names)}" for problem, names in problems.items() if names)
    if listed:
        raise ModelError(
            f"{weights} does not hold weights of {backbone}: {listed} (choose the matching --model.backbone)"
        )
    for name, tensor in state.items():  # load_state_dict needs a version number, which most files of mnasnet lack
        own[name].copy_(tensor)


def fetch(backbone: str) -> dict[str, Tensor]:
    """Return the published weights from the local cache, or download them with a progress bar.

    Raises:
        ModelError: the download failed. The message names the file and its URL.
    """
    from_timm = backbone.startswith(TIMM)
    if from_timm:
        timm, name = _import_timm(), backbone.removeprefix(TIMM)
        url, file = f"https://huggingface.co/{timm.get_pretrained_cfg(name).hf_hub_id}", "model.safetensors"
    else:
        published = models.get_model_weights(backbone).DEFAULT
        url, file = published.url, published.url.rsplit("/", 1)[1]
    try:
        if from_timm:
            return timm.create_model(name, pretrained=True).state_dict()
        return published.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # network, disk, hash and unpickling errors have no common class
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"cannot get the weights of {backbone} ({reason}): fetch {url} and pass --model.weights path/to/{file}, "
            "or train from random weights with --model.weights none --model.freeze false"
        ) from error


def preprocessing(backbone: str, network: nn.Module) -> dict[str, Any]:
    """Return the preprocessing that the published weights need, as in :class:`~lit_models.base.LitBase`."""
    if backbone.startswith(TIMM):
        config = _import_timm().data.resolve_data_config({}, model=network)
        size, mean, std = config["input_size"][-1], config["mean"], config["std"]
        resize_size, interpolation = int(size / config["crop_pct"]), config["interpolation"]
    else:
        transform = models.get_model_weights(backbone).DEFAULT.transforms()
        size, mean, std = transform.crop_size[0], transform.mean, transform.std
        resize_size, interpolation = transform.resize_size[0], transform.interpolation.value
    return {
        "image_size": size,
        "resize_size": resize_size,
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "interpolation": interpolation,
    }


def _current_name(name: str) -> str:
    """Return the current name of a tensor. The published files of densenet and vit have older names."""
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
    return name.replace("mlp.linear_1.", "mlp.0.").replace("mlp.linear_2.", "mlp.3.")


def _unknown(library: str, backbone: str, known: list[str]) -> str:
    near = difflib.get_close_matches(backbone, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {_first_names(known)} or timm/NAME"
    return f"{library} has no classification network {backbone!r}: {hint}"


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _options(backbone: str) -> dict[str, Any]:
    if backbone in ("inception_v3", "googlenet"):
        # transform_input: the published weights need pictures rescaled from ImageNet's mean and std.
        # init_weights: torchvision's initialization takes half a minute.
        return {"aux_logits": False, "transform_input": True, "init_weights": False}
    if backbone.startswith("vit_"):  # the size of the position embedding depends on the size of the pictures
        return {"image_size": models.get_model_weights(backbone).DEFAULT.meta["min_size"][0]}
    return {}


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError("timm/NAME backbones need timm: pip install 'lit-classics[timm]'") from error
    return timm


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
    except Exception as error:  # the errors of broken files have no common class
        raise ModelError(f"{path} is not a state dict that can be read safely ({type(error).__name__})") from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(
            f"{path} is not a state dict (names -> tensors): save one with torch.save(net.state_dict(), ...)"
        )
    return state
