"""Interrupt and resume training runs, and compare their results with the results of uninterrupted runs.

Start with ``python tests/stress/kill_runs.py --minutes 30``, or ``make stress``. Each round interrupts every case at
random times: by a signal, a full disk or a damaged checkpoint. Each failure is printed with the seed that repeats it.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from PIL import Image

FIT = Path(__file__).resolve().parents[2] / "scripts" / "fit.py"
SHAPES = "--data.train_size 60 --data.val_size 30"
ROWS = "--data.in_features 20 --data.out_features 3 --data.length 16 --data.batch_size 16 --data.steps 12"
PHOTOS = (
    "--data PHOTOS --model.backbone shufflenet_v2_x0_5 --model.weights none --data.batch_size 2 --data.image_size 72"
)
TUNED = f"{PHOTOS} --model.freeze false --model.unfreeze_epoch 1 --data.augment true"
PLATEAU = "--lr_scheduler ReduceLROnPlateau --lr_scheduler.patience 0 --lr_scheduler.threshold 0.01"
CASES = {
    "cnn": f"{SHAPES} --max_epochs 3",
    "augmented": f"{SHAPES} --data.augment true --max_epochs 3 --accumulate_grad_batches 4",
    "one batch an epoch": "--data.train_size 4 --data.val_size 8 --max_epochs 12",
    "validation twice an epoch": f"{SHAPES} --max_epochs 3 --val_check_interval 0.5",
    "validation every other epoch": f"{SHAPES} --max_epochs 4 --check_val_every_n_epoch 2",
    "no validation": f"{SHAPES} --max_epochs 3 --limit_val_batches 0",
    "max_steps": f"{SHAPES} --max_steps 37",
    "mlp": f"--model LitMLP {ROWS} --max_epochs 3",
    "linear net": "--model LitMLP --model.hidden [] --data.in_features 5 --data.out_features 2 --data.length 100 "
    "--data.batch_size 30 --data.steps 0 --data.target linear --max_epochs 8",
    "dynamic": f"--model LitDynamic {ROWS} --max_epochs 3",
    "StepLR": f"{SHAPES} --max_epochs 4 --lr_scheduler StepLR --lr_scheduler.step_size 1 --lr_scheduler.gamma 0.5",
    "CosineAnnealingLR": f"{SHAPES} --max_epochs 3 --lr_scheduler CosineAnnealingLR",
    "OneCycleLR": f"{SHAPES} --max_epochs 3 --lr_scheduler OneCycleLR --optimizer AdamW",
    "ReduceLROnPlateau": f"{SHAPES} --max_epochs 6 {PLATEAU}",
    "early stopping": f"{SHAPES} --max_epochs 9 --early_stopping 2 --model.lr 0.02",
    "cifar10": "--data CIFAR10DataModule --data.root CIFAR10 --data.augment true --data.batch_size 16 "
    "--limit_train_batches 12 --limit_val_batches 1 --max_epochs 3",
    "small photos in memory": "--data PHOTOS --model LitCNN --data.augment true --data.batch_size 2 --max_epochs 5",
    "frozen cache": f"{PHOTOS} --max_epochs 4 --data.num_workers 0 --data.balance loss",
    "frozen, augmented, workers": f"{PHOTOS} --max_epochs 3 --data.augment true --data.num_workers 2",
    "unfreezing": f"{TUNED} --max_epochs 3 --data.num_workers 0 --accumulate_grad_batches 2",
    "unfreezing, workers": f"{TUNED} --max_epochs 3 --data.num_workers 2 --data.balance loss",
    "decoded once, workers": f"{TUNED} --max_epochs 3 --data.cache true --data.num_workers 2 "
    "--accumulate_grad_batches 2 --lr_scheduler OneCycleLR",
}
DDP = "--accelerator cpu --devices 2 --strategy ddp"
DDP_CASES = {
    "cnn, 2 processes": f"{SHAPES} --max_epochs 3 {DDP}",
    "dynamic, 2 processes": f"--model LitDynamic {ROWS} --max_epochs 3 {DDP}",
    "accumulated, 2 processes": f"{SHAPES} --data.augment true --max_epochs 3 --accumulate_grad_batches 2 "
    f"--lr_scheduler OneCycleLR {DDP}",
    "early stopping, 2 processes": f"{SHAPES} --max_epochs 9 --early_stopping 2 --model.lr 0.02 {PLATEAU} {DDP}",
    "frozen cache, 2 processes": f"{PHOTOS} --max_epochs 3 --data.num_workers 0 {DDP}",
    "augmented, workers, 2 processes": f"{TUNED} --max_epochs 3 --data.num_workers 1 {DDP}",
}
REPEATING_CASES = ("mlp", "dynamic", "dynamic, 2 processes")
"""Cases that train on the same batch in each step."""
TIME_COLUMNS = {"samples_per_second"}
"""Columns of metrics.csv that depend on time. They are different in each run."""


def write_photos(root: Path) -> Path:
    """Write small noise images in two classes: 14 ants and 10 bees."""
    draw = np.random.default_rng(0)
    for name, channel, count in (("ants", 0, 14), ("bees", 2, 10)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 128, (80, 90, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def write_cifar10(root: Path) -> Path:
    """Write noise in the format of CIFAR10DataModule's cache, so that no case downloads the real data set."""
    root.mkdir()
    draw = np.random.default_rng(0)
    for split, count in (("train", 50_000), ("test", 10_000)):
        labels = np.arange(count, dtype=np.uint8) % 10
        (root / f"cifar10-{split}.uint8").write_bytes(draw.bytes(count * 3072) + labels.tobytes())
    return root


