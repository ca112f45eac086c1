"""Compare the speed of this project with hand-written code: ``python scripts/benchmark.py``."""

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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import lit_training  # isort: skip  # noqa: F401 - before torch: it sets how waiting threads wait, for both sides
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
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
Pair = tuple[float, float]  # seconds or MB: first of this project, then of the code to compare with
USES_PHOTOS = ("frozen", "decode", "finetune", "gpu-finetune", "gpu-head")  # how the names of these rows begin
TRAIN_ONLY = ["--max_epochs", "1", "--limit_val_batches", "0"]


def time_fit(*arguments: str, start_up: bool = False) -> float:
    """Return the seconds of training with fit.py's defaults. With ``start_up``, return the seconds of ``fit()``."""
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()):
        run = FitCLI([*arguments, "--default_root_dir", root, "--accelerator", "cpu"]).run
        times: list[float] = []

        def note_time(*_: Any) -> None:
            times.append(time.perf_counter())

        run.trainer.callbacks.insert(0, LambdaCallback(on_train_epoch_start=note_time, on_train_end=note_time))
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


# each row draws many pictures, which takes longer than training on them; no side changes them
datamodules.shapes.draw_pictures = cached_draw = cache(datamodules.shapes.draw_pictures)


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


def fixed_batch(model: str, net: nn.Module, momentum: float, steps: int) -> Pair:
    """Compare training steps of this project and of a loop. All steps use the same random batch."""
    sgd = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=momentum)
    x, y = torch.randn(64, 1000), torch.randn(64, 10)
    squared_error = partial(F.mse_loss, reduction="sum")
    theirs = time_hand_loop(net, ((x, y) for _ in range(steps)), squared_error, sgd)
    return time_fit("--model", model, "--data.steps", str(steps), *TRAIN_ONLY), theirs


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


# --- one device, such as a GPU ----------------------------------------------------------------------------------------


def median_epoch(epochs: list[float]) -> float:
    return statistics.median(epochs[1:] or epochs)  # the first one is slower


def time_epochs(trainer: Any, model: LightningModule, data: Any, device: torch.device) -> float:
    """Return the median seconds of an epoch's training steps. Nothing may be validated, as in ``epoch_of_ours``."""
    times: list[float] = []

    def note_time(*_: Any) -> None:
        synchronize(device)
        times.append(time.perf_counter())

    trainer.callbacks.insert(0, LambdaCallback(on_train_epoch_start=note_time, on_train_epoch_end=note_time))
    trainer.fit(model, data)
    return median_epoch([end - start for start, end in zip(times[::2], times[1::2], strict=True)])


def epoch_of_ours(device: torch.device, epochs: int, *arguments: str) -> float:
    accelerator = "cpu" if device.type == "cpu" else "gpu"
    fixed = ["--max_epochs", str(epochs), "--limit_val_batches=0", "--accelerator", accelerator, "--devices=1"]
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()):
        run = FitCLI([*arguments, *fixed, "--default_root_dir", root]).run
        return time_epochs(run.trainer, run.model, run.data, device)


def epoch_of_loop(
    device: torch.device, epochs: int, net: Any, batches: Callable[[], Iterable[Any]], loss: Callable, lr: float
) -> float:
    """Return the median seconds of an epoch of a hand-written loop with SGD."""
    sgd, times = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9), []
    for _ in range(epochs):
        synchronize(device)
        started = time.perf_counter()
        time_hand_loop(net, batches(), loss, sgd)
        synchronize(device)
        times.append(time.perf_counter() - started)
    return median_epoch(times)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class BareNet(LightningModule):
    """LeNet in a LightningModule without logging."""

    def __init__(self) -> None:
        super().__init__()
        self.net = LeNet()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.001, momentum=0.9)


class BareData(LightningDataModule):
    """Batches that are on the device already."""

    def __init__(self, batches: Callable[[], Iterator[Any]]) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Any:
        class Batches:
            __iter__ = staticmethod(self.batches)

        return Batches()


