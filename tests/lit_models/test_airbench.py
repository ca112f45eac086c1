"""AirbenchNet, its optimizer and LitAirbench: whitening, learning rates, resume, several processes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lit_models import AirbenchNet, LitAirbench, ModelError
from lit_models.airbench import MuonSGD
from lit_training.callbacks.resume import ResumePoint
from tests.support.commands import run, run_well
from tests.support.fits import SHAPES, assert_same_end, fit, fit_run, last
from tests.support.forks import Fork

SMALL = f"--model LitAirbench --model.width 0.05 {SHAPES}"


def pictures(seed: int = 0, scale: float = 1.0) -> Tensor:
    """Return smooth random pictures (8, 3, 32, 32), whose neighboring pixels and channels are correlated."""
    noise = torch.randn(8, 3, 33, 33, generator=torch.Generator().manual_seed(seed))
    return scale * F.avg_pool2d(noise + noise[:, :1], 2, 1) + 0.1


def loader(x: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x, torch.arange(len(x)) % 3), batch_size=4)


def inverse_moments(weight: Tensor) -> Tensor:
    """Return the inverse of the second moments that a whitening layer whitens, whatever the order of its filters."""
    half = weight[: len(weight) // 2].flatten(1).double()
    return half.T @ half


def test_the_documented_numbers_of_parameters() -> None:
    parameters = list(AirbenchNet().parameters())
    counts = [sum(p.numel() for p in some) for some in (parameters, [p for p in parameters if p.requires_grad])]
    assert "{:,} at the defaults, {:,} of them trained".format(*counts) in str(AirbenchNet.__doc__)


def test_forward_equals_a_functional_computation() -> None:
    net, x = AirbenchNet(3, 5, 0.125), pictures()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    p = net.state_dict()
    h = F.gelu(F.conv2d(x, p["whiten.weight"], p["whiten.bias"]))
    sizes = []
    for index, (conv, norm) in enumerate([(1, 3), (5, 6), (8, 10), (12, 13), (15, 17), (19, 20)]):
        h = F.conv2d(h, p[f"layers.{conv}.weight"], padding=1)
        h = h if index % 2 else F.max_pool2d(h, 2)
        h = (h - h.mean((0, 2, 3), True)) / h.var((0, 2, 3), correction=0, keepdim=True).sqrt()
        h = F.gelu(h + p[f"layers.{norm}.bias"].view(-1, 1, 1))
        sizes.append(tuple(h.shape[1:]))
    assert sizes == [(8, 15, 15), (8, 15, 15), (32, 7, 7), (32, 7, 7), (32, 3, 3), (32, 3, 3)]
    expected = h.amax((2, 3)) @ p["head.weight"].T / 32
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-4)


def test_convolutions_begin_as_copies_of_their_input() -> None:
    conv: Any = AirbenchNet(width=0.5).layers[8]  # 32 -> 128 channels
    x = torch.randn(1, 32, 5, 5)
    assert torch.equal(conv(x)[:, :32], x)
    assert not torch.allclose(conv(x)[:, 32:64], x)


def test_the_optimizer_is_sgd_and_the_published_muon() -> None:
    """The loop is that of airbench94_muon.py."""
    torch.manual_seed(1)
    filters, theirs, bias = torch.randn(6, 2, 3, 3).requires_grad_(), torch.Tensor(), torch.randn(7).requires_grad_()
    theirs, their_bias = filters.detach().clone(), bias.detach().clone().requires_grad_()
    ours = MuonSGD([{"params": [filters], "lr": 0.24, "momentum": 0.6, "muon": True}, {"params": [bias]}], lr=0.1)
    sgd = SGD([their_bias], lr=0.1, momentum=0.85, nesterov=True)
    buffer = torch.zeros_like(theirs)
    for _ in range(4):
        filters.grad, bias.grad = torch.randn(6, 2, 3, 3), torch.randn(7)
        their_bias.grad = bias.grad.clone()
        sgd.step()
        buffer.mul_(0.6).add_(filters.grad)
        g = filters.grad.add(buffer, alpha=0.6)
        theirs.mul_(len(theirs) ** 0.5 / theirs.norm())
        x = g.reshape(len(g), -1)
        x = x / (x.norm() + 1e-7)
        for _ in range(3):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        theirs.add_(x.view(g.shape), alpha=-0.24)
        ours.step()
    torch.testing.assert_close(filters.detach(), theirs)
    torch.testing.assert_close(bias, their_bias)
    assert 0.5 < torch.linalg.svdvals(x).min() < torch.linalg.svdvals(x).max() < 1.5


class MatrixTypes(TorchDispatchMode):
    """Collect the dtypes of the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            self.seen.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("device", "precision", "dtype"),
    [
        ("cuda", "bf16-mixed", torch.bfloat16),
        ("cuda", "32-true", torch.float32),
        ("cuda", "16-mixed", torch.float32),  # older GPUs, which have no bfloat16
        ("cpu", "bf16-mixed", torch.float32),
    ],
)
def test_muon_computes_in_bfloat16_only_if_a_run_on_a_gpu_does(
    device: str, precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LitAirbench, "device", torch.device(device))
    monkeypatch.setattr(LitAirbench, "trainer", SimpleNamespace(precision=precision, estimated_stepping_batches=9))
    model = LitAirbench(width=0.05).to("meta")
    optimizer = model.configure_optimizers()["optimizer"]
    for weight in model.parameters():
        weight.grad = torch.empty_like(weight) if weight.requires_grad else None
    with MatrixTypes() as matrices:
        optimizer.step()
    assert matrices.seen == {dtype}


