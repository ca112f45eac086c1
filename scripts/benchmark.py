"""Compare the speed of this project with hand-written code: ``python scripts/benchmark.py``."""

import contextlib
import io
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest import mock

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

import datamodules.shapes
from datamodules.files import read_csv
from datamodules.loading.augmentation import CROP_FLIP, Augmentation
from datamodules.loading.memory import normalize
from datamodules.machine import available_cores
from datamodules.photos.dataset import eval_transform, read_pixels
from datamodules.photos.find import find_photos
from datamodules.preprocessing import Preprocessing
from lit_models import DynamicNet, LeNet, mlp
from lit_training.callbacks.features import Features
from lit_training.cli.arguments import Parser, at_least
from lit_training.cli.parser import FitCLI
from lit_training.errors import UsageError, one_line_errors
from lit_training.runs.devices import find_device
from lit_training.runs.layout import LOGS, METRICS

DESCRIPTION = (
    "Compare the speed of this project (ours) with hand-written code (theirs). Each row measures both several times, "
    "and prints the median, the minimum and the maximum of ours / theirs. The rows whose names begin with gpu- are for "
    "--accelerator gpu; on a CPU they can be measured by name."
)
IMAGENET = Preprocessing()
TO_TENSOR = [transforms.ToTensor(), transforms.Normalize(IMAGENET.mean, IMAGENET.std)]
TUTORIAL_TRAIN = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *TO_TENSOR])
TUTORIAL_VAL = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *TO_TENSOR])
FIT = str(Path(__file__).with_name("fit.py"))
CPU = torch.device("cpu")
Batches = Callable[[], Iterable[Any]]  # a function that starts an epoch
Pair = tuple[float, float]  # seconds or MB: first of this project, then of the code to compare with
Row = tuple[str, int, Callable[[], Pair]]  # title with the target, usual number of pairs, function that measures one
USES_PHOTOS = ("frozen", "decode", "finetune", "gpu-finetune", "gpu-head")  # how the names of these rows begin
TUTORIAL_SGD: Any = {"lr": 0.001, "momentum": 0.9}


def fit(
    *arguments: str, recipe: str = "", device: Any = CPU, epochs: int | None = None, hooks: Any = None
) -> SimpleNamespace:
    """Train as fit.py does, without validation if ``epochs`` is given. Return what :func:`time_trainer` returns."""
    flags = ["--config", str(Path(__file__).parent / "recipes" / f"{recipe}.yaml")] if recipe else []
    flags += [*arguments, "--devices=1", "--accelerator", "cpu" if device.type == "cpu" else "gpu"]
    flags += [f"--max_epochs={epochs}", "--limit_val_batches=0"] if epochs else []
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()):
        run = FitCLI([*flags, "--default_root_dir", root]).run
        run.trainer.callbacks.insert(0, LambdaCallback(**(hooks or {})))
        return time_trainer(run.trainer, run.model, run.data, device)


def time_trainer(trainer: Trainer, model: LightningModule, data: Any, device: torch.device) -> SimpleNamespace:
    """Return the seconds of the ``whole`` fit, of its ``steps``, and of a median ``epoch``, and the ``metrics``."""
    times: list[float] = []

    def note_time(trainer: Trainer, *_: Any, at_end: bool = True) -> None:
        if not trainer.sanity_checking and len(times) % 2 == at_end:
            synchronize(device)
            times.append(time.perf_counter())

    # Hooks that are called in each step would turn off the fast steps of fit.py.
    clock: Any = LambdaCallback(
        on_train_epoch_start=partial(note_time, at_end=False),
        on_validation_start=note_time,
        on_train_epoch_end=note_time,
    )
    trainer.callbacks.insert(0, clock)  # type: ignore[attr-defined]
    started = time.perf_counter()
    trainer.fit(model, data)
    seconds = {"whole": time.perf_counter() - started, "steps": times[-1] - times[0]}
    epochs = [end - start for start, end in zip(times[::2], times[1::2], strict=True)]
    return SimpleNamespace(**seconds, epoch=median(epochs[1:] or epochs), metrics=dict(trainer.callback_metrics))


