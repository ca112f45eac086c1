"""What a network is: its layers and their outputs, its cost, and the graph that its loss leaves behind.

Letters in shape comments: B batch, C channels, S side in pixels, F features, K classes or outputs.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from datamodules import Preprocessing
from datamodules.text import align_columns
from lit_models import LitBase, LitCNN, LitDynamic
from lit_training.runs.devices import evaluation_mode

DEPTHS = (1, 3)
"""The two forward passes of LitDynamic that are laid side by side."""


@dataclass
class Layer:
    """A module of a network: its path, its class, the shape of each of its outputs, parameters of all below it."""

    name: str
    kind: str
    parameters: int
    megabytes: float
    outputs: list[tuple[int, ...]] = field(default_factory=list)
    """One per call: a shared layer has several, one that is not used has none."""


def sample_input(model: LitBase) -> Tensor:
    """A batch of one that the model takes: (1, C, S, S), or (1, F), standard normal, the same at each call."""
    if model.sample_ndim == 1:
        shape: tuple[int, ...] = (model.hparams["in_features"],)
    else:
        side = Preprocessing.from_dict(model.preprocessing).image_size
        shape = (model.hparams.get("in_channels", 3), side, side)
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def layers(model: nn.Module, x: Tensor, **options: Any) -> list[Layer]:
    """The module tree, parents first, with the outputs of one forward pass ``model(x, **options)``."""
    found: dict[nn.Module, Layer] = {}
    hooks = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found[module].outputs.append(tuple(output.shape))

    for name, module in model.named_modules():
        parameters = list(module.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        megabytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 1e6
        found[module] = Layer(name, type(module).__name__, count, megabytes)
        hooks.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            model(x, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def flops(model: nn.Module, x: Tensor, **options: Any) -> int:
    """Floating-point operations of a forward pass as torch counts them: matrix products and convolutions, 2 per
    multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, **options)
    return counter.get_total_flops()


def autograd_chain(loss: Tensor, names: Mapping[nn.Parameter, str] | None = None) -> list[str]:
    """Names of the autograd nodes on the longest path from a loss back to a leaf, as ``MseLoss``, ``Addmm``, ...

    Args:
        loss: any tensor with a graph.
        names: of the parameters; the last name then says which leaf it is.

    Source: PyTorch tutorial "Neural Networks" (Loss Function), which follows ``next_functions`` by hand.
    """
    ahead: dict[Any, list[Any]] = {}
    length: dict[Any, int] = {}
    stack = [loss.grad_fn]
    while stack:  # depth first and without recursion: a deep network's graph is deeper than Python's stack
        node: Any = stack[-1]
        if node not in ahead:
            ahead[node] = [following for following, _ in node.next_functions if following is not None]
            stack += ahead[node]
        else:
            stack.pop()
            length[node] = 1 + max((length[following] for following in ahead[node]), default=0)
    chain, node = [], loss.grad_fn
    while node is not None:
        chain.append(_name(node, names or {}))
        node = max(ahead[node], key=lambda following: length[following], default=None)
    return chain


def _name(node: Any, names: Mapping[nn.Parameter, str]) -> str:
    name = re.sub(r"Backward\d*$", "", type(node).__name__)
    variable = getattr(node, "variable", None)
    return f"{name}({names[variable]})" if variable is not None and variable in names else name


def describe(model: LitBase) -> str:
    """Layers, cost, loss chain and first bias gradient of a model, as text. The model is left as it was."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        with evaluation_mode(model):  # BatchNorm takes a batch of one, and nothing is drawn
            x = sample_input(model)
            return _describe_dynamic(model, x) if isinstance(model, LitDynamic) else _describe_usual(model, x)
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _describe_usual(model: LitBase, x: Tensor) -> str:
    found = layers(model.get_submodule("net"), x)
    rows = [["layer", "class", "output", "parameters", "MB"]]
    for layer in found:
        depth = layer.name.count(".") + bool(layer.name)
        name = "  " * depth + (layer.name.rpartition(".")[2] or "net")
        rows.append([name, layer.kind, _shapes(layer.outputs), f"{layer.parameters:,}", f"{layer.megabytes:.3f}"])
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    output = model(x)  # (1, K)
    if model.task == "classification":
        losses = {"cross-entropy": model.loss(output, torch.zeros(1, dtype=torch.int64))}
    else:
        losses = {"squared error": model.loss(output, torch.zeros_like(output))}
    if isinstance(model, LitCNN):  # the source's own case
        losses = {"squared error": F.mse_loss(output, torch.zeros_like(output)), **losses}
    names = _parameter_names(model)
    chains = [f"{name}: {' <- '.join(autograd_chain(loss, names))}" for name, loss in losses.items()]
    return "\n".join(
        [
            f"{type(model).__name__}: {trainable:,} trainable of {found[0].parameters:,} parameters, "
            f"{found[0].megabytes:.2f} MB; {flops(model, x):,} FLOPs for an input of {tuple(x.shape)}",
            *("", "\n".join(align_columns(rows))),
            *("", *chains),
            *("", _first_gradient(model, *next(iter(losses.items())))),
        ]
    )


def _describe_dynamic(model: LitDynamic, x: Tensor) -> str:
    passes = [layers(model.net, x, depth=depth) for depth in DEPTHS]
    titles = [f"depth {depth}" for depth in DEPTHS]
    rows = [["layer", "class", "parameters", *(f"outputs at {title}" for title in titles)]]
    for same in zip(*passes, strict=True):
        layer = same[0]
        rows.append([layer.name or "net", layer.kind, f"{layer.parameters:,}", *(_shapes(one.outputs) for one in same)])
    rows.append(["FLOPs", "", "", *(f"{flops(model.net, x, depth=depth):,}" for depth in DEPTHS)])
    target = torch.zeros(1, model.hparams["out_features"])
    losses = [model.loss(model.net(x, depth=depth), target) for depth in DEPTHS]
    chains = [autograd_chain(loss, _parameter_names(model)) for loss in losses]
    graph = [["loss", *titles], *(["<-", *pair] for pair in zip_longest(*chains, fillvalue=""))]
    total = passes[0][0]
    return "\n".join(
        [
            f"{type(model).__name__}: {total.parameters:,} parameters, {total.megabytes:.2f} MB; "
            f"two forward passes of an input of {tuple(x.shape)}",
            *("", "\n".join(align_columns(rows))),
            *("", "\n".join(align_columns(graph))),
            *("", _first_gradient(model, f"squared error, {titles[-1]}", losses[-1])),
        ]
    )


def _first_gradient(model: LitBase, title: str, loss: Tensor) -> str:
    """What ``backward`` leaves on the first bias that is trained, as the tutorial prints it."""
    name, bias = next(
        (name, parameter)
        for name, parameter in model.named_parameters()
        if name.endswith("bias") and parameter.requires_grad
    )
    bias.grad = None
    loss.backward()
    assert bias.grad is not None
    values = ", ".join(f"{value:.4g}" for value in bias.grad[:6].tolist()) + (", ..." if len(bias) > 6 else "")
    return f"{name}.grad before backward: None\n{name}.grad after ({title}): [{values}]"


def _parameter_names(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _shapes(outputs: list[tuple[int, ...]]) -> str:
    if not outputs:
        return "not used"
    shape = "x".join(map(str, outputs[-1]))
    return shape if len(outputs) == 1 else f"{shape}, {len(outputs)} times"