class SampleRecorder(Callback):
    """Writes a hash of each network input of each batch to a file per process: ``used0.jsonl``, ``used1.jsonl``."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        samples = [hashlib.blake2b(sample.numpy().tobytes(), digest_size=8).hexdigest() for sample in batch[0]]
        line = json.dumps([trainer.fit_loop.total_batch_idx, trainer.current_epoch, samples])
        with Path(f"used{trainer.global_rank}.jsonl").open("a") as file:
            file.write(f"\n{line}")  # begin with a line break: the previous line may be incomplete


History = list[dict[int, tuple[int, list[str]]]]
"""A list with one dict per process: batch number -> (epoch, hashes of the samples)."""


def read_samples(folder: Path) -> History:
    """Return the recorded samples of each batch. If a batch was recorded several times, use the last record."""
    histories = []
    for file in sorted(folder.glob("used*.jsonl")):
        history = {}
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                number, epoch, samples = json.loads(line)
                history[number] = epoch, samples
        histories.append(dict(sorted(history.items())))
    return histories


def count_repeated(histories: History) -> int:
    """Count the repeated samples of all processes in each epoch, and return the largest count."""
    epochs: dict[int, Counter[str]] = {}
    for epoch, samples in (batch for history in histories for batch in history.values()):
        epochs.setdefault(epoch, Counter()).update(samples)
    return max(counts.total() - len(counts) for counts in epochs.values())


def start_fork(arguments: list[str], folder: Path, cost: float, file_limit: int | None = None) -> int:
    """Run fit.py in a fork of this process, which has already imported everything. Return the process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        random.seed(time.time_ns())
        sys.argv = [str(FIT), *arguments]
        code = _fit(cost)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _fit(cost: float) -> int:
    """Run fit.py with the arguments in ``sys.argv`` and the callback :class:`SampleRecorder`. Return the exit code."""
    from lit_training.callbacks.resume import ResumePoint
    from lit_training.cli.parser import FitCLI

    ResumePoint.TIME_SHARE = cost
    build = FitCLI.instantiate_trainer

    def with_recorder(cli: FitCLI, **more: Any) -> Any:
        trainer: Any = build(cli, **more)
        trainer.callbacks.append(SampleRecorder())
        return trainer

    FitCLI.instantiate_trainer = with_recorder  # type: ignore[method-assign, assignment]
    try:
        runpy.run_path(str(FIT))["main"]()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:  # SIGINT before fit.py has set its signal handlers
        return 128 + signal.SIGINT
    return 0


def start_program(arguments: list[str], folder: Path, cost: float, file_limit: int | None = None) -> int:
    """Run this file, which runs fit.py, in a new process that can start more processes. Return the process id."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, COST_VARIABLE: str(cost)},
        )
    return process.pid


COST_VARIABLE = "KILL_RUNS_COST"
"""If this environment variable is set, this file runs fit.py. The value is the share of time for resume points."""


def wait_for_exit(child: int, seconds: float) -> int | None:
    """Return the exit code of a child (negative: the signal that ended it), or None after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.01)


def read_result(folder: Path) -> dict[str, Any]:
    """Return the values that must be equal to the values of another run: name -> value."""
    runs = sorted((folder / "lightning_logs").glob("version_*"))
    assert len(runs) == 1, f"{len(runs)} run folders"
    last, best = (
        torch.load(runs[0] / "checkpoints" / name, map_location="cpu", weights_only=True)
        for name in ("last.ckpt", "best.ckpt")
    )
    with (runs[0] / "metrics.csv").open(newline="") as file:
        rows = [
            tuple((k, v) for k, v in sorted(row.items()) if v and k not in TIME_COLUMNS) for row in csv.DictReader(file)
        ]
    scores = {k: str(v.get("best_model_score")) for k, v in last["callbacks"].items() if "best_model_score" in v}
    return {
        "weights": last["state_dict"],
        "optimizer": last["optimizer_states"],
        "schedules": last["lr_schedulers"],
        "step": (last["global_step"], last["epoch"]),
        "best score": scores,
        "best weights": best["state_dict"],
        "metrics.csv": rows,
        "samples": read_samples(folder),
    }


