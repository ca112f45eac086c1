"""Predict images or rows of numbers with a trained network. Letters in shapes: B batch, K classes or outputs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from datamodules import Preprocessing
from datamodules.loading.memory import normalize
from lit_models import LitBase
from lit_training.trained.describe import sample_input
from lit_training.trained.inputs import read_pictures, read_rows


@dataclass(frozen=True)
class Prediction:
    """The result for one input: ``probabilities`` of a classifier, ``outputs`` of a regression, or an ``error``."""

    path: str  # of the file; ``picture 1``, ``picture 2``, ... for inputs that are not files
    row: int | None = None  # number of the row in a .csv or .npy file, from 1 without the header
    probabilities: dict[str, float] = field(default_factory=dict)  # by class name, most likely class first
    outputs: tuple[float, ...] = ()
    error: str = ""  # why the input could not be read

    @property
    def label(self) -> str:
        """Name of the most likely class; "" if there are no probabilities."""
        return next(iter(self.probabilities), "")

    @property
    def probability(self) -> float:
        """Probability of the most likely class; NaN if there are no probabilities."""
        return next(iter(self.probabilities.values()), float("nan"))


def predict(
    model: LitBase, inputs: Sequence[Any], *, top_k: int = 0, batch_size: int = 32, device: torch.device | str = "cpu"
) -> Iterator[Prediction]:
    """Yield one prediction per image or row, in the order of the inputs. An unreadable input has an ``error``.

    ``inputs`` are as in :func:`read_pictures` or :func:`read_rows`. ``top_k`` is the number of classes per prediction;
    0: all. The network is moved to ``device``.
    """
    sample = sample_input(model)  # raises a UsageError if the form of a sample is unknown
    if takes_pictures := model.sample_ndim == 3:
        preprocessing = Preprocessing.from_dict(model.preprocessing)
        ahead = 0 if torch.device(device).type == "cpu" else 2  # on the CPU, network and decoding use the same cores
        samples = read_pictures(inputs, preprocessing, batch_size, ahead)
    else:
        samples = read_rows(inputs, sample.shape[1])
    model = model.to(device).eval()
    while batch := list(islice(samples, batch_size)):
        readable = [sample.x for sample in batch if sample.x is not None]
        outputs = torch.empty(0)
        if readable:
            x = torch.stack(readable)
            x = normalize(x, preprocessing.mean, preprocessing.std) if takes_pictures else x
            with torch.inference_mode():
                outputs = model.predict_step(x.to(device)).cpu()  # (B, K)
        names = distinct_class_names(model.class_names, outputs.shape[-1])
        remaining_outputs = iter(outputs)
        for path, row, pixels, error in batch:
            if pixels is None:
                yield Prediction(path, row, error=error)
            elif model.task == "regression":
                yield Prediction(path, row, outputs=tuple(next(remaining_outputs).tolist()))
            else:
                values, classes = next(remaining_outputs).topk(min(top_k or len(names), len(names)))
                labels = [names[index] for index in classes.tolist()]
                yield Prediction(path, row, dict(zip(labels, values.tolist(), strict=True)))


def distinct_class_names(names: Sequence[str] | None, count: int) -> list[str]:
    """Return a different name for each of ``count`` classes. Classes without a name are "0", "1", ...

    Equal names get their index: ImageNet's two classes "crane" become "crane (class 134)" and "crane (class 517)".
    """
    names = [*(names or ()), *map(str, range(len(names or ()), count))]
    uses = Counter(names)
    return [f"{name} (class {number})" if uses[name] > 1 else name for number, name in enumerate(names)]
