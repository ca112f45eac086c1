"""``load``, which scripts, notebooks and programs use to open a trained network."""

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import DataError, ImageFolderDataModule, RandomDataModule, ShapesDataModule
from lit_models import LitCNN, LitMLP
from lit_training import Prediction, SavedRun, load
from lit_training.errors import CheckpointError, UsageError
from tests.support.commands import run, run_well
from tests.support.training import Trained

# --- which run --------------------------------------------------------------------------------------------------------


def make_runs(trained: Trained, *with_checkpoint: bool, root: str = ".") -> Path:
    """Copy the run to ``root/lightning_logs``, once per flag. The copies for False have no checkpoint."""
    logs = Path(root, "lightning_logs")
    for number, has_checkpoint in enumerate(with_checkpoint):
        folder = logs / f"version_{number}"
        shutil.copytree(trained.path.parents[1], folder)
        if not has_checkpoint:
            shutil.rmtree(folder / "checkpoints")
    return logs


def test_run_is_given_as_folder_file_or_latest(shapes_run: Trained, tmp_path: Path) -> None:
    logs = make_runs(shapes_run, True, True)
    expected = Path("lightning_logs/version_1/checkpoints/best.ckpt")
    assert load().path == load("latest").path == expected
    assert load("lightning_logs/version_1").path == load(logs / "version_1").path == expected
    assert load(expected).path == load(str(expected)).path == expected
    assert load("latest", root=tmp_path).path == tmp_path / expected
    assert load().folder == tmp_path / "lightning_logs" / "version_1"
    shutil.copy(expected, "copied.ckpt")
    assert load("copied.ckpt").folder == tmp_path


def test_run_without_best_epoch_opens_its_last_checkpoint(shapes_run: Trained) -> None:
    shapes_run.path.rename(shapes_run.path.with_name("last.ckpt"))
    assert load("run").path.name == "last.ckpt"


def test_latest_skips_a_run_without_checkpoint_and_prints_its_name(
    shapes_run: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    make_runs(shapes_run, True, True, False)
    assert load("latest").path == Path("lightning_logs/version_1/checkpoints/best.ckpt")
    assert capsys.readouterr().err == "note: latest is version_1, because version_2 has no best.ckpt or last.ckpt\n"


def test_latest_prints_the_names_of_skipped_runs(shapes_run: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    make_runs(shapes_run, True, False, False, False, False)
    load("latest")
    said = "note: latest is version_0, because version_4, version_3, version_2, ... have no best.ckpt or last.ckpt\n"
    assert capsys.readouterr().err == said


def test_latest_is_the_highest_number(shapes_run: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    logs = make_runs(shapes_run, False, True, True)
    (logs / "version_2").rename(logs / "version_10")
    assert load().path.parts[1] == "version_10"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("latest", "no run under lightning_logs has a best.ckpt or last.ckpt: start a run with "),
        ("nowhere", "nowhere does not exist: give a run's folder, a .ckpt file, or latest"),
        ("lightning_logs/version_0", "lightning_logs/version_0 has no best.ckpt or last.ckpt: give a run's folder"),
    ],
)
def test_error_of_a_missing_run_contains_its_name(shapes_run: Trained, name: str, said: str) -> None:
    make_runs(shapes_run, False)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        load(name)


def test_latest_without_any_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="no run under lightning_logs yet"):
        load()
    assert capsys.readouterr().err == ""


# --- model and data ---------------------------------------------------------------------------------------------------


def test_model_has_the_saved_weights_and_is_in_evaluation_mode(photo_run: Trained) -> None:
    model = load(photo_run.path).model()
    assert isinstance(model, LitCNN)
    assert not any(module.training for module in model.modules())
    assert model.class_names == ("ants", "bees")
    saved = torch.load(photo_run.path, weights_only=True)["state_dict"]
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_data_module_has_the_same_arguments(
    photo_run: Trained, shapes_run_of_session: Trained, rows_run_of_session: Trained
) -> None:
    photos = load(photo_run.path).data()
    assert isinstance(photos, ImageFolderDataModule)
    assert photos.photos is None  # not set up
    assert photos.hparams["image_size"] == 32
    shapes = load(shapes_run_of_session.path).data()
    assert isinstance(shapes, ShapesDataModule)
    assert (shapes.hparams["train_size"], shapes.hparams["val_size"]) == (20, 30)
    rows = load(rows_run_of_session.path).data()
    assert isinstance(rows, RandomDataModule)
    assert rows.sample_shape == (5,)


@pytest.mark.parametrize("method", ["model", "predict", "evaluate", "data"])
def test_file_that_is_not_a_checkpoint_is_refused_in_one_line(method: str) -> None:
    Path("odd.ckpt").write_bytes(b"no checkpoint")
    saved = load("odd.ckpt")
    with pytest.raises(CheckpointError, match=r"odd\.ckpt is not a checkpoint that can be read safely"):
        getattr(saved, method)(*["x.jpg"] * (method == "predict"))


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(photo_run: Trained) -> SavedRun:
    return load(photo_run.path)


