"""Interrupt and resume training runs, and compare their results with the results of uninterrupted runs.

Start with ``python tests/stress/kill_runs.py --minutes 30``, or ``make stress``. Each round interrupts every case at
random times: by a signal, a full disk, a damaged checkpoint or a missing photo. Some cases go on with another number
of processes, or run on two simulated machines. Each failure is printed with the seed that repeats it.
"""

import argparse
import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torchvision.datasets import CIFAR10

from datamodules import CIFAR10DataModule

FIT = Path(__file__).resolve().parents[2] / "scripts" / "fit.py"
OWN = Path(__file__).resolve().parents[1] / "support" / "own"
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
HALVES = "--model my_model.Wide --data my_data.Halves --max_epochs 3"
SAVER = "--callbacks ModelCheckpoint --callbacks.save_last true --callbacks.filename mine"
EMA = "--callbacks+=EMAWeightAveraging --callbacks.decay 0.9"
CASES |= {
    "own classes, own checkpoints": f"{HALVES} {SAVER}",
    "own classes, EMA, accumulated": f"{HALVES} --accumulate_grad_batches 2 {SAVER} {EMA}",
    "unfreezing, own checkpoints, EMA": f"{TUNED} --max_epochs 3 --data.num_workers 0 {SAVER} {EMA}",
}
"""Arguments of fit.py with the words PHOTOS and CIFAR10 for two folders. The last three use parts of other people."""
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
DDP_CASES["own classes, EMA, 2 processes"] = f"{HALVES} {SAVER} {EMA} {DDP}"
GLOBAL_BATCH = 12
DIVISIBLE = "--data.train_size 66 --data.val_size 30 --data.batch_size 6 --max_epochs 3 --accelerator cpu --devices 2"
RESIZED_CASES = {
    "cnn, resized": DIVISIBLE,
    "cnn, resized from 1": f"{DIVISIBLE} --data.batch_size 12 --devices 1",
    "augmented, accumulated, resized": f"{DIVISIBLE} --data.augment true --accumulate_grad_batches 2 {PLATEAU}",
    "dynamic, resized": "--model LitDynamic --data.in_features 20 --data.out_features 3 --data.length 198 "
    "--data.steps 0 --data.batch_size 6 --max_epochs 3 --accelerator cpu --devices 2",
}
"""Each start, except the first one, has 1, 2 or 3 processes."""
MACHINE_CASES = {
    "torchrun, 2 machines": f"{SHAPES} --max_epochs 3 --num_nodes 2 --devices 1 --accelerator cpu --strategy ddp",
    "slurm, 2 machines": f"{SHAPES} --max_epochs 3 --num_nodes 2 --devices 1 --accelerator cpu --strategy ddp",
}
"""Two machines are simulated on this one. The first word is the launcher."""
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
    """Write noise in the format of CIFAR10, and give torchvision its md5, so that no case downloads the real data."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    files: dict[str, Any] = {"batches.meta": {"label_names": list(CIFAR10DataModule.class_names)}}
    for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list):
        pixels = draw.integers(0, 256, (10_000, 3072), dtype=np.uint8)
        files[name] = {"data": pixels, "labels": [number % 10 for number in range(10_000)]}
    md5 = {}
    for name, content in files.items():
        (folder / name).write_bytes(data := pickle.dumps(content))
        md5[name] = hashlib.md5(data).hexdigest()
    CIFAR10.train_list = [[name, md5[name]] for name, _ in CIFAR10.train_list]
    CIFAR10.test_list = [[name, md5[name]] for name, _ in CIFAR10.test_list]
    CIFAR10.meta = {**CIFAR10.meta, "md5": md5["batches.meta"]}
    return root


def record_samples(trainer: Any, batch: Any) -> None:
    """Write a hash of each network input to a file per process: ``used0.jsonl``, ``used1.jsonl``."""
    samples = [hashlib.blake2b(sample.numpy().tobytes(), digest_size=8).hexdigest() for sample in batch[0]]
    line = json.dumps([trainer.fit_loop.total_batch_idx, trainer.current_epoch, samples, trainer.world_size])
    with Path(f"used{trainer.global_rank}.jsonl").open("a") as file:
        file.write(f"\n{line}")  # begin with a line break: the previous line may be incomplete


class JumpingClock:
    """A clock that stands still, runs or jumps ahead at random: what depends on time happens at any step."""

    def __init__(self) -> None:
        self.draw, self.now = random.Random(), 0.0

    def monotonic(self) -> float:
        self.now += self.draw.choice((0, 1e-9, 1e-3, 0.1, 0.6, 2, 6, 60)) * self.draw.random()
        return self.now


History = list[dict[int, tuple[Any, ...]]]
"""A list with one dict per process: batch number -> (epoch, hashes of the samples, number of processes)."""


def read_samples(folder: Path) -> History:
    """Return the recorded samples of each batch. If a batch was recorded several times, use the last record."""
    histories = []
    for file in sorted(folder.glob("used*.jsonl")):
        history = {}
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):
                number, *batch = json.loads(line)
                history[number] = tuple(batch)
        histories.append(dict(sorted(history.items())))
    return histories


def merge_processes(histories: History) -> dict[int, tuple[int, list[str]]]:
    """Return the samples that all processes together used in each batch: batch number -> (epoch, sorted hashes)."""
    merged = {}
    for number, (epoch, _, processes) in histories[0].items():
        merged[number] = epoch, sorted(one for history in histories[:processes] for one in history[number][1])
    return merged


def count_repeated(histories: History) -> int:
    """Count the repeated samples of all processes in each epoch, and return the largest count."""
    epochs: dict[int, Counter[str]] = {}
    for epoch, samples, *_ in (batch for history in histories for batch in history.values()):
        epochs.setdefault(epoch, Counter()).update(samples)
    return max(counts.total() - len(counts) for counts in epochs.values())


def start_fork(arguments: list[str], folder: Path, cost: float, file_limit: int | None = None) -> int:
    """Run fit.py in a fork of this process, which has already imported everything. Return the process id.

    More processes are forked at once: they wait until the first process launches them.
    """
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
        fork_ranks(devices_of(arguments))
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


def devices_of(arguments: list[str]) -> int:
    """Return the last value of ``--devices``, or 1."""
    return int(["1", *(value for name, value in itertools.pairwise(arguments) if name == "--devices")][-1])


def fork_ranks(processes: int) -> None:
    """Fork the other processes of a run, and let Lightning launch these forks. This saves the time of the imports.

    In the first process this function returns at once. In the others it returns when they are launched.
    """
    waiting: list[tuple[int, int]] = []

    def launch(command: list[str], env: dict[str, str], cwd: Any) -> subprocess.Popen:
        pid, pipe = waiting.pop(0)
        with os.fdopen(pipe, "w") as file:
            json.dump(env, file)
        process: Any = mock.Mock(spec=subprocess.Popen, pid=pid, returncode=None)

        def poll() -> int | None:
            with contextlib.suppress(ChildProcessError):  # another thread has asked for it
                process.returncode = wait_for_exit(pid, 0) if process.returncode is None else process.returncode
            return process.returncode

        def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        process.poll, process.kill = poll, kill
        return process

    subprocess_script.subprocess = mock.Mock(Popen=launch)
    for _ in range(processes - 1):
        reader, writer = os.pipe()
        if pid := os.fork():
            os.close(reader)
            waiting.append((pid, writer))
            continue
        for pipe in (writer, *(other for _, other in waiting)):
            os.close(pipe)
        with os.fdopen(reader) as file:
            environment = file.read()
        if not environment:  # the first process has ended before
            os._exit(0)
        os.environ.clear()
        os.environ.update(json.loads(environment))
        rank_zero_only.rank = int(os.environ["LOCAL_RANK"])  # type: ignore[attr-defined]  # as when Lightning is imported  # type: ignore[attr-defined]
        return


def _fit(cost: float) -> int:
    """Run fit.py with the arguments in ``sys.argv``, and record the samples of each step. Return the exit code."""
    from lit_training.callbacks import resume
    from lit_training.errors import one_line_errors
    from lit_training.runs import checkpoints, lightning_internals
    from lit_training.runs.loaders import StepSeed

    resume.ResumePoint.TIME_SHARE = cost
    if random.random() < 0.5:
        for module in (resume, checkpoints, lightning_internals):
            module.time = JumpingClock()  # type: ignore[attr-defined]
    seed = StepSeed.on_train_batch_start

    def seed_and_record(self: StepSeed, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        seed(self, trainer, pl_module, batch, batch_idx)
        record_samples(trainer, batch)  # a callback would do it too, but then no step is plain

    StepSeed.on_train_batch_start = seed_and_record  # type: ignore[method-assign]
    try:
        with one_line_errors("fit.py"):
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


def start_machines(
    launcher: str, arguments: list[str], folder: Path, cost: float, file_limit: int | None = None
) -> int:
    """Start a process that runs fit.py on two simulated machines with ``launcher``. Return its id."""
    with mock.patch.dict(os.environ, {MACHINES_VARIABLE: f"{launcher} {folder}"}):
        return start_program(arguments, folder, cost)


def run_machines(launcher: str, folder: str) -> int:
    """Run two machines and forward signals to both. Return 0, 1, or 128 + the number of the signal."""
    received: list[int] = []
    machines: list[subprocess.Popen] = []

    def forward(number: int, frame: Any) -> None:
        received.append(number)
        for machine in machines:
            machine.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, forward)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    bin_folder = Path(folder, "bin")
    bin_folder.mkdir(exist_ok=True)
    (bin_folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/requeued.txt\n')
    (bin_folder / "scontrol").chmod(0o755)
    for node in ("0", "1"):
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
        environment = {**os.environ, MACHINES_VARIABLE: "", NODE_VARIABLE: f"{folder}:{node}:"}
        if launcher == "torchrun":
            options = f"--nnodes 2 --nproc_per_node 1 --node_rank {node} --master_addr 127.0.0.1 --master_port {port}"
            command[1:1] = ["-m", "torch.distributed.run", *options.split()]
        else:
            names = {"PROCID": node, "NODEID": node, "LOCALID": "0", "NTASKS": "2", "JOB_ID": "17", "JOB_NAME": "train"}
            environment |= {f"SLURM_{name}": value for name, value in names.items()} | {"MASTER_PORT": port}
            environment |= {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1"}
            environment["PATH"] = f"{bin_folder}:{environment['PATH']}"
        machines.append(subprocess.Popen(command, env=environment))
    for early in received:  # it came before the second machine was started
        for machine in machines:
            machine.send_signal(early)
    codes = [machine.wait() for machine in machines]
    return 128 + received[0] if received and any(codes) else int(any(codes))


def processes_of_machine(folder: Path, node: str = "") -> list[int]:
    """Return the ids of the processes of a simulated machine, or of both machines of a run."""
    marker, found = f"{NODE_VARIABLE}={folder}:{node}".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found


MACHINES_VARIABLE = "KILL_RUNS_MACHINES"
"""If this environment variable is set, this file starts two machines. The value is the launcher and the folder."""
NODE_VARIABLE = "KILL_RUNS_NODE"
"""Environment variable of the processes of a machine: the folder of the run and the number of the machine."""
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


def are_close(a: Any, b: Any, tolerance: float = 2e-6) -> bool:
    """Return True if nested plain values and tensors differ by rounding only."""
    if isinstance(a, torch.Tensor):
        return torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(are_close(a[key], b[key], tolerance) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(are_close(one, other, tolerance) for one, other in zip(a, b, strict=True))
    with contextlib.suppress(TypeError, ValueError):
        return a == b or abs(float(a) - float(b)) <= max(tolerance, 1e-5 * abs(float(a)))  # a == b: both are inf
    return bool(a == b)


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
    EQUAL = "runs equal to the uninterrupted one"

    def __init__(self, name: str, folder: Path, seed: int, start: Callable[..., int], kinds: tuple[str, ...]) -> None:
        self.name, self.folder, self.seed, self.kinds = name, folder, seed, kinds
        self.start = start
        self.draw = random.Random(f"{name} {seed}")
        self.counts: Counter[str] = Counter()
        self.waits: list[float] = []
        """Seconds from each signal to the end of the process."""
        self.photos: Path | None = None
        self.batches = 1
        """Batches of the run. An interruption waits for at most half of them."""

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
        different = self.compare(uninterrupted, found)
        assert not different, f"not equal: {', '.join(different)}"
        self.counts[self.EQUAL] += 1
        assert self.run(arguments) == 0
        assert "nothing to do" in (self.folder / "output.txt").read_text()
        self.counts["starts after the end that did nothing"] += 1

    def compare(self, expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
        """Return the names of the values that differ."""
        return [key for key in expected if not are_equal(expected[key], found[key])]

    def launch(self, arguments: list[str], file_limit: int | None = None) -> int:
        """Start fit.py. Return the process id. Most starts of several processes are forks, which is faster."""
        start = start_fork if self.start is start_program and self.draw.random() < 0.8 else self.start
        return start(arguments, self.folder, self.draw_cost(), file_limit)

    def run(self, arguments: list[str]) -> int | None:
        """Run fit.py to its end. Return its exit code, or None after :attr:`LIMIT_SECONDS`."""
        child = self.launch(arguments)
        code = wait_for_exit(child, self.LIMIT_SECONDS)
        self.kill_remaining_processes(child)
        return code

    def recorded_bytes(self) -> int:
        """Return the size of the files of recorded samples. It increases with each batch."""
        return sum(path.stat().st_size for path in self.folder.glob("used*.jsonl"))

    def recorded_batches(self) -> int:
        """Return the number of batches that the first process has recorded, with those that were repeated."""
        file = self.folder / "used0.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def draw_cost(self) -> float:
        """Return a random share of time for resume points. With a large share, the run writes many resume points."""
        return self.draw.choice((1e9, 1e9, 1.0, 0.02))

    def kill_remaining_processes(self, child: int) -> None:
        """Kill all remaining processes of a run."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)

    def interrupt(self, arguments: list[str], seconds: float, kind: str) -> bool:
        """Interrupt a run, and count the interruption. Return True if it ended before the interruption."""
        ended = self.try_to_interrupt(arguments, seconds, kind)
        self.counts[f"{kind}, but the run ended before" if ended else kind] += ended is not None
        return bool(ended)

    def try_to_interrupt(self, arguments: list[str], seconds: float, kind: str) -> bool | None:
        """Interrupt a run. Return True if it ended before the interruption, None if there was nothing to interrupt."""
        points = list(self.folder.glob("lightning_logs/version_0/checkpoints/resume/*.ckpt"))
        if kind == "damaged last.ckpt":
            if len(points) < 2:
                return None
            [path] = [path for path in points if path.name == "last.ckpt"]
            with path.open("r+b") as file:
                file.truncate(self.draw.randrange(path.stat().st_size))
            return False
        if kind == "missing photo" and points and self.draw.random() < 0.3:
            with self.without_photo():
                code = self.run(arguments)
            assert code in (0, 2), f"exit code {code} without a photo"
            return code == 0
        limit = self.draw.randrange(1000, 400_000) if kind == "full disk" else None
        child = self.launch(arguments, limit)
        if kind == "full disk":
            code = wait_for_exit(child, self.LIMIT_SECONDS)
            assert code in (0, 2), f"exit code {code} with a full disk"
            self.kill_remaining_processes(child)
            return code == 0
        code, end = None, time.monotonic() + seconds
        if kind == "missing photo" or self.draw.random() < 0.75:  # wait for a random batch, then for a part of it
            batches, before = self.draw.randint(1, max(self.batches // 2, 1)), self.recorded_batches()
            while code is None and self.recorded_batches() < before + batches and time.monotonic() < end:
                code = wait_for_exit(child, 0.005)
            later = 0.02 * self.draw.random()
        else:
            later = self.draw.uniform(0.2, 1.1) * seconds
        code = wait_for_exit(child, later) if code is None else code
        if code is None and kind == "missing photo":
            with self.without_photo():
                code = wait_for_exit(child, self.LIMIT_SECONDS)
            self.kill_remaining_processes(child)
            assert code in (0, 2), f"exit code {code} without a photo"
            return code == 0
        if code is None:
            number = signal.Signals[kind]
            if number == signal.SIGKILL:
                self.kill(child)
                return False
            self.send(child, number)
            sent = time.monotonic()
            code = wait_for_exit(child, 15)
            self.waits.append(time.monotonic() - sent)
            self.kill_remaining_processes(child)
            assert code is not None, f"still running 15 s after {kind}"
            assert code in (-number, 128 + number, 0), f"exit code {code} after {kind}"
            return code == 0
        assert code == 0, f"exit code {code} without any interruption"
        return True

    @contextlib.contextmanager
    def without_photo(self) -> Iterator[None]:
        """Move a photo away, and bring it back."""
        assert self.photos is not None
        photo = self.draw.choice(sorted(self.photos.glob("*/*.png")))
        away = photo.rename(self.photos.parent / "away.png")
        try:
            yield
        finally:
            away.rename(photo)

    def kill(self, child: int) -> None:
        """Kill all processes of a run at once."""
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)

    def send(self, child: int, number: int) -> None:
        """Send a signal to one or all processes of a run."""
        group = self.draw.random() < 0.5
        os.killpg(child, number) if group else os.kill(child, number)


class ResizedRound(Round):
    """A run that goes on with another number of processes. Its result is equal within rounding."""

    EQUAL = "resized runs equal within rounding"

    def launch(self, arguments: list[str], file_limit: int | None = None) -> int:
        if list(self.folder.glob("lightning_logs/version_0/checkpoints/resume/*.ckpt")):
            last = (self.sizes() or [0])[-1]
            number = self.draw.choice([1, 2, 3, *({1, 2, 3} - {last})])
            if self.draw.random() < 0.5:
                arguments = [*arguments, "--data.batch_size", str(GLOBAL_BATCH // number)]
            else:
                arguments = ["--resume", "latest", "--enable_progress_bar", "false"]
            arguments = [*arguments, "--devices", str(number)]
        return super().launch(arguments, file_limit)

    def sizes(self) -> list[int]:
        """Return the number of processes that trained, one value after each change."""
        lines = (self.folder / "used0.jsonl").read_text().splitlines() if self.recorded_bytes() else []
        sizes = [int(line.rpartition(",")[2][:-1]) for line in lines if line.endswith("]")]
        return [size for size, _ in itertools.groupby(sizes)]

    def compare(self, expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
        different = [key for key in ("weights", "best weights") if not are_close(expected[key], found[key])]
        keys = ("optimizer", "schedules", "step", "metrics.csv")
        one, two = ({**result, "metrics.csv": without_step_loss(result["metrics.csv"])} for result in (expected, found))
        different += [key for key in keys if not are_close(one[key], two[key], 1e-5)]
        self.counts[f"resized runs with {len(self.sizes()) - 1} changes of size"] += 1
        return different + ["samples"] * (merge_processes(one["samples"]) != merge_processes(two["samples"]))


def without_step_loss(rows: list[Any]) -> list[Any]:
    """Return the rows of metrics.csv without ``train_loss_step``, which is that of the first process."""
    return [[(key, value) for key, value in row if key != "train_loss_step"] for row in rows]


class MachinesRound(Round):
    """A run on two simulated machines. A kill ends both, or one, and then the other ends too."""

    def launch(self, arguments: list[str], file_limit: int | None = None) -> int:
        self.bytes_before = self.recorded_bytes()
        return super().launch(arguments, file_limit)

    def kill(self, child: int) -> None:
        # Before the first step, a machine waits for the other one, because it may start later.
        if self.recorded_bytes() > self.bytes_before and self.draw.random() < 0.7:
            self.counts["of these, kills of one machine"] += 1
            for process in processes_of_machine(self.folder, f"{self.draw.choice('01')}:"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            assert wait_for_exit(child, self.LIMIT_SECONDS) is not None, "still running after a kill of one machine"
        else:
            super().kill(child)
        self.kill_remaining_processes(child)

    def send(self, child: int, number: int) -> None:
        os.kill(child, number)

    def compare(self, expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
        if (requeued := self.folder / "requeued.txt").exists():
            self.counts["of these, requeued by SLURM"] += len(requeued.read_text().splitlines())
        return super().compare(expected, found)

    def kill_remaining_processes(self, child: int) -> None:
        super().kill_remaining_processes(child)
        for process in processes_of_machine(self.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def run_uninterrupted(
    name: str, folder: Path, arguments: list[str], start: Callable[..., int]
) -> tuple[dict[str, Any], float]:
    """Run a case without interruption. Return its result and its duration in seconds."""
    begun = time.monotonic()
    start = start_fork if start is start_program else start  # as most interrupted runs
    code = wait_for_exit(start(arguments, folder, 0.02), 300)
    assert code == 0, f"{name}: exit code {code} without interruption\n{(folder / 'output.txt').read_text()[-2000:]}"
    seconds, found = time.monotonic() - begun, read_result(folder)
    processes = len(found["samples"])
    expected = 2 if name in MACHINE_CASES else devices_of(arguments)
    assert processes == expected, f"{name}: samples of {processes} processes"
    # If the processes cannot share the data equally, fewer than ``processes`` samples are repeated.
    again = 0 if name in REPEATING_CASES else count_repeated(found["samples"])
    assert again < processes, f"{name}: {again} samples were repeated in an epoch"
    return found, seconds


def kinds_of(name: str, start: Callable[..., int], arguments: str) -> tuple[str, ...]:
    """Return the kinds of interruptions for a case."""
    if name.startswith("torchrun"):  # its agents handle no SIGUSR1
        return ("SIGKILL", "SIGKILL", "SIGTERM", "SIGINT")
    if name.startswith("slurm"):
        return ("SIGKILL", "SIGUSR1", "SIGUSR1", "SIGTERM")
    kinds = KINDS + ("missing photo",) * (3 if "PHOTOS" in arguments else 0)
    # "full disk" limits the file size. This limit would also break launched programs and the memory of workers.
    return tuple(kind for kind in kinds if kind != "full disk" or not ("workers" in name or start is not start_fork))


KINDS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1", "full disk", "damaged last.ckpt")


def print_counts(counts: Counter[str], waits: dict[str, list[float]], runs: int, failures: int) -> None:
    """Print the number of interruptions of each kind, and of equal runs."""
    print(f"\n{runs:6}  runs, {failures} of them failed")
    for what, count in sorted(counts.items()):
        print(f"{count:6}  {what}")
    for processes, seconds in waits.items():
        if seconds:
            print(f"{max(seconds):6.2f}  s: longest wait after a signal, {processes} ({len(seconds)} signals)")
    print(flush=True)


def main() -> None:
    if os.environ.get(MACHINES_VARIABLE):
        sys.exit(run_machines(*os.environ[MACHINES_VARIABLE].split(" ", 1)))
    if COST_VARIABLE in os.environ:
        sys.exit(_fit(float(os.environ[COST_VARIABLE])))
    parser = argparse.ArgumentParser("kill_runs.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None, help="run one round with this seed (default: new seeds)")
    parser.add_argument("--case", default=None, help="only cases whose name contains this text")
    parser.add_argument("--resized", type=int, default=1, help="how often each round runs each case that is resized")
    parser.add_argument("--one_process", action="store_true", help="skip the cases with two processes")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(OWN), *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path.insert(0, str(OWN))
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        import lit_training.cli.fit
        import lit_training.cli.parser
        import lit_training.cli.trouble  # noqa: F401  # import once here, not in each fork
    place = Path(tempfile.mkdtemp(prefix="kill_runs"))
    cases = CASES if options.one_process else {**CASES, **DDP_CASES, **RESIZED_CASES, **MACHINE_CASES}
    names = [name for name in cases if options.case is None or options.case in name]
    places = {"PHOTOS": write_photos(place / "photos"), "CIFAR10": place / "cifar10"}
    if "cifar10" in names:
        write_cifar10(places["CIFAR10"])  # 180 MB
    counts: Counter[str] = Counter()
    known: dict[str, tuple[dict[str, Any], float]] = {}
    waits: dict[str, list[float]] = {"one process": [], "several processes": []}
    failures = runs = 0
    first_seed = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    is_repeat = options.seed is not None
    repeated = 0 if is_repeat else options.resized - 1
    round_of_names = [*names, *[name for name in names if name in RESIZED_CASES] * repeated]
    while time.monotonic() < end and not (is_repeat and runs):
        for name in random.Random(first_seed + runs).sample(round_of_names, len(round_of_names)):
            if time.monotonic() > end:
                break
            begun = time.monotonic()
            seed = first_seed + (0 if is_repeat else runs)
            start = start_fork if name in CASES else start_program
            if name in MACHINE_CASES:
                start = partial(start_machines, name.partition(",")[0])
            arguments = [str(places.get(word, word)) for word in cases[name].split()]
            arguments += ["--log_every_n_steps", "2", "--enable_progress_bar", "false"]
            folder = place / f"{name} {seed}"
            folder.mkdir()
            kind_of_round = ResizedRound if name in RESIZED_CASES else MachinesRound if name in MACHINE_CASES else Round
            one = kind_of_round(name, folder, seed, start, kinds_of(name, start, cases[name]))
            one.photos = places["PHOTOS"]
            try:
                if name not in known:
                    (whole := place / f"uninterrupted {name}").mkdir(exist_ok=True)
                    known[name] = run_uninterrupted(name, whole, arguments, start)
                one.batches = len(known[name][0]["samples"][0])
                most = 3 if name in MACHINE_CASES else 8  # a start of two machines takes long
                one.run_and_compare(*known[name], arguments, one.draw.randint(2 if name in RESIZED_CASES else 1, most))
            except AssertionError as error:
                failures += 1
                print(f"FAILED {name}: {error}\n  repeat: --case '{name}' --seed {seed}; see {folder}", flush=True)
            else:
                shutil.rmtree(folder)
            runs += 1
            counts += one.counts
            waits["one process" if name in CASES else "several processes"] += one.waits
            events = ", ".join(f"{count} {what}" for what, count in one.counts.items())
            print(f"{time.monotonic() - begun:4.0f} s  {name}: {events}", flush=True)
            if runs % 10 == 0:
                print_counts(counts, waits, runs, failures)
    print_counts(counts, waits, runs, failures)
    if not failures:
        shutil.rmtree(place)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