def device_lenet(device: torch.device, batch_size: int, images: int, kind: str = "ours") -> Pair:
    """Compare a LeNet epoch, or that of a bare Trainer, with a loop. The pictures of the other sides are on the device.

    ``kind`` is ours, compiled (both sides), or trainer.
    """
    pixels, labels = (tensor.to(device) for tensor in cached_draw(images, 0, 3))

    def batches() -> Iterator[Any]:
        for rows in torch.randperm(images, device=device).split(batch_size):
            yield pixels[rows].float().div_(127.5).sub_(1), labels[rows]

    epochs = 6 if images // batch_size < 100 else 3
    net: Any = LeNet().to(device)
    net = torch.compile(net, mode="reduce-overhead") if kind == "compiled" else net
    theirs = epoch_of_loop(device, epochs, net, batches, F.cross_entropy, 0.001)
    if kind == "trainer":
        parts: Any = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = Trainer(accelerator=device.type, devices=1, max_epochs=epochs, **parts)
        return time_epochs(trainer, BareNet(), BareData(batches), device), theirs
    flags = ["--data=ShapesDataModule", *shapes_flags(images, batch_size), *["--compile=true"] * (kind == "compiled")]
    return epoch_of_ours(device, epochs, *flags), theirs


def device_mlp(device: torch.device, steps: int) -> Pair:
    x, y = torch.randn(64, 1000, device=device), torch.randn(64, 10, device=device)
    squared_error = partial(F.mse_loss, reduction="sum")
    theirs = epoch_of_loop(device, 3, mlp().to(device), lambda: ((x, y) for _ in range(steps)), squared_error, 1e-4)
    return epoch_of_ours(device, 3, "--model=LitMLP", "--data.steps", str(steps)), theirs


def device_finetuning(device: torch.device, root: Path, cached: bool) -> Pair:
    """Compare fine-tuning in bfloat16 with the tutorial's loader, or with crops that are cut on the device."""
    count, size = sum("train" in file.relative_to(root).parts for file in photo_files(root)), 64
    net = models.resnet18(num_classes=2).to(device)
    if cached:
        net = net.to(memory_format=torch.channels_last)
        pool = torch.randint(0, 256, (min(count, 1024), 3, 224, 224), dtype=torch.uint8, device=device)
        labels = torch.randint(0, 2, (len(pool),), device=device)
        mean, std = (
            255 * torch.tensor(values, device=device).view(-1, 1, 1) for values in (IMAGENET.mean, IMAGENET.std)
        )

        def batches() -> Iterator[Any]:
            for rows in torch.randint(0, len(pool), (count,), device=device).split(size):
                yield ((cut_crops(pool[rows].float()) - mean) / std).to(memory_format=torch.channels_last), labels[rows]
    else:
        data, workers = ImageFolder(str(root / "train"), TUTORIAL_TRAIN), max(1, available_cores() - 2)
        options: Any = {"pin_memory": device.type == "cuda", "persistent_workers": True}
        loader = DataLoader(data, size, shuffle=True, num_workers=workers, **options)

        def batches() -> Iterator[Any]:
            return ((x.to(device, non_blocking=True), y.to(device, non_blocking=True)) for x, y in loader)

    net.forward = torch.autocast(device.type, torch.bfloat16)(net.forward)  # type: ignore[method-assign]
    theirs = epoch_of_loop(device, 3, net, batches, lambda output, y: F.cross_entropy(output.float(), y), 0.01)
    flags = ["--data", str(root), "--model.weights=none", "--model.freeze=false", "--model.lr=0.01"]
    flags += [f"--data.batch_size={size}", "--precision=bf16-mixed", *["--data.cache=true"] * cached]
    return epoch_of_ours(device, 3, *flags), theirs


def cut_crops(x: Tensor) -> Tensor:
    """Cut a random part of each picture, resize it to the whole and flip half of them, as RandomResizedCrop draws."""
    count, options = len(x), {"device": x.device}
    area = torch.empty(count, **options).uniform_(0.08, 1)
    ratio = torch.empty(count, **options).uniform_(-0.2877, 0.2877).exp()
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(count, 2, 3, **options)
    theta[:, 0, 0] = width * (torch.randint(0, 2, (count,), **options) * 2.0 - 1)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (torch.rand(count, **options) * 2 - 1) * (1 - width)
    theta[:, 1, 2] = (torch.rand(count, **options) * 2 - 1) * (1 - height)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def device_head(device: torch.device, root: Path, epochs: int) -> Pair:
    """Compare an epoch of a frozen resnet18, batch 4, with a loop over cached features."""
    count = sum("train" in file.relative_to(root).parts for file in photo_files(root))
    x, y = torch.randn(count, 512, device=device), torch.randint(0, 2, (count,), device=device)

    def batches() -> Iterator[Any]:
        return ((x[rows], y[rows]) for rows in torch.randperm(count, device=device).split(4))

    theirs = epoch_of_loop(device, epochs, nn.Linear(512, 2).to(device), batches, F.cross_entropy, 0.001)
    recipe = str(Path(__file__).parent / "recipes" / "transfer_frozen.yaml")
    return epoch_of_ours(device, epochs, "--config", recipe, "--data", str(root), "--model.weights=none"), theirs


