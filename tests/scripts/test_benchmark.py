"""scripts/benchmark.py measures this project against other code; a fake clock makes the ratios exact."""

import re
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datamodules.files import write_csv
from lit_models import LitBase
from tests.support.commands import run_well

LINE = re.compile(r"^(.{52}) +([\d.]+) +([\d.]+) +([\d.]+) +(\S+) +(\S+) +\d+$", re.MULTILINE)
EXTRA = (8.0, 2.0, 1.0, 6.0)
"""Extra seconds of a LightningModule's step, in the warm-up pair and the next three; each optimizer step takes 1 s."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fake clock that advances with each optimizer step, each training step of a LightningModule and each process."""
    now = SimpleNamespace(seconds=0.0, pair=0, commands=[])
    step, train, epoch = torch.optim.SGD.step, LitBase.training_step, LitBase.on_train_epoch_end

    def timed_step(self: Any, *arguments: Any, **options: Any) -> Any:
        now.seconds += 1.0
        return step(self, *arguments, **options)

    def timed_training_step(self: Any, *arguments: Any) -> Any:
        now.seconds += EXTRA[now.pair % len(EXTRA)]
        return train(self, *arguments)

    def count_pair(self: Any) -> None:
        now.pair += 1
        epoch(self)

    def timed_process(command: list[str], **_: Any) -> Any:
        now.commands.append(command)
        now.seconds += 5.0 if command[1].endswith("fit.py") else 2.0
        if "--strategy" in command or "--devices" in command:
            run = Path(command[command.index("--default_root_dir") + 1]) / "lightning_logs" / "version_0"
            run.mkdir(parents=True)
            speed = 300 if "--strategy" in command else 400
            speeds = [("epoch", "samples_per_second"), (0, 9), (0, ""), (1, speed), (2, speed)]
            write_csv(run / "metrics.csv", speeds)  # as fit.py does
        return SimpleNamespace(stdout="added 30.0", stderr="", returncode=0)

    monkeypatch.setattr(torch.optim.SGD, "step", timed_step)
    monkeypatch.setattr(LitBase, "training_step", timed_training_step)
    monkeypatch.setattr(LitBase, "on_train_epoch_end", count_pair)
    monkeypatch.setattr(subprocess, "run", timed_process)
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(time, name, lambda: now.seconds)
    return now


def measure(line: str) -> dict[str, list[float]]:
    """Return title -> [median, min and max of the ratios, ours, theirs] from the table of benchmark.py."""
    out = run_well(f"benchmark.py --small --pairs 3 {line}")
    return {title.strip(): [float(number) for number in rest] for title, *rest in LINE.findall(out)}


def test_training_ratios_are_ours_over_theirs(clock: SimpleNamespace) -> None:
    [figures] = measure("mlp").values()
    assert figures == [3.0, 2.0, 7.0, 60.0, 20.0]
    for row, steps in (("dynamic", 20), ("lenet128", 4), ("mlp-trainer", 20)):
        clock.pair = 0
        [figures] = measure(f"{row} --pairs 1").values()
        assert figures == [3.0, 3.0, 3.0, 3.0 * steps, 1.0 * steps]
    [figures] = measure("frozen-head --pairs 1").values()
    assert figures == [4.5, 4.5, 4.5, 27.0, 6.0]  # the last two of three epochs, with 1 and 6 more seconds


def test_rows_of_a_gpu_can_be_measured_on_a_cpu_by_name(clock: SimpleNamespace) -> None:
    clock.pair = 1  # these rows need no warm-up pair
    [figures] = measure("gpu-mlp --pairs 1").values()
    assert figures == [3.0, 3.0, 3.0, 60.0, 20.0]


def test_row_that_cannot_be_measured_says_why_and_the_others_follow(clock: SimpleNamespace) -> None:
    out = run_well("benchmark.py --small --pairs 1 gpu-speedrun gpu-mlp")
    assert re.search(r"^speedrun.* not measured: add --cifar DIR", out, re.MULTILINE)
    assert len(LINE.findall(out)) == 1


def test_process_ratios_are_ours_over_theirs(clock: SimpleNamespace) -> None:
    found = measure("help help-all error ddp memory")
    starts = [figures for title, figures in found.items() if "fit.py" in title or "error" in title]
    assert starts == [[2.5, 2.5, 2.5, 5.0, 2.0]] * 3
    [ddp] = [figures for title, figures in found.items() if "processes" in title]
    assert ddp == pytest.approx([400 / 300] * 3 + [1 / 300, 1 / 400], abs=1e-3)
    [memory] = [figures for title, figures in found.items() if "MB" in title]
    assert memory == pytest.approx([20.0] * 3 + [30.0, 1.5])
    assert {"--help", "--help_all", "--bad", "--strategy"} <= {word for command in clock.commands for word in command}


def test_decoding_times_each_pipeline_separately(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import transforms

    to_tensor = transforms.ToTensor.__call__

    def timed_to_tensor(self: Any, image: Any) -> Any:  # only the tutorial's pipeline uses ToTensor
        clock.seconds += 1.0
        return to_tensor(self, image)

    monkeypatch.setattr(transforms.ToTensor, "__call__", timed_to_tensor)
    [figures] = measure("decode").values()
    assert figures == [0.0, 0.0, 0.0, 0.0, 12.0]
