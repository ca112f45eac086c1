"""LitBase: steps, metrics, optimizers, data checks, checkpoints."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from datamodules import RandomDataModule, ShapesDataModule
from lit_models import LitBase, LitCNN, LitDynamic, LitMLP, LitTransfer, ModelError
from lit_models.base import EvaluationLoss

Bare = Callable[..., Trainer]
pytestmark = pytest.mark.filterwarnings("ignore:weights=None")


class Tiny(LitBase):
    """A linear classifier of rows."""

    sample_ndim = 1

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(4, 3)
        self.make_metrics(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def configure_optimizers(self) -> Any:
        return self.build_optimizers(lambda groups: SGD(groups, lr=self.hparams["lr"]), self.parameters())


class TinyRegression(Tiny):
    task = "regression"

    def __init__(self, reduction: Any = "mean", lr: float = 0.1) -> None:
        super().__init__(lr)
        self.reduction = reduction
        self.make_metrics()


def rows(n: int, batch_size: int, target: Tensor | None = None) -> DataLoader:
    """Return ``n`` rows of 4 features with labels of 3 classes. All calls return the same rows."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator)
    y = torch.randint(3, (n,), generator=generator) if target is None else target
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def tensors(loader: DataLoader) -> tuple[Tensor, ...]:
    assert isinstance(loader.dataset, TensorDataset)
    return loader.dataset.tensors


# --- metrics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float64"), ("cuda", "float64"), ("mps", "float32")])
def test_losses_are_summed_in_float64_except_on_mps(device: str, dtype: str) -> None:
    """MPS has no float64. In ``setup`` the model is still on the CPU; only the strategy has the device."""
    model = Tiny()
    strategy = SimpleNamespace(root_device=torch.device(device))
    trainer: Any = SimpleNamespace(strategy=strategy, datamodule=None)
    model.trainer = trainer
    model.setup("fit")
    assert model.val_loss.dtype == model.test_loss.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_of_uneven_batches_are_per_sample(bare: Bare, stage: str) -> None:
    model, loader = Tiny(), rows(10, 8)  # 8 + 2: a mean of batch means would be different
    x, y = tensors(loader)
    with torch.no_grad():
        output = model(x).double()
    assert model.samples_evaluated is None
    run = bare().validate if stage == "val" else bare().test
    [result] = run(model, loader, verbose=False)
    assert result[f"{stage}_loss"] == pytest.approx(float(F.cross_entropy(output, y)), rel=1e-6)
    assert result[f"{stage}_acc"] == pytest.approx(int((output.argmax(1) == y).sum()) / 10, abs=1e-7)
    means = [float(F.cross_entropy(output[part], y[part])) for part in (slice(8), slice(8, 10))]
    assert abs(sum(means) / 2 - result[f"{stage}_loss"]) > 1e-3
    if stage == "val":
        assert model.samples_evaluated == 10


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_evaluation_loss_does_not_depend_on_how_batches_are_distributed(reduction: str) -> None:
    """The losses range from 1e-8 to 1e8, so that a plain sum in float64 depends on their order."""
    batches = [10 ** (8 - 16 * torch.rand(7)) for _ in range(60)]

    def merged_loss(*shares: list[Tensor]) -> Tensor:
        """Return the loss of several ranks; each rank gets one share of the batches."""
        merged = EvaluationLoss(reduction)
        merged.set_dtype(torch.float64)
        for share in shares:
            of_rank = EvaluationLoss(reduction)
            of_rank.set_dtype(torch.float64)
            for batch in share:
                of_rank.update(batch)
            merged.batch_sums = [*merged.batch_sums, *of_rank.batch_sums]
            merged.sample_count = merged.sample_count + of_rank.sample_count
        merged.update(torch.zeros(0))
        return merged.compute()

    alone = merged_loss(batches)
    assert alone.dtype == torch.float64
    total = torch.cat(batches).double().sum() / (420 if reduction == "mean" else 1)
    torch.testing.assert_close(alone, total, rtol=1e-12, atol=0)
    nothing = [torch.zeros(0)]
    for shares in ([batches[0::2], batches[1::2]], [batches[0::3], batches[1::3], batches[2::3]], [nothing, batches]):
        assert torch.equal(merged_loss(*shares), alone)
    orders = [torch.stack([b.double().sum() for b in share]).cumsum(0)[-1] for share in (batches, batches[::-1])]
    assert orders[0] != orders[1]  # a plain sum depends on the order


