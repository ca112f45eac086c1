"""Describe a network. Letters in shapes: C channels, S side in pixels, F features, K classes or outputs."""

import re
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from datamodules import Preprocessing
from datamodules.text import align_columns
from lit_models import LitBase, LitCNN, LitDynamic
from lit_training.errors import UsageError
from lit_training.runs.devices import evaluation_mode
from lit_training.runs.own_classes import is_own
from lit_training.runs.threads import count_flops


def sample_input(model: LitBase) -> Tensor:
    """Return an input for the model, (1, C, S, S) or (1, F): standard normal noise, the same in each call."""
    if model.preprocessing is None if model.sample_ndim == 3 else "in_features" not in model.hparams:
        needed = "preprocessing (pictures) or the argument in_features (rows), see docs/your_own.md"
        raise UsageError(f"the form of a sample of {type(model).__name__} is unknown: it needs {needed}")
    if model.sample_ndim == 1:
        shape: tuple[int, ...] = (model.hparams["in_features"],)
    else:
        side = Preprocessing.from_dict(model.preprocessing).image_size
        shape = (model.hparams.get("in_channels", 3), side, side)
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def list_outputs(model: nn.Module, x: Tensor, **options: Any) -> dict[nn.Module, list[tuple[int, ...]]]:
    """Run ``model(x, **options)``. Return module -> the shape of each of its outputs; none if it was not called."""
    shapes: dict[nn.Module, list[tuple[int, ...]]] = {module: [] for module in model.modules()}

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            shapes[module].append(tuple(output.shape))

    with register_module_forward_hook(record), torch.no_grad():
        model(x, **options)
    return shapes


def count_parameters(module: nn.Module) -> tuple[int, float]:
    """Return the number of parameters, and their size in MB."""
    parameters = list(module.parameters())
    megabytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters) / 1e6
    return sum(parameter.numel() for parameter in parameters), megabytes


def autograd_chain(loss: Tensor, names: Mapping[nn.Parameter, str] | None = None) -> list[str]:
    """Return the autograd nodes on the longest path from a loss: ``MseLoss``, ..., ``AccumulateGrad(conv1.weight)``."""
    next_nodes: dict[Any, list[Any]] = {}
    stack: list[Any] = [loss.grad_fn]
    while stack:  # a recursion would exceed Python's recursion limit on a deep network
        node = stack.pop()
        if node not in next_nodes:
            next_nodes[node] = [function for function, _ in node.next_functions if function is not None]
            stack += next_nodes[node]
    length: dict[Any, int] = {}
    for node in TopologicalSorter(next_nodes).static_order():  # leaves first
        length[node] = 1 + max(map(length.__getitem__, next_nodes[node]), default=0)
    chain, node, names = [], loss.grad_fn, names or {}
    while node is not None:
        name = re.sub(r"Backward\d*$", "", type(node).__name__)
        variable: Any = getattr(node, "variable", None)  # the parameter; only the node of a leaf has one
        chain.append(f"{name}({names[variable]})" if variable in names else name)
        node = max(next_nodes[node], key=length.__getitem__, default=None)
    return chain


def describe(model: LitBase) -> str:
    """Return a text about a model: layers, FLOPs, autograd nodes of the loss, gradient of the first bias."""
    with evaluation_mode(model):  # BatchNorm cannot train on a batch of one
        return "\n\n".join(_sections(model, sample_input(model)))


def _sections(model: LitBase, x: Tensor) -> Iterator[str]:
    net: nn.Module = model if is_own(type(model)) else model.get_submodule("net")
    passes: dict[str, dict[str, int]] = {"": {}}
    if type(model) is LitDynamic:
        passes = {f" at depth {depth}": {"depth": depth} for depth in (1, 3)}
    shapes = [list_outputs(net, x, **options) for options in passes.values()]
    count, megabytes = count_parameters(net)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    cost = ", ".join(f"{count_flops(net, x, **options):,} FLOPs{title}" for title, options in passes.items())
    size = f"{trainable:,} trainable of {count:,} parameters, {megabytes:.2f} MB"
    yield f"{type(model).__name__}: {size}; {cost} for an input of {tuple(x.shape)}"

    rows = [["layer", "class", "parameters", "MB", *(f"output{title}" for title in passes)]]
    for path, module in net.named_modules():
        name = path.rpartition(".")[2] or ("model" if net is model else "net")
        indent, (count, megabytes) = "  " * (path.count(".") + bool(path)), count_parameters(module)
        outputs = [_format_shape(of_pass[module]) for of_pass in shapes]
        rows.append([indent + name, type(module).__name__, f"{count:,}", f"{megabytes:.3f}", *outputs])
    yield "\n".join(align_columns(rows))

    losses = {}
    for title, options in passes.items():
        output = net(x, **options)  # (1, K)
        if model.task == "classification":
            losses["cross-entropy"] = model.loss(output, torch.zeros(1, dtype=torch.int64))
        else:
            losses[f"squared error{title}"] = model.loss(output, torch.zeros_like(output))
        if isinstance(model, LitCNN):  # the loss of the tutorial "Neural Networks"
            losses.setdefault("squared error", F.mse_loss(output, torch.zeros_like(output)))
    parameter_names = {parameter: name for name, parameter in model.named_parameters()}
    chains = {title: autograd_chain(loss, parameter_names) for title, loss in losses.items()}
    if type(model) is LitDynamic:
        graph = [["loss", *chains], *(["<-", *nodes] for nodes in zip_longest(*chains.values(), fillvalue=""))]
        yield "\n".join(align_columns(graph))
    else:
        yield "\n".join(f"{title}: {' <- '.join(chain)}" for title, chain in chains.items())

    trained = [(name, bias) for bias, name in parameter_names.items() if name.endswith("bias") and bias.requires_grad]
    for name, bias in trained[:1]:
        title, loss = list(losses.items())[-1]
        [gradient] = torch.autograd.grad(loss, bias)
        values = ", ".join(f"{value:.4g}" for value in gradient[:6].tolist()) + (", ..." if len(bias) > 6 else "")
        yield f"{name}.grad before backward: None\n{name}.grad after ({title}): [{values}]"


def _format_shape(outputs: list[tuple[int, ...]]) -> str:
    if not outputs:
        return "not used"
    shape = "x".join(map(str, outputs[-1]))
    return shape if len(outputs) == 1 else f"{shape}, {len(outputs)} times"
