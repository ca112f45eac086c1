"""Interrupt training in every way, again and again, and compare its end with that of a run left in peace.

``python scripts/torture.py --minutes 30``. Each round draws a case and a number of interruptions (SIGKILL, signals, a
full disk, a damaged checkpoint) from its seed; what differs is printed with the seed that repeats it.
"""

import argparse
import contextlib
import csv
import io
import os
import random
import resource
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
from PIL import Image

FIT = Path(__file__).resolve().parent / "fit.py"
SHAPES = "--data.train_size 60 --data.val_size 30"
ROWS = "--data.in_features 20 --data.out_features 3 --data.length 16 --data.batch_size 16 --data.steps 12"
PHOTOS = (
    "--data PHOTOS --model.backbone shufflenet_v2_x0_5 --model.weights none --data.batch_size 2 --data.image_size 72"
)
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
    "ReduceLROnPlateau": f"{SHAPES} --max_epochs 6 --lr_scheduler ReduceLROnPlateau --lr_scheduler.patience 0 "
    "--lr_scheduler.threshold 0.01",
    "early stopping": f"{SHAPES} --max_epochs 9 --early_stopping 2 --model.lr 0.02",
    "frozen cache": f"{PHOTOS} --max_epochs 4 --data.num_workers 0",
    "unfreezing, workers": f"{PHOTOS} --max_epochs 3 --model.freeze false --model.unfreeze_epoch 1 "
    "--data.num_workers 2",
}
DDP = "--accelerator cpu --devices 2 --strategy ddp"
DDP_CASES = {
    "cnn, 2 processes": f"{SHAPES} --max_epochs 3 {DDP}",
    "dynamic, 2 processes": f"--model LitDynamic {ROWS} --max_epochs 3 {DDP}",
    "augmented, workers, 2 processes": f"{PHOTOS} --max_epochs 3 --model.freeze false --model.unfreeze_epoch 1 "
    f"--data.num_workers 1 {DDP}",
}
TIMED = {"samples_per_second"}
"""Columns of metrics.csv that no two runs have in common."""


