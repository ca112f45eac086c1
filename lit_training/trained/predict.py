"""What a trained network says about pictures and rows that it has not seen.

Letters in shape comments: B batch, C channels, S side in pixels, F features, K classes or outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from datamodules import Preprocessing
from datamodules.loading.memory import normalize
from lit_models import LitBase
from lit_training.trained.inputs import read_pictures, read_rows


@dataclass(frozen=True)
class Prediction:
    """What is known of one input: ``probabilities`` for classifiers, ``outputs`` for regression, or ``error``."""

    path: str
    row: int | None = None
    """Which row of a file of rows, from 1, a header not counted."""
    probabilities: dict[str, float] = field(default_factory=dict)
    """By class name, in [0, 1], the likeliest first."""
    outputs: tuple[float, ...] = ()
    error: str = ""

    @property
    def label(self) -> str:
        """Name of the likeliest class; "" where there is none."""
        return next(iter(self.probabilities), "")

    @property
    def probability(self) -> float:
        """Probability of the likeliest class; NaN where there is none."""
        return next(iter(self.probabilities.values()), float("nan"))


def predict(
    model: LitBase,
    inputs: Sequence[Any],
    *,
    top_k: int | None = None,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> Iterator[Prediction]:
    """Yield one prediction per picture, or per row for networks that take rows; in order.

    Args:
        model: as from :func:`lit_training.runs.checkpoints.load_model`.
        inputs: paths as from :func:`~lit_training.trained.inputs.find_files`; also PIL images and arrays (H, W, 3)
            uint8 for networks that take pictures.
        top_k: how many classes at most; all when not given.
        batch_size: inputs per forward pass.
        device: where the network computes.

    A file or row that cannot be read gets a prediction that says why; nothing is raised for it.
    """
    to_input: Callable[[Tensor], Tensor] = torch.nn.Identity()
    if model.sample_ndim == 3:
        spec = Preprocessing.from_dict(model.preprocessing)
        on_cpu = torch.device(device).type == "cpu"
        samples = read_pictures(inputs, spec, batch_size, ahead=0 if on_cpu else 2)
        to_input = partial(normalize, mean=spec.mean, std=spec.std)
    else:
        samples = read_rows(inputs, model.hparams["in_features"])
    model = model.to(device).eval()
    while batch := list(islice(samples, batch_size)):
        whole = [sample.x for sample in batch if sample.x is not None]
        with torch.inference_mode():
            answers = iter(model.predict_step(to_input(torch.stack(whole)).to(device)).cpu() if whole else ())  # (K,)
        for path, row, x, error in batch:
            if x is None:
                yield Prediction(path, row, error=error)
            elif model.task == "regression":
                yield Prediction(path, row, outputs=tuple(next(answers).tolist()))
            else:
                yield Prediction(path, row, _ranked(next(answers), model.class_names, top_k))


def _ranked(probabilities: Tensor, names: tuple[str, ...] | None, count: int | None) -> dict[str, float]:
    values, classes = probabilities.topk(min(count or len(probabilities), len(probabilities)))
    labels = [names[index] if names else str(index) for index in classes.tolist()]
    return dict(zip(labels, values.tolist(), strict=True))
