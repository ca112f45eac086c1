"""Build the pretrained networks for LitTransfer, from torchvision or from timm (``timm/NAME``)."""

import contextlib
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from lit_models.base import ModelError

TIMM_PREFIX = "timm/"
AUXILIARY = ("AuxLogits", "aux1", "aux2")  # extra heads of inception_v3 and googlenet, not used here


def build(backbone: str, num_classes: int) -> tuple[nn.Module, str]:
    """Build a network with random weights. Return it and the name of its last layer, the head.

    Raise a ModelError if the name is unknown, the network has several heads, or timm is not installed.
    """
    if backbone.startswith(TIMM_PREFIX):
        timm, name = _import_timm(), backbone.removeprefix(TIMM_PREFIX)
        network = None
        if timm.is_model(name):  # create_model downloads other names, such as hf-hub:NAME
            with contextlib.suppress(RuntimeError):  # raised if the tag after the dot is unknown
                network = timm.create_model(name, pretrained=False, num_classes=num_classes)
        if network is None:
            known = [TIMM_PREFIX + known for known in timm.list_models()]
            raise ModelError(_unknown_name_message("timm", backbone, known))
        head_name = network.default_cfg["classifier"]
        if not isinstance(head_name, str):
            raise ModelError(f"{backbone} has several heads ({', '.join(head_name)}): choose a backbone with one head")
    else:
        known = models.list_models(module=models)
        if backbone not in known:
            raise ModelError(_unknown_name_message("torchvision", backbone, known))
        network = models.get_model(backbone, weights=None, num_classes=num_classes, **_build_options(backbone))
        layers = dict(network.named_modules())
        # squeezenet has no linear layer: its head is the last convolution
        head_type = nn.Linear if any(isinstance(layer, nn.Linear) for layer in layers.values()) else nn.Conv2d
        head_name = [name for name, layer in layers.items() if isinstance(layer, head_type)][-1]
    # the initial values of some heads are so large that a few epochs of training are not enough
    network.get_submodule(head_name).reset_parameters()
    return network, head_name


def load(network: nn.Module, head_name: str, backbone: str, weights: str, classes: Sequence[str] | None = None) -> str:
    """Load pretrained weights into ``network``; into its head only the classes of a LitTransfer's checkpoint.

    ``weights`` are explained in LitTransfer. No code in the file is executed. ``classes`` are the names of the outputs.
    Return a text that says what was loaded from a checkpoint, or "" for other files. Raise a ModelError if the file
    does not exist or has the weights of another network, or the download failed.
    """
    state, saved = (fetch(backbone), None) if weights == "DEFAULT" else _read_weights(Path(weights).expanduser())
    if saved and (found := saved["backbone"]) != backbone:
        fix = f"--model.backbone {found}" if found else "give one of a LitTransfer"
        raise ModelError(f"{weights} is a checkpoint of {found or saved.get('model_class')}, not {backbone}: {fix}")
    head = {name.removeprefix(f"{head_name}."): tensor for name, tensor in state.items()}
    dropped = (f"{head_name}.", *(f"{name}." for name in AUXILIARY))
    state = {_current_name(name): tensor for name, tensor in state.items() if not name.startswith(dropped)}
    expected = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(dropped)}
    # num_batches_tracked has no effect on the outputs, and old files do not have it
    missing = sorted(name for name in expected.keys() - state.keys() if not name.endswith(".num_batches_tracked"))
    unexpected = sorted(state.keys() - expected.keys())
    wrong_shape = sorted(name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape)
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": wrong_shape}
    problem_text = "; ".join(f"{problem} {_list_names(names)}" for problem, names in problems.items() if names)
    if problem_text:
        fix = "choose the matching --model.backbone"
        raise ModelError(f"{weights} does not contain weights of {backbone}: {problem_text} ({fix})")
    # load_state_dict() is not used: for mnasnet it needs a version number, and most files have none
    for name, tensor in state.items():
        expected[name].copy_(tensor)
    if not saved:
        return ""
    try:
        return _load_head(network.get_submodule(head_name), head, saved.get("class_names"), classes)
    except (KeyError, TypeError, IndexError, RuntimeError) as error:
        raise ModelError(f"{weights} is damaged, its classes do not fit its weights: give another one") from error


