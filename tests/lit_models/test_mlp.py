"""mlp and LitMLP."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lit_models import LitMLP, ModelError, mlp

widths = st.integers(1, 9)


def test_default_sizes_are_those_of_the_tutorial() -> None:
    net = mlp()
    assert [type(layer) for layer in net] == [nn.Linear, nn.ReLU, nn.Linear]
    assert sum(parameter.numel() for parameter in net.parameters()) == 101_110
    assert "101,110 at the defaults" in str(mlp.__doc__)


@given(widths, st.lists(widths, max_size=4), widths)
def test_forward_equals_a_functional_computation(first: int, hidden: Sequence[int], last: int) -> None:
    net, x = mlp(first, hidden, last), torch.randn(3, first)
    values = list(net.state_dict().values())
    layers = list(zip(values[::2], values[1::2], strict=True))
    assert [tuple(weight.shape) for weight, _ in layers] == list(zip([*hidden, last], [first, *hidden], strict=True))
    h = x
    for number, (weight, bias) in enumerate(layers):
        h = torch.einsum("bi,oi->bo", h, weight) + bias
        if number < len(hidden):
            h = h * (h > 0)
    torch.testing.assert_close(net(x), h, rtol=0, atol=1e-5)


def test_without_hidden_layers_it_is_one_linear_layer() -> None:
    model = LitMLP(5, (), 2)
    [(weight, bias)] = [(layer.weight, layer.bias) for layer in model.net]
    assert (weight.shape, bias.shape) == ((2, 5), (2,))
    assert model.hparams["hidden"] == ()


def test_the_loss_is_summed_squared_error() -> None:
    output, target = torch.randn(4, 10), torch.randn(4, 10)
    torch.testing.assert_close(LitMLP().loss(output, target), ((output - target) ** 2).sum())
    torch.testing.assert_close(LitMLP().loss_per_sample(output, target), ((output - target) ** 2).sum(1))


@pytest.mark.parametrize("arguments", [{"in_features": 0}, {"hidden": (3, 0)}, {"out_features": -1}])
def test_invalid_widths_are_refused(arguments: dict) -> None:
    with pytest.raises(ModelError, match=r"--model.in_features .* --model.hidden .* --model.out_features"):
        LitMLP(**arguments)