def time_loop(net: Any, batches: Batches, loss: Any, device: Any = CPU, epochs: int = 1, **sgd: Any) -> float:
    """Return the median seconds of an epoch of a hand-written loop with SGD."""
    optimizer, times = torch.optim.SGD((p for p in net.parameters() if p.requires_grad), **sgd), []
    for _ in range(epochs):
        synchronize(device)
        started = time.perf_counter()
        for x, y in batches():
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return median(times[1:] or times)  # the first one is slower


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


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


# each row draws many pictures, which takes longer than training on them; no side changes them
datamodules.shapes.draw_pictures = cached_draw = cache(datamodules.shapes.draw_pictures)


class BareNet(LightningModule):
    """A network in a LightningModule without logging."""

    def __init__(self, net: nn.Module, loss: Callable, **sgd: Any) -> None:
        super().__init__()
        self.net, self.loss, self.sgd = net, loss, sgd

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), **self.sgd)


def time_bare_trainer(model: BareNet, batches: Batches, device: torch.device, epochs: int) -> float:
    """Return the median seconds of an epoch of a Trainer that logs, saves and shows nothing."""
    parts: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    parts |= {"enable_model_summary": False, "reload_dataloaders_every_n_epochs": 1}
    trainer = Trainer(accelerator=device.type, devices=1, max_epochs=epochs, **parts)
    model.train_dataloader = batches  # type: ignore[method-assign]
    return time_trainer(trainer, model, None, device).epoch


def lenet(batch_size: int, images: int, kind: str = "ours", device: torch.device = CPU, epochs: int = 1) -> Pair:
    """Compare a LeNet epoch with a loop over pictures on the device (float on a CPU, uint8 on a GPU).

    ``kind``: ``tutorial`` compares with the PyTorch tutorial's loader with 2 workers, ``trainer`` measures a bare
    Trainer instead of ours, and ``compiled`` compiles both sides.
    """
    pixels, labels = (tensor.to(device) for tensor in cached_draw(images, 0, 3))
    x = normalize(pixels, (0.5,) * 3, (0.5,) * 3) if device.type == "cpu" else pixels

    def batches() -> Iterator[Any]:
        for rows in torch.randperm(images, device=device).split(batch_size):
            yield x[rows] if x.is_floating_point() else x[rows].float().div_(127.5).sub_(1), labels[rows]

    if kind == "tutorial":
        data = TutorialCIFAR10(pixels.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist())
        batches = partial(iter, DataLoader(data, batch_size=batch_size, shuffle=True, num_workers=2))
    net: Any = LeNet().to(device)
    net = torch.compile(net, mode="reduce-overhead") if kind == "compiled" else net
    theirs = time_loop(net, batches, F.cross_entropy, device, epochs, **TUTORIAL_SGD)
    if kind == "trainer":
        return time_bare_trainer(BareNet(LeNet(), F.cross_entropy, **TUTORIAL_SGD), batches, device, epochs), theirs
    flags = ["--data=ShapesDataModule", *shapes_flags(images, batch_size), *["--compile=true"] * (kind == "compiled")]
    return fit(*flags, device=device, epochs=epochs).epoch, theirs


