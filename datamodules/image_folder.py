"""A folder of photos, one subfolder a class."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

from datamodules import photos
from datamodules.examination import orientation
from datamodules.loading import PADDING, SplitDataModule, mix, raised_by_loader, run_seed, workers_for_decoding
from datamodules.photos import DataError, Paths, Photos
from datamodules.picture_store import PictureStore, store_path
from datamodules.pictures import Pictures, scale

IMAGENET: dict[str, Any] = {
    "image_size": 224,
    "resize_size": 256,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bilinear",
}
SMALL = 64
"""Side in pixels up to which all pictures are kept in memory."""
FAST_PIXELS = 50_000_000
"""Size up to which a picture is decoded without further questions; larger ones are read_picture's to judge."""


_UPRIGHT: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda pixels: pixels.flip(2),
    3: lambda pixels: pixels.flip(1, 2),
    4: lambda pixels: pixels.flip(1),
    5: lambda pixels: pixels.transpose(1, 2),
    6: lambda pixels: pixels.rot90(-1, (1, 2)),
    7: lambda pixels: pixels.transpose(1, 2).flip(1, 2),
    8: lambda pixels: pixels.rot90(1, (1, 2)),
}
"""How (3, H, W) pixels become upright, by their EXIF orientation."""


class PhotoFiles(Dataset):
    """Pictures that are read from their files, or from a :class:`PictureStore`, when a batch asks for them.

    Args:
        root: what ``paths`` are relative to.
        paths: of N files.
        labels: (N,) int64.
        preprocessing: see :class:`ImageFolderDataModule`.
        augment: RandomResizedCrop and flip, else Resize and CenterCrop.
        seed: of the augmentation, which is a function of (seed, run's seed, epoch, index).
        store: the same pictures, decoded.

    ``__getitems__(keys)`` gives (B, 3, S, S) float32 and (B,) int64, -1 where the key is padding.
    """

    def __init__(
        self,
        root: Path,
        paths: Paths,
        labels: Tensor,
        preprocessing: dict[str, Any],
        augment: bool,
        seed: int,
        store: PictureStore | None = None,
    ) -> None:
        self.root, self.paths, self.labels, self.store = root, paths, labels, store
        self.mean, self.std = preprocessing["mean"], preprocessing["std"]
        self.augment, self.seed = augment, run_seed(seed)
        self.transform = train_transform(preprocessing) if augment else eval_transform(preprocessing)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([key])
        return images[0], labels[0]

    @raised_by_loader
    def __getitems__(self, keys: list[int]) -> tuple[Tensor, Tensor]:
        wanted = torch.tensor(keys)
        labels = self.labels[wanted % len(self)].masked_fill(wanted == PADDING, PADDING)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # one in a worker, which is a core's own already
            pictures = threads.map(self._pixels, [key % len(self) for key in keys])
            state = torch.get_rng_state()  # without workers the transforms draw from the network's own generator
            transformed = [self._transformed(*both) for both in zip(keys, pictures, strict=True)]
            torch.set_rng_state(state)
        # (B, S, S, C): the layout that decoders give, which is stacked without a walk through each pixel
        images = torch.stack([picture.permute(1, 2, 0) for picture in transformed])
        return scale(images.permute(0, 3, 1, 2), self.mean, self.std), labels

    def read(self, key: int) -> Tensor:
        """One transformed picture: (C, S, S) uint8, grey where the network's mean is of one channel."""
        return self._transformed(key, self._pixels(key % len(self)))

    def _pixels(self, index: int) -> Tensor:
        return self.store[index] if self.store else read_pixels(self.root / self.paths[index])

    def _transformed(self, key: int, picture: Tensor) -> Tensor:
        if self.augment:
            torch.default_generator.manual_seed(mix(self.seed, key))
        picture = self.transform(picture)
        return picture if len(self.mean) == 3 else v2.functional.rgb_to_grayscale(picture)