def are_equal(a: Any, b: Any) -> bool:
    """Return True if nested plain values and tensors are bit-equal."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(are_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(are_equal, a, b))
    return a == b


class Round:
    """A run of one case that is interrupted several times. The seed decides when and how.

    Args:
        name: name of the case.
        folder: an empty folder.
        seed: seed of the interruptions.
        start: :func:`start_fork` or :func:`start_program`.
        kinds: kinds of interruptions to draw from.
    """

    LIMIT_SECONDS = 120.0

    def __init__(self, name: str, folder: Path, seed: int, start: Callable[..., int], kinds: tuple[str, ...]) -> None:
        self.name, self.folder, self.seed, self.kinds = name, folder, seed, kinds
        self.start = start
        self.draw = random.Random(f"{name} {seed}")
        self.counts: Counter[str] = Counter()
        self.waits: list[float] = []
        """Seconds from each signal to the end of the process."""
        self.arguments: list[str] = []

    def run_and_compare(
        self, uninterrupted: dict[str, Any], seconds: float, arguments: list[str], interruptions: int
    ) -> None:
        """Interrupt and resume a run several times, and compare its result with the result of an uninterrupted run.

        Args:
            uninterrupted: the result of a run without interruptions.
            seconds: duration of the run without interruptions.
            arguments: arguments of fit.py.
            interruptions: maximum number of interruptions. A run that ends earlier has fewer.

        Raises:
            AssertionError: a result differs, or an exit code is wrong.
        """
        arguments = [*arguments, "--resume", "auto"]
        ended = False
        for _ in range(interruptions):
            ended = self.interrupt(arguments, seconds, self.draw.choice(self.kinds))
            if ended:
                break
        code = self.run(arguments)
        assert code == 0, f"exit code {code} at the end"
        found = read_result(self.folder)
        different = [key for key in uninterrupted if not are_equal(uninterrupted[key], found[key])]
        assert not different, f"not equal: {', '.join(different)}"
        self.counts["runs equal to the uninterrupted one"] += 1
        assert self.run(arguments) == 0
        assert "nothing to do" in (self.folder / "output.txt").read_text()
        self.counts["starts after the end that did nothing"] += 1

    def run(self, arguments: list[str]) -> int | None:
        """Run fit.py to its end. Return its exit code, or None after :attr:`LIMIT_SECONDS`."""
        child = self.start(arguments, self.folder, self.draw_cost())
        code = wait_for_exit(child, self.LIMIT_SECONDS)
        self.kill_remaining_processes(child)
        return code

    def recorded_bytes(self) -> int:
        """Return the size of the files of recorded samples. It increases with each batch."""
        return sum(path.stat().st_size for path in self.folder.glob("used*.jsonl"))

    def draw_cost(self) -> float:
        """Return a random share of time for resume points. With a large share, the run writes many resume points."""
        return self.draw.choice((1e9, 1e9, 1.0, 0.02))

    def kill_remaining_processes(self, child: int) -> None:
        """Kill all remaining processes of a run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    def interrupt(self, arguments: list[str], seconds: float, kind: str) -> bool:
        """Interrupt a run. Return True if it ended before the interruption."""
        self.counts[kind] += 1
        if kind == "damaged last.ckpt":
            for path in (self.folder / "lightning_logs").glob("version_*/checkpoints/resume/last.ckpt"):
                if (path.parent / "previous.ckpt").exists():
                    size = path.stat().st_size
                    with path.open("r+b") as file:
                        file.truncate(self.draw.randrange(size))
            return False
        limit = self.draw.randrange(1000, 400_000) if kind == "full disk" else None
        child = self.start(arguments, self.folder, self.draw_cost(), limit)
        if kind == "full disk":
            code = wait_for_exit(child, self.LIMIT_SECONDS)
            assert code in (0, 2), f"exit code {code} with a full disk"
            self.kill_remaining_processes(child)
            return code == 0
        training, later = self.draw.random() < 0.5, self.draw.uniform(0.2, 1.1)
        if training:  # wait for the first step: most of the time is the start of the program
            before, code, end = self.recorded_bytes(), None, time.monotonic() + seconds
            while code is None and self.recorded_bytes() == before and time.monotonic() < end:
                code = wait_for_exit(child, 0.01)
            code = wait_for_exit(child, 0.1 * later * seconds) if code is None else code
        else:
            code = wait_for_exit(child, later * seconds)
        if code is None:
            number = signal.Signals[kind]
            if number == signal.SIGKILL:
                os.killpg(child, number)
                os.waitpid(child, 0)
                return False
            group = self.draw.random() < 0.5
            os.killpg(child, number) if group else os.kill(child, number)
            sent = time.monotonic()
            code = wait_for_exit(child, 15)
            self.waits.append(time.monotonic() - sent)
            self.kill_remaining_processes(child)
            assert code is not None, f"still running 15 s after {kind}"
            assert code in (-number, 128 + number, 0), f"exit code {code} after {kind}"
            return code == 0
        assert code == 0, f"exit code {code} without any interruption"
        return True


