"""All models: every argument has an effect, training works, checkpoints restore the same outputs."""

import inspect
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from datamodules import RandomDataModule
from lit_models import LitAirbench, LitBase, LitCNN, LitDynamic, LitMLP, LitTransfer
from tests.support.commands import ENVIRONMENT

Bare = Callable[..., Trainer]
MODELS: dict[str, type[LitBase]] = {
    "LitAirbench": LitAirbench,
    "LitCNN": LitCNN,
    "LitMLP": LitMLP,
    "LitDynamic": LitDynamic,
    "LitTransfer": LitTransfer,
}
SMALL: dict[str, dict[str, Any]] = {  # arguments for fast tests
    "LitAirbench": {"width": 0.05},
    "LitCNN": {},
    "LitMLP": {"in_features": 6, "hidden": (5,), "out_features": 4},
    "LitDynamic": {"in_features": 6, "hidden": 5, "out_features": 4},
    "LitTransfer": {"backbone": "shufflenet_v2_x0_5", "weights": None, "freeze": False},
}
pytestmark = pytest.mark.filterwarnings("ignore:weights=None")


def batch_for(name: str, n: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if name in ("LitMLP", "LitDynamic"):
        return torch.randn(n, 6, generator=generator), torch.randn(n, 4, generator=generator)
    return torch.randn(n, 3, 32, 32, generator=generator), torch.arange(n) % 10


@pytest.mark.parametrize("name", ["LitCNN", "LitMLP", "LitDynamic"])
def test_an_optimizer_can_be_chosen_for_every_model(name: str) -> None:
    model: Any = MODELS[name](**SMALL[name])
    assert isinstance(model.configure_optimizers()["optimizer"], SGD)
    model.chosen_optimizer = lambda groups: Adam(groups, lr=0.5)
    [group] = model.configure_optimizers()["optimizer"].param_groups
    assert group["lr"] == 0.5
    assert len(group["params"]) == len(list(model.parameters()))


# --- arguments --------------------------------------------------------------------------------------------------------


def short_run(model: LitBase, bare: Bare) -> str:
    """Train on one batch for three epochs and return a text that identifies all weights."""
    x, y = batch_for(type(model).__name__)
    if model.sample_ndim == 1:
        hparams = model.hparams
        x = x.repeat(1, 2)[:, : hparams["in_features"]]
        y = y.repeat(1, 2)[:, : hparams["out_features"]]
    elif model.hparams.get("in_channels") == 1:
        x = x[:, :1]
    if model.task == "regression" and y.ndim == 1:
        y = F.one_hot(y, 10).float()
    bare(max_epochs=3).fit(model, DataLoader(TensorDataset(x, y % 7 if y.ndim == 1 else y), 4))
    return str([(name, tensor.shape, tensor.double().sum().item()) for name, tensor in model.state_dict().items()])


OTHERS: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {
    # (model, argument): (other required arguments, another value of the argument)
    ("LitAirbench", "in_channels"): ({}, 1),
    ("LitAirbench", "num_classes"): ({}, 11),
    ("LitAirbench", "width"): ({}, 0.1),
    ("LitAirbench", "lr"): ({}, 0.1),
    ("LitAirbench", "sgd_lr"): ({}, 0.1),
    ("LitCNN", "in_channels"): ({}, 1),
    ("LitCNN", "num_classes"): ({}, 11),
    ("LitCNN", "lr"): ({}, 0.01),
    ("LitCNN", "momentum"): ({}, 0.5),
    ("LitCNN", "loss"): ({}, "squared_error"),
    ("LitMLP", "in_features"): ({}, 7),
    ("LitMLP", "hidden"): ({}, (5, 5)),
    ("LitMLP", "out_features"): ({}, 5),
    ("LitMLP", "lr"): ({}, 1e-3),
    ("LitDynamic", "in_features"): ({}, 7),
    ("LitDynamic", "hidden"): ({}, 8),
    ("LitDynamic", "out_features"): ({}, 5),
    ("LitDynamic", "lr"): ({}, 1e-3),
    ("LitDynamic", "momentum"): ({}, 0.5),
    ("LitTransfer", "backbone"): ({}, "squeezenet1_1"),
    ("LitTransfer", "num_classes"): ({}, 7),
    ("LitTransfer", "weights"): ({}, "own.pth"),
    ("LitTransfer", "freeze"): ({}, True),
    ("LitTransfer", "lr"): ({}, 0.01),
    ("LitTransfer", "momentum"): ({}, 0.5),
    ("LitTransfer", "step_size"): ({}, 2),
    ("LitTransfer", "weight_decay"): ({}, 50.0),
    ("LitTransfer", "gamma"): ({"step_size": 1}, 0.5),
    ("LitTransfer", "unfreeze_epoch"): ({}, 1),
    ("LitTransfer", "backbone_lr_factor"): ({}, 0.1),
    ("LitTransfer", "label_smoothing"): ({}, 0.2),
    ("LitTransfer", "mix"): ({}, "mixup"),
    ("LitTransfer", "average_flips"): ({"freeze": True}, True),
}


def every_argument() -> Iterator[tuple[str, str]]:
    for name, model in MODELS.items():
        yield from ((name, argument) for argument in inspect.signature(model).parameters)


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, ...], str]:
    """Results of short runs by model name and arguments."""
    return {}


