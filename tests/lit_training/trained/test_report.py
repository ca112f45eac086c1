"""report.html and MODEL_CARD.md: what they state, for which runs, and that no name becomes HTML, Markdown or YAML."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lit_training import load
from lit_training.runs.out_of_fold import read_out_of_fold
from lit_training.trained import report
from lit_training.trained.outputs import class_rows
from tests.support.commands import run, run_well
from tests.support.photos import write_cats_and_dogs

FIT = "fit.py --accelerator cpu --dashboard false --quiet --max_epochs 2"
SHAPES = f"{FIT} --data.train_size 60 --data.val_size 40 --data.batch_size 20 --model.lr 0.02"
PHOTOS = f"{FIT} --data photos --model LitCNN --data.image_size 32 --data.num_workers 0 --data.max_bad_fraction 0.5"
RUN = Path("lightning_logs/version_0")
HOSTILE = ("<script>alert(1)<", "{{ 7 * 7 }}", "a|b `c` *d* [e](f)", "-- ]]> &amp; '\" $x$", "é\u202ex")


class Page(HTMLParser):
    """The text, the tags and the sources of the images of a report."""

    def __init__(self, folder: Path = RUN) -> None:
        super().__init__()
        self.text, self.tags, self.images = "", list[str](), list[str]()
        self.feed((folder / "report.html").read_text("utf-8").replace("</", " </"))
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        self.images += [value for name, value in attributes if (tag, name) == ("img", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[str]:
        return [one for one in self.images if one.startswith("data:image/jpeg;base64,")]

    def figures(self) -> list[str]:
        return [one for one in self.images if one.startswith("data:image/png;base64,")]


def card_of(folder: Path = RUN) -> tuple[Any, str]:
    """Return the metadata and the text of a model card. The Hub's own class must accept them."""
    content = (folder / "MODEL_CARD.md").read_text("utf-8")
    if hub := pytest.importorskip("huggingface_hub"):
        card = hub.ModelCard(content)
        assert card.data.to_dict().keys() >= {"license", "library_name"}
    _, head, text = content.split("---\n", 2)
    return yaml.safe_load(head), text