class SameBatch:
    """An iterable with a length, which gives the same batch in each step."""

    def __init__(self, batch: tuple[Tensor, Tensor], steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.repeat(self.batch, self.steps)


def fixed_batch(
    model: str, network: Any, momentum: float, steps: int, device: torch.device = CPU, trainer: bool = False
) -> Pair:
    """Compare training steps of this project with a loop, or with a bare Trainer. All use the same random batch."""
    x, y = torch.randn(64, 1000, device=device), torch.randn(64, 10, device=device)
    squared_error, epochs = partial(F.mse_loss, reduction="sum"), 1 if device.type == "cpu" else 3
    sgd, net, batches = {"lr": 1e-4, "momentum": momentum}, network().to(device), partial(SameBatch, (x, y), steps)
    if trainer:
        theirs = time_bare_trainer(BareNet(net, squared_error, **sgd), batches, device, epochs)
    else:
        theirs = time_loop(net, batches, squared_error, device, epochs, **sgd)
    return fit("--model", model, "--data.steps", str(steps), device=device, epochs=epochs).epoch, theirs


# --- photos -----------------------------------------------------------------------------------------------------------


def make_photos(root: Path, count: int) -> Path:
    """Write JPEGs of 500 x 375 pixels in two classes, 60 % train and 40 % val, as large in bytes as real photos."""

    def write(index: int) -> None:
        generator = np.random.default_rng(index)
        split = "train" if index < 0.6 * count else "val"
        file = root / split / ("ants", "bees")[index % 2] / f"{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        rough = Image.fromarray(generator.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        smooth = np.asarray(rough.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = smooth + 8 * generator.standard_normal(smooth.shape, dtype=np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)

    with ThreadPoolExecutor(available_cores()) as threads:
        list(threads.map(write, range(count)))
    return root


def photo_files(root: Path) -> list[Path]:
    return [root / path for path in find_photos(root).paths]


def train_files(root: Path) -> list[Path]:
    return [file for file in photo_files(root) if "train" in file.relative_to(root).parts]


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
    train, val = (
        DataLoader(ImageFolder(str(root / split), transform), batch_size=4, shuffle=True, num_workers=4)
        for split, transform in (("train", TUTORIAL_TRAIN), ("val", TUTORIAL_VAL))
    )
    started = time.perf_counter()
    time_loop(net.train(), partial(iter, train), F.cross_entropy, **TUTORIAL_SGD)
    net.eval()
    with torch.no_grad():
        for x, y in val:
            F.cross_entropy(net(x), y)
    return time.perf_counter() - started


def frozen(root: Path, tutorial: bool = False) -> Pair:
    """Compare 25 epochs (frozen backbone) with one pass over the photos, or with 25 times an epoch of the tutorial."""
    theirs = 25 * tutorial_epoch(root) if tutorial else one_pass(root)
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, {"XDG_CACHE_HOME": cache}):
        return fit("--data", str(root), "--model.weights=none", recipe="transfer_frozen").whole, theirs


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
        images = torch.stack([augmentation(read_pixels(file), 0).permute(1, 2, 0) for file in batch])
        normalize(images.permute(0, 3, 1, 2), IMAGENET.mean, IMAGENET.std)
    ended = time.process_time()
    torch.set_num_threads(threads)
    return ended - between, between - started


def fine_tuning(root: Path) -> Pair:
    """Compare a fine-tuning epoch that reads files with a loop over the same number of photos in memory."""
    x = read_eval(train_files(root))
    data = TensorDataset(x, torch.zeros(len(x), dtype=torch.long))
    batches = partial(iter, DataLoader(data, batch_size=4))
    theirs = time_loop(models.resnet18(num_classes=2), batches, F.cross_entropy, **TUTORIAL_SGD)
    return fit("--data", str(root), "--model.weights=none", recipe="transfer_finetune", epochs=1).epoch, theirs


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
        return 1 / median(speeds[1:])  # leave out the first epoch, which is slower

    theirs = seconds_per_image("--devices", "1", threads=2)
    return seconds_per_image("--strategy", "ddp", "--devices", "2", threads=1), theirs


