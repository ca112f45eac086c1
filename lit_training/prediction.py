"""What a trained network says about pictures and rows that it has not seen.

Letters in shape comments: B batch, C channels, S side in pixels, F features, K classes or outputs, N inputs.
"""

import csv
import glob
import json
import math
import os
import stat
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.examination import BadPicture, available_cores
from datamodules.image_folder import PhotoFiles
from datamodules.listing import Paths, counted, files_below, no_file
from datamodules.pictures import scale
from lit_models import LitBase
from lit_training.messages import UsageError

ROW_SUFFIXES = ("csv", "npy")


class Sample(NamedTuple):
    """One input: ``x`` (C, S, S) uint8 or (F,) float32, or ``error``, why there is none."""

    path: str
    row: int | None = None
    """Which row of a file of rows, from 1, a header not counted."""
    x: Tensor | None = None
    error: str = ""


class Prediction(NamedTuple):
    """What is known of one input: ``top`` for classifiers, ``outputs`` for regression, or ``error``."""

    path: str
    row: int | None = None
    top: tuple[tuple[str, float], ...] = ()
    """(label, probability) of the likeliest classes, best first."""
    outputs: tuple[float, ...] = ()
    error: str = ""


def predict(
    model: LitBase, files: Sequence[str], *, top_k: int = 3, batch_size: int = 32, device: torch.device | str = "cpu"
) -> Iterator[Prediction]:
    """One prediction per picture, or per row for networks that take rows; in order.

    Args:
        model: as from :func:`lit_training.checkpoints.load_model`.
        files: as from :func:`find_files`.
        top_k: how many classes at most.
        batch_size: inputs per forward pass.
        device: where the network computes.

    A file or row that cannot be read gets a prediction that says why; nothing is raised for it.
    """
    to_input: Callable[[Tensor], Tensor] = torch.nn.Identity()
    if model.sample_ndim == 3:
        spec = model.preprocessing
        assert spec is not None, "networks for pictures have a preprocessing"
        on_cpu = torch.device(device).type == "cpu"
        samples = read_pictures(files, spec, batch_size, ahead=0 if on_cpu else 2)
        to_input = partial(scale, mean=spec["mean"], std=spec["std"])
    else:
        samples = read_rows(files, model.hparams["in_features"])
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
                yield Prediction(path, row, top=_best(next(answers), model.class_names, top_k))


def _best(probabilities: Tensor, names: tuple[str, ...] | None, count: int) -> tuple[tuple[str, float], ...]:
    values, classes = probabilities.topk(min(count, len(probabilities)))
    labels = [names[index] if names else str(index) for index in classes.tolist()]
    return tuple(zip(labels, values.tolist(), strict=True))


def find_device(accelerator: str) -> torch.device:
    """``auto``, ``cpu``, ``gpu`` or ``mps`` as a device.

    Raises:
        UsageError: there is none of that kind.
    """
    there = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if accelerator == "auto":
        accelerator = next(name for name, found in there.items() if found)
    if not there[accelerator]:
        kind = "GPU" if accelerator == "gpu" else accelerator
        raise UsageError(f"--accelerator {accelerator}: no {kind} is seen here; use --accelerator cpu, or auto")
    return torch.device("cuda" if accelerator == "gpu" else accelerator)


# --- inputs -------------------------------------------------------------------------------------------------------


def find_files(inputs: Iterable[str], suffixes: Container[str]) -> list[str]:
    """Files as they are named, those of a folder (with these suffixes, by name, hidden ones passed over) and those
    that a glob matches. A name, folder or glob without a file stands for itself, to be told of when it is read."""
    files: list[str] = []
    for name in inputs:
        named = [name]
        if not os.path.lexists(name) and glob.has_magic(name):
            named = sorted(glob.glob(name, recursive=True)) or named  # noqa: PTH207 - absolute ones, too
        for path in named:
            files += (Path(path).is_dir() and files_below(path, suffixes)) or [path]
    return files


