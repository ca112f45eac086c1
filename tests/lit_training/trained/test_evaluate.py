import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from datamodules import DataError, ImageFolderDataModule, RandomDataModule, ShapesDataModule
from lit_models import LitCNN, LitMLP
from lit_training import figures
from lit_training.errors import CheckpointError, UsageError
from lit_training.trained.evaluate import Evaluation, Scores, evaluate
from lit_training.trained.outputs import draw_worst, report, worst_inputs


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def saved(bare, tmp_path):
    """``saved(model, data)``: the checkpoint, in a run's folder, of a model trained for an epoch; and what Lightning's
    own validation says of it."""

    def save(model, data):
        trainer = bare(max_epochs=1)
        trainer.fit(model, data)
        path = tmp_path / "run" / "checkpoints" / "best.ckpt"
        trainer.save_checkpoint(path)
        return path, trainer.validate(model, data, verbose=False)[0]

    return save


@pytest.fixture
def photo_run(saved, photo_folder):
    model = LitCNN(num_classes=2, lr=0.01)
    return saved(model, ImageFolderDataModule(str(photo_folder), image_size=32, num_workers=0))


def made_up(outputs: list[list[float]], targets: list[int], names: tuple[str, ...]) -> Evaluation:
    dataset: Any = [(torch.zeros(1, 8, 8), target) for target in targets]
    return Evaluation(
        Path("x.ckpt"), "Made", "test", 0.0, torch.tensor(outputs), torch.tensor(targets), dataset, names, None, None
    )


# --- the figures ----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_figures_are_those_of_torchmetrics(pairs):
    targets, predicted = (torch.tensor(column) for column in zip(*pairs, strict=True))
    outputs = torch.nn.functional.one_hot(predicted, 4).float()
    confusion = made_up(outputs.tolist(), targets.tolist(), tuple("abcd")).confusion()
    assert torch.equal(confusion, multiclass_confusion_matrix(predicted, targets, 4))
    scores = Scores.of(confusion)
    for ours, theirs in (
        (scores.precision, multiclass_precision),
        (scores.recall, multiclass_recall),
        (scores.f1, multiclass_f1_score),
    ):
        reference = theirs(predicted, targets, 4, average="none")
        assert torch.allclose(ours.nan_to_num(0).float(), reference)
    there = scores.support > 0
    recalls = multiclass_accuracy(predicted, targets, 4, average="none")
    assert scores.balanced_accuracy == pytest.approx(float(recalls[there].mean()))


def test_worst_mistakes_come_first():
    found = made_up([[3.0, 0.0], [0.0, 1.0], [0.0, 9.0], [5.0, 0.0]], [1, 0, 1, 1], ("a", "b"))
    assert found.worst() == [3, 0, 1]
    assert found.confusion().tolist() == [[0, 1], [2, 1]]


# --- what is evaluated ----------------------------------------------------------------------------------------


def test_photos_without_test_are_judged_as_validation_did(photo_run, photo_folder):
    path, validated = photo_run
    found, tells = evaluate(path)
    assert tells
    assert found.split == "val"
    assert found.loss == pytest.approx(validated["val_loss"], abs=1e-6)
    assert int(found.confusion().trace()) / 8 == pytest.approx(validated["val_acc"])
    assert found.paths is not None
    assert list(found.paths) == [f"val/{name}/{number}.jpg" for name in ("ants", "bees") for number in range(4)]
    assert found.class_names == ("ants", "bees")


def test_a_folder_with_test_is_judged_by_it(saved, photo_folder):
    shutil.copytree(photo_folder / "val" / "bees", photo_folder / "test" / "bees")
    Image.new("RGB", (40, 40), "red").save(photo_folder / "test" / "bees" / "other.png")
    path, _ = saved(LitCNN(num_classes=2), ImageFolderDataModule(str(photo_folder), image_size=32, num_workers=0))
    found, _ = evaluate(path)
    assert (found.split, len(found.targets)) == ("test", 5)
    assert found.targets.tolist() == [1] * 5  # ants are missing, and bees keep their number


