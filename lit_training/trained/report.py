"""Write report.html and MODEL_CARD.md: what a network was trained on, its results, how to repeat and how to use it."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jinja2 import Environment, FileSystemLoader, select_autoescape
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from datamodules.files import atomic_write, read_csv
from datamodules.image_folder import ImageFolderDataModule
from datamodules.loading.memory import Pictures
from datamodules.loading.module import SplitDataModule
from datamodules.photos.dataset import PhotoFiles
from datamodules.photos.decode import read_picture
from datamodules.photos.find import SPLITS
from datamodules.photos.split import read_split_file
from datamodules.text import command, print_note, printable
from lit_models import LitBase
from lit_models.backbones import license_of_weights
from lit_training import figures
from lit_training.runs.folder import relative_path
from lit_training.runs.layout import CONFIG, LEFT_OUT, METRICS, MODEL_CARD, OUT_OF_FOLD, RECORD, REPORT, SPLIT
from lit_training.runs.own_classes import is_own
from lit_training.trained.compare import format_metric, read_run
from lit_training.trained.evaluate import Evaluation, read_folds
from lit_training.trained.load import load
from lit_training.trained.outputs import class_rows, draw_reliability, scores_of
from lit_training.trained.predict import class_names_of

SIDE, MAX_EXAMPLES = 160, 48  # pixels of a picture's longer side; pictures of all classes together
MAX_ROWS, MAX_POINTS = 40, 500  # of a table; of a curve
CAUGHT: tuple[type[Exception], ...] = (Exception,)  # errors that must not end a command; tests catch fewer
MARKDOWN = str.maketrans({character: f"\\{character}" for character in r"\`*_[]<>#|&$~"})
NOTE = "The validation data also chose the best epoch: its results are a little too good."


def write_report(folder: Path, model: Any, data: Any, evaluation: Evaluation | None) -> None:
    """Write both files into the folder of a run, or print why they cannot be written.

    ``evaluation`` is of the validation or test data of ``data``; its ``dataset`` is None if it is that of ``data``.
    """
    loader, is_html = FileSystemLoader(Path(__file__).parent), select_autoescape(["html.j2"])
    try:
        if not evaluation and (folder / OUT_OF_FOLD).is_file():  # of a run with --folds
            evaluation = read_folds(load(str(folder)), model)
        sets = _datasets(folder, model, data, evaluation)
        facts = _run_facts(folder, model, data, evaluation) | _sample_facts(sets, model, data, evaluation)
        for name, change in ((REPORT, printable), (MODEL_CARD, lambda text: printable(text).translate(MARKDOWN))):
            # what a template has made, with __html__, is not changed again
            options: Any = {"finalize": lambda x, to=change: to(x) if type(x) in (str, np.str_) else x}
            environment = Environment(loader=loader, autoescape=is_html, trim_blocks=True, **options)
            with atomic_write(folder / name, "w") as file:
                file.write(environment.get_template(f"{name}.j2").render(facts))
    except CAUGHT as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print_note(f"{REPORT} and {MODEL_CARD} in {relative_path(folder)} are not up to date ({reason})")


def _datasets(folder: Path, model: Any, data: Any, evaluation: Any) -> dict[str, Any]:
    """Return split -> dataset of a data module of this project. Photos are those in split.csv, in their order."""
    sets: dict[str, Any] = {} if evaluation is None else {evaluation.split: evaluation.dataset}
    if isinstance(data, ImageFolderDataModule) and (folder / SPLIT).is_file():
        root = getattr(evaluation and evaluation.dataset, "root", data.root)  # the photos may have moved
        lines, number = read_split_file(str(folder / SPLIT)), {name: k for k, name in enumerate(model.class_names)}
        for split in SPLITS:
            rows = {path: number.get(line.label, -1) for path, line in lines.items() if line.split == split}
            paths, labels = np.array([*rows]), torch.tensor([*rows.values()])
            sets |= {split: PhotoFiles(root, paths, labels, data.preprocessing, (), 0)} if rows else {}
    elif isinstance(data, SplitDataModule):
        if not getattr(data, "sets", None):
            data.setup("fit")
        sets |= {split: getattr(one, "pictures", one) for split, one in data.sets.items()}
    return {split: sets[split] for split in SPLITS if hasattr(sets.get(split), "__len__")}


def _run_facts(folder: Path, model: Any, data: Any, evaluation: Any) -> dict[str, Any]:
    """Return what the templates show about the run, the network and its results."""
    texts = {name: (folder / name).read_text("utf-8") for name in (CONFIG, RECORD) if (folder / name).is_file()}
    run = read_run(str(folder)) if (folder / METRICS).is_file() else None
    best = {name: format_metric(name, value) for name, value in run.best.items()} if run else {}
    split, results = evaluation and evaluation.split, best | (scores_of(evaluation) if evaluation else {})
    backbone, weights = (str(model.hparams.get(name) or "") for name in ("backbone", "weights"))
    owner = "unknown" if is_own(type(model)) else license_of_weights(backbone, weights)
    network, place = backbone or type(model).__name__, type(data or model).__name__
    place = data.root.resolve().name if isinstance(data, ImageFolderDataModule) else place
    takes = {3: "picture", 1: "row of numbers"}.get(getattr(model, "sample_ndim", 0), "sample")
    shown = [(name, float(text.split()[0])) for name, text in results.items() if name.startswith(f"{split}_")]
    values = [{"type": name.replace(f"{split}_acc", "accuracy"), "value": value} for name, value in shown]
    task = {"type": f"{'image' if takes == 'picture' else 'tabular'}-{getattr(model, 'task', None)}"}
    measured = {"task": task, "dataset": {"type": place, "name": place, "split": split}, "metrics": values}
    known = owner.partition(" ")[0].lower()
    head: Any = {"license": "unknown" if known in ("that", "none:") else known, "library_name": "lightning"}
    head |= {"model-index": [{"name": f"{network} on {place}", "results": [measured]}]} if values else {}
    file, kind = "photo.jpg" if takes == "picture" else "rows.csv", type(model).__name__
    code = f"from lit_training import load\nanswer = load({folder.name!r}).predict({file!r})\nprint(answer)"
    own = f"from {type(model).__module__} import {kind}\nnetwork = {kind}.load_from_checkpoint('best.ckpt')"
    facts = {"title": f"{network} on {place}", "place": place, "takes": takes, "license": owner, "split": split}
    facts |= {
        "run": folder.name,
        "results": results,
        "note": NOTE * any(name.startswith("val_") for name in results),
        "code": code if isinstance(model, LitBase) else own,
    }
    facts |= {"settings": texts.get(CONFIG, "").splitlines(), "starts": json.loads(texts.get(RECORD, "[{}]"))}
    facts |= {"checkpoint": evaluation.checkpoint.name if evaluation else "", "curves": _curves(run) if run else []}
    facts["parameters"] = f"{sum(weight.numel() for weight in model.parameters()):,}"
    left_out = read_csv(folder / LEFT_OUT) if (folder / LEFT_OUT).is_file() else []
    facts["repeat"] = command("fit.py", "--config", relative_path(folder / CONFIG))
    facts["left_out"] = [[*row.values()] for row in left_out]
    return facts | {"head": yaml.safe_dump(head, allow_unicode=True, sort_keys=False)}


def _sample_facts(sets: dict[str, Any], model: Any, data: Any, evaluation: Any) -> dict[str, Any]:
    """Return what the templates show about the samples, and about the answers of a classifier."""
    names = class_names_of(model) if isinstance(model, LitBase) else []
    labels: dict[str, Any] = {split: getattr(one, "labels", None) for split, one in sets.items()}
    is_known = names and all(isinstance(one, Tensor) and one.dtype == torch.int64 for one in labels.values())
    counts = [torch.bincount(one[one >= 0], minlength=len(names)) for one in labels.values()] if is_known else []
    shown = counts[0].argsort(stable=True)[:MAX_ROWS].sort().values.tolist() if counts else []
    classes, each = [], max(1, min(4, MAX_EXAMPLES // max(1, len(shown))))
    for k in shown:
        rows = (labels["train"] == k).nonzero().flatten().tolist() if "train" in sets else []
        uris = [_picture(sets["train"], row, data) for row in rows[:: len(rows) // each or 1][:each]]
        classes.append((names[k], [int(column[k]) for column in counts], [*filter(None, uris)]))
    facts = {"names": names, "classes": classes, "totals": {split: len(one) for split, one in sets.items()}}
    if evaluation is None or evaluation.targets.is_floating_point():
        return facts
    source: Any = sets.get(evaluation.split) if evaluation.dataset is None else evaluation.dataset
    is_ordered, mistakes = isinstance(data, SplitDataModule) and hasattr(source, "__len__"), []
    is_ordered = is_ordered and len(source) == len(evaluation.targets)
    for row in evaluation.worst_indices():
        path = source.paths[row] if is_ordered and isinstance(source, PhotoFiles) else f"sample {row}"
        pair = (evaluation.class_names[int(k[row])] for k in (evaluation.predicted, evaluation.targets))
        uri = _picture(source, row, data) if is_ordered else ""
        mistakes.append((uri, *pair, f"{float(evaluation.probability[row]):.0%}", path))
    by_f1 = evaluation.class_scores()[:, 2].nan_to_num(2.0).argsort(stable=True)[:MAX_ROWS].sort().values.tolist()
    scores, known = class_rows(evaluation, "-", 4), evaluation.calibration
    drawn = {"confusion matrix": figures.draw_confusion(evaluation.confusion(), evaluation.class_names)}
    drawn |= {"reliability diagram": draw_reliability(evaluation)} if known else {}
    facts |= {"scores": [scores[k] for k in by_f1], "mistakes": mistakes}
    facts["figures"] = [(title, _image(figure)) for title, figure in drawn.items()]
    return facts | {"calibration": known.report().splitlines() if known else []}


def _curves(run: Any) -> list[tuple[str, str]]:
    """Return the title and the data URI of each chart."""
    charts: dict[str, dict[str, Any]] = {}
    for name, curve in run.curves.items():
        charts.setdefault(name.rpartition("_")[2].replace("acc", "accuracy"), {})[name] = [*curve], [*curve.values()]
    ends = [(int(row["step"]) + 1) / (int(row["epoch"]) + 1) for row in run.rows if row.get("epoch")]  # steps per epoch
    for name in (name for name in (run.rows or [{}])[0] if name.startswith("lr-") and ends):
        rates = [((int(row["step"]) + 1) / ends[-1], float(row[name])) for row in run.rows if row.get(name)]
        charts.setdefault("learning rate", {})[name] = tuple(zip(*rates[:: len(rates) // MAX_POINTS + 1], strict=True))
    drawn = [figures.draw_curves({title: lines}) for title, lines in charts.items()]
    for figure in drawn:
        figure.set_size_inches(4.6, 3.3)
    return [*zip(charts, map(_image, drawn), strict=True)]


def _image(figure: Any) -> str:
    figure.savefig(file := io.BytesIO(), format="png", dpi=160)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _picture(dataset: Any, row: int, data: Any) -> str:
    """Return a picture of a dataset as a data URI; "" if it cannot be read, for example because it was deleted."""
    try:
        if isinstance(dataset, PhotoFiles):
            picture = read_picture(dataset.root / dataset.paths[row], SIDE)
        elif isinstance(dataset, Pictures):
            picture = to_pil_image(dataset.images[row].cpu())  # not augmented
        else:
            picture = to_pil_image(figures.undo_normalization(dataset[row][0][None], data.preprocessing)[0])
    except Exception:  # also any error of a dataset of the user
        return ""
    picture.thumbnail((SIDE, SIDE))
    picture.save(file := io.BytesIO(), "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
