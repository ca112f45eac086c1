"""Time this project against hand-written loops, side by side in one run: ``python scripts/benchmark.py``.

Each row is a number of pairs, run in turn; its figure is the median of the pairs' ratios. Nothing is asserted.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import models, transforms

from datamodules.files import read_csv
from datamodules.loading.memory import normalize
from datamodules.machine import available_cores
from datamodules.photos.dataset import read_pixels
from datamodules.photos.find import find_photos
from datamodules.photos.transforms import eval_transform, train_transform
from datamodules.preprocessing import Preprocessing
from datamodules.shapes import draw
from lit_models import DynamicNet, LeNet, mlp
from lit_training.cli.parser import FitCLI
from lit_training.runs.layout import LOGS, METRICS

Sample = dict[str, float]
IMAGENET = Preprocessing()


class Clock(Callback):
    """Seconds from the start of the first training epoch, after what is drawn before it, to the end of training."""

    started: float | None = None

    def on_train_epoch_start(self, *_: Any) -> None:
        self.started = self.started or time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - (self.started or 0)


def ours(arguments: list[str], from_fit: bool = False) -> float:
    """Seconds of a run of scripts/fit.py with all that it has by default: its training, or all from ``fit`` on."""
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()):
        run = FitCLI([*arguments, "--default_root_dir", root, "--accelerator", "cpu"]).run
        clock = Clock()
        run.trainer.callbacks.insert(0, clock)
        started = time.perf_counter()
        run.trainer.fit(run.model, run.data)
        return time.perf_counter() - started if from_fit else clock.seconds


def hand_loop(net: nn.Module, batches: Iterator[Any] | Any, loss: Callable, optimizer: torch.optim.Optimizer) -> float:
    started = time.perf_counter()
    for x, y in batches:
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
    return time.perf_counter() - started


# --- LeNet ------------------------------------------------------------------------------------------------------------


class TutorialPictures(Dataset):
    """What torchvision's CIFAR10 does for each picture: array -> PIL -> ToTensor -> Normalize."""

    def __init__(self, images: np.ndarray, labels: list[int]) -> None:
        self.images, self.labels = images, labels
        half = (0.5, 0.5, 0.5)
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def lenet(batch: int, pictures: int, workers: int | None) -> Callable[[], Sample]:
    """Our epoch against the floor (``workers`` None: data in memory as floats) or the tutorial's loader."""
    images, labels = draw(pictures, 0, 3)

    def pair() -> Sample:
        net = LeNet()
        sgd = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
        if workers is None:
            x = normalize(images, (0.5,) * 3, (0.5,) * 3)
            order = torch.randperm(pictures)
            batches: Any = ((x[part], labels[part]) for part in order.split(batch))
        else:
            data = TutorialPictures(images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist())
            batches = DataLoader(data, batch_size=batch, shuffle=True, num_workers=workers)
        theirs = hand_loop(net, batches, F.cross_entropy, sgd)
        sizes = ["--data.train_size", str(pictures), "--data.val_size", "10", "--data.batch_size", str(batch)]
        return {
            "ours": ours(["--data", "ShapesDataModule", *sizes, "--max_epochs", "1", "--limit_val_batches", "0"]),
            "theirs": theirs,
        }

    return pair


# --- the networks on one fixed batch ----------------------------------------------------------------------------------


