"""Compare the speed of this project with hand-written code: ``python scripts/benchmark.py``."""

import contextlib
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lit_training  # isort: skip  # noqa: F401 - before torch: it sets how waiting threads wait, for both sides
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models, transforms
from torchvision.datasets import CIFAR10, ImageFolder

from datamodules.files import read_csv
from datamodules.loading.augmentation import CROP_FLIP, Augmentation
from datamodules.loading.memory import normalize
from datamodules.machine import available_cores
from datamodules.photos.dataset import eval_transform, read_pixels
from datamodules.photos.find import find_photos
from datamodules.preprocessing import Preprocessing
from datamodules.shapes import draw_pictures
from lit_models import DynamicNet, LeNet, mlp
from lit_training.callbacks.features import Features
from lit_training.cli.arguments import Parser, at_least
from lit_training.cli.parser import FitCLI
from lit_training.runs.layout import LOGS, METRICS

DESCRIPTION = (
    "Compare the speed of this project (ours) with hand-written code (theirs). Each row measures both several times, "
    "and prints the median, the minimum and the maximum of ours / theirs."
)
IMAGENET = Preprocessing()
TO_TENSOR = [transforms.ToTensor(), transforms.Normalize(IMAGENET.mean, IMAGENET.std)]
TUTORIAL_TRAIN = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *TO_TENSOR])
TUTORIAL_VAL = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *TO_TENSOR])
FIT = str(Path(__file__).with_name("fit.py"))
Pair = tuple[float, float]  # seconds or MB: first of this project, then of the code to compare with
TRAIN_ONLY = ["--max_epochs", "1", "--limit_val_batches", "0"]


def time_fit(*arguments: str, start_up: bool = False, **hooks: Callable[..., None]) -> float:
    """Return the seconds of training with fit.py's defaults. With ``start_up``, return the seconds of ``fit()``."""
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()):
        run = FitCLI([*arguments, "--default_root_dir", root, "--accelerator", "cpu"]).run
        times: list[float] = []

        def note_time(*_: Any) -> None:
            times.append(time.perf_counter())

        run.trainer.callbacks.insert(0, LambdaCallback(on_train_epoch_start=note_time, on_train_end=note_time, **hooks))
        started = time.perf_counter()
        run.trainer.fit(run.model, run.data)
        return time.perf_counter() - started if start_up else times[-1] - times[0]


def time_hand_loop(net: nn.Module, batches: Iterable[Any], loss: Callable, optimizer: torch.optim.Optimizer) -> float:
    started = time.perf_counter()
    for x, y in batches:
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
    return time.perf_counter() - started


def shapes_flags(train_size: int, batch_size: int, val_size: int = 10) -> list[str]:
    sizes = {"train_size": train_size, "val_size": val_size, "batch_size": batch_size}
    return [f"--data.{name}={size}" for name, size in sizes.items()]


# --- small networks ---------------------------------------------------------------------------------------------------


class TutorialCIFAR10(CIFAR10):
    """torchvision's CIFAR10 with the given images, and with the transforms of the PyTorch tutorial."""

    def __init__(self, images: np.ndarray, labels: list[int]) -> None:
        self.data, self.targets, self.target_transform = images, labels, None
        half = (0.5, 0.5, 0.5)
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])


cached_draw = cache(draw_pictures)


def lenet(batch_size: int, images: int, tutorial: bool = False) -> Pair:
    """Compare a LeNet epoch with a loop over images in memory, or over the PyTorch tutorial's loader with 2 workers."""
    pixels, labels = cached_draw(images, 0, 3)
    net = LeNet()
    sgd = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    batches: Iterable[Any]
    if tutorial:
        data = TutorialCIFAR10(pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist())
        batches = DataLoader(data, batch_size=batch_size, shuffle=True, num_workers=2)
    else:
        x = normalize(pixels, (0.5,) * 3, (0.5,) * 3)
        batches = ((x[rows], labels[rows]) for rows in torch.randperm(images).split(batch_size))
    theirs = time_hand_loop(net, batches, F.cross_entropy, sgd)
    return time_fit("--data=ShapesDataModule", *shapes_flags(images, batch_size), *TRAIN_ONLY), theirs


