"""Evaluation: which split is used, matching of class names, and scores equal to those of torchmetrics."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from PIL import Image
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from datamodules import DataError, ImageFolderDataModule, ShapesDataModule
from lit_models import LitCNN
from lit_training import load
from lit_training.errors import CheckpointError, UsageError
from tests.support import by_hand
from tests.support.answers import make_evaluation
from tests.support.forks import Fork
from tests.support.training import Trained, train_and_save

# --- scores -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_scores_match_torchmetrics(pairs: list[tuple[int, int]]) -> None:
    targets, predicted = (torch.tensor(column) for column in zip(*pairs, strict=True))
    outputs = torch.nn.functional.one_hot(predicted, 4).float()
    evaluation = make_evaluation(outputs.tolist(), targets.tolist(), tuple("abcd"))
    confusion = evaluation.confusion()
    assert torch.equal(confusion, multiclass_confusion_matrix(predicted, targets, 4))
    assert evaluation.accuracy == pytest.approx(float(multiclass_accuracy(predicted, targets, 4, average="micro")))
    precision, recall, f1, support = evaluation.class_scores().T
    for score, reference_function in (
        (precision, multiclass_precision),
        (recall, multiclass_recall),
        (f1, multiclass_f1_score),
    ):
        reference = reference_function(predicted, targets, 4, average="none")
        assert torch.allclose(score.nan_to_num(0).float(), reference)
    assert support.tolist() == targets.bincount(minlength=4).tolist()
    recalls = multiclass_accuracy(predicted, targets, 4, average="none")
    assert float(recall.nanmean()) == pytest.approx(float(recalls[support > 0].mean()))


def test_worst_mistakes_come_first() -> None:
    evaluation = make_evaluation([[3.0, 0.0], [0.0, 1.0], [0.0, 9.0], [5.0, 0.0]], [1, 0, 1, 1], ("a", "b"))
    assert evaluation.worst_indices() == [3, 0, 1]
    assert evaluation.confusion().tolist() == [[0, 1], [2, 1]]


def test_accuracy_and_its_interval() -> None:
    evaluation = make_evaluation([[3.0, 0.0], [0.0, 1.0], [0.0, 9.0], [5.0, 0.0]], [0, 0, 1, 0], ("a", "b"))
    assert evaluation.correct.tolist() == [True, False, True, True]
    assert evaluation.accuracy == 0.75
    assert evaluation.interval == pytest.approx(by_hand.wilson(3, 4), abs=1e-6)


@pytest.mark.parametrize("name", ["correct", "accuracy", "interval"])
def test_regression_has_no_accuracy(name: str, rows_run: Trained) -> None:
    evaluation = load(rows_run.path).evaluate(accelerator="cpu")
    with pytest.raises(UsageError, match="a regression has no correct or wrong answers"):
        getattr(evaluation, name)


# --- choice of the data -----------------------------------------------------------------------------------------------


def test_photos_without_test_split_give_the_validation_scores(photo_run: Trained) -> None:
    path, validated = photo_run
    evaluation = load(path).evaluate()
    assert evaluation.split == "val"
    assert evaluation.loss == pytest.approx(validated["val_loss"], abs=1e-6)
    assert int(evaluation.confusion().trace()) / 8 == pytest.approx(validated["val_acc"])
    assert evaluation.paths is not None
    assert list(evaluation.paths) == [f"val/{name}/{number}.jpg" for name in ("ants", "bees") for number in range(4)]
    assert evaluation.class_names == ("ants", "bees")


def test_test_split_is_used_if_there_is_one(photo_folder: Path) -> None:
    shutil.copytree(photo_folder / "val" / "bees", photo_folder / "test" / "bees")
    Image.new("RGB", (40, 40), "red").save(photo_folder / "test" / "bees" / "other.png")
    data = ImageFolderDataModule(str(photo_folder), image_size=32, num_workers=0)
    path, _ = train_and_save(Path("run"), LitCNN(num_classes=2), data)
    evaluation = load(path).evaluate()
    assert (evaluation.split, len(evaluation.targets)) == ("test", 5)
    assert evaluation.targets.tolist() == [1] * 5  # there are no ants, but bees keep their index


def test_random_split_is_restored(photo_folder: Path) -> None:
    data = ImageFolderDataModule(str(photo_folder / "train"), image_size=32, num_workers=0, val_size=0.25)
    path, validated = train_and_save(Path("run"), LitCNN(num_classes=2), data)
    assert data.photos is not None
    data.photos.write_split(path.parents[1] / "split.csv")
    before = load(path).evaluate()
    for name in ("ants", "bees"):  # with more images, a new split would be different
        for number in range(4):
            shutil.copy(
                photo_folder / "val" / name / f"{number}.jpg", photo_folder / "train" / name / f"new{number}.jpg"
            )
    after = load(path).evaluate()
    assert list(after.paths) == list(before.paths)  # type: ignore[arg-type]
    assert len(after.targets) == 4
    assert after.loss == pytest.approx(validated["val_loss"], abs=1e-6)


def test_classes_of_other_photos_are_matched_by_name(
    photo_run: Trained, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load(photo_run.path)
    validation = saved.evaluate()
    other = tmp_path / "other"
    shutil.copytree(photo_folder / "val" / "bees", other / "bees")
    (other / "bees" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    bees = saved.evaluate(str(other))
    assert bees.split == "photos"
    assert torch.equal(bees.targets, validation.targets[4:])
    assert torch.allclose(bees.outputs, validation.outputs[4:], atol=1e-6)
    assert "bees/broken.jpg: truncated" in capsys.readouterr().err
    (other / "bees").rename(other / "wasps")
    with pytest.raises(DataError, match=r"the network has no class wasps: rename the subfolder to one of ants, bees"):
        saved.evaluate(str(other))
    shutil.copytree(photo_folder / "train" / "ants", tmp_path / "both" / "train" / "ants")
    shutil.copytree(photo_folder / "val", tmp_path / "both" / "val")
    both = saved.evaluate(str(tmp_path / "both"))  # without training pictures of bees
    assert torch.equal(both.outputs, validation.outputs)


def test_split_of_a_given_folder(photo_run: Trained, photo_folder: Path) -> None:
    """Test images are used if there are any, otherwise validation images, otherwise training images."""
    for folder, count in (("test", 2), ("val", 8), ("train", 16)):
        if folder == "test":
            for name in ("ants", "bees"):
                (photo_folder / "test" / name).mkdir(parents=True)
                Image.new("RGB", (40, 40), (9 * len(name), 80, 90)).save(photo_folder / "test" / name / "1.png")
        assert len(load(photo_run.path).evaluate(str(photo_folder)).targets) == count
        shutil.rmtree(photo_folder / folder)


def test_classes_with_the_same_name_are_matched_by_name_and_index(photo_run: Trained, photo_folder: Path) -> None:
    checkpoint = torch.load(photo_run.path, weights_only=True)
    checkpoint["lit"]["class_names"] = ["bees", "bees"]
    torch.save(checkpoint, photo_run.path)
    (photo_folder / "val" / "ants").rename(photo_folder / "val" / "bees (class 0)")
    (photo_folder / "train" / "ants").rename(photo_folder / "train" / "bees (class 0)")
    names = r"bees \(class 0\), bees \(class 1\)"
    with pytest.raises(DataError, match=f"the network has no class bees: rename the subfolder to one of {names}"):
        load(photo_run.path).evaluate(str(photo_folder))
    for split in ("train", "val"):
        (photo_folder / split / "bees").rename(photo_folder / split / "bees (class 1)")
    evaluation = load(photo_run.path).evaluate(str(photo_folder))
    assert evaluation.targets.tolist() == [0] * 4 + [1] * 4
    assert evaluation.class_names == ("bees (class 0)", "bees (class 1)")


def test_generated_images_have_a_test_split(shapes_run: Trained) -> None:
    evaluation = load(shapes_run.path).evaluate()
    data = ShapesDataModule(train_size=20, val_size=30)
    data.setup("test")
    drawn: Any = data.sets["test"]
    assert evaluation.split == "test"
    assert evaluation.paths is None
    assert torch.equal(evaluation.targets, drawn.labels)


def test_photos_are_refused_for_a_network_of_rows(rows_run: Trained, photo_folder: Path) -> None:
    with pytest.raises(UsageError, match="leave --data out"):
        load(rows_run.path).evaluate(str(photo_folder))


def test_error_of_a_missing_folder_contains_its_path(shapes_run: Trained) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load(shapes_run.path).evaluate("nowhere")


def test_checkpoint_without_data_module_or_class_names_is_refused(
    bare: Callable[..., Trainer], photo_folder: Path
) -> None:
    trainer, model = bare(max_epochs=1), LitCNN()
    data = ShapesDataModule(train_size=4, val_size=4)
    data.setup("fit")
    trainer.fit(model, data.train_dataloader(), data.val_dataloader())
    trainer.save_checkpoint("own.ckpt")
    with pytest.raises(CheckpointError, match="evaluate it in your own code"):  # --data would be refused
        load("own.ckpt").evaluate()
    with pytest.raises(CheckpointError, match="no class names"):
        load("own.ckpt").evaluate(str(photo_folder))


def test_an_older_checkpoint_with_data_of_the_user_is_refused(rows_run_of_session: Trained) -> None:
    checkpoint = torch.load(rows_run_of_session.path, weights_only=True)
    checkpoint["lit"]["data_class"] = "OwnData"
    torch.save(checkpoint, "own.ckpt")
    with pytest.raises(CheckpointError, match=r"contains OwnData, which this project does not have: open it in your"):
        load("own.ckpt").evaluate()


# --- several devices --------------------------------------------------------------------------------------------------

TWO_PROCESSES = """
import torch
from lit_training import load
from datamodules.text import is_rank_zero

torch.set_num_threads(1)
evaluation = load("model.ckpt").evaluate(None, "cpu", "2")
if is_rank_zero():
    torch.save((evaluation.outputs, evaluation.targets, evaluation.loss, evaluation.confusion()), "two.pt")
"""


@pytest.mark.slow
def test_two_processes_give_the_same_result_as_one(bare: Callable[..., Trainer]) -> None:
    trainer = bare(max_epochs=1)
    trainer.fit(LitCNN(), ShapesDataModule(train_size=10, val_size=7))
    trainer.save_checkpoint("model.ckpt")
    Path("evaluate_on_two.py").write_text(TWO_PROCESSES)
    process = Fork(f"{Path('evaluate_on_two.py').resolve()} --devices 2")
    printed_text = process.communicate()
    assert process.returncode == 0, printed_text
    outputs, targets, loss, confusion = torch.load("two.pt", weights_only=True)
    alone = load("model.ckpt").evaluate(accelerator="cpu")
    assert outputs.shape == (7, 10)
    assert torch.equal(outputs, alone.outputs)
    assert torch.equal(targets, alone.targets)
    assert loss == alone.loss
    assert torch.equal(confusion, alone.confusion())
    assert int(confusion.sum()) == 7
