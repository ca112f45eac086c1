"""Descriptions of networks are equal to counts by hand and to the results of the tutorial's code."""

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lit_models import DynamicNet, LeNet, LitCNN, LitDynamic, LitMLP, LitTransfer
from lit_training.trained.describe import (
    _format_shape,
    autograd_chain,
    count_flops,
    count_parameters,
    describe,
    list_outputs,
    sample_input,
)


def test_layers_of_lenet() -> None:
    net = LeNet()
    found = list_outputs(net, torch.zeros(2, 3, 32, 32))
    assert found[net.conv1] == [(2, 6, 28, 28)]
    assert found[net.conv2] == [(2, 16, 10, 10)]
    assert found[net.fc3] == [(2, 10)]
    assert count_parameters(net.conv1)[0] == 6 * (3 * 25 + 1)
    assert count_parameters(net) == (62_006, 62_006 * 4 / 1e6)
    assert count_parameters(net.half()) == (62_006, 62_006 * 2 / 1e6)


def test_shared_layer_has_an_output_per_call_and_unused_layer_has_none() -> None:
    net = DynamicNet(8, 4, 2)
    for depth in range(4):
        found = list_outputs(net, torch.zeros(1, 8), depth=depth)
        assert found[net.middle_linear] == [(1, 4)] * depth
    assert not any(module._forward_hooks for module in net.modules())


def test_the_shape_of_the_last_call_is_shown() -> None:
    assert _format_shape([(1, 4), (1, 7)]) == "1x7, 2 times"


def test_flops_are_two_per_multiplication() -> None:
    by_hand = 2 * (6 * 28 * 28 * 75 + 16 * 10 * 10 * 150 + 400 * 120 + 120 * 84 + 84 * 10)
    assert count_flops(LeNet(), torch.zeros(1, 3, 32, 32)) == by_hand


def test_a_network_without_trained_biases_has_no_section_about_them() -> None:
    model = LitMLP(4, (3,), 2)
    assert "net.0.bias.grad after" in describe(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith("bias"))
    assert ".grad" not in describe(model)


def test_chain_matches_the_tutorial() -> None:
    """PyTorch tutorial "Neural Networks": LeNet with one channel, squared error, ``next_functions`` step by step."""
    net = LeNet(in_channels=1)
    loss = F.mse_loss(net(torch.randn(1, 1, 32, 32)), torch.randn(1, 10))
    names = {parameter: name for name, parameter in net.named_parameters()}
    chain = autograd_chain(loss, names)
    assert chain[:6] == ["MseLoss", "Addmm", "Relu", "Addmm", "Relu", "Addmm"]
    assert chain[-1] == "AccumulateGrad(conv1.weight)"
    node: Any = loss.grad_fn
    for name in chain[:6]:
        assert type(node).__name__ == f"{name}Backward0"
        node = next(following for following, _ in node.next_functions if "Accumulate" not in type(following).__name__)


@given(st.integers(1, 40))
def test_chain_follows_the_longest_path(depth: int) -> None:
    x = torch.ones(2, requires_grad=True)
    y = x
    for _ in range(depth):
        y = (y * 2) + x  # adds a short path to the leaf
    longest = ["Add", "Mul"] * depth if depth > 1 else ["Sin"] * 3
    chain = autograd_chain((y + x.sin().sin().sin()).sum())
    assert chain == ["Sum", "Add", *longest, "AccumulateGrad"]


def test_chain_longer_than_the_recursion_limit() -> None:
    y = torch.ones(1, requires_grad=True)
    for _ in range(5000):
        y = y + 1
    assert len(autograd_chain(y)) == 5001


def test_printed_gradient_is_correct() -> None:
    model = LitMLP(8, (4,), 2)
    x = sample_input(model)
    loss = model.loss(model(x), torch.zeros(1, 2))
    [expected] = torch.autograd.grad(loss, [model.get_parameter("net.0.bias")])
    line = describe(model).splitlines()[-1]
    shown = [float(value) for value in line.partition("[")[2].rstrip("]").split(", ")]
    assert shown == [float(f"{value:.4g}") for value in expected]


def test_describe_does_not_change_the_model() -> None:
    model = LitCNN()
    model.net.conv1.eval()
    modes = [module.training for module in model.modules()]
    bias = model.net.conv1.bias
    assert bias is not None
    bias.grad = torch.ones(6)
    text = describe(model)
    assert modes == [module.training for module in model.modules()]
    assert bias.grad.tolist() == [1] * 6
    assert model.net.fc3.weight.grad is None
    assert "62,006 trainable of 62,006 parameters" in text
    assert "net.conv1.bias.grad after (squared error): [" in text
    assert not text.endswith(", ...]"), "all 6 numbers are shown"
    assert "squared error: MseLoss <- Addmm <- Relu" in text
    assert "cross-entropy: NllLoss <- LogSoftmax <- Addmm" in text


def test_two_depths_are_side_by_side() -> None:
    text = describe(LitDynamic(8, 4, 2))
    assert "1x4, 3 times" in text
    assert f"{2 * (32 + 16 + 8):,}" in text
    assert f"{2 * (32 + 3 * 16 + 8):,}" in text
    graph = [line for line in text.splitlines() if line.startswith("<-")]
    assert graph[0].split() == ["<-", "MseLoss", "MseLoss"]
    assert len(graph) == 1 + 2 * (3 + 1) + 1 + 2  # loss, 4 x (linear, clamp), output, T, leaf


def test_frozen_backbone_is_described() -> None:
    model = LitTransfer(weights=None)
    text = describe(model)
    assert "5,130 trainable of 11,181,642 parameters" in text
    assert "net.fc.bias.grad after" in text
    trained = LitTransfer("shufflenet_v2_x0_5", weights=None, freeze=False)
    before = [buffer.clone() for buffer in trained.buffers()]  # the statistics of BatchNorm
    describe(trained)
    assert all(map(torch.equal, before, trained.buffers()))