def test_padding_rows_are_ignored(bare: Bare) -> None:
    whole, padded = rows(10, 4), rows(12, 4)
    _, y = tensors(padded)
    y[[10, 11]] = -1
    tensors(padded)[0][:10] = tensors(whole)[0]
    y[:10] = tensors(whole)[1]
    model = Tiny()
    [want] = bare().validate(model, whole, verbose=False)
    [got] = bare().validate(model, padded, verbose=False)
    assert got == pytest.approx(want, rel=1e-6)
    assert model.samples_evaluated == 10


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_regression_loss_ignores_padding_rows(bare: Bare, reduction: str) -> None:
    target = torch.randn(10, 3)
    model, whole = TinyRegression(reduction), rows(10, 8, target)
    x, _ = tensors(whole)
    padded = DataLoader(
        TensorDataset(torch.cat([x, torch.ones(2, 4)]), torch.cat([target, torch.full((2, 3), torch.nan)])), 8
    )
    want = F.mse_loss(model(x), target, reduction=reduction).item()
    for loader in (whole, padded):
        [result] = bare().validate(model, loader, verbose=False)
        assert result == {"val_loss": pytest.approx(want, rel=1e-6)}


@pytest.mark.parametrize("build", [Tiny, TinyRegression, lambda: TinyRegression("sum")])
def test_nan_loss_is_reported(bare: Bare, build: Callable[[], Tiny]) -> None:
    model = build()
    loader = rows(10, 4, None if model.task == "classification" else torch.randn(10, 3))
    tensors(loader)[0][3] = torch.nan  # one row of ten
    [result] = bare().validate(model, loader, verbose=False)
    assert math.isnan(result["val_loss"])


def test_train_loss_is_the_mean_of_the_batch_losses(bare: Bare) -> None:
    loader = rows(12, 4)
    trainer = bare(max_epochs=2)
    model = Tiny(lr=0.0)  # so that the weights do not change
    trainer.fit(model, loader)
    losses = [F.cross_entropy(model(x), y).item() for x, y in loader]
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_lbfgs_counts_the_first_loss_of_each_step(bare: Bare) -> None:
    loader = rows(4, 4)
    model = Tiny()
    model.chosen_optimizer = lambda groups: torch.optim.LBFGS(model.parameters(), max_iter=5)
    [first] = [F.cross_entropy(model(x), y).item() for x, y in loader]
    trainer = bare(max_epochs=1)
    trainer.fit(model, loader)
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(first, rel=1e-6)


