"""DynamicNet and LitDynamic."""

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from datamodules import RandomDataModule
from lit_models import DynamicNet, LitDynamic, ModelError
from lit_models.dynamic import MAX_DEPTH


def functional(net: DynamicNet, x: Tensor, depth: int) -> Tensor:
    p = net.state_dict()
    h = (x @ p["input_linear.weight"].T + p["input_linear.bias"]).clamp(min=0)
    for _ in range(depth):
        h = (h @ p["middle_linear.weight"].T + p["middle_linear.bias"]).clamp(min=0)
    return h @ p["output_linear.weight"].T + p["output_linear.bias"]


def test_default_sizes_are_those_of_the_tutorial() -> None:
    assert sum(parameter.numel() for parameter in DynamicNet().parameters()) == 111_210
    assert "111,210 at the defaults" in str(DynamicNet.__doc__)
    assert MAX_DEPTH == 3


@pytest.mark.parametrize("depth", range(MAX_DEPTH + 1))
def test_forward_at_each_depth_equals_a_functional_computation(depth: int) -> None:
    net, x = DynamicNet(7, 5, 3), torch.randn(4, 7)
    torch.testing.assert_close(net(x, depth), functional(net, x, depth), rtol=0, atol=1e-6)


def test_evaluation_is_deterministic_and_the_mean_over_depths() -> None:
    net, x = DynamicNet(7, 5, 3).eval(), torch.randn(4, 7)
    mean = torch.stack([functional(net, x, depth) for depth in range(4)]).mean(0)
    state = torch.get_rng_state()
    torch.testing.assert_close(net(x), mean, rtol=0, atol=1e-6)
    assert torch.equal(net(x), net(x))
    assert torch.equal(torch.get_rng_state(), state)  # no random number is drawn


def depths(net: DynamicNet, x: Tensor, n: int) -> list[int]:
    """Return the depths of ``n`` forward passes."""
    outputs = [functional(net, x, depth) for depth in range(4)]
    return [next(d for d, one in enumerate(outputs) if torch.allclose(y, one)) for y in (net(x) for _ in range(n))]


def test_depths_are_equally_likely_and_fixed_by_the_seed() -> None:
    net, x = DynamicNet(7, 20, 3), torch.randn(4, 7)
    torch.manual_seed(5)
    first = depths(net, x, 400)
    torch.manual_seed(5)
    assert depths(net, x, 400) == first
    assert all(70 <= first.count(depth) <= 130 for depth in range(4))  # 100 each, standard deviation 8.7


class Watch(Callback):
    """Record whether the middle layer had a gradient, and its weights after each step."""

    def __init__(self) -> None:
        self.used: list[bool] = []
        self.weights: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LitDynamic, optimizer: object) -> None:  # type: ignore[override]
        self.used.append(pl_module.net.middle_linear.weight.grad is not None)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LitDynamic, *_: object) -> None:  # type: ignore[override]
        self.weights.append(pl_module.net.middle_linear.weight.detach().clone())


def test_unused_layer_has_no_gradient_and_is_not_updated(bare: Callable[..., Trainer]) -> None:
    watch = Watch()
    torch.manual_seed(2)
    bare(max_epochs=1, callbacks=[watch]).fit(LitDynamic(), RandomDataModule(steps=12))
    moved = [not torch.equal(a, b) for a, b in zip(watch.weights, watch.weights[1:], strict=False)]
    assert moved == watch.used[1:]
    assert False in moved[moved.index(True) :]  # momentum does not change it either


def test_validation_is_repeatable(bare: Callable[..., Trainer]) -> None:
    model, data = LitDynamic(), RandomDataModule()
    first, second = (bare().validate(model, data, verbose=False) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("arguments", [{"in_features": 0}, {"hidden": 0}, {"out_features": -1}])
def test_invalid_widths_are_refused(arguments: dict) -> None:
    with pytest.raises(ModelError, match=r"--model.in_features .* --model.hidden .* --model.out_features"):
        LitDynamic(**arguments)
