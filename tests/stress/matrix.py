"""Train with each part that Lightning ships, kill the run in each of its two epochs, and resume it.

Start with ``python tests/stress/matrix.py``, or ``make stress``. Each row is one part. Its run must end like one
without a kill, bit for bit, and the part must have done its work. ``--write`` writes the table into docs/your_own.md.
"""

import argparse
import csv
import os
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Callback

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)] * (__name__ == "__main__")

from tests.stress.kill_runs import TIME_COLUMNS, are_equal  # noqa: E402
from tests.support.forks import WARM, end_with, start_server  # noqa: E402

OWN = ROOT / "tests" / "support" / "own" / "parts.py"
MANUAL = ROOT / "docs" / "your_own.md"
BATCHES = 6
"""Training batches per epoch."""
LINE = "--data parts.Rows --max_epochs 2 --accelerator cpu --log_every_n_steps 1 --dashboard false --threads 1"
SECONDS = 120.0
TIMES = ("DeviceStats", "train/", "validate/")
"""Columns of metrics.csv begin like this if they depend on time or load."""
EXACT = "work as in a bare Trainer, and a killed run resumes exactly"


@dataclass
class Seen:
    """What a finished run has left: its folder, and everything that its commands printed."""

    folder: Path
    text: str
    codes: list[int | None]
    """Exit code of each command."""

    @property
    def run(self) -> Path:
        return self.folder / "lightning_logs" / "version_0"

    def checkpoint(self, name: str = "last.ckpt") -> dict[str, Any]:
        return torch.load(self.run / "checkpoints" / name, weights_only=True)

    @property
    def last(self) -> dict[str, Any]:
        return self.checkpoint()

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows of metrics.csv without empty cells."""
        with (self.run / "metrics.csv").open(newline="") as file:
            return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]

    def printed(self, name: str) -> float:
        """Return a number of the result that fit.py printed last."""
        return number(self.text, name)

    def evaluate(self, name: str = "val_loss") -> float:
        """Return a number that evaluate.py prints for this run."""
        code, text = fork("evaluate.py lightning_logs/version_0", self.folder)
        assert code == 0, text
        return number(text, name)

    def column(self, name: str) -> list[float]:
        return [float(row[name]) for row in self.rows if name in row]


def number(text: str, name: str) -> float:
    return float([line for line in text.splitlines() if line.startswith(f"{name} ")][-1].split()[1])


def nothing_else(seen: Seen) -> None:
    """The part has no effect of its own."""


@dataclass(frozen=True)
class Row:
    """One part of Lightning, and how to use and check it.

    Args:
        part: its name in the table.
        flags: flags for fit.py.
        yaml: a configuration file for fit.py.
        effect: asserts that the part did its work. It is called for the undisturbed run and for the resumed one.
        model: the model that is trained.
        kills: the numbers of the batches, counted over all epochs, at whose end the run is killed.
        stands_back: why the part, or a feature of fit.py beside it, does not work, as the manual says it. The row
            must still train and resume, unless ``refused`` has the error message.
        differs: why a resumed run differs, as the manual says it. Then the ends are not compared.
        refused: text of the error with which fit.py must refuse the part.
        files: files to compare besides the checkpoints and metrics.csv.
    """

    part: str
    flags: str = ""
    yaml: str = ""
    effect: Callable[[Seen], None] = nothing_else
    model: str = "parts.Net"
    kills: tuple[int, ...] = (3, 9)
    stands_back: str = ""
    differs: str = ""
    refused: str = ""
    files: tuple[str, ...] = field(default=())


class Killer(Callback):
    """Kills this process at the end of a batch, with a resume point before its step."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