@cache
def folder_of_empty_files(count: int) -> tempfile.TemporaryDirectory:
    """Return a folder with ``count`` files, 10,000 per subfolder. The cache keeps it until the program ends."""
    folder = tempfile.TemporaryDirectory()
    for index in range(count):
        subfolder = Path(folder.name) / ("ants", "bees")[index // 10_000 % 2] / str(index // 10_000)
        subfolder.mkdir(parents=True, exist_ok=True)
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
    command += ["--limit_train_batches=100"]  # the peak is reached before
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(output.rsplit("added", 1)[1]), images * 3 * 32 * 32 / 2**20


# --- photos on one device, such as a GPU ------------------------------------------------------------------------------


def device_finetuning(device: torch.device, root: Path, cached: bool) -> Pair:
    """Compare fine-tuning in bfloat16 with the tutorial's loader, or with crops that are cut on the device."""
    count, size = len(train_files(root)), 64
    net = models.resnet18(num_classes=2).to(device)
    if cached:
        net = net.to(memory_format=torch.channels_last)
        pool = torch.randint(0, 256, (min(count, 1024), 3, 224, 224), dtype=torch.uint8, device=device)
        labels = torch.randint(0, 2, (len(pool),), device=device)
        mean, std = (255 * torch.tensor(v, device=device).view(-1, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))

        def batches() -> Iterator[Any]:
            for rows in torch.randint(0, len(pool), (count,), device=device).split(size):
                yield ((cut_crops(pool[rows].float()) - mean) / std).to(memory_format=torch.channels_last), labels[rows]
    else:
        data, workers = ImageFolder(str(root / "train"), TUTORIAL_TRAIN), max(1, available_cores() - 2)
        options: Any = {"pin_memory": device.type == "cuda", "persistent_workers": True}
        loader = DataLoader(data, size, shuffle=True, num_workers=workers, **options)

        def batches() -> Iterator[Any]:
            return ((x.to(device, non_blocking=True), y.to(device, non_blocking=True)) for x, y in loader)

    net.forward = torch.autocast(device.type, torch.bfloat16)(net.forward)
    theirs = time_loop(net, batches, lambda out, y: F.cross_entropy(out.float(), y), device, 3, lr=0.01, momentum=0.9)
    flags = ["--data", str(root), "--model.weights=none", "--model.freeze=false", "--model.lr=0.01"]
    flags += [f"--data.batch_size={size}", "--precision=bf16-mixed", *["--data.cache=true"] * cached]
    return fit(*flags, device=device, epochs=3).epoch, theirs


def cut_crops(x: Tensor) -> Tensor:
    """Cut a random part of each picture, resize it to the whole and flip half of them, as RandomResizedCrop draws."""
    area, ratio, left, top = torch.rand(4, len(x), device=x.device)
    area, ratio = 0.08 + 0.92 * area, (0.2877 * (2 * ratio - 1)).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    flip, zero = torch.randint(0, 2, (len(x),), device=x.device) * 2.0 - 1, torch.zeros_like(width)
    theta = [width * flip, zero, (2 * left - 1) * (1 - width), zero, height, (2 * top - 1) * (1 - height)]
    grid = F.affine_grid(torch.stack(theta, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def frozen_head(device: torch.device, root: Path, rows: int) -> Pair:
    """Compare an epoch of the head of a frozen resnet18 on random features, batch 4, with a loop over them."""
    x, y = torch.randn(rows, 512), torch.randint(0, 2, (rows,))
    epochs = 3  # the first one is slower
    features, labels = x.to(device), y.to(device)

    def batches() -> Iterator[Any]:
        return ((features[keys], labels[keys]) for keys in torch.randperm(rows, device=device).split(4))

    def set_features(trainer: Trainer, _: Any) -> None:
        trainer.datamodule.sets["train"] = Features(x, SimpleNamespace(labels=y))  # type: ignore[attr-defined]

    theirs = time_loop(nn.Linear(512, 2).to(device), batches, F.cross_entropy, device, epochs, **TUTORIAL_SGD)
    flags = ["--data", str(root), "--model.weights=none", "--dashboard=false"]
    hooks = {"on_fit_start": set_features}
    return fit(*flags, recipe="transfer_frozen", device=device, epochs=epochs, hooks=hooks).epoch, theirs


def speedrun(device: torch.device, cifar: Path | None, small: bool) -> Pair:
    """Return the seconds from the first to the last step of cifar10_speedrun.yaml, and the accuracy."""
    if cifar is None:
        raise UsageError("add --cifar DIR, a folder with train/ and test/ of CIFAR-10 as picture files")
    flags = ["--data", str(cifar), "--data.image_size=32", *["--max_epochs=1"] * small]
    result = fit(*flags, "--check_val_every_n_epoch=8", recipe="cifar10_speedrun", device=device)
    return result.steps, float(result.metrics.get("val_acc", "nan"))


# --- the table --------------------------------------------------------------------------------------------------------


def rows(photos: Path, cifar: Path | None, small: bool, device: torch.device) -> dict[str, Row]:
    images, steps, files, head_rows = (512, 20, 1000, 24) if small else (9_600, 1000, 200_000, 8000)
    small_batch, large_batch, resident = (64, 256, 512) if small else (128, 2048, 49_152)
    small_net, large_net = (small_batch, resident), (large_batch, resident)
    start = partial(start_up, code="import torch, lightning")
    finetune = partial(device_finetuning, device, photos)
    return {
        "lenet128": ("LeNet batch 128 / floor, <= 1.15", 3, partial(lenet, 128, images)),
        "lenet128-tutorial": (
            "LeNet 128 / tutorial's loader, <= 0.286",
            3,
            partial(lenet, 128, images * 2 // 3, "tutorial"),
        ),
        "lenet4": ("LeNet batch 4 / floor, <= 1.45", 3, partial(lenet, 4, images // 3)),
        "memory": ("peak MB added / data's MB, <= 1.1 + 150 MB", 1, partial(memory, 512 if small else 50_000)),
        "mlp": ("MLP step / hand loop, <= 2.0", 3, partial(fixed_batch, "LitMLP", mlp, 0.0, steps)),
        "dynamic": ("dynamic step / loop, <= 2.0", 3, partial(fixed_batch, "LitDynamic", DynamicNet, 0.9, steps)),
        "mlp-trainer": (
            "MLP step / bare Trainer, <= 1.0",
            3,
            partial(fixed_batch, "LitMLP", mlp, 0.0, steps, trainer=True),
        ),
        "dynamic-trainer": (
            "dynamic step / bare Trainer, <= 1.0",
            3,
            partial(fixed_batch, "LitDynamic", DynamicNet, 0.9, steps, trainer=True),
        ),
        "frozen": ("25 frozen epochs / one pass, <= 1.6", 1, partial(frozen, photos)),
        "frozen-head": ("frozen head's epoch / loop, <= 1.3", 3, partial(frozen_head, CPU, photos, head_rows)),
        "frozen-tutorial": ("25 frozen epochs / tutorial's, <= 0.067", 1, partial(frozen, photos, True)),
        "decode": ("decode + train transform / PIL, <= 0.667", 3, partial(decoding, photos)),
        "finetune": ("fine-tuning from files / from memory", 1, partial(fine_tuning, photos)),
        "ddp": ("s/image 2 processes / 1 with 2 threads, <= 1.053", 1, partial(two_processes, images)),
        "listing": (f"listing {files:,} files / os.walk; <= 15 s", 2, partial(listing, files)),
        "help": ("fit.py --help / python -c pass, <= 1 s", 3, partial(start_up, "--help", "pass")),
        "help-all": ("fit.py --help_all / imports, <= 1.2", 2, partial(start, "--help_all")),
        "error": ("an error message / imports, <= 1.2", 2, partial(start, "--bad")),
        "gpu-lenet128": ("LeNet 128 / loop, <= 1.2", 3, partial(lenet, *small_net, "ours", device, 3)),
        "gpu-trainer128": ("bare Trainer, LeNet 128 / loop", 3, partial(lenet, *small_net, "trainer", device, 3)),
        "gpu-compiled128": ("both compiled, LeNet 128, <= 1.4", 3, partial(lenet, *small_net, "compiled", device, 3)),
        "gpu-lenet2048": ("LeNet 2048 / loop, <= 1.3", 3, partial(lenet, *large_net, "ours", device, 6)),
        "gpu-trainer2048": ("bare Trainer, LeNet 2048 / loop", 3, partial(lenet, *large_net, "trainer", device, 6)),
        "gpu-mlp": ("MLP 64 x 1000 / loop", 3, partial(fixed_batch, "LitMLP", mlp, 0.0, steps, device)),
        "gpu-finetune": ("resnet18 bf16 / tutorial's, <= 0.714", 2, partial(finetune, False)),
        "gpu-finetune-cached": ("--data.cache true / on device, <= 1.18", 2, partial(finetune, True)),
        "gpu-head": ("frozen head's epoch / loop, <= 1.3", 2, partial(frozen_head, device, photos, head_rows)),
        "gpu-speedrun": ("speedrun: seconds; accuracy >= 0.8905", 3, partial(speedrun, device, cifar, small)),
    }


def measure_row(title: str, count: int, warm_up: bool, measure: Callable[[], Pair]) -> dict[str, Any]:
    """Return the ratios and the medians of ``count`` pairs after a ``warm_up`` pair, or why they were not measured."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            pairs = [measure() for _ in range(count + warm_up)][warm_up:]
    except (Exception, SystemExit) as error:  # the other rows can still be measured
        lines = [*errors.getvalue().splitlines()[-1:], ""] if isinstance(error, SystemExit) else str(error).splitlines()
        return {"title": title, "not_measured": next(iter(lines), type(error).__name__)}
    ours, theirs = map(median, zip(*pairs, strict=True))
    return {"title": title, "ratios": [one / other for one, other in pairs], "ours": ours, "theirs": theirs}


def print_row(name: str, row: dict[str, Any]) -> None:
    if "not_measured" in row:
        print(f"{row['title']:<52} not measured: {row['not_measured']}", flush=True)
        return
    ratios = row["ratios"]
    cells = [f"{number:8.3f}" for number in (median(ratios), min(ratios), max(ratios))]
    spread = " ".join(cells if name != "gpu-speedrun" else [f"{'-':>8}"] * 3)  # seconds and an accuracy
    print(f"{row['title']:<52} {spread}   {row['ours']:9.4g} {row['theirs']:9.4g}  {len(ratios)}", flush=True)


def main() -> None:
    parser = Parser("benchmark.py", DESCRIPTION)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names of rows (default: all of the accelerator)")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu", metavar="NAME", help="cpu or gpu")
    parser.add_argument("--pairs", type=at_least(1), metavar="N", help="measurements per row (default: 1 to 3)")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="folder with train/ and val/ (default: generated)")
    parser.add_argument("--cifar", type=Path, metavar="DIR", help="CIFAR-10 as files in train/ and test/")
    parser.add_argument("--small", action="store_true", help="tiny sizes to test the script; the numbers mean nothing")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    for flag, path in (("--photos", arguments.photos), ("--cifar", arguments.cifar)):
        if path is not None and not (path / "train").is_dir():
            parser.error(f"{flag} {path} has no train/: give a folder with train/ and val/")
    device = find_device(arguments.accelerator)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        photos = arguments.photos or Path(folder) / "photos"
        table = rows(photos, arguments.cifar, arguments.small, device)
        if unknown := set(arguments.rows) - set(table):
            parser.error(f"there is no row {unknown.pop()}: choose from {', '.join(table)}")
        is_gpu = arguments.accelerator == "gpu"
        names = arguments.rows or [name for name in table if name.startswith("gpu-") == is_gpu]
        if arguments.photos is None and any(name.startswith(USES_PHOTOS) for name in names):
            make_photos(photos, 12 if arguments.small else 4000 if is_gpu else 200)
        card = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
        machine = f"{card}{platform.machine()}, {available_cores()} cores, torch {torch.__version__}"
        results, started = {}, time.perf_counter()
        if not arguments.json:
            print(f"{machine}; {time.strftime('%Y-%m-%d')}; ours / theirs")
            print(f"{'row':<52} {'median':>8} {'min':>8} {'max':>8}   {'ours':>9} {'theirs':>9}  n")
        for name in names:
            title, usual_pairs, measure = table[name]
            # leave out the first pair, which is slower, but not where a pair is long or measures several epochs
            warm_up = not name.startswith("gpu-") and (arguments.pairs is not None or usual_pairs > 2)
            results[name] = measure_row(title, arguments.pairs or usual_pairs, warm_up, measure)
            if not arguments.json:
                print_row(name, results[name])
        if arguments.json:
            print(json.dumps({"machine": machine, "rows": results}, indent=1))
        else:
            print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    with one_line_errors("benchmark.py"):
        main()