def fixed_batch(model: str, steps: int) -> Callable[[], Sample]:
    def pair() -> Sample:
        net: nn.Module = mlp() if model == "LitMLP" else DynamicNet()
        sgd = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.0 if model == "LitMLP" else 0.9)
        x, y = torch.randn(64, 1000), torch.randn(64, 10)

        def summed(output: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(output, target, reduction="sum")

        theirs = hand_loop(net, ((x, y) for _ in range(steps)), summed, sgd)
        mine = ours(["--model", model, "--data.steps", str(steps), "--max_epochs", "1", "--limit_val_batches", "0"])
        return {"ours": mine, "theirs": theirs}

    return pair


# --- photos -----------------------------------------------------------------------------------------------------------


def make_photos(root: Path, count: int) -> Path:
    """JPEGs of 500 x 375 in two classes, 60 % train and 40 % val, of about a photo's file size."""
    generator = np.random.default_rng(0)
    for index in range(count):
        split = "train" if index < 0.6 * count else "val"
        file = root / split / ("ants", "bees")[index % 2] / f"{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        rough = Image.fromarray(generator.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        smooth = np.asarray(rough.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (smooth + generator.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(file, quality=90)
    return root


def photo_files(root: Path) -> list[Path]:
    return [root / path for path in find_photos(root).paths]


def frozen(root: Path, tutorial: bool) -> Callable[[], Sample]:
    """25 frozen epochs against one pass over the photos, or against the tutorial's 25 epochs (25 x one timed)."""
    files = photo_files(root)

    def one_pass() -> float:
        net = models.resnet18().eval()
        transform = eval_transform(IMAGENET)
        started = time.perf_counter()
        with torch.no_grad():
            for first in range(0, len(files), 32):
                batch = [transform(read_pixels(file)) for file in files[first : first + 32]]
                net(normalize(torch.stack(batch), IMAGENET.mean, IMAGENET.std))
        return time.perf_counter() - started

    def tutorial_epoch() -> float:
        normalise = [transforms.ToTensor(), transforms.Normalize(IMAGENET.mean, IMAGENET.std)]
        train = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *normalise])
        val = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *normalise])
        net = models.resnet18().requires_grad_(False)
        net.fc = nn.Linear(512, 2)
        sgd = torch.optim.SGD(net.fc.parameters(), lr=0.001, momentum=0.9)
        from torchvision.datasets import ImageFolder

        sets = {
            split: ImageFolder(str(root / split), transform) for split, transform in (("train", train), ("val", val))
        }
        started = time.perf_counter()
        for split, data in sets.items():
            net.train(split == "train")
            for x, y in DataLoader(data, batch_size=4, shuffle=True, num_workers=4):
                with torch.set_grad_enabled(split == "train"):
                    loss = F.cross_entropy(net(x), y)
                if split == "train":
                    sgd.zero_grad()
                    loss.backward()
                    sgd.step()
        return time.perf_counter() - started

    def pair() -> Sample:
        theirs = 25 * tutorial_epoch() if tutorial else one_pass()
        mine = ours(["--data", str(root), "--model.weights", "none", "--max_epochs", "25"], from_fit=True)
        return {"ours": mine, "theirs": theirs}

    return pair


def decoding(root: Path) -> Callable[[], Sample]:
    """CPU seconds of decode + train transform to normalised batches of 4, ours against the tutorial's PIL pipeline."""
    files = photo_files(root)[:192]
    batches = [files[first : first + 4] for first in range(0, len(files), 4)]
    normalise = [transforms.ToTensor(), transforms.Normalize(IMAGENET.mean, IMAGENET.std)]
    tutorial = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *normalise])
    mine = train_transform(IMAGENET)

    def pair() -> Sample:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        started = time.process_time()
        for batch in batches:
            torch.stack([tutorial(Image.open(file).convert("RGB")) for file in batch])
        between = time.process_time()
        for batch in batches:
            pictures = torch.stack([mine(read_pixels(file)).permute(1, 2, 0) for file in batch]).permute(0, 3, 1, 2)
            normalize(pictures, IMAGENET.mean, IMAGENET.std)
        ended = time.process_time()
        torch.set_num_threads(threads)
        return {"ours": ended - between, "theirs": between - started}

    return pair


def fine_tuning(root: Path) -> Callable[[], Sample]:
    """An epoch of fine-tuning from files against the same steps on batches that are already in memory."""
    files = photo_files(root)
    train = [file for file in files if "train" in file.relative_to(root).parts]

    def pair() -> Sample:
        transform = eval_transform(IMAGENET)
        x = normalize(torch.stack([transform(read_pixels(file)) for file in train]), IMAGENET.mean, IMAGENET.std)
        data = TensorDataset(x, torch.zeros(len(x), dtype=torch.long))
        net = models.resnet18(num_classes=2)
        sgd = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
        theirs = hand_loop(net, DataLoader(data, batch_size=4), F.cross_entropy, sgd)
        tune = ["--model.weights", "none", "--model.freeze", "false", "--max_epochs", "1", "--limit_val_batches", "0"]
        return {"ours": ours(["--data", str(root), *tune]), "theirs": theirs}

    return pair