@pytest.mark.figures
def test_shapes_after_training_and_after_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    out = run_well(SHAPES)
    page, (head, text) = Page(), card_of()
    accuracy = re.search(r"val_acc +(\d\.\d{4})", out)[1]  # type: ignore[index]
    right = round(float(accuracy) * 40)
    assert f"val_acc {accuracy} (95 % interval" in page.text
    assert f"{right} of 40 right)" in page.text
    assert "The validation data also chose the best epoch" in page.text
    assert "disc 6 4 " in page.text
    assert "all 60 40 " in page.text
    assert len(page.pictures()) == 10 * 4 + min(12, 40 - right)
    assert len({*page.pictures()[-40:]}) == 40, "no class shows the pictures of another one"
    assert len({*page.pictures()[:-40]}) == min(12, 40 - right)
    assert len(page.figures()) == 3 + 2  # accuracy, loss, learning rate; confusion, reliability
    assert "lr: 0.02" in page.text
    assert "python fit.py" in page.text or "scripts/fit.py --config lightning_logs/version_0/config.yaml" in page.text
    assert json.loads((RUN / "run.json").read_text())[0]["packages"]["torch"] in page.text
    [result] = head["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "accuracy", "value": float(accuracy)}
    assert (result["dataset"]["split"], result["task"]["type"]) == ("val", "image-classification")
    assert "| class | train | val | test |\n| --- | --- | --- | --- |\n" in text
    assert "\n| disc | 6 | 4 | 4 |\n" in text
    assert "Calibration: temperature" in text
    run_well(f"evaluate.py {RUN}")
    page, (head, text) = Page(), card_of()
    evaluation = load(RUN).evaluate()
    assert f"test_acc {evaluation.accuracy:.4f} (95 % interval" in page.text
    row = evaluation.worst_indices()[0]
    guess, label = (evaluation.class_names[int(of[row])] for of in (evaluation.predicted, evaluation.targets))
    assert f" {guess} is {label} sample {row}" in page.text
    lowest = evaluation.class_scores()[:, 2].argsort(stable=True)[:3].tolist()
    monkeypatch.setattr(report, "MAX_ROWS", 3)
    run_well(f"evaluate.py {RUN}")
    rows = [" ".join(cells) for cells in class_rows(evaluation, "-", 4)]
    assert [k for k in range(10) if rows[k] in Page().text] == sorted(lowest)
    assert f"val_acc {accuracy} " in page.text
    assert "Answers on test data" in page.text
    assert "disc 6 4 4 " in page.text
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == pytest.approx(evaluation.accuracy, abs=1e-4)
    files = json.loads((RUN / "sha256.json").read_text())
    assert {"report.html", "MODEL_CARD.md"} <= {*files}
    assert run_well(f"evaluate.py {RUN} --verify --accelerator cpu").endswith("all files and figures agree\n")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    Image.new("RGB", (40, 30)).save("photo.jpg")
    monkeypatch.chdir(RUN.parent)
    shutil.copy("../photo.jpg", ".")
    exec(code, variables := {})  # type: ignore[var-annotated]
    assert variables["answer"].label in evaluation.class_names


def test_photos_that_are_broken_deleted_and_moved() -> None:
    write_cats_and_dogs(Path("photos"), 10)
    Path("photos/cat/bad.jpg").write_bytes(b"not a picture")
    run_well(PHOTOS)
    page, (_, text) = Page(), card_of()
    assert "cat 8 2 " in page.text
    assert "Left out (1) file kind reason " in page.text
    assert "cat/bad.jpg not a picture" in page.text
    assert "photos, train: 16, val: 4, left out: 1 files" in text
    wrong = [name for name in re.findall(r"(?:cat|dog)/\d\.jpg", page.text) if name]
    assert len(page.pictures()) == 8 + len(wrong)
    shutil.move("photos", "album")
    run_well(f"evaluate.py {RUN} --photos album")
    assert len(Page().pictures()) == 8 + len(wrong)
    before = (RUN / "report.html").read_bytes()
    run_well(f"evaluate.py {RUN} --photos album --data album --all")  # other photos are not the run's own data
    assert (RUN / "report.html").read_bytes() == before
    for photo in Path("album/cat").glob("*.jpg"):
        photo.unlink()
    with pytest.MonkeyPatch.context():
        run_well(f"evaluate.py {RUN} --photos album")
    assert 4 <= len(Page().pictures()) < 8 + len(wrong)
    assert "cat 8 2 " in Page().text


def write_hostile_photos(root: Path) -> None:
    for label, name in enumerate(HOSTILE):
        (root / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.full((40, 40, 3), 40 * label, np.uint8)
            pixels[number * 5 :] = 255
            Image.fromarray(pixels).save(root / name / f"<img src=x onerror=alert({number})>{{% set a %}}.png")


@pytest.mark.figures
def test_hostile_names_are_text() -> None:
    write_hostile_photos(Path("photos"))
    run_well(PHOTOS)
    page, (head, text) = Page(), card_of()
    assert not {"script", "iframe", "object"} & {*page.tags}
    assert all(source.startswith("data:image/") for source in page.images)
    for name in HOSTILE[:4]:
        assert re.sub(r"\s+", " ", name) in page.text
    assert "\u202e" not in page.text
    assert "\\u202ex" in page.text
    assert "<img src=x onerror=alert(" in page.text
    for name in ("\\<script\\>", "{{ 7 \\* 7 }}", "a\\|b \\`c\\` \\*d\\*", "\\&amp;"):
        assert name in text
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "photos"


def test_a_run_with_folds_shows_the_figures_of_the_folds() -> None:
    write_cats_and_dogs(Path("photos"), 10)
    out = run_well(f"{PHOTOS} --folds 2 --repeats 2")
    [line] = re.findall(r"fold_acc +(.*)", out)
    found = read_out_of_fold(RUN / "out_of_fold.csv")
    first = found.take(found.repeats == 1)
    assert float(line.split()[0]) == pytest.approx(found.correct.mean(), abs=6e-5)
    for command in ("", f"evaluate.py {RUN}"):
        printed = run_well(command) if command else ""
        page, (head, text) = Page(), card_of()
        assert f"fold_acc {re.sub(' +', ' ', line)} balanced" in page.text
        assert f"- fold\\_acc: {line}" in text
        for label, name in enumerate(("cat", "dog")):
            recall = first.correct[first.labels == label].mean()
            assert re.search(rf" {name} \S+ {recall:.4f} \S+ 10 ", page.text)
        wrong = [*first.paths[~first.correct]]
        assert [path in page.text for path in wrong[:12]] == [True] * min(12, len(wrong))
        assert len(page.pictures()) == 8 + len(wrong)
        assert len(page.figures()) == 2 + 2  # loss, learning rate; confusion, reliability
        temperature = load(RUN).checkpoint["lit"]["calibration"]["temperature"]
        assert f"temperature {temperature:.3g} (from 20 samples: out-of-fold" in page.text
        assert f"Calibration: temperature {temperature:.3g}  (from" in text
        assert head["model-index"][0]["results"][0]["metrics"][0]["type"] == "accuracy"
    assert f"fold_acc    {line}\n" in printed
    assert "note: the temperature was fitted on out-of-fold, so on the same samples" in printed


OWN = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

class Noise(LightningDataModule):
    num_classes = 3

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(60, 3, 32, 32), torch.arange(60) % 3), 20)

    train_dataloader = val_dataloader