def photos(root: Path) -> Path:
    """Two classes of twelve small noisy pictures each."""
    draw = np.random.default_rng(0)
    for name, channel in (("ants", 0), ("bees", 2)):
        (root / name).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 128, (80, 90, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def forked(arguments: list[str], folder: Path, cost: float, file_limit: int | None = None) -> int:
    """Run fit.py on ``arguments`` in a fork of this process, which has paid for the imports; returns its id."""
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
        code = _fit(arguments, cost)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _fit(arguments: list[str], cost: float) -> int:
    sys.path.insert(0, str(FIT.parent))
    import fit  # type: ignore[import-not-found]

    from lit_training.resume import ResumePoint

    ResumePoint.COST = cost
    sys.argv = [str(FIT), *arguments]
    try:
        fit.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:  # before fit.py has taken over the signals
        return 128 + signal.SIGINT
    return 0


def launched(arguments: list[str], folder: Path, cost: float, file_limit: int | None = None) -> int:
    """The same as a program of its own, for several processes; the resume points follow its own rule."""
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(
            [sys.executable, str(FIT), *arguments], cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
    return process.pid


def wait(child: int, seconds: float) -> int | None:
    """The exit code of a child (negative: the signal that ended it), or None after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.01)


def result(folder: Path) -> dict[str, Any]:
    """Everything that has to be the same at the end of a run."""
    runs = sorted((folder / "lightning_logs").glob("version_*"))
    assert len(runs) == 1, f"{len(runs)} run folders"
    last, best = (
        torch.load(runs[0] / "checkpoints" / name, map_location="cpu", weights_only=True)
        for name in ("last.ckpt", "best.ckpt")
    )
    with (runs[0] / "metrics.csv").open(newline="") as file:
        rows = [tuple((k, v) for k, v in sorted(row.items()) if v and k not in TIMED) for row in csv.DictReader(file)]
    scores = {k: str(v.get("best_model_score")) for k, v in last["callbacks"].items() if "best_model_score" in v}
    return {
        "weights": last["state_dict"],
        "optimizer": last["optimizer_states"],
        "schedules": last["lr_schedulers"],
        "step": (last["global_step"], last["epoch"]),
        "best score": scores,
        "best weights": best["state_dict"],
        "metrics.csv": rows,
    }


def same(a: Any, b: Any) -> bool:
    """Bit-equality of nested plain values and tensors."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class Round:
    """One case, interrupted as its seed says.

    Args:
        name: of the case.
        folder: an empty one.
        seed: of the interruptions.
        start: :func:`forked` or :func:`launched`.
        kinds: of interruptions to draw from.
    """

    LIMIT = 120.0

    def __init__(self, name: str, folder: Path, seed: int, start: Callable[..., int], kinds: tuple[str, ...]) -> None:
        self.name, self.folder, self.seed, self.kinds = name, folder, seed, kinds
        self.start = start
        self.draw = random.Random(f"{name} {seed}")
        self.counts: Counter[str] = Counter()
        self.arguments: list[str] = []

    def go(self, peace: dict[str, Any], seconds: float, arguments: list[str], interruptions: int) -> None:
        """Interrupt, go on, compare with ``peace``.

        Args:
            seconds: that the run takes in peace.

        Raises:
            AssertionError: what differs, or an exit code that ought not to be.
        """
        arguments = [*arguments, "--resume", "auto"]
        ended = False
        for _ in range(interruptions):
            ended = self.interrupt(arguments, seconds, self.draw.choice(self.kinds))
            if ended:
                break
        code = self.run(arguments)
        assert code == 0, f"exit code {code} at the end"
        found = result(self.folder)
        different = [key for key in peace if not same(peace[key], found[key])]
        assert not different, f"not equal: {', '.join(different)}"
        self.counts["runs equal to the uninterrupted one"] += 1
        assert self.run(arguments) == 0
        assert "nothing to do" in (self.folder / "output.txt").read_text()
        self.counts["starts after the end that did nothing"] += 1

    def run(self, arguments: list[str]) -> int | None:
        child = self.start(arguments, self.folder, self.cost())
        code = wait(child, self.LIMIT)
        self.clean(child)
        return code

    def cost(self) -> float:
        return self.draw.choice((1e9, 1e9, 1.0, 0.02))

    def clean(self, child: int) -> None:
        """End what is left of a run, and see that nothing is."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    def interrupt(self, arguments: list[str], seconds: float, kind: str) -> bool:
        """Returns whether the run came to its end before it was interrupted."""
        self.counts[kind] += 1
        if kind == "damaged last.ckpt":
            for path in (self.folder / "lightning_logs").glob("version_*/checkpoints/last.ckpt"):
                if (path.parent / "previous.ckpt").exists():
                    size = path.stat().st_size
                    with path.open("r+b") as file:
                        file.truncate(self.draw.randrange(size))
            return False
        limit = self.draw.randrange(1000, 400_000) if kind == "full disk" else None
        child = self.start(arguments, self.folder, self.cost(), limit)
        if kind == "full disk":
            code = wait(child, self.LIMIT)
            assert code in (0, 2), f"exit code {code} with a full disk"
            self.clean(child)
            return code == 0
        code = wait(child, self.draw.uniform(0.2, 1.1) * seconds)
        if code is None:
            number = signal.Signals[kind]
            if number == signal.SIGKILL:
                os.killpg(child, number)
                os.waitpid(child, 0)
                return False
            group = self.draw.random() < 0.5
            os.killpg(child, number) if group else os.kill(child, number)
            code = wait(child, 15)
            self.clean(child)
            assert code is not None, f"still there 15 s after {kind}"
            assert code in (-number, 128 + number, 0), f"exit code {code} after {kind}"
            return code == 0
        assert code == 0, f"exit code {code} without any interruption"
        return True


def peaceful(name: str, folder: Path, arguments: list[str], start: Callable[..., int]) -> tuple[dict[str, Any], float]:
    """The end of the run left in peace, and the seconds it takes."""
    begun = time.monotonic()
    code = wait(start(arguments, folder, 0.02), 300)
    assert code == 0, f"{name}: exit code {code} in peace\n{(folder / 'output.txt').read_text()[-2000:]}"
    return result(folder), time.monotonic() - begun


KINDS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1", "full disk", "damaged last.ckpt")


def main() -> None:
    parser = argparse.ArgumentParser("torture.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None, help="repeat one round")
    parser.add_argument("--case", default=None, help="only cases whose name contains this")
    parser.add_argument("--one_process", action="store_true", help="leave the cases with two processes out")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        import lit_training.cli  # noqa: F401  # for all forks at once
    place = Path(tempfile.mkdtemp(prefix="torture"))
    pictures = photos(place / "photos")
    cases = CASES if options.one_process else {**CASES, **DDP_CASES}
    names = [name for name in cases if options.case is None or options.case in name]
    counts: Counter[str] = Counter()
    known: dict[str, tuple[dict[str, Any], float]] = {}
    failures = 0
    seed = 0 if options.seed is None else options.seed
    while time.monotonic() < end:
        for name in names:
            if time.monotonic() > end:
                break
            start = launched if name in DDP_CASES else forked
            arguments = cases[name].replace("PHOTOS", str(pictures)).split()
            arguments += ["--log_every_n_steps", "2", "--enable_progress_bar", "false"]
            if name not in known:
                (place / f"peace {name}").mkdir()
                known[name] = peaceful(name, place / f"peace {name}", arguments, start)
            folder = place / f"{name} {seed}"
            folder.mkdir()
            # The limit on files strikes a launched program's output too, and the shared memory of loader processes.
            kinds = tuple(kind for kind in KINDS if kind != "full disk" or not ("workers" in name or start is launched))
            one = Round(name, folder, seed, start, kinds)
            try:
                one.go(*known[name], arguments, one.draw.randint(1, 8))
            except AssertionError as error:
                failures += 1
                print(f"FAILED {name}: {error}\n  repeat: --case '{name}' --seed {seed}; see {folder}", flush=True)
            else:
                shutil.rmtree(folder)
            counts += one.counts
        print(f"seed {seed}: {sum(counts.values())} events, {failures} failures", flush=True)
        if options.seed is not None:
            break
        seed += 1
    for what, count in sorted(counts.items()):
        print(f"{count:6}  {what}")
    print(f"{failures:6}  failures")
    if not failures:
        shutil.rmtree(place)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