@pytest.fixture
def picture() -> Path:
    pixels = np.random.default_rng(7).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("new.png")
    return Path("new.png")


def test_path_image_and_array_get_the_same_prediction(saved: SavedRun, picture: Path) -> None:
    image = Image.open(picture)
    answers = [saved.predict(source, "cpu") for source in (picture, str(picture), image, np.asarray(image))]
    assert all(isinstance(answer, Prediction) for answer in answers)
    first: Any = answers[0]
    assert first.path == "new.png"
    assert sum(first.probabilities.values()) == pytest.approx(1)
    assert list(first.probabilities) == sorted(first.probabilities, key=first.probabilities.__getitem__, reverse=True)
    assert [answer.probabilities for answer in answers] == [first.probabilities] * 4  # type: ignore[union-attr]


def test_mixed_list_gets_a_list_in_the_same_order(saved: SavedRun, picture: Path, photo_folder: Path) -> None:
    image = Image.open(picture)
    bee = photo_folder / "val" / "bees" / "0.jpg"
    alone: Any = [saved.predict(source) for source in (picture, bee)]
    several: Any = saved.predict([picture, bee, image, np.asarray(image), str(bee)])
    assert [answer.path for answer in several] == ["new.png", str(bee), "picture 3", "picture 4", str(bee)]
    expected = [alone[number].probabilities for number in (0, 1, 0, 0, 1)]
    for answer, probabilities in zip(several, expected, strict=True):
        assert answer.probabilities == pytest.approx(probabilities, abs=1e-6)
    assert saved.predict([picture]) == [alone[0]]
    assert saved.predict((picture,)) == [alone[0]]
    assert saved.predict([]) == []


def test_any_iterable_is_several_images(saved: SavedRun, photo_folder: Path) -> None:
    folder = photo_folder / "val" / "bees"
    expected: Any = saved.predict(sorted(folder.glob("*.jpg")))
    assert len(expected) == 4
    for images in (iter(sorted(folder.glob("*.jpg"))), dict.fromkeys(sorted(folder.glob("*.jpg")))):
        assert saved.predict(images) == expected
    assert saved.features(folder.glob("*.jpg")).shape == (4, 84)
    assert saved.predict(iter([])) == []


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (None, "this NoneType is not a picture: give a path, a PIL image"),
        (io.BytesIO(b"line 1\nline 2"), "this BytesIO is not a picture"),
        (torch.zeros(3, 8, 8), "this Tensor is not a picture"),
        ([["new.png"]], "this list is not a picture"),
        (Image.new("RGB", (0, 5)), "this Image is not a picture"),
        (np.zeros((0, 5, 3), np.uint8), "an array (0, 5, 3) of uint8 is not a picture"),
        ("new\0.png", "unreadable (embedded null byte)"),
        ("long" * 99, "unreadable (File name too long)"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(image: Any, said: str, saved: SavedRun) -> None:
    for method in (saved.predict, saved.features, saved.explain):
        with pytest.raises((UsageError, DataError), match=re.escape(said)):
            method(image)


def test_number_of_images(saved: SavedRun, picture: Path) -> None:
    for method in (saved.features, saved.explain):
        with pytest.raises(UsageError, match="give at least one image"):
            method([])
    with pytest.raises(UsageError, match="a batch_size of at least 1"):
        saved.features(picture, batch_size=0)
    with pytest.raises(UsageError, match="explain takes one image"):
        saved.explain([picture, picture])
    assert np.array_equal(saved.explain([picture]), saved.explain(picture))
    with pytest.raises(UsageError, match="there is no class 1: "):
        saved.explain(picture, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "why"), [("gone.jpg", "no such file"), ("text.jpg", "not a picture (text inside)")])
def test_unreadable_file_raises_if_single_and_has_an_error_in_a_list(
    name: str, why: str, saved: SavedRun, picture: Path
) -> None:
    Path("text.jpg").write_text("hello")
    with pytest.raises(UsageError) as refused:
        saved.predict(name)
    assert str(refused.value) == f"{name}: {why}"
    unread, read = saved.predict([name, picture])  # type: ignore[misc]
    assert unread == Prediction(name, error=why)
    assert read.label in ("ants", "bees")


@pytest.mark.parametrize("several", [False, True], ids=["alone", "in a list"])
def test_float_array_is_refused_in_one_line(several: bool, saved: SavedRun, picture: Path) -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.float32)
    with pytest.raises(DataError) as refused:
        saved.predict([picture, pixels] if several else pixels)
    assert str(refused.value) == "an array (32, 32, 3) of float32 is not a picture: give (H, W, 3) of uint8"