def test_train_loss_step_is_written_every_n_steps(bare: Bare, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    bare(max_epochs=2, logger=logger, log_every_n_steps=2).fit(Tiny(), rows(12, 4))
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    step, value = (lines[0].split(",").index(name) for name in ("step", "train_loss_step"))
    assert [int(line.split(",")[step]) for line in lines[1:] if line.split(",")[value]] == [1, 3, 5]


def test_training_works_without_logging() -> None:
    trainer = Trainer(barebones=True, accelerator="cpu", max_epochs=2)
    model = Tiny()
    before = model.net.weight.clone()
    trainer.fit(model, rows(12, 4), rows(8, 4))
    assert trainer.global_step == 6
    assert not torch.equal(model.net.weight, before)


class Weighted(LightningDataModule):
    class_weights = torch.tensor([1.0, 2.0, 5.0])

    def train_dataloader(self) -> DataLoader:
        return rows(6, 6)

    def val_dataloader(self) -> DataLoader:
        return rows(6, 6)


def test_class_weights_apply_to_the_training_loss_only(bare: Bare) -> None:
    model, trainer = Tiny(lr=0.0), bare(max_epochs=1)
    trainer.fit(model, Weighted())
    x, y = tensors(rows(6, 6))
    got = {name: float(value) for name, value in trainer.callback_metrics.items()}
    output = model(x)
    assert got["train_loss"] == pytest.approx(float(F.cross_entropy(output, y, Weighted.class_weights)), rel=1e-6)
    assert got["val_loss"] == pytest.approx(float(F.cross_entropy(output, y)), rel=1e-6)
    assert abs(got["train_loss"] - got["val_loss"]) > 1e-3
    assert "class_weights" not in model.state_dict()


def test_predict_step_returns_probabilities_and_accepts_a_single_sample() -> None:
    model, x = Tiny(), torch.randn(5, 4)
    torch.testing.assert_close(model.predict_step((x, torch.zeros(5))), model(x).softmax(1))
    torch.testing.assert_close(model.predict_step(x[0]), model(x[:1]).softmax(1))
    torch.testing.assert_close(TinyRegression().predict_step(x).shape, torch.Size([5, 3]))


# --- the optimizer ------------------------------------------------------------------------------------------------


def test_chosen_optimizer_keeps_groups_factors_and_schedule() -> None:
    model = LitTransfer(weights=None, freeze=False, backbone_lr_factor=0.1, step_size=3, gamma=0.5)
    model.chosen_optimizer = lambda groups: Adam(groups, lr=0.02)
    configured: Any = model.configure_optimizers()
    head, backbone = configured["optimizer"].param_groups
    assert isinstance(configured["optimizer"], Adam)
    assert (head["name"], head["lr"]) == ("head", 0.02)
    assert (backbone["name"], backbone["lr"]) == ("backbone", pytest.approx(0.002))
    assert len(head["params"]) == 2
    assert len(head["params"]) + len(backbone["params"]) == len(list(model.parameters()))
    schedule = configured["lr_scheduler"]
    assert (schedule.step_size, schedule.gamma) == (3, 0.5)
    assert schedule.base_lrs == pytest.approx([0.02, 0.002])


def test_chosen_schedule_replaces_the_default() -> None:
    model = LitTransfer(weights=None, freeze=False)
    seen = []
    model.chosen_schedule = lambda optimizer: seen.append(optimizer) or {"scheduler": "mine"}  # type: ignore[func-returns-value]
    configured: Any = model.configure_optimizers()
    assert configured == {"optimizer": seen[0], "lr_scheduler": {"scheduler": "mine"}}


# --- data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (lambda: LitMLP(), lambda: ShapesDataModule(), ["LitMLP", "ShapesDataModule", "regression", "classification"]),
        (lambda: LitCNN(), lambda: RandomDataModule(), ["LitCNN", "RandomDataModule", "classification"]),
        (lambda: LitCNN(in_channels=1), lambda: ShapesDataModule(), ["LitCNN", "(1, 32, 32)", "(3, 32, 32)"]),
        (lambda: LitMLP(), lambda: RandomDataModule(5, 2), ["LitMLP", "RandomDataModule", "(1000,)", "(5,)"]),
        (lambda: LitDynamic(), lambda: RandomDataModule(5), ["LitDynamic", "(1000,)", "(5,)"]),
        (
            lambda: LitCNN(loss="squared_error"),
            lambda: RandomDataModule([3, 28, 28]),
            ["LitCNN", "RandomDataModule", "(3, 28, 28)", "(3, 32, 32)"],
        ),
        (
            lambda: LitTransfer(weights=None),
            lambda: ShapesDataModule(channels=1),
            ["LitTransfer", "ShapesDataModule", "(1, 32, 32)", "(3, H, W)"],
        ),
    ],
)
def test_refusal_of_unsuitable_data_contains_both_class_names(
    bare: Bare, model: Callable[[], LitBase], data: Callable[[], LightningDataModule], words: list[str]
) -> None:
    with pytest.raises(ModelError) as refusal:
        bare(max_steps=1).fit(model(), data())
    assert [word for word in words if word not in str(refusal.value)] == []
    assert "--" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_data_without_task_and_shape_are_accepted() -> None:
    Tiny().check_data(None)
    data = LightningDataModule()
    data.sample_shape = (3,)  # type: ignore[attr-defined]
    Tiny().check_data(data)  # it has rows, but no argument in_features
    Tiny().check_data(LightningDataModule())
    LitCNN().check_data(ShapesDataModule())