def test_the_first_batch_is_whitened_once(bare: Callable[..., Trainer], tmp_path: Path) -> None:
    model, x = LitAirbench(width=0.05), pictures()
    trainer = bare(max_epochs=2)
    trainer.fit(model, loader(x))
    whiten = model.net.whiten
    patches = F.conv2d(x[:4], whiten.weight)[:, :12].transpose(0, 1).flatten(1)  # without bias
    moments = patches @ patches.T / patches.shape[1]
    assert (moments - torch.eye(12)).abs().max() < 0.05  # 1e-4 is added to each variance
    assert torch.equal(whiten.weight[:12], -whiten.weight[12:])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = LitAirbench.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    bare(max_epochs=1).fit(again, loader(pictures(1, 5.0)))  # other data: a trained network keeps its first layer
    assert torch.equal(again.net.whiten.weight, whiten.weight)


@pytest.mark.parametrize(("accumulated", "chosen"), [(1, False), (2, False), (2, True)])
def test_a_step_has_the_gradient_of_the_summed_loss(
    bare: Callable[..., Trainer], accumulated: int, chosen: bool
) -> None:
    """With another optimizer it is the mean, as for all other models."""
    model, x, found = LitAirbench(width=0.05), pictures(), []

    class Note(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            found.append(model.net.head.weight.grad.clone())  # type: ignore[union-attr]

        def on_train_batch_start(self, *_: Any) -> None:
            model.net.eval()  # BatchNorm would use other statistics for other batches

    if chosen:
        model.chosen_optimizer = lambda groups: SGD(groups, lr=0.0)
    trainer = bare(
        max_epochs=1, accumulate_grad_batches=accumulated, limit_train_batches=accumulated, callbacks=[Note()]
    )
    whole = LitAirbench(width=0.05)
    whole.load_state_dict(model.state_dict())
    trainer.fit(model, loader(x))
    whole.net.whiten.load_state_dict({**whole.net.whiten.state_dict(), "weight": model.net.whiten.weight})
    n = 4 * accumulated
    loss = F.cross_entropy(whole.eval()(x[:n]), torch.arange(n) % 3, label_smoothing=0.2, reduction="sum")
    [expected] = torch.autograd.grad(loss / n if chosen else loss, whole.net.head.weight)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)


def test_the_learning_rates_fall_to_zero_step_by_step(bare: Callable[..., Trainer]) -> None:
    model, rates = LitAirbench(width=0.05, lr=0.3, sgd_lr=0.02), []

    class Note(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            rates.append([group["lr"] for group in optimizer.param_groups])

    bare(max_epochs=2, callbacks=[Note()]).fit(model, loader(pictures()))
    expected = [[0.3 * left, 0.02 * left, 0.252 * left] for left in (1, 0.75, 0.5, 0.25)]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))


@pytest.mark.parametrize("flags", ["", "--accumulate_grad_batches 4 --gradient_clip_val 0.5"])
def test_a_killed_run_ends_bit_equal(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    """The first kill is right after the whitening: the new process must not whiten by another batch."""
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", 1e9)
    line = f"{SMALL} {flags} --max_epochs 2 --data.augment true"
    whole = fit_run(f"{line} --default_root_dir whole")
    for step in (1, 9, None):
        fit(f"{line} --resume auto", kill_at=step)
    assert_same_end(whole, Path("lightning_logs/version_0"))


def test_a_trained_network_is_described_evaluated_and_predicts_and_is_not_extended() -> None:
    data = "--data.train_size 200 --data.val_size 40 --data.batch_size 20"
    run_well(f"fit.py --model LitAirbench --model.width 0.1 {data} --max_epochs 6 --accelerator cpu --dashboard false")
    accuracy = float(run_well("evaluate.py latest").split("test_acc", 1)[1].split()[0])
    assert accuracy > 0.5
    assert run_well("describe.py latest").startswith("LitAirbench: 21,676 trainable of 22,080 parameters")
    Image.new("RGB", (32, 32), "red").save("red.png")
    assert "red.png" in run_well("predict.py latest red.png")
    refused = run("fit.py --resume latest --max_epochs 8")
    assert refused.code == 2
    assert "the PolynomialLR of this run ends after 60 steps" in refused.err


@pytest.mark.slow
def test_two_processes_whiten_by_the_pictures_of_both() -> None:
    line = f"fit.py {SMALL} --max_steps 1 --accelerator cpu --dashboard false --quiet true --limit_val_batches 0"
    run_well(f"{line} --default_root_dir one")
    process = Fork(f"{line} --data.batch_size 2 --devices 2 --strategy ddp --default_root_dir two")
    output = process.communicate()
    assert process.returncode == 0, output
    saved = [last(Path(name) / "lightning_logs/version_0") for name in ("one", "two")]
    moments = [inverse_moments(one["state_dict"]["net.whiten.weight"]) for one in saved]
    torch.testing.assert_close(*moments, rtol=1e-3, atol=1e-3)
    states = [one["optimizer_states"][0]["state"] for one in saved]
    gradients = [state[max(state)]["momentum_buffer"].norm() for state in states]  # of the last layer
    assert 0.7 < gradients[1] / gradients[0] < 1.4  # each process has its own statistics of BatchNorm


@pytest.mark.parametrize("arguments", [{"in_channels": 0}, {"num_classes": 0}, {"width": 0}, {"width": float("nan")}])
def test_invalid_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"--model\.width 1"):
        LitAirbench(**arguments)


def test_small_pictures_and_other_channels_are_refused() -> None:
    assert LitAirbench().shape_error((3, 9, 9)) is None
    assert LitAirbench(in_channels=1).shape_error((1, 64, 64)) is None
    assert LitAirbench()(torch.randn(2, 3, 9, 64)).shape == (2, 10)
    for shape in ((1, 32, 32), (3, 8, 32), (3,)):
        assert str(shape) in str(LitAirbench().shape_error(shape))
