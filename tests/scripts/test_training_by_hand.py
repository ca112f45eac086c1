"""fit.py trains as its flags say: each run ends like a hand-written loop.

The tests compare weights, losses and learning rates; those of the run are from its output, metrics.csv and its
checkpoints.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from datamodules import ImageFolderDataModule, RandomDataModule, ShapesDataModule
from lit_models import LitCNN, LitDynamic, LitMLP
from tests.support import by_hand, printed, scripted
from tests.support.commands import run_well

RUN = Path("lightning_logs/version_0")
SHAPES = "--data.train_size 24 --data.val_size 10"
ROWS = "--data.in_features 6 --data.out_features 2 --data.length 20 --data.batch_size 5 --data.steps 0"
OPTIONS = "--accelerator cpu --devices 1 --dashboard false --log_every_n_steps 1"


class Case(NamedTuple):
    """Flags of fit.py, and the same by hand: seed, data, model, optimizer, schedule, and more for by_hand.Trained."""

    flags: str
    seed: int
    data: Callable[[], Any]
    model: Callable[[], Any]
    optimizer: Callable[..., Optimizer]
    schedule: Callable[..., Any] | None = None
    epochs: int = 5
    each: str = "epoch"
    more: dict[str, Any] = {}  # noqa: RUF012


def shapes(**options: Any) -> Callable[[], Any]:
    return partial(ShapesDataModule, **{"train_size": 24, "val_size": 10, **options})


def rows() -> Any:
    return RandomDataModule(6, 2, length=20, batch_size=5, steps=0)


def photos() -> Any:
    data = ImageFolderDataModule("photos", image_size=32, balance="loss")
    data.adapt_to(LitCNN())
    return data


CASES = {
    "nothing typed": Case(SHAPES, 0, shapes(), LitCNN, partial(SGD, lr=0.001, momentum=0.9)),
    "each flag": Case(
        f"{SHAPES} --seed 3 --model.lr 0.02 --model.momentum 0.5 --data.batch_size 5 --max_epochs 3 --data.seed 8 "
        "--accumulate_grad_batches 2 --lr_scheduler StepLR --lr_scheduler.step_size 2 --lr_scheduler.gamma 0.25",
        *(3, shapes(batch_size=5, seed=8), LitCNN, partial(SGD, lr=0.02, momentum=0.5)),
        *(partial(StepLR, step_size=2, gamma=0.25), 3, "epoch", {"accumulate": 2}),
    ),
    "another optimizer, one cycle": Case(
        f"{SHAPES} --optimizer AdamW --optimizer.lr 0.003 --optimizer.weight_decay 0.5 --lr_scheduler OneCycleLR "
        "--lr_scheduler.pct_start 0.5 --max_epochs 3",
        *(0, shapes(), LitCNN, partial(AdamW, lr=0.003, weight_decay=0.5)),
        *(partial(OneCycleLR, max_lr=0.003, total_steps=18, pct_start=0.5), 3, "step"),
    ),
    "plateau": Case(
        f"{SHAPES} --model.lr 0.01 --lr_scheduler ReduceLROnPlateau --lr_scheduler.patience 1 --max_epochs 6 "
        "--lr_scheduler.threshold 0.5 --lr_scheduler.factor 0.5 --data.augment true --gradient_clip_val 0.1",
        *(0, shapes(augment=True), LitCNN, partial(SGD, lr=0.01, momentum=0.9)),
        *(partial(ReduceLROnPlateau, patience=1, threshold=0.5, factor=0.5), 6, "epoch", {"clip": 0.1}),
    ),
    "rows": Case(f"--model LitMLP {ROWS}", 0, rows, lambda: LitMLP(6, (100,), 2), partial(SGD, lr=1e-4), None, 1),
    "rows, cosine": Case(
        f"--model LitMLP {ROWS} --model.hidden [7] --model.lr 0.002 --accumulate_grad_batches 3 --max_epochs 4 "
        "--lr_scheduler CosineAnnealingLR --seed 1",
        *(1, rows, lambda: LitMLP(6, (7,), 2), partial(SGD, lr=0.002)),
        *(partial(CosineAnnealingLR, T_max=4), 4, "epoch", {"accumulate": 3}),
    ),
    "random depth": Case(
        f"--model LitDynamic {ROWS} --model.hidden 9 --max_epochs 3 --callbacks {scripted.NAME}.Depths",
        *(0, rows, lambda: LitDynamic(6, 9, 2), partial(SGD, lr=1e-4, momentum=0.9), None, 3),
    ),
    "balanced photos": Case(
        "--data photos --model LitCNN --data.image_size 32 --data.balance loss --max_epochs 2 --model.lr 0.05",
        *(0, photos, lambda: LitCNN(num_classes=4, lr=0.05), partial(SGD, lr=0.05, momentum=0.9), None, 2),
        more={"weight": 12 / (4 * torch.tensor([5.0, 4.0, 2.0, 1.0]))},
    ),
}


def trained_by_hand(case: Case) -> by_hand.Trained:
    data = by_hand.data_of_run(case.data(), case.seed)
    torch.manual_seed(case.seed)
    model = case.model()
    optimizer = case.optimizer(model.parameters())
    more = dict(case.more)
    if case.schedule is not None:
        schedule = case.schedule(optimizer)
        if case.each == "step":
            more["every_step"] = schedule.step
        elif isinstance(schedule, ReduceLROnPlateau):
            more["every_epoch"] = schedule.step
        else:
            more["every_epoch"] = lambda _: schedule.step()
    if isinstance(model, LitDynamic):
        more["depths"] = list(scripted.Depths.seen)
    return by_hand.Trained(model, data, optimizer, case.epochs, **more)


@pytest.mark.parametrize("name", CASES)
def test_a_run_equals_a_hand_written_loop(name: str) -> None:
    case = CASES[name]
    by_hand.four_classes(Path("photos"))
    out = run_well(f"fit.py {case.flags} {OPTIONS}")
    hand = trained_by_hand(case)
    lines, rows = printed.epochs(out), printed.read_csv(RUN / "metrics.csv")
    assert [(line.number, line.of) for line in lines] == [(number + 1, case.epochs) for number in range(case.epochs)]
    assert [line.figures["lr"] for line in lines] == pytest.approx(hand.rates, rel=5e-3)
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    best = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)
    figures = {"train_loss": hand.train_loss, "val_loss": hand.val_loss, "val_acc": hand.val_acc}
    for metric, values in figures.items():
        assert printed.column(rows, metric) == pytest.approx(values, rel=1e-4)
        assert [line.figures[metric] for line in lines if metric in line.figures] == pytest.approx(values, rel=2e-3)
    decides = [(*accuracy, -loss) for *accuracy, loss in zip(*filter(None, (hand.val_acc, hand.val_loss)), strict=True)]
    kept = decides.index(max(decides))
    for checkpoint, weights in ((last, hand.weights[-1]), (best, hand.weights[kept])):
        for key, tensor in weights.items():
            torch.testing.assert_close(checkpoint["state_dict"][key], tensor, rtol=1e-4, atol=1e-6)
    assert [line.star for line in lines] == [
        all(value > earlier for earlier in decides[:place]) for place, value in enumerate(decides)
    ]
    if "accumulate" not in case.more:
        assert printed.column(rows, "train_loss_step") == pytest.approx(hand.batch_losses, rel=1e-4)


def test_the_cases_make_mistakes_visible() -> None:
    """Schedules change the rate, accumulation leaves a remainder, and classes have different weights."""
    for name in ("each flag", "plateau", "rows, cosine"):
        assert len(set(trained_by_hand(CASES[name]).rates)) > 1, name
    assert -(-24 // 5) % 2 == 1
    assert len(set(by_hand.COUNTS["train"])) == 4


def test_the_saved_configuration_repeats_the_run() -> None:
    typed = CASES["each flag"].flags
    first = run_well(f"fit.py {typed} {OPTIONS} --early_stopping 7 --gradient_clip_val 3")
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["seed_everything"] == 3
    assert config["early_stopping"] == 7
    assert config["dashboard"] is False
    assert config["model"]["class_path"].endswith("LitCNN")
    assert config["model"]["init_args"] == {
        **{"lr": 0.02, "momentum": 0.5, "in_channels": 3, "num_classes": 10, "loss": "cross_entropy"}
    }
    assert config["data"]["class_path"].endswith("ShapesDataModule")
    assert config["data"]["init_args"] == {
        **{"train_size": 24, "val_size": 10, "batch_size": 5, "channels": 3, "augment": False, "seed": 8},
        "on_device": "auto",
    }
    assert config["lr_scheduler"]["init_args"]["gamma"] == 0.25
    wanted = {"max_epochs": 3, "accumulate_grad_batches": 2, "gradient_clip_val": 3, "log_every_n_steps": 1}
    assert {name: config["trainer"][name] for name in wanted} == wanted
    again = run_well(f"fit.py --config {RUN}/config.yaml --max_epochs 2")
    figures = [(line.figures["train_loss"], line.figures["val_loss"]) for line in printed.epochs(first)]
    assert [(line.figures["train_loss"], line.figures["val_loss"]) for line in printed.epochs(again)] == figures[:2]


def depths(flags: str) -> list[int]:
    run_well(f"fit.py --model LitDynamic {ROWS} {OPTIONS} --callbacks {scripted.NAME}.Depths {flags}")
    return list(scripted.Depths.seen)


def test_random_numbers_of_a_step_depend_on_the_seed_and_the_step() -> None:
    whole = depths("--max_epochs 8 --default_root_dir whole")
    assert len(whole) == 32
    assert set(whole) == {0, 1, 2, 3}
    assert whole[:16] != whole[16:]  # steps count over all epochs
    assert len({tuple(whole[start : start + 4]) for start in range(0, 32, 4)}) > 4
    assert depths("--max_epochs 8 --seed 1 --default_root_dir other") != whole
    first = depths("--max_epochs 3 --default_root_dir parts")
    run_well("fit.py --resume latest --default_root_dir parts --max_epochs 8")
    assert first + scripted.Depths.seen == whole
    one, other = (torch.load(Path(root, RUN, "checkpoints/last.ckpt"), weights_only=True) for root in ROOTS)
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())


ROOTS = ("parts", "whole")


def test_the_initial_weights_depend_on_the_seed() -> None:
    """The seed of the data does not matter; the tiny learning rate does not change the weights."""
    ends = []
    for seed in (0, 7):
        run_well(f"fit.py {SHAPES} {OPTIONS} --max_epochs 1 --model.lr 1e-20 --seed {seed} --default_root_dir s{seed}")
        state = torch.load(Path(f"s{seed}", RUN, "checkpoints/last.ckpt"), weights_only=True)["state_dict"]
        torch.manual_seed(seed)
        assert all(torch.equal(tensor, state[name]) for name, tensor in LitCNN().state_dict().items())
        ends.append(state)
    assert not torch.equal(ends[0]["net.conv1.weight"], ends[1]["net.conv1.weight"])


@pytest.mark.parametrize(("model", "epochs"), [("LitCNN", 5), ("LitMLP", 1), ("LitDynamic", 1), ("LitTransfer", 25)])
def test_each_model_has_its_default_number_of_epochs(model: str, epochs: int) -> None:
    """The number is read from the output; LitTransfer stops early, because 25 epochs take long."""
    more = "--data ShapesDataModule --model.weights none --model.backbone shufflenet_v2_x0_5"
    more = f"{more} {SHAPES} --early_stopping 1" if model == "LitTransfer" else ""
    out = run_well(f"fit.py --model {model} {more} {OPTIONS} --limit_train_batches 1 --limit_val_batches 1")
    assert {line.of for line in printed.epochs(out)} == {epochs}
    assert yaml.safe_load((RUN / "config.yaml").read_text())["trainer"]["max_epochs"] == epochs