class SameBatch:
    """An iterable of the same batch, with a length."""

    def __init__(self, batch: tuple[Tensor, Tensor], steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.repeat(self.batch, self.steps)


class BareModule(LightningModule):
    """The least that a Trainer needs. It notes the seconds of training."""

    def __init__(self, net: nn.Module, loss: Callable, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.net, self.loss, self.optimizer, self.seconds = net, loss, optimizer, 0.0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer

    def on_train_epoch_start(self) -> None:
        self.seconds -= time.perf_counter()

    def on_train_end(self) -> None:
        self.seconds += time.perf_counter()


def time_bare_trainer(net: nn.Module, batches: Any, loss: Callable, optimizer: torch.optim.Optimizer) -> float:
    """Return the seconds of training with a Trainer that logs, saves and shows nothing."""
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    module = BareModule(net, loss, optimizer)
    Trainer(**off, accelerator="cpu", devices=1, max_epochs=1).fit(module, batches)  # type: ignore[arg-type]
    return module.seconds


def fixed_batch(model: str, net: nn.Module, momentum: float, steps: int, trainer: bool = False) -> Pair:
    """Compare training steps with those of a loop or a bare Trainer. All steps use the same random batch."""
    sgd = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=momentum)
    batches = SameBatch((torch.randn(64, 1000), torch.randn(64, 10)), steps)
    squared_error = partial(F.mse_loss, reduction="sum")
    if trainer:
        theirs = time_bare_trainer(net, batches, squared_error, sgd)
    else:
        theirs = time_hand_loop(net, batches, squared_error, sgd)
    return time_fit("--model", model, "--data.steps", str(steps), *TRAIN_ONLY), theirs


# --- photos -----------------------------------------------------------------------------------------------------------


def make_photos(root: Path, count: int) -> Path:
    """Write JPEGs of 500 x 375 pixels in two classes, 60 % train and 40 % val, as large in bytes as real photos."""
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


def read_eval(files: list[Path]) -> Tensor:
    transform = eval_transform(IMAGENET)
    return normalize(torch.stack([transform(read_pixels(file)) for file in files]), IMAGENET.mean, IMAGENET.std)


def one_pass(root: Path) -> float:
    """Return the seconds to read all photos and run resnet18 on them once."""
    net, files = models.resnet18().eval(), photo_files(root)
    started = time.perf_counter()
    with torch.no_grad():
        for first in range(0, len(files), 32):
            net(read_eval(files[first : first + 32]))
    return time.perf_counter() - started


def tutorial_epoch(root: Path) -> float:
    """Return the seconds of one epoch (training and validation) of the PyTorch tutorial, with a frozen backbone."""
    net = models.resnet18().requires_grad_(False)
    net.fc = nn.Linear(512, 2)
    sgd = torch.optim.SGD(net.fc.parameters(), lr=0.001, momentum=0.9)
    train, val = (
        DataLoader(ImageFolder(str(root / split), transform), batch_size=4, shuffle=True, num_workers=4)
        for split, transform in (("train", TUTORIAL_TRAIN), ("val", TUTORIAL_VAL))
    )
    started = time.perf_counter()
    time_hand_loop(net.train(), train, F.cross_entropy, sgd)
    net.eval()
    with torch.no_grad():
        for x, y in val:
            F.cross_entropy(net(x), y)
    return time.perf_counter() - started


def frozen(root: Path, tutorial: bool = False) -> Pair:
    """Compare 25 epochs (frozen backbone) with one pass over the photos, or with 25 times an epoch of the tutorial."""
    theirs = 25 * tutorial_epoch(root) if tutorial else one_pass(root)
    recipe = str(Path(__file__).parent / "recipes" / "transfer_frozen.yaml")
    with tempfile.TemporaryDirectory() as cache:  # an empty cache folder, so that no features are kept there
        os.environ["XDG_CACHE_HOME"] = cache
        flags = ["--config", recipe, "--data", str(root), "--model.weights=none"]
        return time_fit(*flags, start_up=True), theirs


def frozen_head(root: Path, rows: int) -> Pair:
    """Compare 25 epochs of the head on cached features of a frozen resnet18 with a loop over the same features."""
    features, labels = torch.randn(rows, 512), torch.randint(0, 2, (rows,))
    net = nn.Linear(512, 2)
    sgd = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    order = (keys for _ in range(25) for keys in torch.randperm(rows).split(4))
    theirs = time_hand_loop(net, ((features[keys], labels[keys]) for keys in order), F.cross_entropy, sgd)
    recipe = str(Path(__file__).parent / "recipes" / "transfer_frozen.yaml")
    flags = ["--config", recipe, "--data", str(root), "--model.weights=none", "--dashboard=false"]

    def set_features(trainer: Trainer, _: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.sets["train"] = Features(features, SimpleNamespace(labels=labels))

    return time_fit(*flags, "--limit_val_batches=0", on_fit_start=set_features), theirs


def decoding(root: Path) -> Pair:
    """Compare this project with PIL and torchvision: CPU seconds to decode, augment and normalize photos."""
    files = photo_files(root)[:192]
    batches = [files[first : first + 4] for first in range(0, len(files), 4)]
    augmentation = Augmentation(CROP_FLIP, IMAGENET)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.process_time()
    for batch in batches:
        torch.stack([TUTORIAL_TRAIN(Image.open(file).convert("RGB")) for file in batch])
    between = time.process_time()
    for batch in batches:
        images = torch.stack([augmentation(read_pixels(file), 0).permute(1, 2, 0) for file in batch]).permute(
            0, 3, 1, 2
        )
        normalize(images, IMAGENET.mean, IMAGENET.std)
    ended = time.process_time()
    torch.set_num_threads(threads)
    return ended - between, between - started


def fine_tuning(root: Path) -> Pair:
    """Compare a fine-tuning epoch that reads files with a loop over the same number of photos in memory."""
    x = read_eval([file for file in photo_files(root) if "train" in file.relative_to(root).parts])
    data = TensorDataset(x, torch.zeros(len(x), dtype=torch.long))
    net = models.resnet18(num_classes=2)
    sgd = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    theirs = time_hand_loop(net, DataLoader(data, batch_size=4), F.cross_entropy, sgd)
    recipe = str(Path(__file__).parent / "recipes" / "transfer_finetune.yaml")
    return time_fit("--config", recipe, "--data", str(root), "--model.weights=none", *TRAIN_ONLY), theirs


# --- processes and files ----------------------------------------------------------------------------------------------


def time_process(*arguments: str, threads: int | None = None, check: bool = True) -> float:
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, env=environment, check=check)
    return time.perf_counter() - started


def start_up(flag: str, code: str) -> Pair:
    """Compare the seconds of ``fit.py FLAG`` and of ``python -c CODE``. The flag must end fit.py before it trains."""
    theirs = time_process("-c", code)
    return time_process(FIT, flag, check=False), theirs


def two_processes(images: int) -> Pair:
    """Compare the seconds per image of two processes with one thread each, and of one process with two threads."""

    def seconds_per_image(*flags: str, threads: int) -> float:
        with tempfile.TemporaryDirectory() as root:
            flags = (*shapes_flags(images, 128), *flags, "--max_epochs=3", "--limit_val_batches=0", "--accelerator=cpu")
            time_process(FIT, *flags, "--default_root_dir", root, threads=threads)
            rows = read_csv(Path(root) / LOGS / "version_0" / METRICS)
        speeds = [float(row["samples_per_second"]) for row in rows if row["samples_per_second"]]
        return 1 / statistics.median(speeds[1:])  # leave out the first epoch, which is slower

    theirs = seconds_per_image("--devices", "1", threads=2)
    return seconds_per_image("--strategy", "ddp", "--devices", "2", threads=1), theirs


@cache
def folder_of_empty_files(count: int) -> tempfile.TemporaryDirectory:
    """Return a folder with ``count`` files, 10,000 per subfolder. The cache keeps it until the program ends."""
    folder = tempfile.TemporaryDirectory()
    for index in range(count):
        if index % 10_000 == 0:
            subfolder = Path(folder.name) / ("ants", "bees")[index // 10_000 % 2] / str(index)
            subfolder.mkdir(parents=True)
        (subfolder / f"{index}.jpg").touch()
    return folder


def listing(count: int) -> Pair:
    """Compare the seconds of ``find_photos`` and of ``os.walk`` to list a folder of ``count`` files."""
    folder = folder_of_empty_files(count).name
    started = time.perf_counter()
    [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]  # noqa: PTH118
    between = time.perf_counter()
    find_photos(folder)
    return time.perf_counter() - between, between - started


def memory(images: int) -> Pair:
    """Compare the peak memory of a LeNet run, without its imports, with the size of its data. Both are in MB."""
    code = (
        "import pathlib, re, sys, tempfile; from lit_training.cli.parser import FitCLI; import torch._dynamo;"
        # Do not use resource.getrusage: its peak includes the peak of the parent process.
        "status = pathlib.Path('/proc/self/status');"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) / 1024;"
        "before = peak(); root = tempfile.mkdtemp();"
        "cli = FitCLI([*sys.argv[1:], '--default_root_dir', root]);"
        "cli.trainer.fit(cli.model, cli.datamodule); print('added', peak() - before)"
    )
    command = [sys.executable, "-c", code, *shapes_flags(images, 128, 1000), "--max_epochs=1", "--accelerator=cpu"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(output.rsplit("added", 1)[1]), images * 3 * 32 * 32 / 2**20


# --- the table --------------------------------------------------------------------------------------------------------


def rows(photos: Path, small: bool) -> dict[str, tuple[str, Callable[[], Pair]]]:
    """Return row name -> (title with the target, function that measures one pair)."""
    images, steps, files, head_rows = (512, 20, 1000, 24) if small else (50_000, 3000, 1_000_000, 2000)
    imports = "import torch, lightning"
    return {
        "lenet128": ("LeNet batch 128 / floor, <= 1.15", lambda: lenet(128, images)),
        "lenet128-tutorial": ("LeNet batch 128 / tutorial's loader, <= 0.286", lambda: lenet(128, images, True)),
        "lenet4": ("LeNet batch 4 / floor, <= 1.45", lambda: lenet(4, images)),
        "memory": ("peak MB added / data's MB, <= 1.1 + 150 MB", lambda: memory(images)),
        "mlp": ("MLP step / hand loop, <= 2.0", lambda: fixed_batch("LitMLP", mlp(), 0.0, steps)),
        "dynamic": (
            "dynamic net step / hand loop, <= 2.0",
            lambda: fixed_batch("LitDynamic", DynamicNet(), 0.9, steps),
        ),
        "mlp-trainer": (
            "MLP step / bare Trainer, <= 1.0",
            lambda: fixed_batch("LitMLP", mlp(), 0.0, steps, trainer=True),
        ),
        "dynamic-trainer": (
            "dynamic net step / bare Trainer, <= 1.0",
            lambda: fixed_batch("LitDynamic", DynamicNet(), 0.9, steps, trainer=True),
        ),
        "frozen-head": ("25 epochs of a frozen net's head / hand loop, <= 1.3", lambda: frozen_head(photos, head_rows)),
        "frozen": ("25 frozen epochs / one pass, <= 1.6", lambda: frozen(photos)),
        "frozen-tutorial": ("25 frozen epochs / tutorial's, <= 0.067", lambda: frozen(photos, True)),
        "decode": ("decode + train transform / PIL, <= 0.667", lambda: decoding(photos)),
        "finetune": ("fine-tuning from files / from memory", lambda: fine_tuning(photos)),
        "ddp": ("s/image 2 processes / 1 with 2 threads, <= 1.053", lambda: two_processes(images)),
        "listing": (f"listing {files:,} files / os.walk; <= 15 s", lambda: listing(files)),
        "help": ("fit.py --help / python -c pass, <= 1 s", lambda: start_up("--help", "pass")),
        "help-all": ("fit.py --help_all / imports, <= 1.2", lambda: start_up("--help_all", imports)),
        "error": ("an error message / imports, <= 1.2", lambda: start_up("--bad", imports)),
    }


def main() -> None:
    parser = Parser("benchmark.py", DESCRIPTION)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names of rows (default: all)")
    parser.add_argument("--pairs", type=at_least(1), default=7, metavar="N", help="measurements per row (default: 7)")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="folder with train/ and val/ (default: generated)")
    parser.add_argument("--small", action="store_true", help="tiny sizes to test the script; the numbers mean nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
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
            title, measure = table[name]
            pairs = [measure() for _ in range(arguments.pairs + 1)][1:]  # leave out the first pair, which is slower
            ratios = [ours / theirs for ours, theirs in pairs]
            medians = dict(zip(("ours", "theirs"), map(statistics.median, zip(*pairs, strict=True)), strict=True))
            results[name] = {"title": title, "ratios": ratios, **medians}
            if not arguments.json:
                spread = f"{statistics.median(ratios):8.3f} {min(ratios):8.3f} {max(ratios):8.3f}"
                print(f"{title:<52} {spread}   {medians['ours']:9.4g} {medians['theirs']:9.4g}", flush=True)
        if arguments.json:
            print(json.dumps({"machine": machine, "pairs": arguments.pairs, "rows": results}, indent=1))


if __name__ == "__main__":
    main()