def test_a_folder_split_by_us_is_split_the_same_again(saved, photo_folder):
    data = ImageFolderDataModule(str(photo_folder / "train"), image_size=32, num_workers=0, val_size=0.25)
    path, validated = saved(LitCNN(num_classes=2), data)
    assert data.photos is not None
    data.photos.write_split(path.parents[1] / "split.csv")
    before, _ = evaluate(path)
    for name in ("ants", "bees"):  # more pictures would mean another split
        for number in range(4):
            shutil.copy(
                photo_folder / "val" / name / f"{number}.jpg", photo_folder / "train" / name / f"new{number}.jpg"
            )
    after, _ = evaluate(path)
    assert list(after.paths or ()) == list(before.paths or ())
    assert len(after.targets) == 4
    assert after.loss == pytest.approx(validated["val_loss"], abs=1e-6)


def test_other_photos_are_matched_by_class_name(photo_run, photo_folder, tmp_path, capsys):
    path, _ = photo_run
    all_of_them, _ = evaluate(path)
    other = tmp_path / "other"
    shutil.copytree(photo_folder / "val" / "bees", other / "bees")
    (other / "bees" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    bees, _ = evaluate(path, str(other))
    assert bees.split == "photos"
    assert torch.equal(bees.targets, all_of_them.targets[4:])
    assert torch.allclose(bees.outputs, all_of_them.outputs[4:], atol=1e-6)
    assert "bees/broken.jpg: truncated" in capsys.readouterr().err
    (other / "bees").rename(other / "wasps")
    with pytest.raises(DataError, match=r"wasps: rename it to one of ants, bees"):
        evaluate(path, str(other))
    shutil.copytree(photo_folder / "train" / "ants", tmp_path / "both" / "train" / "ants")
    shutil.copytree(photo_folder / "val", tmp_path / "both" / "val")
    evaluate(path, str(tmp_path / "both"))
    assert "note: class bees is only in val: it cannot be learned, 4 pictures left out" in capsys.readouterr().err


def test_generated_pictures_are_judged_by_test(saved):
    data = ShapesDataModule(train_size=20, val_size=30)
    path, _ = saved(LitCNN(), data)
    found, _ = evaluate(path)
    data.setup("test")
    drawn: Any = data.sets["test"]
    assert found.split == "test"
    assert found.paths is None
    assert torch.equal(found.targets, drawn.labels)


def test_what_cannot_be_evaluated(saved, bare, photo_folder, tmp_path):
    rows, _ = saved(LitMLP(in_features=5, out_features=2), RandomDataModule(in_features=5, out_features=2, steps=2))
    with pytest.raises(UsageError, match="leave --data out"):
        evaluate(rows, str(photo_folder))
    with pytest.raises(DataError, match="nowhere"):
        evaluate(saved(LitCNN(), ShapesDataModule(train_size=4, val_size=4))[0], "nowhere")
    trainer, model = bare(max_epochs=1), LitCNN()
    data = ShapesDataModule(train_size=4, val_size=4)
    data.setup("fit")
    trainer.fit(model, data.train_dataloader(), data.val_dataloader())
    trainer.save_checkpoint("own.ckpt")
    with pytest.raises(CheckpointError, match="--data"):
        evaluate(Path("own.ckpt"))
    with pytest.raises(CheckpointError, match="classes are called"):
        evaluate(Path("own.ckpt"), str(photo_folder))


# --- the report -----------------------------------------------------------------------------------------------


def test_report_and_files(photo_run, capsys):
    path, validated = photo_run
    found, _ = evaluate(path)
    report(found)
    said = capsys.readouterr().out
    right = round(8 * validated["val_acc"])
    assert f"val_acc     {right / 8:.4f}  (95 % interval" in said
    assert f"{right} of 8 right)" in said
    assert "checkpoint  run/checkpoints/best.ckpt" in said
    assert "run/evaluation/: predictions.csv" in said
    folder = path.parents[1] / "evaluation"
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "predicted", "probability", "right"]
    assert [row["label"] for row in rows] == ["ants"] * 4 + ["bees"] * 4
    assert sum(int(row["right"]) for row in rows) == right
    assert all((row["label"] == row["predicted"]) == (row["right"] == "1") for row in rows)
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    with (folder / "confusion_matrix.csv").open(newline="") as file:
        matrix = list(csv.reader(file))
    assert matrix[0] == ["label", "ants", "bees"]
    assert [[int(count) for count in row[1:]] for row in matrix[1:]] == found.confusion().tolist()
    for name in ("confusion_matrix.png", "worst.png"):
        Image.open(folder / name).load()