def read_pixels(path: Path) -> Tensor:
    """One picture as the network's preprocessing gets it: (3, H, W) uint8, upright, RGB.

    JPEGs go through torchvision's decoder, which gives Pillow's pixels a third faster; what it does not take goes
    through :func:`datamodules.photos.read_picture`.

    Raises:
        DataError: the file cannot be read; names it and says why.
    """
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
            plain = header.mode in ("RGB", "L") and header.width * header.height < FAST_PIXELS
            turn = _UPRIGHT.get(orientation(header))  # torchvision reads damaged tags in another way
        if plain:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            pixels = decode_image(encoded, ImageReadMode.RGB)
            return pixels if turn is None else turn(pixels).contiguous()
    except Exception:  # no JPEG, a broken one, an enormous one (decoders raise anything): read_picture says what it is
        pass
    return v2.functional.pil_to_tensor(photos.read_picture(path))


def train_transform(preprocessing: dict[str, Any]) -> v2.Transform:
    """RandomResizedCrop and flip, as in the tutorial "Transfer Learning for Computer Vision", of uint8 tensors."""
    interpolation = InterpolationMode(preprocessing["interpolation"])
    crop = _CropThenResize(preprocessing["image_size"], interpolation=interpolation, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip()])


class _CropThenResize(v2.RandomResizedCrop):
    """The same pictures, but the crop's pixels are brought together first: torch resizes them twice as fast then."""

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        crop = v2.functional.crop_image(inpt, **params).permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return v2.functional.resize_image(crop, self.size, self.interpolation, antialias=self.antialias)


def eval_transform(preprocessing: dict[str, Any]) -> v2.Transform:
    """Resize the shorter side, cut the centre out: (3, H, W) uint8 -> (3, S, S) uint8."""
    interpolation = InterpolationMode(preprocessing["interpolation"])
    resize = v2.Resize(preprocessing["resize_size"], interpolation=interpolation, antialias=True)
    return v2.Compose([v2.Lambda(_no_strip), resize, v2.CenterCrop(preprocessing["image_size"])])


def _no_strip(picture: Tensor) -> Tensor:
    """Cut off what the centre crop throws away, with a wide margin: a strip of 3000 x 2 would grow to 384,000 x 256."""
    height, width = picture.shape[-2:]
    most = 4 * min(height, width)
    return v2.functional.center_crop(picture, [min(height, most), min(width, most)])


