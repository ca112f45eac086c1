"""Export a trained network to an ONNX file that also has the preprocessing, or to a file of plain weights."""

import itertools
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from datamodules import Preprocessing
from datamodules.image_folder import ImageFolderDataModule
from datamodules.loading.module import SplitDataModule
from datamodules.photos.dataset import read_pixels
from datamodules.photos.split import read_split_file
from datamodules.text import first_names, plural, printable
from lit_models import LitBase
from lit_models.backbones import license_of_weights
from lit_training import figures
from lit_training.errors import UsageError
from lit_training.runs.layout import MODEL_CARD, SPLIT
from lit_training.runs.own_classes import is_own
from lit_training.trained.describe import sample_input
from lit_training.trained.predict import class_names_of, predict

MAX_COMPARED = 1000  # pictures or rows
# Of a probability, or of an output relative to the largest one. A class whose probability is larger than all others by
# more than twice this value, 0.001, is then the most likely one in both.
MAX_DIFFERENCE = 5e-4
MAX_ARGUMENTS = 100  # files for one call of the example
INTERPOLATIONS = ("bilinear", "bicubic")  # that onnx_pictures.py has
READ_BY_EXAMPLE = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "PPM")
MODEL, EXAMPLE, LABELS = "model.onnx", "predict.py", "labels.txt"  # the files of an exported folder


def export(saved: Any, to: str, photos: str | None = None) -> str:
    """Export the network of a SavedRun. Return one line of text about the comparison with the network.

    ``to`` ends in ``.onnx`` or ``.safetensors``, or is a new folder for the ONNX file with labels and an example in
    Python; its name ends in ``/`` if it has a dot. ``photos`` is the folder where the run's photos are now. The file is
    written only if it gives the same answers as the network (docs/export.md). Raises a UsageError otherwise, or if the
    network cannot be exported.
    """
    target = Path(to).expanduser()
    try:
        suffix = "" if to.endswith("/") or target.is_dir() else target.suffix
        if suffix not in (".onnx", ".safetensors", ""):
            raise UsageError(f"--to {to} must end in .onnx or .safetensors; for a folder: --to {to}/")
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise UsageError(f"--to {to} exists: give another name")
        if not target.absolute().parent.is_dir():
            raise UsageError(f"--to {to}: there is no folder {target.parent}: make it first")
        model = saved.model()
        with tempfile.TemporaryDirectory(prefix=".export.", dir=target.absolute().parent) as name:
            folder = Path(name) / target.stem
            folder.mkdir()
            written = {"": folder, ".onnx": folder / MODEL}.get(suffix, folder / target.name)
            if suffix == ".safetensors":
                compared = _write_weights(model, written)
            else:
                compared = _write_onnx(saved, model, folder, photos)
            if (card := saved.folder / MODEL_CARD).is_file():
                shutil.copy(card, folder)
            if labels := class_names_of(model):
                (folder / LABELS).write_text("\n".join(map(printable, labels)) + "\n", "utf-8")
            written.replace(target)  # all files of a folder at once
            return compared
    except OSError as error:
        raise UsageError(f"--to {to} cannot be written ({error.strerror or error}): give another place") from error


def describe_network(model: LitBase) -> dict[str, str]:
    """Return what an exported file says about its network: names -> texts."""
    backbone, weights = model.hparams.get("backbone", ""), model.hparams.get("weights")
    shown = {
        "architecture": str(backbone or type(model).__name__),
        "task": model.task,
        "class_names": json.dumps(class_names_of(model)),
        "license_of_weights": "unknown" if is_own(type(model)) else license_of_weights(backbone, weights),
    }
    if model.preprocessing is not None:
        shown["preprocessing"] = json.dumps(Preprocessing.from_dict(model.preprocessing).to_dict())
    return shown | {"temperature": repr(model.temperature)}


def _write_weights(model: LitBase, path: Path) -> str:
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}  # no shared memory
    if all(name.startswith("net.") for name in state):
        state = {name.removeprefix("net."): tensor for name, tensor in state.items()}  # the keys of the architecture
    path.write_bytes(save(state, describe_network(model)))  # not save_file: if the disk is full, this is an OSError
    found = load_file(path)
    if found.keys() != state.keys() or not all(torch.equal(found[name], one) for name, one in state.items()):
        raise UsageError(f"{path.name}: the weights were not read back as they were written: check the disk")
    return f"{plural(len(state), 'tensor')}: read back and equal"


