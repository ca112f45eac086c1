"""``fit.py --folds``: out-of-fold figures, the last training on all samples, and exact resume."""

import csv
import itertools
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from lit_models import LitBase
from lit_training.callbacks.resume import ResumePoint
from lit_training.cli import folds
from lit_training.statistics import wilson_interval
from tests.support.commands import run, run_well
from tests.support.fits import SMALL_NET, Killed, assert_same_weights
from tests.support.photos import write_pictures

CPU = "--accelerator cpu --devices 1 --quiet true --dashboard false"
SHAPES = f"{CPU} --data.train_size 40 --data.val_size 20 --data.batch_size 5"
FINE_TUNED = "--model.freeze false --data.image_size 65 --optimizer AdamW --lr_scheduler OneCycleLR"
RUN = Path("lightning_logs/version_0")


def rows_of(folder: Path = RUN, name: str = "out_of_fold.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


OWN = """
import torch
from torch import nn
from torch.utils.data import Dataset
from datamodules.loading.module import SplitDataModule
from lit_models import LitBase

class Linear(LitBase):
    sample_ndim = 1

    def __init__(self, in_features: int = 8, num_classes: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(in_features, num_classes)
        self.make_metrics(num_classes)

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return self.build_optimizers(lambda groups: torch.optim.SGD(groups, 0.1), self.parameters())

class Cloud(Dataset):
    def __init__(self, x, labels):
        self.x, self.labels = x, labels

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, keys):
        rows = [key % len(self) for key in keys]
        return self.x[rows], self.labels[rows]

class Clouds(SplitDataModule):
    task, class_names, num_classes, sample_shape, in_features = "classification", ("a", "=b", "c"), 3, (8,), 8

    def __init__(self, batch_size: int = 5, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        labels = torch.arange(60) % 3
        x = torch.randn(60, 8, generator=torch.Generator().manual_seed(1)) + torch.eye(8)[labels] * 2
        self.sets = {"train": Cloud(x[:45], labels[:45]), "val": Cloud(x[45:], labels[45:])}
"""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Count the training losses; raise Killed at number ``kill_at``. Each step writes a resume point."""
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", math.inf)
    counts: dict[str, Any] = {"done": 0, "kill_at": None}
    original = LitBase.loss

    def loss(self: Any, output: Any, target: Any) -> Any:
        if counts["done"] == counts["kill_at"]:
            raise Killed
        counts["done"] += 1
        return original(self, output, target)

    monkeypatch.setattr(LitBase, "loss", loss)
    return counts


def train(line: str, steps: dict[str, Any], kill_at: int | None = None) -> int:
    """Run a command; return the number of training steps until its end or its kill."""
    steps.update(done=0, kill_at=kill_at)
    if kill_at is None:
        run_well(line)
    else:
        with pytest.raises(Killed):
            run(line)
    return int(steps["done"])


@pytest.mark.parametrize(
    ("model", "epoch"),
    [
        (f"{SHAPES} --model.lr 0.05", 6),
        pytest.param(f"--data photos {SMALL_NET} {CPU}", 3, marks=pytest.mark.slow),
        pytest.param(f"--data photos {SMALL_NET} {CPU} {FINE_TUNED}", 3, marks=pytest.mark.slow),
    ],
    ids=["LitCNN", "frozen", "fine-tuned"],
)
def test_a_killed_run_goes_on_inside_its_fold_and_ends_the_same(model: str, epoch: int, steps: dict[str, Any]) -> None:
    write_pictures(Path("photos"), {"train/cat": 8, "train/dog": 10, "val/cat": 4, "val/dog": 2})
    line = f"fit.py {model} --folds 2 --max_epochs 3 --seed 3 --monitor val_loss:max"  # the best epoch is not the last
    total = train(f"{line} --default_root_dir whole", steps)
    line += " --default_root_dir killed --resume auto"
    done = train(line, steps, kill_at=3 * epoch - 1)  # in the last epoch of the first fold
    assert (Path("killed") / RUN / "folds" / "1_1").is_dir(), "resume points"
    done += train(line, steps, kill_at=total - 3 * epoch - 1)  # in the last training
    assert (Path("killed") / RUN / "out_of_fold.csv").is_file()
    first = torch.load(Path("killed") / RUN / "folds" / "1_1.pt", weights_only=True)
    assert len(first["epochs"]) == 3, "also the epochs before the kill"
    done += train(line, steps)
    assert done <= total + 2 * epoch, "each resume repeats less than an epoch"
    whole, killed = (Path(root) / RUN for root in ("whole", "killed"))
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_weights(whole, killed, name)
    assert (whole / "out_of_fold.csv").read_bytes() == (killed / "out_of_fold.csv").read_bytes()
    assert not (killed / "folds").exists()


def test_the_figures_are_those_of_the_file_and_the_kept_model_saw_all_samples(steps: dict[str, Any]) -> None:
    """With a model and a data module of a user."""
    Path("own_folds.py").write_text(OWN)
    line = f"{CPU} --model own_folds.Linear --data own_folds.Clouds --lr_scheduler OneCycleLR --monitor val_loss:max"
    done = train(f"fit.py {line} --folds 3 --repeats 2 --max_epochs 4", steps)
    total = 2 * 3 * 4 * 8  # 60 samples: 40 in each of 6 trainings, in 8 batches, for 4 epochs
    rows, kept = rows_of(), torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)
    assert (done - total) % 12 == 0, "12 batches of all samples in each epoch"
    assert kept["global_step"] == done - total == 12, "the first epoch has the largest loss"
    assert kept["lr_schedulers"][0]["total_steps"] == 4 * 12, "the schedule has the length of the folds' schedules"
    last = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    assert all(torch.equal(weight, last["state_dict"][name]) for name, weight in kept["state_dict"].items())
    names = list(rows[0])[5:]
    for row in rows:
        shares = [float(row[name]) for name in names]
        assert sum(shares) == pytest.approx(1, abs=1e-6)
        assert row["prediction"] == names[shares.index(max(shares))], "also for the name =b, which is written as '=b"
    assert Counter(row["path"] for row in rows) == dict.fromkeys(map(str, range(60)), 2)
    assert set(Counter((row["repeat"], row["fold"], row["label"]) for row in rows).values()) <= {6, 7}, "stratified"
    pairs = [{row["path"]: row["fold"] for row in rows if row["repeat"] == repeat} for repeat in "12"]
    assert pairs[0] != pairs[1], "another division in each repeat"
    right = [
        [row["prediction"] == row["label"] for row in rows if (row["repeat"], row["fold"]) == pair]
        for pair in itertools.product("12", "123")
    ]
    accuracies = [sum(fold) / len(fold) for fold in right]
    mean = sum(accuracies) / 6
    variance = sum((one - mean) ** 2 for one in accuracies) / 5 * (1 / 6 + 1 / 2)
    low, high = wilson_interval(mean * (n := min(60, mean * (1 - mean) / variance)), n)
    line = f"fold_acc    {mean:.4f}  (95 % interval {low:.3f} to {high:.3f}, n = 60, 3 folds x 2 repeats)"
    assert 0.5 < mean < 1, "it learned something, so this test can tell"
    out = run_well("evaluate.py latest")
    assert line in out
    assert "test_acc" not in out, "these data have no test split"


def test_the_median_of_the_best_epochs_rounded_up_is_that_of_the_last_training_and_of_the_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best epoch of a fold must not choose the outputs of that fold: the accuracy would be too good."""
    monkeypatch.setattr(folds, "remove_folds", lambda run: None)
    Path("own_folds.py").write_text(OWN)
    sums = []
    for seed in range(3):
        line = f"fit.py {CPU} --quiet false --model own_folds.Linear --data own_folds.Clouds --folds 2 --max_epochs 6"
        out = run_well(f"{line} --seed {seed}")
        best = [int(number) for number in re.findall(r"^fold .* in epoch (\d+) ", out, re.MULTILINE)]
        assert len(best) == 2
        assert re.search(
            r"^folds   2 folds x 1 repeat = 2 networks x 6 epochs = 12 epochs on 50% of 60 .*\n"
            r"epoch   the first one took [\d.]+ s: about 0:00:\d\d left for all folds .*\nfold 1/2 .*\nfold 2/2 ",
            out,
            re.MULTILINE,
        )
        assert re.findall(r"^all +(\d+) epoch", out, re.MULTILINE) == [str(math.ceil(sum(best) / 2))]
        sums.append(sum(best))
        place, epoch = RUN.with_name(f"version_{seed}"), math.ceil(sum(best) / 2) - 1
        kept = [torch.load(place / f"folds/1_{fold}.pt", weights_only=True)["epochs"][epoch] for fold in (1, 2)]
        found = torch.tensor([[float(cell) for cell in [*row.values()][5:]] for row in rows_of(place)])
        torch.testing.assert_close(found, torch.cat(kept).softmax(1))
    assert any(total % 2 for total in sums), "otherwise no median is rounded"
    assert min(sums) < 11, "otherwise each median is the last epoch"


def test_photos_of_a_group_share_a_fold_and_evaluate_shows_their_figures() -> None:
    write_pictures(Path("photos"), {"train/cat": 6, "train/dog": 5, "val/cat": 2, "val/dog": 3})
    for number in range(3):
        shutil.copy("photos/train/cat/0.jpg", f"photos/val/cat/copy{number}.jpg")
    out = run_well(f"fit.py --data photos {SMALL_NET} {CPU} --folds 3 --max_epochs 2 --data.cache true --quiet false")
    assert "folds   3 folds x 1 repeat = 3 networks x 2 epochs = 6 epochs on 67% of 19 samples" in out
    rows = rows_of()
    assert len({row["fold"] for row in rows if row["path"] == "train/cat/0.jpg" or "copy" in row["path"]}) == 1
    fitted = torch.load(RUN / "checkpoints/best.ckpt", weights_only=True)["lit"]["calibration"]
    assert (fitted["source"], fitted["count"], len(fitted["references"])) == ("out-of-fold", 19, 19 - 19 // 5)
    assert len(rows) == len({row["path"] for row in rows}) == 19
    accuracy = "".join(line for line in out.splitlines() if line.startswith("fold_acc"))
    assert accuracy in run_well("evaluate.py latest")
    listed = rows_of(RUN / "evaluation", "predictions.csv")
    assert [(row["path"], row["predicted"]) for row in listed] == [(row["path"], row["prediction"]) for row in rows]
    split = {row["split"] for row in rows_of(RUN, "split.csv")}
    assert split == {"train"}
    ended = run(f"evaluate.py {RUN} --data photos")
    assert ended.code == 2
    assert "were trained on" in ended.err


def test_outputs_of_a_fold_are_those_of_a_network_that_did_not_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that remembers the labels of the training pictures is right there, and only there."""
    write_pictures(Path("photos"), {"a": 6, "b": 6})
    seen: list[tuple[set[str], set[str]]] = []
    original = folds.add_defaults

    def spy(arguments: Any, fold: Any, *others: Any) -> Any:
        seen.append(tuple(set(fold.data.sets[split].paths) for split in ("train", "val")))  # type: ignore[arg-type]
        seeds.add(fold.config["seed_everything"])
        augments.append(tuple(fold.data.sets[split].augment for split in ("train", "val")))
        given = original(arguments, fold, *others)
        note = LambdaCallback(on_train_start=lambda *_: threads.append(chosen[-1]))
        return {**given, "callbacks": [*given["callbacks"], note]}

    threads, chosen = list[int](), list[int]()
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)  # two threads wait for each other, which is slow
    augments, seeds = list[Any](), set[int]()
    monkeypatch.setattr(folds, "add_defaults", spy)
    run_well(f"fit.py --data photos {SMALL_NET} {CPU} {FINE_TUNED} --folds 3 --max_epochs 1 --threads 2")
    assert [len(val) for _, val in seen] == [4, 4, 4]
    assert (len(seeds), threads) == (3, [2, 2, 2])
    for number, (train_paths, val_paths) in enumerate(seen, start=1):
        assert not train_paths & val_paths
        assert len(train_paths | val_paths) == 12
        assert val_paths == {row["path"] for row in rows_of() if row["fold"] == str(number)}
    assert all(train_names and not val_names for train_names, val_names in augments)


def test_a_signal_after_the_last_step_of_a_fold_stops_before_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, prepare, write = list[Any](), folds.choose_optimizer, folds.atomic_write

    def note(fold: Any, *rest: Any) -> None:
        runs.append(fold)
        prepare(fold, *rest)

    def stop(*place: Any) -> Any:
        runs[0].watch.signum = 15
        return write(*place)

    monkeypatch.setattr(folds, "choose_optimizer", note)
    monkeypatch.setattr(folds, "atomic_write", stop)
    line = f"fit.py {SHAPES} --folds 2 --max_epochs 1 --resume auto"
    ended = run(line)
    assert (ended.code, "stopped after a fold; go on with" in ended.out) == (143, True)
    assert (len(runs), runs[0].watch.stepping) == (1, False)
    monkeypatch.setattr(folds, "atomic_write", write)
    file = RUN / "folds" / "1_1.pt"
    kept = torch.load(file, weights_only=True)
    torch.save({**kept, "labels": kept["labels"].flip(0)}, file)
    assert f"the data has changed since {file} was written: use --resume never" in run(line).err
    torch.save(kept, file)
    run_well(line)
    assert len(runs) == 2  # each fold was trained once


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--folds 1", "--folds 1 must be at least 2"),
        ("--folds 2 --repeats 0", "--repeats 0 must be an integer of at least 1"),
        ("--repeats 2", "--repeats 2 repeats the folds: --folds 5 --repeats 2"),
        ("--folds 9", "--folds 9 is more than the 6 pictures (without copies) of class "),
        ("--folds 2 --seeds 2", "--folds and --seeds cannot be used together"),
        ("--folds 2 --devices 2", "--folds trains on one device: --devices 1\n"),
        ("--folds 2 --num_nodes 2 --strategy ddp", "--folds trains on one device: --devices 1 --num_nodes 1\n"),
        ("--folds 2 --overfit_batches 1", "--folds and --overfit_batches cannot be used together"),
        ("--folds 2 --fast_dev_run", "--folds and --fast_dev_run cannot be used together"),
        ("--folds 2 --logger false", "--folds and --logger cannot be used together"),
        ("--folds 2 --early_stopping 2", "--folds and --early_stopping cannot be used together"),
        ("--folds 2 --max_epochs 0", "--max_epochs 0 must be at least 1 with --folds"),
        ("--folds 2 --monitor val_loss:min --lr_scheduler ReduceLROnPlateau", "val_loss does not exist"),
        ("--folds 2 --data RandomDataModule --model LitMLP", "--folds needs a classifier"),
    ],
)
def test_what_folds_cannot_do_is_one_line_and_leaves_nothing(flags: str, said: str) -> None:
    ended = run(f"fit.py {'' if '--data ' in flags else SHAPES} {CPU} --max_epochs 1 {flags}")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert said in ended.err
    assert not list(Path().glob("lightning_logs/version_*"))