"""


def test_data_of_the_user_without_class_names() -> None:
    Path("own_noise.py").write_text(OWN)
    run_well(f"{FIT} --model LitCNN --data own_noise.Noise")
    page, (_, text) = Page(), card_of()
    assert "Gives each picture a probability for each of 3 classes." in text
    assert re.search(r"which also chose the epoch; .*\); unlike +no picture can be marked", text)
    assert "half of val) unlike no picture can be marked" in page.text
    assert re.search(r" 2 \S+ \S+ \S+ 20 ", page.text)
    assert "Data: Noise How to repeat it" in page.text


def test_regression_has_no_confusion_matrix() -> None:
    run_well(f"{FIT} --model LitMLP --data.length 8 --data.steps 4")
    page, (head, text) = Page(), card_of()
    assert {"R2", "MAE"} <= {*page.text.split()}
    assert "confusion" not in page.text
    assert len(page.figures()) == len(page.images) == 2
    assert head["model-index"][0]["results"][0]["metrics"][0]["type"] == "val_loss"
    assert "rows.csv" in text


def test_the_classes_with_the_lowest_f1_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.1, 0.9, 0.2]])  # precision, recall and F1 of each class
    names = ("low recall", "low F1")
    evaluation: Any = SimpleNamespace(targets=torch.tensor([0]), dataset=None, split="val", class_names=names)
    vars(evaluation).update(calibration=None, worst_indices=list, class_scores=lambda: scores, confusion=lambda: 0)
    monkeypatch.setattr(report, "class_rows", lambda *_: names)
    monkeypatch.setattr(report, "MAX_ROWS", 1)
    monkeypatch.setattr(report.figures, "draw_confusion", lambda *_: None)
    monkeypatch.setattr(report, "_image", str)
    assert report._sample_facts({}, None, None, evaluation)["scores"] == ["low F1"]


def test_the_learning_rate_is_drawn_over_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    figure = SimpleNamespace(set_size_inches=lambda *_: None)
    monkeypatch.setattr(report.figures, "draw_curves", lambda charts: drawn.append(charts) or figure)  # type: ignore[func-returns-value]
    monkeypatch.setattr(report, "_image", str)
    rows = [{"epoch": "", "step": f"{step}", "lr-SGD": f"{step / 10}"} for step in range(0, 2000, 2)]
    for epoch in range(2):
        rows.append({"epoch": f"{epoch}", "step": f"{1000 * epoch + 999}", "lr-SGD": ""})
    report._curves(SimpleNamespace(curves={}, rows=rows))
    epochs, rates = drawn[0]["learning rate"]["lr-SGD"]
    assert (len(epochs), epochs[0], rates[0]) == (334, 0.001, 0.0)
    assert (epochs[-1], rates[-1]) == (1.999, 199.8)


def test_pictures_have_a_side_of_160_pixels() -> None:
    data = SimpleNamespace(preprocessing=SimpleNamespace(mean=[0.5], std=[0.5]))
    uri = report._picture([(torch.zeros(3, 320, 240), 0)], 0, data)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert picture.size == (120, 160)


@pytest.mark.figures
def test_many_classes_stay_small() -> None:
    for label in range(300):
        for number in range(2 + (label < 5)):
            folder = Path("photos", ("train", "val", "train")[number], f"class {label:03}")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(3 * label + number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    run_well(f"{PHOTOS} --data.batch_size 64 --max_epochs 1")
    page = Page()
    assert "the 40 of 300 with the lowest F1" in page.text
    assert page.text.count("class 0") <= 4 * 40
    assert len(page.pictures()) == 40 + 12
    assert ("class 004 2 1 " in page.text, "class 005 1 1 " in page.text) == (False, True)  # the smallest are shown
    assert (RUN / "report.html").stat().st_size < 1_000_000


@pytest.mark.parametrize("flags", ["--limit_val_batches 0", "--enable_checkpointing false", "--overfit_batches 1"])
def test_runs_without_validation_or_checkpoint(flags: str) -> None:
    run_well(f"{SHAPES} {flags}")
    page = Page()
    assert "train_loss" in page.text
    assert ("Answers on val data" in page.text) == ("limit" not in flags)
    assert card_of()[0]["license"] == "unknown"


@pytest.mark.parametrize("flags", ["--logger false", "--fast_dev_run true", "--report false"])
def test_runs_without_a_report(flags: str) -> None:
    out = run_well(f"{SHAPES} {flags}")
    assert "val" in out
    assert not list(Path().rglob("report.html"))


def test_a_resumed_run_has_a_new_report() -> None:
    run_well(SHAPES)
    before = Page().text
    run_well(f"fit.py --resume {RUN} --max_epochs 3 --quiet")
    assert "max_epochs: 3" in Page().text
    assert before.count("Started") == 1
    assert Page().text.count("Started") == 2


def test_a_failure_is_one_line_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied", "report.html")

    monkeypatch.setattr(report, "atomic_write", fail)
    ended = run(SHAPES)
    assert ended.code == 0
    [line] = [line for line in ended.err.splitlines() if "report.html" in line]
    assert re.match(r"note: report.html and MODEL_CARD.md in .*version_0 are not up to date \(PermissionError: ", line)
    assert (RUN / "sha256.json").is_file()
    monkeypatch.setattr(report, "CAUGHT", (Exception,))
    monkeypatch.setattr(report, "_run_facts", lambda *_: 1 / 0)
    ended = run(f"evaluate.py {RUN}")
    assert (ended.code, "(ZeroDivisionError: " in ended.err) == (0, True)
