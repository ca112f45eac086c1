"""Test that kill_runs.py finds every difference between two runs."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stress import kill_runs
from tests.support import printed
from tests.support.commands import run_well

RUN = Path("lightning_logs/version_0")
FIT = "fit.py --data.train_size 24 --data.val_size 10 --max_epochs 2 --accelerator cpu --devices 1 --dashboard false"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files of a round of kill_runs.py: a finished run, and the samples of its batches."""
    place = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run_well(f"{FIT} --lr_scheduler StepLR --lr_scheduler.step_size 1 --log_every_n_steps 2")
        batches = [[number, number // 6, [f"{number % 6} {place}" for place in range(4)]] for number in range(12)]
        Path("used0.jsonl").write_text("".join(f"\n{json.dumps(batch)}" for batch in batches))
        Path("output.txt").write_text("lightning_logs/version_0 has finished: nothing to do")
        yield place


def change_checkpoint(name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply ``change`` to the contents of a checkpoint of the run."""
    path = RUN / "checkpoints" / name
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)


def change_last_bit(weights: dict[str, torch.Tensor]) -> None:
    """Change the last bit of one number."""
    flat = list(weights.values())[-1].view(-1)
    flat[0] = torch.nextafter(flat[0], torch.tensor(9.0))


def replace_cell(old: str, new: str, count: int = 1) -> None:
    table = RUN / "metrics.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, count))


def delete_last_row() -> None:
    table = RUN / "metrics.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))


def change_samples(change: Callable[[str], str]) -> None:
    """Apply ``change`` to the text of the recorded samples."""
    Path("used0.jsonl").write_text(change(Path("used0.jsonl").read_text()))


def change_best_score(saved: dict[str, Any]) -> None:
    [state] = [state for state in saved["callbacks"].values() if "best_model_score" in state]
    state["best_model_score"] = torch.as_tensor(state["best_model_score"]) + 0.1


DAMAGES: dict[str, tuple[str, Callable[[], None]]] = {
    "one bit of the last weights": (
        "weights",
        lambda: change_checkpoint("last.ckpt", lambda c: change_last_bit(c["state_dict"])),
    ),
    "a kind of number": (
        "weights",
        lambda: change_checkpoint(
            "last.ckpt", lambda c: c["state_dict"].update({k: v.double() for k, v in c["state_dict"].items()})
        ),
    ),
    "one bit of the best weights": (
        "best weights",
        lambda: change_checkpoint("best.ckpt", lambda c: change_last_bit(c["state_dict"])),
    ),
    "the optimizer's momentum": (
        "optimizer",
        lambda: change_checkpoint("last.ckpt", lambda c: change_last_bit(c["optimizer_states"][0]["state"][0])),
    ),
    "the optimizer's learning rate": (
        "optimizer",
        lambda: change_checkpoint("last.ckpt", lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=0.5)),
    ),
    "the schedule": (
        "schedules",
        lambda: change_checkpoint("last.ckpt", lambda c: c["lr_schedulers"][0].update(last_epoch=9)),
    ),
    "the step": ("step", lambda: change_checkpoint("last.ckpt", lambda c: c.update(global_step=11))),
    "the epoch": ("step", lambda: change_checkpoint("last.ckpt", lambda c: c.update(epoch=1 + c["epoch"]))),
    "the best score": ("best score", lambda: change_checkpoint("last.ckpt", change_best_score)),
    "a number of the table": ("metrics.csv", lambda: replace_cell("\n", "\n0", 2)),
    "a row of the table": ("metrics.csv", delete_last_row),
    "a sample": (
        "samples",
        lambda: change_samples(lambda text: text.replace('"3 1"', '"3 0"', 1)),
    ),
    "a batch": (
        "samples",
        lambda: change_samples(lambda text: text.rpartition("\n")[0]),
    ),
}


def verdict(uninterrupted: Path, code: int = 0) -> str:
    """Compare the run in the current folder with ``uninterrupted``. Instead of fit.py, run an exit with ``code``."""

    def start(*_: Any) -> int:
        if not (child := os.fork()):
            os._exit(code)
        return child

    one = kill_runs.Round("a case", Path.cwd(), 0, start, ("SIGKILL",))
    try:
        one.run_and_compare(kill_runs.read_result(uninterrupted), 1.0, [], 0)
    except AssertionError as error:
        return str(error)
    return f"{one.counts['runs equal to the uninterrupted one']} equal"


def test_every_difference_is_found(ended: Path, tmp_path: Path) -> None:
    shutil.copytree(ended, "same")
    os.chdir("same")
    assert verdict(ended) == "1 equal"
    assert verdict(ended, code=1) == "exit code 1 at the end"
    speeds = {row["samples_per_second"] for row in printed.read_csv(RUN / "metrics.csv") if "samples_per_second" in row}
    replace_cell(speeds.pop(), "12.5")  # speeds may differ
    assert verdict(ended) == "1 equal"
    Path("output.txt").write_text("epoch 1/2")
    assert verdict(ended) == ""  # the second start has not printed "nothing to do"
    for name, (what, damage) in DAMAGES.items():
        shutil.copytree(ended, tmp_path / name)
        os.chdir(tmp_path / name)
        damage()
        assert (name, verdict(ended)) == (name, f"not equal: {what}")


def test_repeated_samples_are_counted(ended: Path) -> None:
    history = kill_runs.read_samples(ended)
    assert kill_runs.count_repeated(history) == 0
    history[0][8][1][:2] = ["1 0", "1 1"]  # batch 8, in the second epoch
    assert kill_runs.count_repeated(history) == 2


@pytest.mark.parametrize("kind", ["SIGKILL", "SIGTERM"])
def test_interrupted_program_ends(kind: str) -> None:
    children = []

    def start(*_: Any) -> int:
        children.append(os.fork())
        if not children[-1]:
            try:
                os.setsid()
                time.sleep(600)
                Path("finished").touch()
            finally:
                os._exit(0)  # an error must not return to pytest in this process
        return children[-1]

    one: Any = kill_runs.Round("a case", Path.cwd(), 0, start, (kind,))
    assert one.interrupt([], 2.0, kind) is False
    assert not Path("finished").exists()
    with pytest.raises(ChildProcessError):  # the process has ended
        os.waitpid(children[0], os.WNOHANG)
    assert len(one.waits) == (kind == "SIGTERM")