def run_uninterrupted(
    name: str, folder: Path, arguments: list[str], start: Callable[..., int]
) -> tuple[dict[str, Any], float]:
    """Run a case without interruption. Return its result and its duration in seconds."""
    begun = time.monotonic()
    code = wait_for_exit(start(arguments, folder, 0.02), 300)
    assert code == 0, f"{name}: exit code {code} without interruption\n{(folder / 'output.txt').read_text()[-2000:]}"
    seconds, found = time.monotonic() - begun, read_result(folder)
    processes = len(found["samples"])
    assert processes == (2 if name in DDP_CASES else 1), f"{name}: samples of {processes} processes"
    # If the processes cannot share the data equally, fewer than ``processes`` samples are repeated.
    again = 0 if name in REPEATING_CASES else count_repeated(found["samples"])
    assert again < processes, f"{name}: {again} samples were repeated in an epoch"
    return found, seconds


KINDS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1", "full disk", "damaged last.ckpt")


def main() -> None:
    if COST_VARIABLE in os.environ:
        sys.exit(_fit(float(os.environ[COST_VARIABLE])))
    parser = argparse.ArgumentParser("kill_runs.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None, help="run one round with this seed (default: new seeds)")
    parser.add_argument("--case", default=None, help="only cases whose name contains this text")
    parser.add_argument("--one_process", action="store_true", help="skip the cases with two processes")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        import lit_training.cli.fit
        import lit_training.cli.parser
        import lit_training.cli.trouble  # noqa: F401  # import once here, not in each fork
    place = Path(tempfile.mkdtemp(prefix="kill_runs"))
    places = {"PHOTOS": write_photos(place / "photos"), "CIFAR10": write_cifar10(place / "cifar10")}
    cases = CASES if options.one_process else {**CASES, **DDP_CASES}
    names = [name for name in cases if options.case is None or options.case in name]
    counts: Counter[str] = Counter()
    known: dict[str, tuple[dict[str, Any], float]] = {}
    waits: dict[str, list[float]] = {"one process": [], "two processes": []}
    failures = 0
    seed = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    while time.monotonic() < end:
        for name in names:
            if time.monotonic() > end:
                break
            start = start_program if name in DDP_CASES else start_fork
            arguments = [str(places.get(word, word)) for word in cases[name].split()]
            arguments += ["--log_every_n_steps", "2", "--enable_progress_bar", "false"]
            if name not in known:
                (place / f"uninterrupted {name}").mkdir()
                known[name] = run_uninterrupted(name, place / f"uninterrupted {name}", arguments, start)
            folder = place / f"{name} {seed}"
            folder.mkdir()
            # "full disk" limits the file size. This limit would also break launched programs and the memory of workers.
            kinds = tuple(
                kind for kind in KINDS if kind != "full disk" or not ("workers" in name or start is start_program)
            )
            one = Round(name, folder, seed, start, kinds)
            try:
                one.run_and_compare(*known[name], arguments, one.draw.randint(1, 8))
            except AssertionError as error:
                failures += 1
                print(f"FAILED {name}: {error}\n  repeat: --case '{name}' --seed {seed}; see {folder}", flush=True)
            else:
                shutil.rmtree(folder)
            counts += one.counts
            waits["two processes" if name in DDP_CASES else "one process"] += one.waits
        print(f"seed {seed}: {sum(counts.values())} events, {failures} failures", flush=True)
        if options.seed is not None:
            break
        seed += 1
    for what, count in sorted(counts.items()):
        print(f"{count:6}  {what}")
    for processes, seconds in waits.items():
        if seconds:
            print(f"{max(seconds):6.2f}  s: longest wait after a signal, {processes} ({len(seconds)} signals)")
    print(f"{failures:6}  failures")
    if not failures:
        shutil.rmtree(place)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
