"""The scripts that judge this project notice a difference: torture.py one of a bit, benchmark.py one of seconds."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_models import LitBase
from tests.support import printed
from tests.support.commands import ROOT, run_well

RUN = Path("lightning_logs/version_0")
FIT = "fit.py --data.train_size 24 --data.val_size 10 --max_epochs 2 --accelerator cpu --devices 1 --dashboard false"

# --- torture.py -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torture() -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        return SimpleNamespace(**runpy.run_path(str(ROOT / "scripts/torture.py"), run_name="torture"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as torture.py leaves one: a run, and which samples its batches held."""
    place = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run_well(f"{FIT} --lr_scheduler StepLR --lr_scheduler.step_size 1 --log_every_n_steps 2")
        batches = [[number, number // 6, [f"{number % 6} {place}" for place in range(4)]] for number in range(12)]
        Path("used0.jsonl").write_text("".join(f"\n{json.dumps(batch)}" for batch in batches))
        Path("output.txt").write_text("lightning_logs/version_0 is at its end: nothing to do")
        yield place


def changed(name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change something in a checkpoint."""
    path = RUN / "checkpoints" / name
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)


def next_float(weights: dict[str, torch.Tensor]) -> None:
    """Change the last bit of one number."""
    flat = list(weights.values())[-1].view(-1)
    flat[0] = torch.nextafter(flat[0], torch.tensor(9.0))


def cell(old: str, new: str, count: int = 1) -> None:
    table = RUN / "metrics.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, count))


def last_row_gone() -> None:
    table = RUN / "metrics.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))


def of_best(saved: dict[str, Any]) -> None:
    [state] = [state for state in saved["callbacks"].values() if "best_model_score" in state]
    state["best_model_score"] = torch.as_tensor(state["best_model_score"]) + 0.1


DAMAGE: dict[str, tuple[str, Callable[[], Any]]] = {
    "one bit of the last weights": ("weights", lambda: changed("last.ckpt", lambda c: next_float(c["state_dict"]))),
    "a kind of number": (
        "weights",
        lambda: changed(
            "last.ckpt", lambda c: c["state_dict"].update({k: v.double() for k, v in c["state_dict"].items()})
        ),
    ),
    "one bit of the best weights": (
        "best weights",
        lambda: changed("best.ckpt", lambda c: next_float(c["state_dict"])),
    ),
    "the optimizer's momentum": (
        "optimizer",
        lambda: changed("last.ckpt", lambda c: next_float(c["optimizer_states"][0]["state"][0])),
    ),
    "the optimizer's learning rate": (
        "optimizer",
        lambda: changed("last.ckpt", lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=0.5)),
    ),
    "the schedule": ("schedules", lambda: changed("last.ckpt", lambda c: c["lr_schedulers"][0].update(last_epoch=9))),
    "the step": ("step", lambda: changed("last.ckpt", lambda c: c.update(global_step=11))),
    "the epoch": ("step", lambda: changed("last.ckpt", lambda c: c.update(epoch=1 + c["epoch"]))),
    "the best score": ("best score", lambda: changed("last.ckpt", of_best)),
    "a number of the table": ("metrics.csv", lambda: cell("\n", "\n0", 2)),
    "a row of the table": ("metrics.csv", last_row_gone),
    "a sample": (
        "samples",
        lambda: Path("used0.jsonl").write_text(Path("used0.jsonl").read_text().replace('"3 1"', '"3 0"', 1)),
    ),
    "a batch": (
        "samples",
        lambda: Path("used0.jsonl").write_text(Path("used0.jsonl").read_text().rpartition("\n")[0]),
    ),
}


def judged(torture: SimpleNamespace, peace: Path, code: int = 0) -> str:
    """What a round says of the run in the current folder, whose programs end at once with a code."""

    def start(*_: Any) -> int:
        if not (child := os.fork()):
            os._exit(code)
        return child

    one = torture.Round("a case", Path.cwd(), 0, start, ("SIGKILL",))
    try:
        one.go(torture.result(peace), 1.0, [], 0)
    except AssertionError as error:
        return str(error)
    return f"{one.counts['runs equal to the uninterrupted one']} equal"


def test_torture_takes_a_run_for_equal_only_to_itself(torture: SimpleNamespace, ended: Path, tmp_path: Path) -> None:
    shutil.copytree(ended, "same")
    os.chdir("same")
    assert judged(torture, ended) == "1 equal"
    assert judged(torture, ended, code=1) == "exit code 1 at the end"
    speeds = {row["samples_per_second"] for row in printed.read_csv(RUN / "metrics.csv") if "samples_per_second" in row}
    cell(speeds.pop(), "12.5")  # no two runs have it in common
    assert judged(torture, ended) == "1 equal"
    Path("output.txt").write_text("epoch 1/2")
    assert judged(torture, ended) == ""  # the start after the end has trained once more
    for name, (what, damage) in DAMAGE.items():
        shutil.copytree(ended, tmp_path / name)
        os.chdir(tmp_path / name)
        damage()
        assert (name, judged(torture, ended)) == (name, f"not equal: {what}")


def test_torture_counts_what_an_epoch_used_twice(torture: SimpleNamespace, ended: Path) -> None:
    history = torture.used(ended)
    assert torture.repeated(history) == 0
    history[0][8][1][:2] = ["1 0", "1 1"]  # of the batch with the number 8, in the second epoch
    assert torture.repeated(history) == 2


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM"])
def test_torture_ends_the_program_that_it_says_it_ends(torture: SimpleNamespace, kind: str) -> None:
    children = []

    def start(*_: Any) -> int:
        children.append(os.fork())
        if not children[-1]:
            os.setsid()
            time.sleep(20)
            Path("finished").touch()
            os._exit(0)
        return children[-1]

    one = torture.Round("a case", Path.cwd(), 0, start, (kind,))
    assert one.interrupt([], 2.0, kind) is False
    assert not Path("finished").exists()
    with pytest.raises(ChildProcessError):  # it is gone, and waited for
        os.waitpid(children[0], os.WNOHANG)
    assert len(one.waits) == (kind == "SIGTERM")


# --- benchmark.py -----------------------------------------------------------------------------------------------------

LINE = re.compile(r"^(.{52}) +([\d.]+) +([\d.]+) +([\d.]+) +(\S+) +(\S+)$", re.MULTILINE)
EXTRA = (8.0, 2.0, 1.0, 6.0)
"""Seconds that a step of ours takes more than the one second of theirs: in the pair that warms up, and after it."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock that moves with the optimizer's steps, more with those of a LightningModule, and with programs."""
    now = SimpleNamespace(seconds=0.0, pair=0, started=[])
    step, train, epoch = torch.optim.SGD.step, LitBase.training_step, LitBase.on_train_epoch_end

    def stepped(self: Any, *arguments: Any, **options: Any) -> Any:
        now.seconds += 1.0
        return step(self, *arguments, **options)

    def trained(self: Any, *arguments: Any) -> Any:
        now.seconds += EXTRA[now.pair % len(EXTRA)]
        return train(self, *arguments)

    def ended(self: Any) -> None:
        now.pair += 1
        epoch(self)

    def program(command: list[str], **_: Any) -> Any:
        now.started.append(command)
        now.seconds += 5.0 if command[1].endswith("fit.py") else 2.0
        speed = 300 if "--strategy" in command else 400
        lines = (
            f"epoch 1/3  lr 1  9 samples/s\nepoch 2/3  lr 1  {speed} samples/s\nepoch 3/3  lr 1  {speed} samples/s\n"
        )
        return SimpleNamespace(stdout=f"{lines}added 30.0", stderr="", returncode=0)

    trained.__signature__ = train.__signature__  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.optim.SGD, "step", stepped)
    monkeypatch.setattr(LitBase, "training_step", trained)
    monkeypatch.setattr(LitBase, "on_train_epoch_end", ended)
    monkeypatch.setattr(subprocess, "run", program)
    for name in ("perf_counter", "process_time"):
        monkeypatch.setattr(time, name, lambda: now.seconds)
    return now


def measured(line: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Title -> median, min and max of the ratios, seconds of ours and of theirs, as benchmark.py prints them."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # it takes the first entry away
    out = run_well(f"benchmark.py --small --pairs 3 {line}")
    return {title.strip(): [float(number) for number in rest] for title, *rest in LINE.findall(out)}


def test_ratios_are_ours_over_theirs(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    [figures] = measured("mlp", monkeypatch).values()
    assert figures == [3.0, 2.0, 7.0, 60.0, 20.0]
    for row, steps in (("dynamic", 20), ("lenet128", 4)):
        clock.pair = 0
        [figures] = measured(f"{row} --pairs 1", monkeypatch).values()
        assert figures == [3.0, 3.0, 3.0, 3.0 * steps, 1.0 * steps]


def test_ratios_of_programs_are_ours_over_theirs(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured("help help-all error ddp memory", monkeypatch)
    starts = [figures for title, figures in found.items() if "fit.py" in title or "error" in title]
    assert starts == [[2.5, 2.5, 2.5, 5.0, 2.0]] * 3
    [ddp] = [figures for title, figures in found.items() if "processes" in title]
    assert ddp == pytest.approx([400 / 300] * 3 + [1 / 300, 1 / 400], abs=1e-3)
    [memory] = [figures for title, figures in found.items() if "MB" in title]
    assert memory == pytest.approx([20.0] * 3 + [30.0, 1.5])
    assert {"--help", "--help_all", "--bad", "--strategy"} <= {word for command in clock.started for word in command}


def test_decoding_is_measured_by_the_pipeline_it_is_compared_with(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import transforms

    convert = transforms.ToTensor.__call__

    def converted(self: Any, picture: Any) -> Any:  # a step of the tutorial's pipeline alone
        clock.seconds += 1.0
        return convert(self, picture)

    monkeypatch.setattr(transforms.ToTensor, "__call__", converted)
    [figures] = measured("decode", monkeypatch).values()
    assert figures == [0.0, 0.0, 0.0, 0.0, 12.0]