def read_pictures(
    files: Sequence[str], preprocessing: dict[str, Any], batch_size: int, ahead: int = 0
) -> Iterator[Sample]:
    """Decode on all cores; ``x`` is what validation sees.

    Args:
        files: as from :func:`find_files`.
        preprocessing: of the network.
        batch_size: pictures that are decoded together.
        ahead: further batches that are decoded meanwhile. For a network that computes on the same cores none: its
            threads and the decoding ones would wait for each other, which cost up to a quarter more CPU time.
    """
    photos = PhotoFiles(Path(), Paths.from_iterable(files), torch.zeros(len(files)), preprocessing, False, 0)

    def read(index: int) -> Sample:
        file = files[index]
        if problem := _no_file(file):
            return Sample(file, error=problem)
        try:
            return Sample(file, x=photos.read(index))
        except BadPicture as bad:
            return Sample(file, error=f"{bad.kind} ({bad.reason})")

    waiting: deque[list[Future[Sample]]] = deque()
    with ThreadPoolExecutor(available_cores()) as threads:  # decoding and resizing need no lock of Python's
        for start in range(0, len(files), batch_size):
            waiting.append([threads.submit(read, index) for index in range(len(files))[start : start + batch_size]])
            if len(waiting) > ahead:
                yield from (future.result() for future in waiting.popleft())
        for batch in waiting:
            yield from (future.result() for future in batch)


