"""Predict images or rows of numbers with a trained network. Letters in shapes: B batch, K classes or outputs."""

import base64
import contextlib
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import torch
from torchvision.transforms import v2

from datamodules import Preprocessing
from datamodules.errors import DataError
from datamodules.loading.memory import normalize
from datamodules.photos.dataset import read_pixels
from datamodules.photos.decode import BadPicture
from datamodules.text import printable
from lit_models import LitBase, LitTransfer
from lit_training.errors import UsageError
from lit_training.trained.calibrate import Calibration
from lit_training.trained.describe import sample_input
from lit_training.trained.inputs import read_pictures, read_rows

BARS, THUMBNAIL = 5, 160  # classes, and pixels of the longer side, that a notebook shows of a prediction


@dataclass(frozen=True)
class Prediction:
    """The result for one input: ``probabilities`` of a classifier, ``outputs`` of a regression, or an ``error``."""

    path: str  # of the file; ``picture 1``, ``picture 2``, ... for inputs that are not files
    row: int | None = None  # number of the row in a .csv or .npy file, from 1 without the header
    probabilities: dict[str, float] = field(default_factory=dict)  # by class name, most likely class first
    outputs: tuple[float, ...] = ()
    error: str = ""  # why the input could not be read
    set: tuple[str, ...] | None = None  # with ``coverage``: the classes that may be the true one, most likely first
    unlike: bool = False  # True if the picture is unlike the training photos
    source: Any = field(default=None, repr=False, compare=False)  # the image, or its path

    @property
    def note(self) -> str:
        """``not sure``, ``unlike the training photos``, both, or ""."""
        is_unsure = self.set is not None and len(self.set) != 1
        return ", ".join(["not sure"] * is_unsure + ["unlike the training photos"] * self.unlike)

    @property
    def label(self) -> str:
        """Name of the most likely class; "" if there are no probabilities."""
        return next(iter(self.probabilities), "")

    @property
    def probability(self) -> float:
        """Probability of the most likely class; NaN if there are no probabilities."""
        return next(iter(self.probabilities.values()), float("nan"))

    def _repr_html_(self) -> str:
        """Show the picture and a bar for each of the most likely classes in a notebook."""
        lines = [escape(printable(line)) for line in (self.path, self.note, self.error) if line]
        lines += [f"{value:.6g}" for value in self.outputs]
        for label, share in list(self.probabilities.items())[:BARS]:
            bar = f"display:inline-block;height:0.8em;width:{share * 12:.2f}em;background:#4a7ebb"
            lines.append(f'<span style="{bar}"></span> {share:.1%} {escape(printable(label))}')
        text, picture = "<br>".join(lines), ""
        with contextlib.suppress(BadPicture, DataError, OSError):  # the file was deleted, or holds rows
            small = v2.functional.to_pil_image(read_pixels(self.path if self.source is None else self.source))
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            small.save(file := io.BytesIO(), "JPEG")
            picture = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'
        return f'<div style="display:flex;gap:1em;align-items:center">{picture}<div>{text}</div></div>'


def predict(
    model: LitBase,
    inputs: Sequence[Any],
    *,
    calibration: Calibration | None = None,
    coverage: float | None = None,
    top_k: int = 0,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> Iterator[Prediction]:
    """Yield one prediction per image or row, in the order of the inputs. An unreadable input has an ``error``.

    ``inputs`` are as in :func:`read_pictures` or :func:`read_rows`. ``top_k`` is the number of classes per prediction;
    0: all. The network is moved to ``device``. With the ``calibration`` of its checkpoint, pictures unlike the training
    photos are marked; with a ``coverage`` too, each prediction has a set. Raise a UsageError if that is not possible.
    """
    if coverage is not None and calibration is None:
        raise UsageError("--coverage needs a classifier that this version of fit.py trained with validation data")
    limit = None if coverage is None or calibration is None else calibration.threshold(coverage)
    sample = sample_input(model)  # raises a UsageError if the form of a sample is unknown
    if takes_pictures := model.sample_ndim == 3:
        preprocessing = Preprocessing.from_dict(model.preprocessing)
        ahead = 0 if torch.device(device).type == "cpu" else 2  # on the CPU, network and decoding use the same cores
        samples = read_pictures(inputs, preprocessing, batch_size, ahead)
    else:
        samples = read_rows(inputs, sample.shape[1])
    model = model.to(device).eval()
    while batch := list(itertools.islice(samples, batch_size)):
        readable = [sample.x for sample in batch if sample.x is not None]
        outputs, unlike = torch.empty(0), [False] * len(readable)
        if readable:
            x = torch.stack(readable)
            x = normalize(x, preprocessing.mean, preprocessing.std) if takes_pictures else x
            with torch.inference_mode():
                x = x.to(device)
                if calibration is not None and calibration.references is not None:
                    features: Any = model.features(x)
                    unlike = (calibration.distances(features) > calibration.limit).tolist()
                    x = features if type(model) is LitTransfer else x  # its last layer also takes features
                found: Any = model.predict_step(x)
                if getattr(found, "shape", ())[:-1] != (len(readable),):
                    problem = f"predict_step of {type(model).__name__} returns no tensor (B, K)"
                    raise UsageError(f"{problem}: return super().predict_step(batch), or leave your predict_step out")
                outputs = found.cpu()
        names = distinct_class_names(model.class_names, outputs.shape[-1])
        remaining_outputs = iter(outputs)
        for path, row, pixels, error in batch:
            if pixels is None:
                yield Prediction(path, row, error=error)
            elif model.task == "regression":
                yield Prediction(path, row, outputs=tuple(next(remaining_outputs).tolist()))
            else:
                values, classes = next(remaining_outputs).sort(descending=True, stable=True)
                labels = [names[index] for index in classes.tolist()]
                chosen = dict(list(zip(labels, values.tolist(), strict=True))[: top_k or None])
                is_in_set = (1 - values <= limit).tolist() if limit is not None else []
                classes_in_set = None if limit is None else tuple(itertools.compress(labels, is_in_set))
                yield Prediction(path, row, chosen, set=classes_in_set, unlike=unlike.pop(0))


def class_names_of(model: LitBase) -> list[str]:
    """Return a different name for each class of a network; none for a regression."""
    if model.task != "classification":
        return []
    count: Any = getattr(getattr(model, "val_acc", None), "num_classes", 0)
    return distinct_class_names(model.class_names, model.hparams.get("num_classes", count))


def distinct_class_names(names: Sequence[str] | None, count: int) -> list[str]:
    """Return a different name for each of ``count`` classes. Classes without a name are "0", "1", ...

    Equal names get their index: ImageNet's two classes "crane" become "crane (class 134)" and "crane (class 517)".
    """
    names = [*(names or ()), *map(str, range(len(names or ()), count))]
    uses = Counter(names)
    return [f"{name} (class {number})" if uses[name] > 1 else name for number, name in enumerate(names)]