class Answers(nn.Module):
    """The network with scaled pixels as input (0 to 255), or rows, and with probabilities or outputs as result."""

    def __init__(self, model: LitBase) -> None:
        super().__init__()
        self.model, self.factor, self.offset = model, torch.ones(()), torch.zeros(())
        if model.sample_ndim == 3:
            spec = Preprocessing.from_dict(model.preprocessing)
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
            self.factor, self.offset = 1 / (255 * std), mean / std

    def forward(self, x: Tensor) -> Tensor:
        return self.model.predict_step(x * self.factor - self.offset)


def _write_onnx(saved: Any, model: LitBase, folder: Path, photos: str | None) -> str:
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
        raise UsageError(f"an ONNX file needs {' and '.join(missing)}: pip install 'lit-classics[export]'")
    interpolation = Preprocessing.from_dict(model.preprocessing).interpolation
    if model.sample_ndim == 3 and interpolation not in INTERPOLATIONS:
        raise UsageError(f"an ONNX file cannot resize with interpolation {interpolation}: use --to model.safetensors")
    example = "pictures" if model.sample_ndim == 3 else "rows"
    with tempfile.TemporaryDirectory() as name:
        inputs = _inputs_to_compare(saved, model, Path(name), photos)
        build_onnx(model, folder / MODEL)
        shutil.copy(Path(__file__).parent / "examples" / f"{example}.py", folder / EXAMPLE)
        return compare_answers(model, folder, inputs)


def build_onnx(model: LitBase, path: Path) -> None:
    """Write an ONNX file. Its input is ``image`` (N, H, W, 3) uint8, or ``rows`` (N, F) float32.

    Its output is ``probabilities`` (N, K) float32 of a classifier, else ``outputs`` (N, K) float32.
    """
    import onnx  # here, because these packages are optional
    from onnx.compose import add_prefix, merge_models

    from lit_training.trained.onnx_pictures import OPSET, picture_graph

    takes_pictures, is_classifier = model.sample_ndim == 3, model.task == "classification"
    first, last = "square" if takes_pictures else "rows", "probabilities" if is_classifier else "outputs"
    example = sample_input(model).expand(2, *[-1] * model.sample_ndim)
    for library in ("torch.onnx", "onnxscript"):
        logging.getLogger(library).setLevel(logging.ERROR)
    names: Any = {"input_names": [first], "output_names": [last], "opset_version": OPSET}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("N")},)
        program: Any = torch.onnx.export(Answers(model), (example,), dynamic_shapes=shapes, verbose=False, **names)
    network = program.model_proto
    if takes_pictures:
        pictures = picture_graph(Preprocessing.from_dict(model.preprocessing))
        pictures.ir_version = network.ir_version
        pictures = add_prefix(pictures, "picture.", rename_inputs=False, rename_outputs=False)
        network = merge_models(pictures, network, io_map=[("pixels", first)])
        del network.opset_import[1:]  # the same twice
    form = {"image": "uint8 RGB (N, H, W, 3), upright, any size"} if takes_pictures else {"rows": "float32 (N, F)"}
    facts = describe_network(model) | {"input": json.dumps(form), "output": json.dumps({last: "float32 (N, K)"})}
    onnx.helper.set_model_props(network, facts)
    onnx.checker.check_model(network)
    onnx.save(network, path)