def speedrun(device: torch.device, cifar: Path | None, small: bool) -> Pair:
    """Return the seconds from the first to the last step of cifar10_speedrun.yaml, and the accuracy."""
    if cifar is None:
        raise UsageError("add --cifar DIR, a folder with train/ and test/ of CIFAR-10 as picture files")
    recipe = str(Path(__file__).parent / "recipes" / "cifar10_speedrun.yaml")
    flags = ["--config", recipe, "--data", str(cifar), "--data.image_size=32", *["--max_epochs=1"] * small]
    times: list[float] = []

    def note_time(*_: Any) -> None:
        synchronize(device)
        times.append(time.perf_counter())

    accelerator = "cpu" if device.type == "cpu" else "gpu"
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(io.StringIO()):
        run = FitCLI([*flags, "--default_root_dir", root, "--accelerator", accelerator, "--devices=1"]).run
        run.trainer.callbacks.insert(0, LambdaCallback(on_train_start=note_time, on_train_end=note_time))
        run.trainer.fit(run.model, run.data)
    return times[-1] - times[0], float(run.trainer.callback_metrics["val_acc"])


# --- the table --------------------------------------------------------------------------------------------------------


def rows(photos: Path, small: bool) -> dict[str, tuple[str, Callable[[], Pair], int]]:
    """Return row name -> (title with the target, function that measures one pair, usual number of pairs)."""
    images, steps, files = (512, 20, 1000) if small else (19_200, 1500, 200_000)
    imports = "import torch, lightning"
    return {
        "lenet128": ("LeNet batch 128 / floor, <= 1.15", lambda: lenet(128, images), 3),
        "lenet128-tutorial": (
            "LeNet batch 128 / tutorial's loader, <= 0.286",
            lambda: lenet(128, images // 3, True),
            3,
        ),
        "lenet4": ("LeNet batch 4 / floor, <= 1.45", lambda: lenet(4, images // 3), 3),
        "memory": ("peak MB added / data's MB, <= 1.1 + 150 MB", lambda: memory(min(50_000, images * 3)), 1),
        "mlp": ("MLP step / hand loop, <= 2.0", lambda: fixed_batch("LitMLP", mlp(), 0.0, steps), 3),
        "dynamic": (
            "dynamic net step / hand loop, <= 2.0",
            lambda: fixed_batch("LitDynamic", DynamicNet(), 0.9, steps),
            3,
        ),
        "frozen": ("25 frozen epochs / one pass, <= 1.6", lambda: frozen(photos), 1),
        "frozen-tutorial": ("25 frozen epochs / tutorial's, <= 0.067", lambda: frozen(photos, True), 1),
        "decode": ("decode + train transform / PIL, <= 0.667", lambda: decoding(photos), 3),
        "finetune": ("fine-tuning from files / from memory", lambda: fine_tuning(photos), 1),
        "ddp": ("s/image 2 processes / 1 with 2 threads, <= 1.053", lambda: two_processes(images), 1),
        "listing": (f"listing {files:,} files / os.walk; <= 15 s", lambda: listing(files), 3),
        "help": ("fit.py --help / python -c pass, <= 1 s", lambda: start_up("--help", "pass"), 3),
        "help-all": ("fit.py --help_all / imports, <= 1.2", lambda: start_up("--help_all", imports), 3),
        "error": ("an error message / imports, <= 1.2", lambda: start_up("--bad", imports), 3),
    }


def device_rows(
    photos: Path, cifar: Path | None, small: bool, device: torch.device
) -> dict[str, tuple[str, Callable[[], Pair], int]]:
    """Return the rows of one device, as :func:`rows` does. Each side of a pair measures several epochs."""
    images, steps, epochs = (512, 20, 2) if small else (49_152, 1000, 5)
    sizes = (64, 256) if small else (128, 2048)
    table: dict[str, tuple[str, Callable[[], Pair], int]] = {}
    for name, size in zip(("128", "2048"), sizes, strict=True):
        reach = "1.2" if name == "128" else "1.3"
        measure = partial(device_lenet, device, size, images)
        table[f"gpu-lenet{name}"] = (f"LeNet {name} / loop, data on the device, <= {reach}", measure, 3)
        table[f"gpu-trainer{name}"] = (f"bare Trainer, LeNet {name} / the same", partial(measure, kind="trainer"), 3)
    compiled = partial(device_lenet, device, sizes[0], images, "compiled")
    return {
        **table,
        "gpu-lenet128-compiled": ("LeNet 128 --compile true / compiled loop, <= 1.4", compiled, 3),
        "gpu-mlp": ("MLP 64 x 1000 / loop", lambda: device_mlp(device, steps), 3),
        "gpu-finetune": (
            "resnet18 bf16 / tutorial's loader, <= 0.714",
            lambda: device_finetuning(device, photos, False),
            2,
        ),
        "gpu-finetune-cached": (
            "the same, --data.cache true / on device, <= 1.18",
            lambda: device_finetuning(device, photos, True),
            2,
        ),
        "gpu-head": (
            "frozen head's epoch / loop over features, <= 1.3",
            lambda: device_head(device, photos, epochs),
            2,
        ),
        "gpu-speedrun": ("speedrun recipe: seconds; accuracy >= 0.8905", lambda: speedrun(device, cifar, small), 3),
    }


def describe_machine(device: torch.device) -> str:
    card = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    processor = platform.processor() or platform.machine()
    return f"{card}{processor}, {available_cores()} cores, torch {torch.__version__}"


def main() -> None:
    parser = Parser("benchmark.py", DESCRIPTION)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="names of rows (default: all of the accelerator)")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu", metavar="NAME", help="cpu or gpu")
    parser.add_argument("--pairs", type=at_least(1), metavar="N", help="measurements per row (default: 1 to 3)")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="folder with train/ and val/ (default: generated)")
    parser.add_argument(
        "--cifar", type=Path, metavar="DIR", help="CIFAR-10 as files in train/ and test/ (gpu-speedrun)"
    )
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
        cpu_table = rows(photos, arguments.small)
        gpu_table = device_rows(photos, arguments.cifar, arguments.small, device)
        table = {**cpu_table, **gpu_table}
        if unknown := set(arguments.rows) - set(table):
            parser.error(f"there is no row {unknown.pop()}: choose from {', '.join(table)}")
        names = arguments.rows or list(cpu_table if arguments.accelerator == "cpu" else gpu_table)
        if arguments.photos is None and any(name.startswith(USES_PHOTOS) for name in names):
            make_photos(photos, 12 if arguments.small else 4000 if arguments.accelerator == "gpu" else 200)
        results: dict[str, Any] = {}
        machine, started = describe_machine(device), time.perf_counter()
        if not arguments.json:
            print(f"{machine}; {time.strftime('%Y-%m-%d')}; ours / theirs")
            print(f"{'row':<52} {'median':>8} {'min':>8} {'max':>8}   {'ours':>9} {'theirs':>9}  n")
        for name in names:
            title, measure, usual_pairs = table[name]
            count = arguments.pairs or usual_pairs
            # leave out the first pair, which is slower, but not where a pair is long or measures several epochs
            warm_up = 0 if name in gpu_table or (arguments.pairs is None and usual_pairs < 3) else 1
            try:
                pairs = [measure() for _ in range(count + warm_up)][warm_up:]
            except Exception as error:  # the other rows can still be measured
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                results[name] = {"title": title, "not_measured": reason}
                if not arguments.json:
                    print(f"{title:<52} not measured: {reason}", flush=True)
                continue
            ratios = [ours / theirs for ours, theirs in pairs]
            medians = dict(zip(("ours", "theirs"), map(statistics.median, zip(*pairs, strict=True)), strict=True))
            results[name] = {"title": title, "ratios": ratios, **medians}
            if not arguments.json:
                numbers = [statistics.median(ratios), min(ratios), max(ratios)]
                cells = [f"{number:8.3f}" if name != "gpu-speedrun" else f"{'-':>8}" for number in numbers]
                spread = " ".join(cells)
                print(f"{title:<52} {spread}   {medians['ours']:9.4g} {medians['theirs']:9.4g}  {count}", flush=True)
        if arguments.json:
            print(json.dumps({"machine": machine, "rows": results}, indent=1))
        else:
            print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    with one_line_errors("benchmark.py"):
        main()
