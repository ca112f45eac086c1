"""LitTransfer: freezing, fine-tuning, and pretrained weights, which are read only when a fit starts."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from lit_models import LitBase, LitTransfer, ModelError, backbones

Bare = Callable[..., Trainer]
SMALL = "shufflenet_v2_x0_5"
pytestmark = pytest.mark.filterwarnings("ignore:weights=None")


def pictures(n: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(4)
    return DataLoader(TensorDataset(torch.randn(n, 3, 32, 32, generator=generator), torch.arange(n) % 3), batch_size=4)


def values(model: LitTransfer) -> dict[str, Tensor]:
    """Return copies of the network's parameters and buffers."""
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def changed_names(model: LitTransfer, before: dict[str, Tensor]) -> set[str]:
    """Return the names of the parameters and buffers that have changed."""
    return {name for name, tensor in model.net.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("freeze", [True, False])
def test_asking_for_a_picture_size_does_not_change_the_model(freeze: bool) -> None:
    model = LitTransfer(SMALL, 3, weights=None, freeze=freeze)
    before, modes = values(model), [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    assert model.shape_error((3, 40, 40)) is None
    assert changed_names(model, before) == set()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.shape_error((1, 40, 40)) is not None


def test_the_defaults_have_the_documented_sizes() -> None:
    model = LitTransfer()
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_181_642
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 5_130
    assert "11,181,642 at the defaults, 5,130 of them in the head" in str(LitTransfer.__doc__)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 10)
    assert model.preprocessing == {
        "image_size": 224,
        "resize_size": 256,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
    }


@pytest.mark.parametrize("backbone", [SMALL, "resnet18", "efficientnet_b0"])
def test_frozen_backbone_does_not_change_in_a_fit(bare: Bare, backbone: str) -> None:
    model = LitTransfer(backbone, 3, weights=None, lr=0.1)
    before = values(model)
    trainer = bare(max_epochs=2)
    trainer.fit(model, pictures(), pictures())  # validation switches between the modes
    head = model.head_name
    assert {f"{head}.bias"} <= changed_names(model, before) <= {f"{head}.weight", f"{head}.bias"}
    [group] = trainer.optimizers[0].param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in model.head.parameters()}
    assert all(p.grad is None for name, p in model.net.named_parameters() if not name.startswith(head))


def test_frozen_batchnorm_keeps_its_statistics() -> None:
    model = LitTransfer(SMALL, 3, weights=None)
    before = values(model)
    model(torch.randn(4, 3, 32, 32))
    model.train()(torch.randn(4, 3, 32, 32))
    assert changed_names(model, before) == set()


def test_fine_tuning_changes_every_layer(bare: Bare) -> None:
    model = LitTransfer(SMALL, 3, weights=None, freeze=False)
    before = values(model)
    bare(max_epochs=1).fit(model, pictures(), pictures())
    assert changed_names(model, before) == set(before)


class EachEpoch(Callback):
    """Record learning rates, mode and final weights of each epoch."""

    def __init__(self) -> None:
        self.networks: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []
        self.training: list[bool] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
            self.training.append(pl_module.net.training)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.networks.append(values(pl_module))


def model_with_late_unfreezing() -> LitTransfer:
    torch.manual_seed(1)
    return LitTransfer(
        *(SMALL, 3),
        weights=None,
        freeze=False,
        unfreeze_epoch=2,
        backbone_lr_factor=0.1,
        lr=0.01,
        momentum=0.9,
        step_size=3,
        gamma=0.1,
    )


def test_backbone_is_frozen_until_unfreeze_epoch(bare: Bare) -> None:
    model, seen = model_with_late_unfreezing(), EachEpoch()
    before = values(model)
    bare(max_epochs=4, callbacks=[seen]).fit(model, pictures(), pictures())
    backbone = {name for name in before if not name.startswith(model.head_name)}
    for epoch in (0, 1):
        assert all(torch.equal(seen.networks[epoch][name], before[name]) for name in backbone)
        assert not torch.equal(seen.networks[epoch]["fc.weight"], before["fc.weight"])
    assert all(not torch.equal(seen.networks[2][name], before[name]) for name in backbone)
    assert seen.training == [False, False, True, True]
    # The backbone's rate is a tenth of the head's, and StepLR(3) divides both by ten.
    assert seen.rates == [pytest.approx([rate, rate / 10]) for rate in (0.01, 0.01, 0.01, 0.001)]