def _inputs_to_compare(saved: Any, model: LitBase, folder: Path, photos: str | None) -> list[str]:
    """Return files with at most MAX_COMPARED validation pictures or rows. Those that are no files are written first."""
    data: Any = saved.data() if saved.checkpoint["lit"].get("data_class") else None
    split_file, inputs = saved.folder / SPLIT, list[Tensor]()
    if photos is not None:
        if not isinstance(data, ImageFolderDataModule):
            raise UsageError(f"--photos {photos}: the run was not trained on photos; leave --photos out")
        data.root = Path(photos).expanduser()
    if model.sample_ndim == 3 and split_file.is_file():
        lines = [(line.split, data.root / path) for path, line in read_split_file(str(split_file)).items()]
        for wanted in ("val", "test", "train"):  # with --folds, all pictures were trained on
            if files := [str(path) for split, path in lines if split == wanted and path.is_file()]:
                count = min(len(files), MAX_COMPARED)
                return [files[len(files) * index // count] for index in range(count)]  # of all classes
        problem = f"the run's photos are not in {data.root}, so the export cannot be compared with the network"
        raise UsageError(f"{problem}: give their folder with --photos DIR")
    if data is not None and is_overridden("val_dataloader", data):
        data.setup("validate" if isinstance(data, SplitDataModule) else "fit")
        loader = data.val_dataloader()
        batches = itertools.chain(*(loader if isinstance(loader, list | tuple) else [loader]))
        samples = itertools.chain.from_iterable(one[0] if isinstance(one, list | tuple) else one for one in batches)
        inputs = [x for x in itertools.islice(samples, MAX_COMPARED) if isinstance(x, Tensor)]  # a dict has names
    if model.sample_ndim == 1:
        rows = torch.stack(inputs) if inputs else torch.randn(MAX_COMPARED, sample_input(model).shape[1])
        np.save(folder / "rows.npy", rows.numpy())
        return [str(folder / "rows.npy")]
    if not inputs:
        problem = "the run's data gives no validation pictures to compare the export with"
        raise UsageError(f"{problem}: use --to model.safetensors, or train with --data DIR")
    pixels = figures.undo_normalization(torch.stack(inputs), Preprocessing.from_dict(model.preprocessing))
    pictures = [str(folder / f"{index}.png") for index in range(len(inputs))]
    for file, picture in zip(pictures, (255 * pixels).round().byte().permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(picture).save(file)
    return pictures


def compare_answers(model: LitBase, folder: Path, files: Sequence[str]) -> str:
    """Run the example in ``folder`` on files, in a process without torch. Return one line of text.

    Raise a UsageError that names the worst files if an answer differs from the network's.
    """
    expected = [one for one in predict(model, files) if not one.error]
    files = list(dict.fromkeys(one.path for one in expected))  # without files that cannot be read
    if not files:
        raise UsageError("none of the run's pictures can be read, so the export cannot be compared: restore them")
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as copies:
        if model.sample_ndim == 3:
            files = [_readable_file(file, Path(copies, f"{number}.png")) for number, file in enumerate(files)]
        for start in range(0, len(files), MAX_ARGUMENTS):
            command = [sys.executable, str(folder / EXAMPLE), *files[start : start + MAX_ARGUMENTS]]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                reason = (result.stderr.strip() or f"exit code {result.returncode}").splitlines()[-1]
                raise UsageError(f"the exported file cannot be run, so nothing is written: {reason}")
            lines += result.stdout.splitlines()
    differences = []
    for one, line in zip(expected, lines, strict=True):
        answer = json.loads(line)
        own: Any = one.probabilities or dict(enumerate(one.outputs))
        other: Any = answer.get("probabilities") or dict(enumerate(answer["outputs"]))
        values = np.array([[own[key], other.get(key, np.nan)] for key in own])  # (K, 2)
        largest = np.abs(values[:, 0] - values[:, 1]).max() / max(1.0, np.abs(values[:, 0]).max())  # NaN if one is NaN
        name = one.path if one.row is None else f"row {one.row}"
        differences.append((float(np.nan_to_num(largest, nan=np.inf)), name))
    (worst, _), *_ = differences = sorted(differences, reverse=True)
    if worst > MAX_DIFFERENCE:
        problem = f"the largest difference is {worst:.2g}: {first_names([name for _, name in differences], 3)}"
        raise UsageError(f"the ONNX file does not answer as the network, so nothing is written: {problem}")
    same = "the same class for each, " if model.task == "classification" else ""
    count = plural(len(expected), "picture" if model.sample_ndim == 3 else "row")
    return f"{count}: {same}the largest difference is {worst:.1g}"


def _readable_file(file: str, copy: Path) -> str:
    """Return ``file``, or a PNG copy of a picture in a format that the example reads in another way, or not at all."""
    with Image.open(file) as picture:
        if picture.format in READ_BY_EXAMPLE:
            return file
    Image.fromarray(read_pixels(file).permute(1, 2, 0).numpy()).save(copy)
    return str(copy)
