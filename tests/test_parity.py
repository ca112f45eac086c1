"""Training with a Trainer gives the same weights as the plain torch loop of the tutorials."""

from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models

from datamodules import RandomDataModule, ShapesDataModule
from lit_models import LitCNN, LitDynamic, LitMLP, LitTransfer

STEPS = 10
MakeTrainer = Callable[..., Trainer]


def copy_weights(trained: nn.Module, reference: nn.Module) -> list[Tensor]:
    """Copy the weights of ``trained`` to ``reference``; return another copy of the weights."""
    start = [tensor.clone() for tensor in trained.state_dict().values()]
    for value, tensor in zip(start, reference.state_dict().values(), strict=True):
        tensor.copy_(value)
    return start


def assert_same(trained: nn.Module, reference: nn.Module, start: Iterable[Tensor]) -> None:
    """Assert that two networks have the same weights, and that training changed them from ``start``."""
    rows = zip(trained.state_dict().items(), reference.state_dict().values(), start, strict=True)
    moved = 0
    for (name, one), other, before in rows:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=f"{name} differs")
        moved += not torch.equal(one, before)
    assert moved


@pytest.mark.parametrize("channels", [1, 3])
def test_cnn(bare: MakeTrainer, channels: int) -> None:
    data = ShapesDataModule(train_size=40, val_size=10, channels=channels)
    model = LitCNN(in_channels=channels, lr=0.01)
    net = nn.Sequential(
        *(nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    start = copy_weights(model.net, net)
    bare(max_steps=STEPS).fit(model, data)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for x, y in data.train_dataloader():  # 10 batches of 4
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert_same(model.net, net, start)


def test_cnn_on_one_image_with_targets_1_to_10(bare: MakeTrainer) -> None:
    data = RandomDataModule([1, 32, 32], 10, length=1, batch_size=1, steps=STEPS, target="count")
    model = LitCNN(in_channels=1, lr=0.01, momentum=0.0, loss="squared_error")
    net = nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    start = copy_weights(model.net, net)
    bare(max_epochs=1).fit(model, data)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    picture = data.sets["train"][0][0].unsqueeze(0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.MSELoss()(net(picture), torch.arange(1.0, 11.0).view(1, 10)).backward()
        optimizer.step()
    assert_same(model.net, net, start)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_mlp(bare: MakeTrainer, accumulate: int) -> None:
    data, model = RandomDataModule(steps=STEPS * accumulate), LitMLP()
    net = nn.Sequential(nn.Linear(1000, 100), nn.ReLU(), nn.Linear(100, 10))
    start = copy_weights(model.net, net)
    bare(max_epochs=1, accumulate_grad_batches=accumulate).fit(model, data)

    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    for number, (x, y) in enumerate(data.train_dataloader(), start=1):
        nn.MSELoss(reduction="sum")(net(x), y).backward()
        if number % accumulate == 0:  # a summed loss is the sum over all accumulated batches
            optimizer.step()
            optimizer.zero_grad()
    assert_same(model.net, net, start)


def test_linear_net(bare: MakeTrainer) -> None:
    data = RandomDataModule(5, 2, length=100, batch_size=10, steps=0, target="linear")
    model, net = LitMLP(5, (), 2, lr=1e-3), nn.Linear(5, 2)
    start = copy_weights(model.net, net)
    bare(max_epochs=1).fit(model, data)

    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for x, y in data.train_dataloader():
        optimizer.zero_grad()
        ((net(x) - y) ** 2).sum().backward()
        optimizer.step()
    assert_same(model.net, net, start)


def test_dynamic(bare: MakeTrainer) -> None:
    data, model = RandomDataModule(steps=STEPS), LitDynamic()
    first, middle, last = net = nn.ModuleList([nn.Linear(1000, 100), nn.Linear(100, 100), nn.Linear(100, 10)])
    start = copy_weights(model.net, net)
    torch.manual_seed(2)
    bare(max_epochs=1).fit(model, data)

    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    depths = []
    torch.manual_seed(2)
    for x, y in data.train_dataloader():
        h = first(x).clamp(min=0)
        depths.append(int(torch.randint(0, 4, ())))
        for _ in range(depths[-1]):
            h = middle(h).clamp(min=0)
        optimizer.zero_grad()
        nn.MSELoss(reduction="sum")(last(h), y).backward()
        optimizer.step()
    # After its first use the middle layer has momentum, which must not change it in a step that does not use it.
    assert 0 in depths[depths.index(max(depths)) :]
    assert set(depths) == {0, 1, 2, 3}
    assert_same(model.net, net, start)


@pytest.mark.filterwarnings("ignore:weights=None")
@pytest.mark.parametrize("freeze", [True, False])
def test_transfer(bare: MakeTrainer, freeze: bool) -> None:
    pictures = TensorDataset(torch.randn(8, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))
    loader = DataLoader(pictures, batch_size=4)
    model = LitTransfer(
        "resnet18",
        3,
        weights=None,
        freeze=freeze,
        lr=0.01,
        momentum=0.9,
        step_size=2,
        gamma=0.5,
        backbone_lr_factor=1.0,
    )
    net = models.resnet18()
    net.fc = nn.Linear(512, 3)
    net = net.to(memory_format=torch.channels_last)  # as in LitTransfer; another layout rounds otherwise
    start = copy_weights(model.net, net)
    bare(max_epochs=STEPS // 2).fit(model, loader)

    if freeze:
        net.requires_grad_(False).eval()
        net.fc.requires_grad_(True)
    optimizer = torch.optim.SGD(net.fc.parameters() if freeze else net.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for _ in range(STEPS // 2):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        schedule.step()
    assert_same(model.net, net, start)