def _load_head(layer: nn.Module, saved: dict[str, Tensor], old: list[str] | None, new: Sequence[str] | None) -> str:
    """Copy the rows of the classes that ``old`` and ``new`` have, by name. Return what was loaded, as text."""
    if not old or not new:
        return "backbone; the head is new, because the classes cannot be compared by name"
    known = [name for name in new if name in old]
    for key, tensor in layer.state_dict().items():
        for name in known:
            tensor[new.index(name)] = saved[key][old.index(name)]
    added, gone = ([name for name in names if name not in known] for names in (new, old))
    groups = {"known classes": known, "new": added, "left out": gone}
    return "; ".join(["backbone", *(f"{title}: {_list_names(names)}" for title, names in groups.items() if names)])


def fetch(backbone: str) -> dict[str, Tensor]:
    """Return the published weights, from the cache or downloaded. Raise a ModelError with the URL if this fails."""
    if from_timm := backbone.startswith(TIMM_PREFIX):
        timm, name = _import_timm(), backbone.removeprefix(TIMM_PREFIX)
        url, file = f"https://huggingface.co/{timm.get_pretrained_cfg(name).hf_hub_id}", "model.safetensors"
    else:
        published = models.get_model_weights(backbone).DEFAULT
        url, file = published.url, published.url.rsplit("/", 1)[1]
    try:
        if from_timm:
            return timm.create_model(name, pretrained=True).state_dict()
        return published.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # network, disk, hash and file errors have no common class
        reason = (str(error) or type(error).__name__).splitlines()[0]
        fix = f"download {url} and give --model.weights path/to/{file}"
        other = "or train from random weights with --model.weights none --model.freeze false"
        raise ModelError(f"cannot get the weights of {backbone} ({reason}): {fix}, {other}") from error


def license_of_weights(backbone: str, weights: str | None) -> str:
    """Return the license of the pretrained weights, as far as it is known."""
    if weights != "DEFAULT":
        return f"that of {Path(weights).name}" if weights else "none: trained from random weights"
    if backbone.startswith(TIMM_PREFIX):
        return _import_timm().get_pretrained_cfg(backbone.removeprefix(TIMM_PREFIX)).license or "unknown"
    return "BSD-3-Clause (torchvision)"


def preprocessing(backbone: str, network: nn.Module) -> dict[str, Any]:
    """Return the preprocessing that the published weights need. ``LitBase.preprocessing`` explains the keys."""
    if backbone.startswith(TIMM_PREFIX):
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
    """Return torchvision's current name of a tensor. The weights files of densenet and vit have older names."""
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
    return name.replace("mlp.linear_1.", "mlp.0.").replace("mlp.linear_2.", "mlp.3.")


def _unknown_name_message(library: str, backbone: str, known: list[str]) -> str:
    close_names = difflib.get_close_matches(backbone, known, n=1)
    hint = f"did you mean {close_names[0]}?" if close_names else f"choose one of {_list_names(known)} or timm/NAME"
    return f"{library} has no classification network {backbone!r}: {hint}"


def _list_names(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _build_options(backbone: str) -> dict[str, Any]:
    if backbone in ("inception_v3", "googlenet"):
        # transform_input converts to the normalization of these weights; init_weights would take half a minute
        return {"aux_logits": False, "transform_input": True, "init_weights": False}
    if backbone.startswith("vit_"):  # the position embedding depends on the size of the pictures
        return {"image_size": models.get_model_weights(backbone).DEFAULT.meta["min_size"][0]}
    return {}


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError("timm/NAME backbones need timm: pip install 'lit-classics[timm]'") from error
    return timm


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Read a state dict without executing code in the file. For this project's checkpoints, also return their facts."""
    if not path.is_file():
        raise ModelError(f"no weights file {path}: give DEFAULT, none or a .pth, .safetensors or .ckpt file")
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the errors for broken files have no common class
        raise ModelError(f"{path} is not a state dict that can be read safely ({type(error).__name__})") from error
    saved = None
    if isinstance(state, dict):
        if isinstance(state.get("lit"), dict):
            saved = {**state["lit"], "backbone": state.get("hyper_parameters", {}).get("backbone")}
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} is not a state dict (names -> tensors): save one with torch.save(net.state_dict())")
    return {name.removeprefix("net."): tensor for name, tensor in state.items()}, saved