def _no_file(path: str) -> str:
    """Why there is nothing to open, or ""; a pipe, for one, would be waited for."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except FileNotFoundError:
        if os.path.lexists(path):
            return "a link to nothing"
        return "matches no file" if glob.has_magic(path) else "no such file"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    if stat.S_ISDIR(mode):
        return "a folder without files to predict" if os.access(path, os.R_OK | os.X_OK) else "folder cannot be read"
    return f"{kind}, no file" if (kind := no_file(mode)) else ""


def read_rows(files: Iterable[str], width: int) -> Iterator[Sample]:
    """The rows of ``.csv`` (numbers with commas between, perhaps a header line) and ``.npy`` files; ``x`` is (width,)
    float32."""
    for file in files:
        problem = _no_file(file)
        if not problem and Path(file).suffix.lower() not in (".csv", ".npy"):
            problem = "no rows: give a .csv or .npy file"
        if problem:
            yield Sample(file, error=problem)
            continue
        try:
            rows = _npy_rows(file) if file.lower().endswith(".npy") else _csv_rows(file)
            row = 0
            for row, values in enumerate(rows, start=1):
                yield _checked(file, row, values, width)
            if not row:
                yield Sample(file, error="holds no rows")
        except (OSError, ValueError, csv.Error) as error:
            yield Sample(file, error=f"cannot be read as rows of numbers ({error})")


def _csv_rows(file: str) -> Iterator[list[str]]:
    with Path(file).open(newline="", encoding="utf-8-sig") as lines:
        rows = (row for row in csv.reader(lines) if row)
        if (first := next(rows, None)) is not None:
            if any(map(_is_number, first)):  # else it is a header
                yield first
            yield from rows


def _npy_rows(file: str) -> Iterator[np.ndarray]:
    try:
        array = np.lib.format.open_memmap(file, mode="r")  # np.load would open zip archives and pickles, too
    except Exception as error:  # a broken header has many ways to fail
        raise ValueError(f"no .npy file of numbers: {type(error).__name__}") from error
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiub":
        raise ValueError("it has to hold numbers of shape (rows, features)")
    yield from np.atleast_2d(array)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _checked(file: str, row: int, values: Any, width: int) -> Sample:
    if len(values) != width:
        return Sample(file, row, error=f"{counted(len(values), 'value')} where the network takes {width}")
    strange = next((value for value in values if not _is_number(value) or not math.isfinite(float(value))), None)
    if strange is not None:
        return Sample(file, row, error=f"{strange} is no finite number")
    return Sample(file, row, torch.tensor([float(value) for value in values]))


# --- several devices ----------------------------------------------------------------------------------------------


def predict_in_order(trainer: Any, model: LitBase, datamodule: Any) -> Tensor:
    """``trainer.predict`` with one row per input, in input order, on any number of devices: (N, K), on every rank."""
    batches = trainer.predict(model, datamodule, weights_only=True)
    return in_input_order(trainer, torch.cat(batches), trainer.predict_dataloaders)


def in_input_order(trainer: Any, rows: Tensor, loader: Any) -> Tensor:
    """Put together what the ranks made of the batches that an :class:`~datamodules.loading.EvalSampler` dealt out.

    Args:
        rows: (n, ...), this rank's, of one batch after the other, padding included.
        loader: that gave the batches; all ranks have gone through as many of them.

    Returns:
        (N, ...) for the N inputs of those batches, the same on every rank.
    """
    if trainer.world_size > 1:
        size = loader.batch_sampler.batch_size  # Lightning takes batch_size off a loader for predictions
        batches = -(-len(rows) // size)
        whole = rows.new_zeros(batches * size, *rows.shape[1:])  # only the last batch may be short
        whole[: len(rows)] = rows
        shares = trainer.strategy.all_gather(whole.to(trainer.strategy.root_device))  # (ranks, batches * size, ...)
        rows = shares.unflatten(1, (batches, size)).transpose(0, 1).flatten(0, 2)
    return rows[: len(loader.dataset)]


# --- results ------------------------------------------------------------------------------------------------------


def columns(predictions: list[Prediction]) -> tuple[list[str], list[list[str]]]:
    """Names and rows of a table of predictions: what the CSV file holds."""
    most = max((len(prediction.top) for prediction in predictions), default=0)
    outputs = max((len(prediction.outputs) for prediction in predictions), default=0)
    by_row = any(prediction.row is not None for prediction in predictions)
    head = ["path", *(["row"] if by_row else [])]
    for place in range(1, most + 1):
        head += ["label", "probability"] if place == 1 else [f"label_{place}", f"probability_{place}"]
    head += [f"output_{place}" for place in range(1, outputs + 1)]
    body = []
    for prediction in predictions:
        answer = [cell for label, probability in prediction.top for cell in (label, f"{probability:.6f}")]
        answer += [f"{value:.6g}" for value in prediction.outputs]
        row = [prediction.path] + ["" if prediction.row is None else str(prediction.row)] * by_row + answer
        body.append(row + [""] * (len(head) - len(row)) + [prediction.error])
    return [*head, "error"], body


def check_output(path: str) -> None:
    """
    Raises:
        UsageError: nothing can be written there; said before anything is computed.
    """
    if Path(path).suffix.lower() not in (".csv", ".json"):
        raise UsageError(f"--output {path} ends in neither .csv nor .json: --output predictions.csv")
    if not Path(path).absolute().parent.is_dir() or Path(path).is_dir():
        raise UsageError(f"--output {path} cannot be written: give a file in a folder that is there")


def write(predictions: list[Prediction], path: str) -> None:
    """Write a ``.csv`` or ``.json`` file; probabilities in [0, 1].

    Raises:
        UsageError: it cannot be written.
    """
    try:
        with Path(path).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            if path.lower().endswith(".csv"):
                head, body = columns(predictions)
                csv.writer(file).writerows([head, *body])
            else:
                json.dump([_document(prediction) for prediction in predictions], file, indent=1)
    except OSError as error:
        raise UsageError(f"--output {path} cannot be written ({error.strerror}): choose another place") from error


def _document(prediction: Prediction) -> dict[str, Any]:
    document: dict[str, Any] = {"path": prediction.path}
    if prediction.row is not None:
        document["row"] = prediction.row
    if prediction.error:
        return document | {"error": prediction.error}
    if prediction.outputs:
        return document | {"outputs": list(prediction.outputs)}
    ranked = [{"label": label, "probability": probability} for label, probability in prediction.top]
    return document | ranked[0] | {"top": ranked}