def test_a_resumed_fit_unfreezes_at_the_same_epoch(bare: Bare, tmp_path: Path) -> None:
    whole = model_with_late_unfreezing()
    bare(max_epochs=3).fit(whole, pictures())
    first = bare(max_epochs=2)
    first.fit(model_with_late_unfreezing(), pictures())
    first.save_checkpoint(tmp_path / "a.ckpt")
    resumed = model_with_late_unfreezing()
    bare(max_epochs=3).fit(resumed, pictures(), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True)
    assert changed_names(resumed, values(whole)) == set()


def test_features_leave_no_hook_after_an_error() -> None:
    model = LitTransfer("resnet18", 2, weights=None)
    with pytest.raises(RuntimeError):
        model.features(torch.zeros(1, 4, 32, 32))  # four channels
    assert not model.head._forward_hooks


def test_features_are_the_same_in_a_fit_and_in_evaluation(bare: Bare) -> None:
    model = LitTransfer(SMALL, 3, weights=None)
    x = torch.randn(4, 3, 32, 32)
    want = model.eval().features(x)
    assert want is not None
    seen: list[Tensor | None] = []

    class Compare(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            assert pl_module.training
            seen.append(pl_module.features(x))

    model.train()
    bare(max_epochs=2, callbacks=[Compare()]).fit(model, pictures(), pictures())
    assert len(seen) == 4
    assert all(one is not None and torch.equal(one, want) for one in seen)


def test_chosen_optimizer_gets_only_the_head_when_frozen() -> None:
    model = LitTransfer(SMALL, 3, weights=None)
    model.chosen_optimizer = lambda groups: SGD(groups, lr=0.5)
    configured: Any = model.configure_optimizers()
    [group] = configured["optimizer"].param_groups
    assert (group["lr"], len(group["params"])) == (0.5, 2)
    assert (configured["lr_scheduler"].step_size, configured["lr_scheduler"].gamma) == (1, 0.85)


def test_the_default_optimizer_is_adamw_with_less_weight_decay_for_pretrained_layers() -> None:
    model = LitTransfer(SMALL, 3, weights=None, freeze=False, lr=0.02, weight_decay=0.5)
    optimizer = model.configure_optimizers()["optimizer"]
    groups = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert type(optimizer) is AdamW
    assert groups == {"head": (0.02, 0.5), "backbone": (pytest.approx(0.0006), 0.05)}


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("epoch", [0, 1])
def test_batchnorm_keeps_the_pretrained_statistics_unless_momentum_is_given(
    bare: Bare, tmp_path: Path, momentum: float | None, epoch: int
) -> None:
    """With small batches, new statistics would make the loss jump at the first epoch that trains the backbone."""
    torch.save(LitTransfer(SMALL, 1000, weights=None).net.state_dict(), tmp_path / "a.pth")
    weights = str(tmp_path / "a.pth")
    model = LitTransfer(SMALL, 3, weights=weights, freeze=False, unfreeze_epoch=epoch, momentum=momentum)
    seen = EachEpoch()
    bare(max_epochs=3, callbacks=[seen]).fit(model, pictures())
    changed = {name for name, tensor in seen.networks[2].items() if not torch.equal(tensor, seen.networks[0][name])}
    assert {name.rpartition(".")[2] for name in changed} >= {"weight", "bias"}  # also those of BatchNorm
    assert any("running_" in name for name in changed) == (momentum is not None)


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ModelError, match=r"--model\.num_classes"):
        LitTransfer(num_classes=0)
    for arguments in ({"unfreeze_epoch": 1}, {"backbone_lr_factor": 0.5}):
        with pytest.raises(ModelError, match=r"--model\.freeze false"):
            LitTransfer(**arguments)
    with pytest.raises(ModelError, match="did you mean resnet18"):
        LitTransfer("resnet19")