def test_report_of_a_regression(saved, capsys):
    data = RandomDataModule(in_features=5, out_features=2, length=8, steps=2, batch_size=4)
    path, _ = saved(LitMLP(in_features=5, hidden=(), out_features=2), data)
    found, _ = evaluate(path)
    report(found)
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line)
    error = found.outputs - found.targets
    spread = found.targets - found.targets.mean(0)
    assert float(said["test_loss"]) == pytest.approx(float(error.square().sum()), rel=1e-3)
    assert float(said["MAE"]) == pytest.approx(float(error.abs().mean()), rel=1e-3)
    r2 = (1 - error.square().sum(0) / spread.square().sum(0)).mean()
    assert float(said["R2"]) == pytest.approx(float(r2), abs=1e-3)


def test_report_of_many_classes_names_the_weakest(capsys, monkeypatch, tmp_path):
    classes = 40
    outputs = torch.eye(classes)
    outputs[7] = outputs[8]
    report(made_up(outputs.tolist(), list(range(classes)), tuple(f"class{k:02}" for k in range(classes))))
    said = capsys.readouterr().out
    assert "the 12 of 40 classes with the lowest F1" in said
    assert said.index("class07") < said.index("class08") < said.index("class00")
    assert "true class, columns" not in said


def test_a_run_that_cannot_be_written(photo_run):
    path, _ = photo_run
    (path.parents[1] / "evaluation").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written"):
        report(evaluate(path)[0])


def test_contact_sheet_shows_what_the_network_saw(photo_run, monkeypatch):
    path, _ = photo_run
    found, _ = evaluate(path)
    wrong = found.worst()
    assert wrong, "untrained for one epoch, it errs"
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "sheet", lambda *given: drawn.append(given))
    x = worst_inputs(found)
    assert torch.equal(x[0], found.dataset[wrong[0]][0])
    draw_worst(found, figures.pixels(x, found.preprocessing or {}))
    pictures, titles, _ = drawn[0]
    assert torch.allclose(pictures, x / 2 + 0.5)
    assert len(titles) == len(wrong)
    first = wrong[0]
    taken_for, label = (found.class_names[numbers[first]] for numbers in (found.predicted, found.targets))
    assert titles[0] == f"{taken_for} {found.probability[first]:.0%}\nis {label}\n{found.name(first)[-5:]}"


def test_pictures_of_an_earlier_evaluation_do_not_stay(photo_run):
    """Without mistakes there is no worst.png: not the one of a worse checkpoint either."""
    path, _ = photo_run
    found, _ = evaluate(path)
    report(found)
    folder = path.parents[1] / "evaluation"
    assert (folder / "worst.png").is_file()
    (folder / "explained.png").write_bytes(b"of the same time")
    right = torch.nn.functional.one_hot(found.targets, 2).float()
    report(replace(found, outputs=right))
    assert sorted(file.name for file in folder.iterdir()) == [
        "confusion_matrix.csv",
        "confusion_matrix.png",
        "predictions.csv",
    ]