class ImageFolderDataModule(SplitDataModule):
    """Photos in ``root/train/<class>/...`` and ``root/val/<class>/...``, or in ``root/<class>/...`` to be split.

    Size, mean, std and interpolation follow the model's ``preprocessing``; without one they are those of the PyTorch
    tutorial "Transfer Learning for Computer Vision" (224 pixels, ImageNet's mean and std). Pictures up to
    64 pixels a side are decoded once and kept in memory as uint8.

    Args:
        root: the folder. ``train/``, ``val/`` (``valid/``, ``validation/``) and ``test/``, or the classes themselves.
        batch_size: pictures per step and device.
        image_size: side in pixels of what the network sees; the model's when not given.
        augment: random crops and flips (small pictures: flip, shift, cutout); as the model's source when not given.
        val_size: share of the training pictures cut off for validation where the folder has no ``val/``.
        split_file: a ``split.csv`` of an earlier run, to split as it did.
        balance: ``loss`` weights each class by the inverse of its frequency in the training loss.
        max_bad_fraction: share of broken files up to which the run goes on without them.
        cache: keep the decoded pictures, resized to ``resize_size``, in a file that all processes map: epochs after the
            first decode nothing. Random crops are then cut from the resized picture, so small ones are less sharp.
        num_workers: processes that read pictures; chosen from the cores when not given.
        seed: of the split, the order and the augmentation.

    Batches: (B, 3, S, S) float32 and (B,) int64.

    Raises:
        DataError: an argument out of its range, or a folder that cannot be learned from.
    """

    task = "classification"
    default_model = "LitTransfer"
    in_channels = 3
    eval_batch_size = 32
    predict_split = "val"

    def __init__(
        self,
        root: str,
        batch_size: int = 4,
        image_size: int | None = None,
        augment: bool | None = None,
        val_size: float = 0.2,
        split_file: str | None = None,
        balance: Literal["none", "loss"] = "none",
        max_bad_fraction: float = 0.05,
        cache: bool = False,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (image_size is not None and image_size < 1):
            raise DataError("batch_size and image_size start at 1: --data.batch_size 4 --data.image_size 224")
        if balance not in ("none", "loss"):
            raise DataError(f"balance is none or loss, not {balance}: --data.balance loss")
        self.save_hyperparameters()
        self.root = Path(root).expanduser()
        self.preprocessing: dict[str, Any] = {}
        self.augment = False
        self.photos: Photos | None = None
        self.class_weights: Tensor | None = None
        self.sets: dict[str, Dataset] = {}
        self.follow(None)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.photos.class_names if self.photos else photos.class_names(self.root, self.hparams["split_file"])

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return (3, self.preprocessing["image_size"], self.preprocessing["image_size"])

    @property
    def has_test(self) -> bool:
        """Whether the folder has pictures of its own for testing; known after ``setup``."""
        return self.photos is not None and bool((self.photos.splits == photos.TEST).any())

    def report(self) -> str:
        """What was found in the folder, for its owner to read; opens every picture the first time."""
        self.examine()
        assert self.photos is not None
        return self.photos.report()

    def follow(self, model: Any) -> None:
        """Take over the model's preprocessing and, where ``augment`` is not given, what its source does."""
        spec = {**IMAGENET, **(getattr(model, "preprocessing", None) or {})}
        if size := self.hparams["image_size"]:
            spec["resize_size"] = round(size * spec["resize_size"] / spec["image_size"])
            spec["image_size"] = size
        augment = self.hparams["augment"]
        self.preprocessing = spec
        self.augment = getattr(model, "wants_augmentation", True) if augment is None else augment

    def prepare_data(self) -> None:
        self.examine()  # one process of a machine opens the pictures, the others find what it remembered
        if self.preprocessing["image_size"] <= SMALL or self.hparams["cache"]:
            for split in ("train", "val"):
                self.dataset(split)

    def setup(self, stage: str) -> None:
        before = (self.preprocessing, self.augment)
        if self.trainer is not None:
            self.follow(self.trainer.lightning_module)
        if (self.preprocessing, self.augment) != before:
            self.sets = {}  # they were another model's pictures
        self.examine()

    def examine(self) -> None:
        """Open every picture, leave out what is broken, split; once."""
        if self.photos is not None:
            return
        self.photos = photos.examine(
            self.root,
            val_size=self.hparams["val_size"],
            seed=self.hparams["seed"],
            split_file=self.hparams["split_file"],
            max_bad_fraction=self.hparams["max_bad_fraction"],
        )
        if self.hparams["balance"] == "loss":
            counts = torch.from_numpy(self.photos.counts()[photos.TRAIN]).float()
            self.class_weights = counts.sum() / (len(counts) * counts)

    def dataset(self, split: str) -> Dataset:
        """The pictures of ``train``, ``val`` or ``test``; known after ``setup``."""
        if split not in self.sets:
            assert self.photos is not None, "call setup() first"
            chosen = self.photos.select({"train": photos.TRAIN, "val": photos.VAL, "test": photos.TEST}[split])
            paths, labels = self.photos.paths.take(chosen), torch.from_numpy(self.photos.labels[chosen]).long()
            augment, seed, spec = self.augment and split == "train", self.hparams["seed"], self.preprocessing
            small = spec["image_size"] <= SMALL
            store = self._store(paths, small) if len(paths) and (small or self.hparams["cache"]) else None
            if store and small:
                self.sets[split] = Pictures(store.stacked(), labels, spec["mean"], spec["std"], augment, seed)
            else:
                self.sets[split] = PhotoFiles(self.root, paths, labels, spec, augment, seed, store)
        return self.sets[split]

    def _store(self, paths: Paths, whole: bool) -> PictureStore:
        """These pictures decoded: ready for the network, or (``whole`` false) resized but not cropped."""
        spec = {key: self.preprocessing[key] for key in ("image_size", "resize_size", "interpolation")}
        path = store_path(self.root, paths, {**spec, "whole": whole})
        if not path.is_file():
            transform = eval_transform(spec) if whole else v2.Compose(eval_transform(spec).transforms[:2])
            PictureStore.write(path, len(paths), lambda index: transform(read_pixels(self.root / paths[index])))
        return PictureStore(path)

    def num_workers(self, dataset: Dataset) -> int:
        """Processes that load ``dataset``: none for what is in memory."""
        if not isinstance(dataset, PhotoFiles):
            return 0
        chosen = self.hparams["num_workers"]
        return workers_for_decoding(self.trainer) if chosen is None else chosen