def test_file_of_rows_gets_a_list(rows_run: Trained) -> None:
    Path("rows.csv").write_text("1,2,3,4,5\n0,0,0,0,0\n")
    saved = load(rows_run.path)
    model = saved.model()
    assert isinstance(model, LitMLP)
    one, zero = saved.predict("rows.csv")  # type: ignore[misc]
    with torch.no_grad():
        expected = model(torch.tensor([[1.0, 2, 3, 4, 5], [0, 0, 0, 0, 0]]))
    assert [one.row, zero.row] == [1, 2]
    assert one.outputs == pytest.approx(expected[0].tolist())
    assert zero.outputs == pytest.approx(expected[1].tolist())


@pytest.mark.parametrize("as_path", [str, Path])
def test_folder_gets_a_list_also_of_unreadable_files(as_path: Any, saved: SavedRun, picture: Path) -> None:
    Path("broken").mkdir()
    Path("broken/text.jpg").write_text("hello")
    assert saved.predict(as_path("broken")) == [Prediction("broken/text.jpg", error="not a picture (text inside)")]
    Path("empty").mkdir()
    assert saved.predict(as_path("empty")) == [Prediction("empty", error="folder without files to predict")]
    Path("one").mkdir()
    picture.rename("one/new.png")
    [answer] = saved.predict(as_path("one"))  # type: ignore[misc]
    assert answer.path == "one/new.png"
    assert answer.label in ("ants", "bees")


def test_file_with_one_row_gets_a_list(rows_run: Trained) -> None:
    Path("row.csv").write_text("1,2,3,4,5\n")
    found: Any = load(rows_run.path).predict("row.csv")
    assert isinstance(found, list)
    assert [answer.row for answer in found] == [1]


@pytest.mark.parametrize("suffix", ["csv", "npy"])
def test_file_of_rows_can_be_a_path_object(suffix: str, rows_run: Trained) -> None:
    rows = np.arange(10.0).reshape(2, 5)
    np.save("rows.npy", rows)
    np.savetxt("rows.csv", rows, delimiter=",")
    saved = load(rows_run.path)
    found: Any = saved.predict(Path(f"rows.{suffix}"))
    assert found == saved.predict(f"rows.{suffix}")
    assert [answer.path for answer in found] == [f"rows.{suffix}"] * 2


def test_network_of_rows_takes_files_of_rows_only(rows_run: Trained) -> None:
    saved = load(rows_run.path)
    np.save("rows.npy", np.zeros((2, 5), np.float32))
    with pytest.raises(UsageError, match=r"LitMLP takes rows: give the path of a \.csv or \.npy file"):
        saved.predict(np.zeros((2, 5), dtype=np.float32))
    with pytest.raises(UsageError, match="LitMLP has no features: they need pictures"):
        saved.features("rows.npy")
    with pytest.raises(UsageError, match="is for image classifiers, not for LitMLP"):
        saved.explain("rows.npy", "ants")
    assert saved.class_names == ()


# --- same results as the scripts --------------------------------------------------------------------------------------


def test_probabilities_are_the_same_as_in_predict_py(saved: SavedRun, photo_folder: Path) -> None:
    out = run_well("predict.py run photos/val --accelerator cpu")
    rows = [line.split() for line in out.splitlines()[1:]]
    files = [row[0] for row in rows]
    assert len(files) == 8
    answers: Any = saved.predict(files, "cpu")
    assert rows == [
        [answer.path, *(text for name, value in answer.probabilities.items() for text in (name, f"{value:.6f}"))]
        for answer in answers
    ]


def test_scores_are_the_same_as_in_evaluate_py(saved: SavedRun) -> None:
    out = run_well("evaluate.py run --accelerator cpu")
    found = saved.evaluate(accelerator="cpu")
    printed = {line.split()[0]: line.split()[1] for line in out.splitlines() if line}
    right = int(found.confusion().trace())
    assert printed["val_acc"] == f"{right / 8:.4f}"
    assert printed["val_loss"] == f"{found.loss:.4g}"
    assert f"{right} of 8 right)" in out
    written = Path("run/evaluation/predictions.csv").read_text().splitlines()[1:]
    assert [line.split(",")[3] for line in written] == [f"{value:.6f}" for value in found.probability.tolist()]


def test_evaluation_of_other_photos_is_the_same_as_in_evaluate_py(saved: SavedRun, photo_folder: Path) -> None:
    out = run_well("evaluate.py run --data photos --accelerator cpu")
    found = saved.evaluate("photos", "cpu")
    assert (found.split, len(found.targets)) == ("photos", 8)
    assert f"data        {found.data}, photos: 8 samples" in out
    assert re.search(rf"^loss +{found.loss:.4g}$", out, re.MULTILINE)
    assert found.folder == Path("run/evaluation/photos").absolute()
    assert (found.folder / "predictions.csv").is_file()


@pytest.mark.parametrize("script", ["predict.py latest new.png", "evaluate.py latest"])
def test_scripts_print_the_name_of_the_run_that_latest_skips(script: str, shapes_run: Trained, picture: Path) -> None:
    make_runs(shapes_run, True, True, False)
    ended = run(f"{script} --accelerator cpu")
    assert (ended.code, ended.err) == (
        0,
        "note: latest is version_1, because version_2 has no best.ckpt or last.ckpt\n",
    )