def test_frozen_random_backbone_raises_a_warning() -> None:
    with pytest.warns(UserWarning, match="the frozen backbone is random"):
        LitTransfer(SMALL, 3, weights="none")


# --- weights ------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """A state dict with 1000 classes, as published."""
    torch.manual_seed(8)
    torch.save(models.get_model(SMALL).state_dict(), tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each call that reads pretrained weights."""
    seen: list[str] = []
    load = backbones.load

    def counting(network: Any, head_name: str, backbone: str, weights: str, classes: Any) -> str:
        seen.append(weights)
        return load(network, head_name, backbone, weights, classes)

    monkeypatch.setattr(backbones, "load", counting)
    return seen


def test_weights_are_read_once_at_the_start_of_a_fit(bare: Bare, weights_file: Path, reads: list[str]) -> None:
    model = LitTransfer(SMALL, 3, weights=str(weights_file))
    assert reads == []
    trainer = bare(max_epochs=1)
    trainer.fit(model, pictures(), pictures())
    published = torch.load(weights_file, weights_only=True)
    assert changed_names(model, {**published, **values_of_head(model)}) == set()
    bare().validate(model, pictures(), verbose=False)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, pictures())
    assert reads == [str(weights_file)]


def values_of_head(model: LitTransfer) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in values(model).items() if name.startswith(model.head_name)}


def test_checkpoints_are_opened_and_resumed_without_weights_file(
    bare: Bare, weights_file: Path, reads: list[str], tmp_path: Path
) -> None:
    model, trainer = LitTransfer(SMALL, 3, weights=str(weights_file), freeze=False), bare(max_epochs=1)
    trainer.fit(model, pictures())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    weights_file.unlink()
    reads.clear()
    opened = LitTransfer.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    bare().test(opened, pictures(), verbose=False)
    opened.load_pretrained()  # must not overwrite the trained weights
    assert changed_names(opened, values(model)) == set()
    resumed = LitTransfer(SMALL, 3, weights=str(weights_file), freeze=False)
    bare(max_epochs=2).fit(resumed, pictures(), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True)
    assert reads == []
    assert math.isfinite(float(resumed.net.state_dict()["fc.weight"].sum()))


@pytest.mark.parametrize(
    ("device", "precision", "layout"),
    [
        ("cuda", "bf16-mixed", torch.channels_last),
        ("cuda", "16-true", torch.channels_last),
        ("cuda", "32-true", torch.contiguous_format),
        ("mps", "16-mixed", torch.contiguous_format),
        ("cpu", "32-true", torch.channels_last),
    ],
)
def test_convolutions_get_the_layout_that_is_fast_on_the_device(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, layout: torch.memory_format
) -> None:
    model = LitTransfer(SMALL, num_classes=2, weights=None)
    first = model.net.get_parameter("conv1.0.weight")  # (24, 3, 3, 3)
    assert first.is_contiguous(memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    strategy = SimpleNamespace(root_device=torch.device(device))
    monkeypatch.setattr(LitTransfer, "trainer", SimpleNamespace(precision=precision, strategy=strategy))
    monkeypatch.setattr(LitTransfer, "device", torch.device(device))
    model.setup("fit")
    assert model.to("cpu") is model  # as the Trainer does before DDP gets the network
    assert first.is_contiguous(memory_format=layout)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_picture_size_is_checked_where_the_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """In setup(), Lightning has set ``model.device`` to the GPU, but has not moved the weights there."""
    model = LitTransfer(SMALL, 3, weights=None)
    monkeypatch.setattr(LitTransfer, "device", torch.device("meta"))
    devices: list[str] = []
    model.net.register_forward_pre_hook(lambda net, args: devices.append(args[0].device.type))
    assert model.shape_error((3, 40, 40)) is None
    assert devices == ["cpu"]


def test_missing_weights_stop_a_fit_before_its_first_step(bare: Bare) -> None:
    model = LitTransfer(SMALL, 3, weights="nowhere.pth")
    with pytest.raises(ModelError, match=r"no weights file nowhere\.pth"):
        bare(max_epochs=1).fit(model, pictures())
    with pytest.raises(ModelError, match=r"cannot get the weights of .*name resolution"):
        bare(max_epochs=1).fit(LitTransfer(SMALL, 3), pictures())


def test_feature_rows_go_to_the_head_only() -> None:
    model = LitTransfer(SMALL, 3, weights=None)
    rows = torch.randn(5, 1024)
    assert torch.equal(model(rows), F.linear(rows, *model.head.parameters()))


# --- smoothed labels, mixed pictures, averaged outputs --------------------------------------------------------------


def test_smoothed_labels_change_the_training_loss_only() -> None:
    model = LitTransfer(SMALL, 3, weights=None, freeze=False, label_smoothing=0.2)
    output, target, weights = torch.randn(5, 3), torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0.5, 1.0, 2.0])
    model.class_weights = weights
    wanted = F.cross_entropy(output, target, weights, label_smoothing=0.2)
    torch.testing.assert_close(model.loss(output, target), wanted)
    assert torch.equal(model.loss_per_sample(output, target), F.cross_entropy(output, target, reduction="none"))


@pytest.mark.parametrize("mix", ["mixup", "cutmix", "both"])
@pytest.mark.parametrize("size", [4, 1])
def test_mixed_pictures_have_mixed_targets(monkeypatch: pytest.MonkeyPatch, mix: Any, size: int) -> None:
    """Pictures of class 0 are black and those of class 1 are white, so that the mean of a picture is its target."""
    model = LitTransfer(SMALL, 2, weights=None, freeze=False, mix=mix)
    model.class_weights = torch.tensor([1.0, 3.0])
    seen: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(LitBase, "training_step", lambda self, batch, _: seen.append(batch))
    labels = torch.tensor([0, 1, 1, 0])[-size:]
    black_or_white = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    for _ in range(20):
        model.training_step((black_or_white, labels), 0)
    x, y = (torch.cat(parts) for parts in zip(*seen, strict=True))
    torch.testing.assert_close(x.mean((1, 2, 3)), y[:, 1])
    torch.testing.assert_close(y.sum(1), torch.ones(len(y)))
    blended = (x > 0.001) & (x < 0.999)
    pasted = (x.amax((1, 2, 3)) > 0.999) & (x.amin((1, 2, 3)) < 0.001)
    assert (bool(blended.any()), bool(pasted.any())) == (size > 1 and mix != "cutmix", size > 1 and mix != "mixup")
    output = torch.randn(len(y), 2)
    wanted = -(y * model.class_weights * output.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model.loss(output, y), wanted)


def test_mixed_pictures_need_fine_tuning_and_smoothing_is_less_than_one() -> None:
    with pytest.raises(ModelError, match=r"mix need fine-tuning: add --model\.freeze false"):
        LitTransfer(SMALL, 3, weights=None, mix="cutmix")
    for share in (-0.1, 1.0):
        with pytest.raises(ModelError, match=r"--model\.label_smoothing 0\.1"):
            LitTransfer(SMALL, 3, weights=None, label_smoothing=share)


def test_outputs_of_picture_and_mirror_image_are_averaged_in_evaluation() -> None:
    x = torch.randn(4, 3, 32, 32)
    tuned = LitTransfer("timm/test_resnet", 3, weights=None, freeze=False, average_flips=True)
    plain = LitTransfer("timm/test_resnet", 3, weights=None, freeze=False)
    plain.net.load_state_dict(tuned.net.state_dict())
    frozen = LitTransfer("timm/test_resnet", 3, weights=None, average_flips=True)
    frozen.net.load_state_dict(tuned.net.state_dict())
    plain.eval()
    mean = (plain(x) + plain(x.flip(-1))) / 2
    assert not torch.allclose(mean, plain(x), atol=1e-3)
    torch.testing.assert_close(tuned.eval()(x), mean)
    features = frozen.features(x)
    assert features is not None
    for training in (True, False):  # a frozen backbone has the same features in both
        torch.testing.assert_close(frozen.train(training)(x), mean)
        torch.testing.assert_close(frozen(features), mean)
    torch.testing.assert_close(tuned.train()(x), plain.train()(x))