# --- processes --------------------------------------------------------------------------------------------------------


def script(name: str, *arguments: str, threads: int | None = None) -> tuple[float, str]:
    """Wall seconds and output of one of our scripts, as a process of its own."""
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, str(Path(__file__).parent / name), *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return time.perf_counter() - started, done.stdout + done.stderr


def two_processes(pictures: int) -> Callable[[], Sample]:
    """Seconds a picture with two processes of one thread, against one process with two threads (LeNet, 128 each)."""

    def rate(devices: int) -> float:
        with tempfile.TemporaryDirectory() as root:
            sizes = ["--data.train_size", str(pictures), "--data.val_size", "10", "--data.batch_size", "128"]
            where = ["--accelerator", "cpu", "--devices", str(devices), "--default_root_dir", root]
            strategy = ["--strategy", "ddp"] if devices > 1 else []
            flags = [*sizes, *where, *strategy, "--max_epochs", "3", "--limit_val_batches", "0"]
            script("fit.py", *flags, threads=2 // devices)
            rows = read_csv(Path(root) / LOGS / "version_0" / METRICS)
        speeds = [float(row["samples_per_second"]) for row in rows if row["samples_per_second"]][1:]
        return 1 / statistics.median(speeds)  # after the first epoch, which warms up

    def pair() -> Sample:
        return {"theirs": rate(1), "ours": rate(2)}

    return pair


def listing(count: int) -> Callable[[], Sample]:
    """Seconds to list a folder of ``count`` empty files, against ``os.walk`` with its Python strings."""
    folder = tempfile.TemporaryDirectory()
    for index in range(count):
        if index % 10_000 == 0:
            part = Path(folder.name) / ("ants", "bees")[index // 10_000 % 2] / str(index)
            part.mkdir(parents=True)
        (part / f"{index}.jpg").touch()

    def pair(folder: tempfile.TemporaryDirectory = folder) -> Sample:  # kept alive as long as the pair
        started = time.perf_counter()
        [os.path.join(at, name) for at, _, names in os.walk(folder.name) for name in names]  # noqa: PTH118
        between = time.perf_counter()
        find_photos(folder.name)
        return {"ours": time.perf_counter() - between, "theirs": between - started}

    return pair


def start_up(name: str, *arguments: str, against: str) -> Callable[[], Sample]:
    """Wall seconds of a whole command against a Python that does ``against``."""

    def pair() -> Sample:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", against], check=True)
        return {"theirs": time.perf_counter() - started, "ours": script(name, *arguments)[0]}

    return pair


def memory(pictures: int) -> Callable[[], Sample]:
    """Peak MB that a LeNet run adds to what the imports take, against the size of its data."""
    code = (
        "import pathlib, re, sys, tempfile; from lit_training.cli.parser import FitCLI; import torch._dynamo;"
        # Not resource.getrusage, whose peak a process takes over from the one that started it.
        "status = pathlib.Path('/proc/self/status');"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) / 1024;"
        "before = peak(); root = tempfile.mkdtemp();"
        "cli = FitCLI([*sys.argv[1:], '--default_root_dir', root]);"
        "cli.trainer.fit(cli.model, cli.datamodule); print('added', peak() - before)"
    )
    sizes = ["--data.train_size", str(pictures), "--data.val_size", "1000", "--data.batch_size", "128"]

    def pair() -> Sample:
        command = [sys.executable, "-c", code, *sizes, "--max_epochs", "1", "--accelerator", "cpu"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        added = float(output.rsplit("added", 1)[1])
        return {"ours": added, "theirs": pictures * 3 * 32 * 32 / 2**20}

    return pair


# --- the table --------------------------------------------------------------------------------------------------------


def rows(photos: Path, small: bool) -> dict[str, tuple[str, Callable[[], Callable[[], Sample]]]]:
    """Name -> (what is compared with what, and the target; a factory of the pair)."""
    pictures, steps, many = (512, 20, 1000) if small else (50_000, 3000, 1_000_000)
    imports = "import torch, lightning"
    return {
        "lenet128": ("LeNet batch 128 / floor, <= 1.15", lambda: lenet(128, pictures, None)),
        "lenet128-tutorial": ("LeNet batch 128 / tutorial's loader, <= 0.286", lambda: lenet(128, pictures, 2)),
        "lenet4": ("LeNet batch 4 / floor, <= 1.45", lambda: lenet(4, pictures, None)),
        "memory": ("peak MB added / data's MB, <= 1.1 + 150 MB", lambda: memory(pictures)),
        "mlp": ("MLP step / hand loop, <= 2.0", lambda: fixed_batch("LitMLP", steps)),
        "dynamic": ("dynamic net step / hand loop, <= 2.0", lambda: fixed_batch("LitDynamic", steps)),
        "frozen": ("25 frozen epochs / one pass, <= 1.6", lambda: frozen(photos, tutorial=False)),
        "frozen-tutorial": ("25 frozen epochs / tutorial's, <= 0.067", lambda: frozen(photos, tutorial=True)),
        "decode": ("decode + train transform / PIL, <= 0.667", lambda: decoding(photos)),
        "finetune": ("fine-tuning from files / from memory", lambda: fine_tuning(photos)),
        "ddp": ("s/picture 2 processes / 1 with 2 threads, <= 1.053", lambda: two_processes(pictures)),
        "listing": (f"listing {many:,} files / os.walk; <= 15 s", lambda: listing(many)),
        "help": ("fit.py --help / python -c pass, <= 1 s", lambda: start_up("fit.py", "--help", against="pass")),
        "help-all": ("fit.py --help_all / imports, <= 1.2", lambda: start_up("fit.py", "--help_all", against=imports)),
        "error": ("an error message / imports, <= 1.2", lambda: start_up("fit.py", "--bad", against=imports)),
    }


def main() -> None:
    parser = argparse.ArgumentParser("benchmark.py", description=__doc__)
    parser.add_argument("rows", nargs="*", help="names of rows; all when none is given")
    parser.add_argument("--pairs", type=int, default=7, help="pairs per row (default 7)")
    parser.add_argument("--photos", type=Path, help="a folder with train/ and val/; generated when not given")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs: the figures say nothing")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    arguments = parser.parse_args()
    if arguments.pairs < 1:
        parser.error("--pairs starts at 1: --pairs 7")
    if arguments.photos is not None and not (arguments.photos / "train").is_dir():
        parser.error(f"--photos {arguments.photos} has no train/: give a folder with train/ and val/")
    with tempfile.TemporaryDirectory() as folder:
        photos = arguments.photos or make_photos(Path(folder), 12 if arguments.small else 397)
        table = rows(photos, arguments.small)
        if unknown := set(arguments.rows) - set(table):
            parser.error(f"there is no row {unknown.pop()}: choose from {', '.join(table)}")
        machine = f"{platform.processor() or platform.machine()}, {available_cores()} cores, torch {torch.__version__}"
        results = {}
        if not arguments.json:
            print(f"{machine}; {time.strftime('%Y-%m-%d')}; n = {arguments.pairs} pairs")
            print(f"{'ours / theirs':<52} {'median':>8} {'min':>8} {'max':>8}   {'ours':>9} {'theirs':>9}")
        for name in arguments.rows or table:
            title, factory = table[name]
            pair = factory()
            samples = [pair() for _ in range(arguments.pairs + 1)][1:]  # the first pair warms up
            ratios = [sample["ours"] / sample["theirs"] for sample in samples]
            middle = {key: statistics.median(sample[key] for sample in samples) for key in ("ours", "theirs")}
            results[name] = {"title": title, "ratios": ratios, **middle}
            if not arguments.json:
                spread = f"{statistics.median(ratios):8.3f} {min(ratios):8.3f} {max(ratios):8.3f}"
                print(f"{title:<52} {spread}   {middle['ours']:9.4g} {middle['theirs']:9.4g}", flush=True)
        if arguments.json:
            print(json.dumps({"machine": machine, "pairs": arguments.pairs, "rows": results}, indent=1))


if __name__ == "__main__":
    main()