def fork(line: str, folder: Path, kill_at: int | None = None) -> tuple[int | None, str]:
    """Run a script in a fork of the server of tests/support/forks.py. Return its exit code and its output.

    A fork of this process would stop for ever in gloo if a test before has used gloo here.
    """
    output = folder / "output.txt"
    output.touch()
    before = output.stat().st_size
    start_server()
    child = WARM.Process(target=_run_and_exit, args=(line, str(folder), kill_at))
    child.start()
    child.join(SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(int(child.pid or 0), signal.SIGKILL)
    with output.open(errors="replace") as file:
        file.seek(before)
        return child.exitcode, file.read()


def _run_and_exit(line: str, folder: str, kill_at: int | None) -> None:
    """Run a script in the process that was forked for it."""
    os.setsid()
    os.chdir(folder)
    target = os.open("output.txt", os.O_WRONLY | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    script, *arguments = shlex.split(line)
    sys.argv = [str(ROOT / "scripts" / script), *arguments]
    end_with(partial(_run, kill_at))


def _run(kill_at: int | None) -> None:
    from lit_training.callbacks.resume import ResumePoint
    from lit_training.cli.parser import FitCLI

    build = FitCLI.instantiate_trainer

    def with_killer(cli: Any, **more: Any) -> Any:
        trainer: Any = build(cli, **more)
        if kill_at is not None:
            trainer.callbacks.append(Killer(kill_at))
        return trainer

    with (
        mock.patch.object(ResumePoint, "TIME_SHARE", 1e9),  # a resume point before each step
        mock.patch.object(FitCLI, "instantiate_trainer", with_killer),
    ):
        runpy.run_path(sys.argv[0], run_name="__main__")


def run_row(row: Row, place: Path) -> None:
    """Train with a part: undisturbed, and with kills. Compare the ends, and check what the part did."""
    line = f"fit.py --model {row.model} {LINE} {row.flags}" + " --config part.yaml" * bool(row.yaml)
    whole, killed = place / "whole", place / "killed"
    for folder in (whole, killed):
        folder.mkdir(parents=True)
        shutil.copy(OWN, folder)
        if row.yaml:
            (folder / "part.yaml").write_text(row.yaml)
    code, text = fork(line, whole)
    if row.refused:
        assert code == 2, f"exit code {code}:\n{text[-3000:]}"
        assert row.refused in text, text[-3000:]
        assert "Traceback" not in text, text
        return
    assert code == 0, f"exit code {code}:\n{text[-3000:]}"
    row.effect(Seen(whole, text, [code]))
    texts, codes = list[str](), list[int | None]()
    command = line
    for number, batch in enumerate(row.kills):
        code, text = fork(command, killed, kill_at=batch)
        assert code == -signal.SIGKILL, f"not killed at batch {batch}: exit code {code}\n{text[-3000:]}"
        state = point(killed)
        assert (state["epoch"], state["batches"] > 0) == (number, True), f"not killed inside epoch {number}: {state}"
        command = "fit.py --resume latest"
        texts, codes = [*texts, text], [*codes, code]
    code, text = fork(command, killed)
    assert code == 0, f"exit code {code} at the end:\n{text[-3000:]}"
    seen = Seen(killed, "".join([*texts, text]), [*codes, code])
    assert seen.text.count("after step") == len(row.kills), seen.text
    if not row.differs:
        one, two = read_end(whole, row), read_end(killed, row)
        different = [name for name in one | two if not are_equal(one.get(name), two.get(name))]
        assert not different, f"not equal to an undisturbed run: {', '.join(different)}"
    row.effect(seen)


def point(folder: Path) -> dict[str, Any]:
    """Return the state of the newest resume point of the run in this folder."""
    (path,) = folder.rglob("resume/last.ckpt")
    return torch.load(path, weights_only=True)["callbacks"]["ResumePoint"]


def read_end(folder: Path, row: Row) -> dict[str, Any]:
    """Return what must be equal at the end of two runs: name -> value."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.ckpt")):
        name = str(path.relative_to(folder))
        if path.parent.name != "resume" or path.name == "last.ckpt":
            saved = torch.load(path, weights_only=True)
            states = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
            found |= {f"{state} in {name}": saved[state] for state in states}
            scores = [state.get("best_model_score") for state in saved["callbacks"].values() if isinstance(state, dict)]
            found[f"best score in {name}"] = [score for score in scores if score is not None]
    for path in folder.glob("lightning_logs/*/metrics.csv"):  # another logger has a file for each start
        with path.open(newline="") as file:
            table = [
                {k: v for k, v in line.items() if v and k not in TIME_COLUMNS and not k.startswith(TIMES)}
                for line in csv.DictReader(file)
            ]
        found[str(path.relative_to(folder))] = table
    found |= {name: (folder / name).read_bytes() for name in row.files}
    return found


def table(rows: list[Row]) -> str:
    """Return what the manual says about the rows, as a table in Markdown."""
    exact = ", ".join(f"`{row.part}`" for row in rows if not (row.differs or row.stands_back))
    lines = ["| part | under fit.py |", "| --- | --- |", f"| {exact} | {EXACT} |"]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row.stands_back or row.differs, []).append(f"`{row.part}`")
    lines += [f"| {', '.join(parts)} | {reason} |" for reason, parts in reasons.items() if reason]
    return "\n".join(lines) + "\n"


BEGIN, END = "<!-- made by tests/stress/matrix.py --write -->\n\n", "\n<!-- end -->\n"


def in_manual() -> str:
    """Return the table in the manual."""
    return MANUAL.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def write_table(rows: list[Row]) -> None:
    text = MANUAL.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    MANUAL.write_text(f"{before}{BEGIN}{table(rows)}{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    from tests.stress.matrix_rows import ROWS

    parser = argparse.ArgumentParser("matrix.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", default="", help="only rows whose name contains this text")
    parser.add_argument("--write", action="store_true", help="only write the table into the manual")
    options = parser.parse_args()
    if options.write:
        write_table(ROWS)
        return
    place, failures = Path(tempfile.mkdtemp(prefix="matrix")), 0
    for number, row in enumerate(row for row in ROWS if options.part in row.part):
        try:
            run_row(row, place / str(number))
        except Exception as error:  # a row that raises another error failed too
            failures += 1
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            print(f"FAILED {row.part}: {kind}{error}\n  see {place / str(number)}", flush=True)
        else:
            print(f"ok     {row.part}", flush=True)
            shutil.rmtree(place / str(number))
    print(f"{failures} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