def test_only_a_frozen_backbone_has_fixed_features() -> None:
    for model in (Tiny(), LitCNN(), LitTransfer(weights=None, freeze=False)):
        assert not model.fixed_features
    assert LitTransfer(weights=None).fixed_features
    tiny = Tiny()
    tiny.load_pretrained()  # does nothing


def test_features_are_the_inputs_of_the_last_linear_layer() -> None:
    class Net(Tiny):
        def __init__(self, end: Any) -> None:
            super().__init__()
            self.first, self.unused, self.end = nn.Linear(4, 5), nn.Linear(5, 3), end

        def forward(self, x: Tensor) -> Any:
            h = self.first(x).relu()
            outputs = self.end(h)
            self.unused(h + 1)  # another output, as for a second loss
            return outputs

    x, head = torch.randn(6, 4), nn.Linear(5, 3)
    for end in (head, nn.Sequential(head, nn.LogSoftmax(1)), nn.Sequential(nn.Dropout(), head)):
        net = Net(end).eval()
        found = net.features(x)
        assert found is not None
        assert found.equal(net.first(x).relu())
        assert not found.requires_grad
    wider = nn.Sequential(head, nn.ReLU(), nn.Unflatten(1, (3, 1)), nn.Conv1d(3, 2, 1), nn.Flatten())
    places = nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Linear(1, 3))
    gate = nn.Linear(5, 3)
    others: list[Any] = [
        wider,
        places,
        lambda h: gate(h) * h[:, :3],
        lambda h: {"logits": head(h)},
        lambda h: h @ head.weight.T,
    ]
    for other in others:
        assert Net(other).features(x) is None


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_checkpoint_describes_model_and_data(bare: Bare, tmp_path: Path) -> None:
    trainer = bare(max_steps=1)
    trainer.fit(LitCNN(in_channels=1), ShapesDataModule(train_size=8, val_size=10, channels=1))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert checkpoint["lit"] == {
        "model_class": "lit_models.cnn.LitCNN",
        "data_class": "datamodules.shapes.ShapesDataModule",
        "model_arguments": None,  # only fit.py knows them
        "data_arguments": None,
        "seed": None,
        "task": "classification",
        "class_names": list(ShapesDataModule.class_names),
        "preprocessing": {
            "image_size": 32,
            "resize_size": 32,
            "mean": [0.5],
            "std": [0.5],
            "interpolation": "bilinear",
            "resize": "crop",
        },
        "trains_on_all": False,
    }
    assert checkpoint["hyper_parameters"]["in_channels"] == 1
    assert checkpoint["datamodule_hyper_parameters"]["channels"] == 1
    again = LitCNN.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.class_names == ShapesDataModule.class_names
    assert again.preprocessing == checkpoint["lit"]["preprocessing"]


def test_checkpoint_of_a_fit_on_plain_loaders_keeps_the_class_names(bare: Bare, tmp_path: Path) -> None:
    model, trainer = Tiny(), bare(max_steps=1)
    model.class_names = ("a", "b", "c")
    trainer.fit(model, rows(4, 4))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    about = torch.load(tmp_path / "a.ckpt", weights_only=True)["lit"]
    assert (about["model_class"], about["data_class"]) == (f"{__name__}.Tiny", None)
    assert about["class_names"] == ["a", "b", "c"]
    assert Tiny.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).class_names == ("a", "b", "c")
