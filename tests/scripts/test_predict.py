"""scripts/predict.py: its table, its output files and its exit codes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from datamodules import ImageFolderDataModule
from lit_models import LitCNN
from tests.support.ants_and_bees import write_photos
from tests.support.commands import run, run_well
from tests.support.training import own_caches, train_and_save


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run; its training photos and its cache are removed."""
    workspace = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        caches = own_caches(workspace, patch)
        photos = write_photos(workspace / "photos")
        torch.manual_seed(0)
        data = ImageFolderDataModule(str(photos), image_size=32, num_workers=0)
        train_and_save(workspace / "run", LitCNN(num_classes=2, lr=0.01), data, max_epochs=6)
        shutil.rmtree(photos)
        shutil.rmtree(caches / "cache")
    return workspace / "run"


@pytest.fixture
def latest(trained: Path, photo_folder: Path) -> None:
    """A copy of the run under lightning_logs, beside new photos."""
    shutil.copytree(trained, "lightning_logs/version_0")


def test_new_photos_are_classified_and_written(latest: None) -> None:
    out = run_well("predict.py latest photos/val/bees photos/val/ants/0.jpg --output out.json")
    lines = out.splitlines()
    assert lines[0].split() == ["path", "label", "probability", "label_2", "probability_2"]
    assert [line.split()[1] for line in lines[1:6]] == ["bees"] * 4 + ["ants"]
    assert lines[-1] == "written: out.json"
    written = json.loads(Path("out.json").read_text())
    files = [row["path"] for row in written]
    assert files == [*(f"photos/val/bees/{number}.jpg" for number in range(4)), "photos/val/ants/0.jpg"]
    assert [row["label"] for row in written] == ["bees"] * 4 + ["ants"]
    assert all(abs(sum(entry["probability"] for entry in row["top"]) - 1) < 1e-5 for row in written)


def test_the_exit_code_shows_unreadable_inputs(latest: None) -> None:
    code, out, _ = run("predict.py latest missing.jpg photos/val/ants/1.jpg --top_k 1")
    lines = out.splitlines()
    assert code == 1
    assert lines[0].split() == ["path", "label", "probability", "error"]
    assert lines[1].split(maxsplit=1) == ["missing.jpg", "no such file"]
    code, _, err = run("predict.py latest missing.jpg")
    assert code == 2
    assert "missing.jpg" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("latest x.jpg", "no run under lightning_logs yet"),
        ("nowhere.ckpt x.jpg", "nowhere.ckpt does not exist"),
        ("latest x.jpg --output x.txt", "--output x.txt must end in .csv, .json or .jsonl"),
        ("latest x.jpg --outptu x.csv", "there is no --outptu: did you mean --output?"),
        ("latest x.jpg --top_k 0", "0 must be an integer of at least 1"),
        ("latest x.jpg --batch_size many", "many must be an integer of at least 1"),
        ("latest x.jpg --accelerator tpu", "invalid choice: 'tpu'"),
        ("latest", "required: INPUT"),
    ],
)
def test_wrong_arguments_get_one_line(line: str, message: str) -> None:
    code, out, err = run(f"predict.py {line}")
    assert (code, out) == (2, "")
    assert err.startswith("predict.py: error: ")
    assert message in err
    assert err.count("\n") == 1