@pytest.mark.parametrize(("name", "argument"), list(every_argument()))
def test_every_argument_has_an_effect(
    bare: Bare, outcomes: dict[tuple[str, ...], str], name: str, argument: str
) -> None:
    given, other = OTHERS[name, argument]
    if other == "own.pth":
        torch.manual_seed(9)
        torch.save(LitTransfer(**SMALL[name]).net.state_dict(), other)

    def outcome(arguments: dict[str, Any]) -> str:
        torch.manual_seed(0)
        return short_run(MODELS[name](**{**SMALL[name], **arguments}), bare)

    before = (name, *given)
    if before not in outcomes:
        outcomes[before] = outcome(given)
    assert outcome({**given, argument: other}) != outcomes[before]


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_training_reaches_every_parameter(name: str) -> None:
    model: Any = MODELS[name](**SMALL[name])
    x, y = batch_for(name)
    output = model.net(x, depth=3) if name == "LitDynamic" else model(x)  # depth 3 uses all layers
    last = "MmBackward0" if name == "LitAirbench" else "AddmmBackward0"  # without and with a bias
    assert output.grad_fn.name() == last  # the last layer is linear, without activation
    model.loss(output, y).backward()
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    for parameter_name, parameter in trained:
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", ["LitAirbench", "LitCNN", "LitTransfer"])
def test_untrained_classifier_has_the_loss_of_guessing(name: str) -> None:
    """That is log(10) for ten classes."""
    model = MODELS[name](**SMALL[name])
    x, y = batch_for(name, 50)
    assert float(model.loss(model(x), y)) == pytest.approx(math.log(10), abs=0.1 if name == "LitCNN" else 0.5)


def test_untrained_regression_has_the_loss_of_guessing() -> None:
    """The targets have variance 1, the outputs at most 1/9 (torch's uniform initialization)."""
    data = RandomDataModule()
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    for model in (LitMLP(), LitDynamic()):
        assert 0.9 * 640 < float(model.loss(model(x), y)) < 1.2 * 640


@pytest.mark.parametrize(
    ("name", "arguments", "steps", "below"),
    [
        ("LitCNN", {"lr": 0.02}, 150, 0.05),
        ("LitMLP", {"lr": 0.01, "hidden": (64,)}, 500, 0.05),
        ("LitDynamic", {"lr": 0.002, "hidden": 64}, 500, 0.05),
        ("LitTransfer", {"lr": 0.01, "step_size": 100}, 30, 0.05),
    ],
)
def test_every_model_overfits_one_batch(
    bare: Bare, name: str, arguments: dict[str, Any], steps: int, below: float
) -> None:
    model = MODELS[name](**{**SMALL[name], **arguments})
    loader = DataLoader(TensorDataset(*batch_for(name)), 4)
    first = float(model.loss(model(batch_for(name)[0]), batch_for(name)[1]))
    trainer = bare(max_epochs=steps)
    trainer.fit(model, loader)
    assert float(trainer.callback_metrics["train_loss"]) < below < first / 10


# --- checkpoints ------------------------------------------------------------------------------------------------------


def trained_checkpoint(name: str, bare: Bare, path: Path) -> tuple[LitBase, Tensor]:
    model = MODELS[name](**SMALL[name])
    x, y = batch_for(name)
    trainer = bare(max_epochs=2)
    trainer.fit(model, DataLoader(TensorDataset(x, y), 4))
    trainer.save_checkpoint(path)
    model.eval()
    with torch.no_grad():
        return model, model(x)


@pytest.mark.slow
def test_checkpoints_restore_the_same_outputs(bare: Bare, tmp_path: Path) -> None:
    for name in MODELS:
        path = tmp_path / f"{name}.ckpt"
        model, output = trained_checkpoint(name, bare, path)
        again = MODELS[name].load_from_checkpoint(path, weights_only=True).eval()
        with torch.no_grad():
            assert torch.equal(again(batch_for(name)[0]), output)
        assert again.hparams == model.hparams
        torch.save({"x": batch_for(name)[0], "output": output}, tmp_path / f"{name}.pt")
    fresh = (
        "import sys, torch, lit_models\n"
        "torch.set_num_threads(1)\n"
        "for name in sys.argv[1:]:\n"
        "    torch.load(f'{name}.ckpt', weights_only=True)\n"
        "    model = getattr(lit_models, name).load_from_checkpoint(f'{name}.ckpt', weights_only=True).eval()\n"
        "    want = torch.load(f'{name}.pt')\n"
        "    with torch.no_grad(): print(name, torch.equal(model(want['x']), want['output']))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", fresh, *MODELS], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [f"{name} True" for name in MODELS]
