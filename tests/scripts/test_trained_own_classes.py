"""Models and data modules of the user: what fit.py has trained, the other commands open, with the same numbers."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_training.callbacks.resume import ResumePoint
from tests.support import fits
from tests.support.commands import run, run_well
from tests.support.own_classes import copy_examples, remember_imports

FAST = "--accelerator cpu --enable_progress_bar false --dashboard false --max_epochs 1"


@pytest.fixture(autouse=True)
def examples() -> Iterator[None]:
    copy_examples()
    with remember_imports():
        yield


def train(model: str, data: str, flags: str = "") -> str:
    """Train for one epoch; return the output."""
    return run_well(f"fit.py --model {model} --data {data} {flags} {FAST}")


def metrics(text: str, prefix: str) -> list[str]:
    """Return accuracy and loss, as printed."""
    return re.findall(rf"^{prefix}_(?:acc|loss) +([\d.e-]+)", text, re.MULTILINE)


def write_image(right: bool) -> None:
    """Write an image of one of the classes of my_data.Halves."""
    pixels = np.random.default_rng(0).integers(0, 127, (32, 32, 3))
    pixels[:, 16:] += 40 * right
    pixels[:, :16] += 40 * (not right)
    Image.fromarray(pixels.astype(np.uint8)).save("image.png")


@pytest.mark.parametrize(
    ("model", "data", "flags"),
    [
        ("my_model.Wide", "my_data.Halves", "--model.width 16 --data.batch_size 25"),
        ("variants.LitCNN", "variants.ShapesDataModule", "--model.lr 0.1"),
        ("variants.Fixed", "my_data.Halves", "--model.num_classes 2"),
        ("variants.Unsaved", "variants.Split", "--model.slope -1 --model.sizes [5] --data.shift 0.3"),
        ("variants.Outer.Net", "variants.Split", "--model.num_classes 2"),
        ("variants.Named", "my_data.Halves", "--model.settings '{width: 7}'"),
        ("variants.Options", "my_data.Halves", "--model.dict_kwargs.width 5 --model.dict_kwargs.scale -2.0"),
        ("variants.Rows", "variants.RowData", ""),
    ],
)
def test_evaluate_prints_the_numbers_of_fit(model: str, data: str, flags: str) -> None:
    trained = metrics(train(model, data, flags), "val")
    ended = run("evaluate.py latest")
    assert ended.code == 0, ended.err
    assert metrics(ended.out, "val") == trained
    assert len(trained) == (1 if "Rows" in model else 2)
    notes = ended.err.splitlines()
    assert "has no test data: its validation data is used" in notes.pop()
    for note, path in zip(notes[-2:], (model, data), strict=True):
        assert re.search(rf"note: the (model|data) class is {path}, from .*\.py$", note)


def test_test_data_comes_before_validation_data() -> None:
    trained = train("my_model.Wide", "variants.Tested")
    said = run_well("evaluate.py latest")
    assert "data        Tested, test: 40 samples" in said
    assert metrics(said, "val") == []
    assert metrics(said, "test") != metrics(trained, "val")


def test_only_the_same_samples_are_compared() -> None:
    for flags in ("", "--data.batch_size 25", "--data.fold 1"):
        train("my_model.Wide", "variants.Tested", flags)
        run_well("evaluate.py latest")
    first, second, third = (f"lightning_logs/version_{number}" for number in range(3))
    assert "McNemar's exact test" in run_well(f"compare.py {first} {second}")
    assert "not evaluated on the same samples" in run_well(f"compare.py {first} {third}")


@pytest.mark.parametrize(
    ("model", "data", "commands"),
    [
        ("my_model.Wide", "my_data.Halves", {"evaluate.py", "predict.py"}),
        ("variants.Rows", "variants.RowData", {"evaluate.py", "predict.py"}),
        ("variants.Unsaved", "variants.Split", {"evaluate.py"}),  # nothing says how to preprocess a picture
        ("variants.Foreign", "my_data.Halves", set()),
        ("variants.Local", "my_data.Halves", set()),  # its dotted path cannot be imported
    ],
)
def test_the_next_commands_of_fit_work(model: str, data: str, commands: set[str]) -> None:
    lines = train(model, data).partition("next:")[2].split("\n")
    write_image(right=True)
    Path("rows.csv").write_text("1,2,3,4\n")
    scripts = [re.sub(r".*/scripts/", "", line) for line in lines if "/scripts/" in line]
    for line in scripts:
        run_well(line.replace("IMAGE_OR_FOLDER...", "image.png").replace("ROWS.csv", "rows.csv"))
    assert {line.split()[0] for line in scripts} == commands


@pytest.mark.parametrize(
    ("flags", "charts"), [("", 1), ("--logger false", 0), ("--logger CSVLogger --logger.save_dir own", 0)]
)
def test_a_run_without_next_commands_announces_none(flags: str, charts: int) -> None:
    out = train("variants.Foreign", "my_data.Halves", flags)
    assert [out.count("next:"), out.count("tensorboard")] == [charts, charts]
    assert "best.ckpt" in out


def test_a_model_of_the_user_predicts_and_is_described() -> None:
    run_well(f"fit.py --model my_model.Wide --data my_data.Halves {FAST} --max_epochs 3")
    for right in (True, False):
        write_image(right)
        assert re.search(rf"image\.png +{'right' if right else 'left'}", run_well("predict.py latest image.png"))
    assert "Wide: 196,802 trainable of 196,802 parameters" in run_well("describe.py latest")


@pytest.mark.parametrize(
    ("model", "data", "command", "message"),
    [
        ("variants.Foreign", "my_data.Halves", "evaluate.py latest", "variants.Foreign, which is not built on LitBase"),
        ("variants.Foreign", "my_data.Halves", "predict.py latest x.png", "variants.Foreign, which is not built on"),
        ("variants.Foreign", "my_data.Halves", "describe.py latest", "variants.Foreign, which is not built on LitBase"),
        (
            "variants.OwnTest",
            "my_data.Halves",
            "evaluate.py latest",
            "test_step of OwnTest returns no dict",
        ),
        (
            "my_model.Wide",
            "variants.TwoLoaders",
            "evaluate.py latest",
            "multiple `test_dataloader`",
        ),
        (
            "my_model.Wide",
            "my_data.Halves",
            "evaluate.py latest --devices 2",
            "on one device only: leave --devices out",
        ),
        ("my_model.Wide", "my_data.Halves", "evaluate.py latest --photos .", "leave --photos out"),
        ("my_model.Wide", "my_data.Halves", "evaluate.py latest --explain", "leave it out"),
        ("variants.Unsaved", "variants.Split", "predict.py latest x.png", "it needs preprocessing"),
        ("variants.Unsaved", "variants.Split", "describe.py latest", "it needs preprocessing"),
    ],
)
def test_what_a_command_cannot_do_is_one_line(model: str, data: str, command: str, message: str) -> None:
    train(model, data)
    ended = run(f"{command} --accelerator cpu" if "describe" not in command else command)
    assert ended.code == 2
    assert message in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err


def test_a_subclass_of_the_photo_module_keeps_its_split(photo_folder: Path) -> None:
    trained = train("my_model.Wide", "variants.Photos", f"--data.root {photo_folder}")
    photo_folder.rename("moved")
    ended = run("evaluate.py latest")
    assert "does not exist" in ended.err.splitlines()[-1]
    said = run_well("evaluate.py latest --photos moved")
    assert "data        Photos, val: 8 samples" in said
    assert metrics(said, "val") == metrics(trained, "val")


def test_a_killed_run_of_the_examples_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", 1e9)  # a resume point before every step
    line = "--model my_model.Wide --data my_data.Halves --data.batch_size 50 --max_epochs 2 --default_root_dir"
    fits.fit(f"{line} whole")
    fits.fit(f"{line} killed", kill_at=6)
    cli = fits.fit(f"{line} killed --resume auto")
    assert cli.trainer.global_step == 8
    fits.assert_same_end(Path("whole/lightning_logs/version_0"), Path("killed/lightning_logs/version_0"))


def test_weights_of_a_run_of_the_users_transfer_model(photo_folder: Path) -> None:
    Path("mine.py").write_text("import lit_models\nclass Transfer(lit_models.LitTransfer):\n    pass\n")
    flags = f"{fits.SMALL_NET} --data.image_size 32"
    train("mine.Transfer", "ImageFolderDataModule", f"--data.root {photo_folder} {flags}")
    warm = flags.replace("none", "latest")
    said = run_well(f"fit.py --model mine.Transfer --data {photo_folder} {warm} {FAST}")
    assert "known classes: ants, bees" in said


def test_weights_that_do_not_fit_the_changed_class_are_named() -> None:
    train("my_model.Wide", "my_data.Halves")
    source = Path("my_model.py").read_text()
    for name in [name for name in sys.modules if name.startswith("my_model")]:
        del sys.modules[name]
    Path("my_model.py").write_text(source.replace("self.net", "self.layers"))
    ended = run("predict.py latest image.png")
    assert ended.code == 2
    assert "the checkpoint does not fit my_model.Wide: " in (line := ended.err.splitlines()[-1])
    assert 'Missing key(s) in state_dict: "layers.1.weight"' in line
