"""``fit.py --folds``: out-of-fold figures, the last training on all samples, and exact resume."""

import csv
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_models import LitBase
from lit_training.callbacks.resume import ResumePoint
from tests.support.commands import run, run_well
from tests.support.fits import SMALL_NET, Killed, assert_same_weights
from tests.support.photos import write_pictures

CPU = "--accelerator cpu --devices 1 --quiet true --dashboard false"
SHAPES = f"{CPU} --data.train_size 40 --data.val_size 20 --data.batch_size 5 --model.lr 0.05"
RUN = Path("lightning_logs/version_0")


def rows_of(folder: Path = RUN) -> list[dict[str, str]]:
    with (folder / "out_of_fold.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
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
    yield counts


def train(line: str, steps: dict[str, Any], kill_at: int | None = None) -> int:
    """Run a command; return the number of training steps until its end or its kill."""
    steps.update(done=0, kill_at=kill_at)
    if kill_at is None:
        run_well(f"fit.py {line}")
    else:
        with pytest.raises(Killed):
            run(f"fit.py {line}")
    return int(steps["done"])


@pytest.mark.parametrize(
    "model",
    [
        f"--model.lr 0.05 --data.train_size 40 --data.val_size 20 --data.batch_size 5 {CPU}",
        f"--data photos {SMALL_NET} {CPU}",
        f"--data photos {SMALL_NET} {CPU} --model.freeze false --data.image_size 32 --optimizer AdamW --lr_scheduler OneCycleLR",
    ],
    ids=["LitCNN", "frozen", "fine-tuned"],
)
def test_a_killed_run_goes_on_inside_its_fold_and_ends_the_same(model: str, steps: dict[str, Any]) -> None:
    write_pictures(Path("photos"), {"train/cat": 8, "train/dog": 10, "val/cat": 4, "val/dog": 2})
    line = f"{model} --folds 2 --repeats 2 --max_epochs 3 --seed 3"
    total = train(f"{line} --default_root_dir whole", steps)
    line += " --default_root_dir killed --resume auto"
    in_folds = 4 * 3 * math.ceil(total / 100) if False else None
    done = train(line, steps, kill_at=2)
    done += train(line, steps, kill_at=total // 3)
    done += train(line, steps, kill_at=total - done - 2)
    done += train(line, steps)
    assert done <= total + 3, "a resumed run repeats at most a step"
    whole, killed = (Path(root) / RUN for root in ("whole", "killed"))
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_weights(whole, killed, name)
    assert (whole / "out_of_fold.csv").read_bytes() == (killed / "out_of_fold.csv").read_bytes()
    assert not (killed / "folds").exists()
