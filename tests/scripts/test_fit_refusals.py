"""Test that fit.py refuses resume points of other runs, and that failed starts leave no files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.support.ants_and_bees import write_photos
from tests.support.commands import ROOT, run, run_well
from tests.support.training import own_caches

SMALL = "--data.train_size 12 --data.val_size 10 --max_epochs 1 --accelerator cpu --devices 1"
WRONG = yaml.safe_load((ROOT / "tests" / "lit_training" / "wrong_inputs.yaml").read_text())["resumes"]
SHORT = "--limit_train_batches 2 --accelerator cpu --devices 1 --dashboard false --quiet true"


@pytest.fixture(scope="module")
def started_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``started_run(flags)`` returns a folder with a trained run and its photos. It trains once per ``flags``."""
    known: dict[str, Path] = {}

    def train(flags: str) -> Path:
        if flags not in known:
            workspace = tmp_path_factory.mktemp("begun")
            write_photos(workspace / "photos")
            with pytest.MonkeyPatch.context() as patch:
                own_caches(workspace, patch)
                patch.chdir(workspace)
                run_well(f"fit.py {flags} --max_epochs 1 {SHORT}")
            known[flags] = workspace
        return known[flags]

    return train


def add_wasps() -> None:
    """Make ``more``, a folder of photos with a third class."""
    shutil.copytree("photos", "more")
    for split in ("train", "val"):
        shutil.copytree(f"more/{split}/bees", f"more/{split}/wasps")
        for path in Path("more", split, "wasps").iterdir():  # fit.py leaves out copies
            Image.open(path).rotate(90).save(path)


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case['begun']} {case['argv']}")
def test_a_resume_point_that_does_not_fit_is_refused_in_one_line(
    case: dict[str, str], started_run: Callable[[str], Path]
) -> None:
    shutil.copytree(started_run(case["begun"]), ".", dirs_exist_ok=True)
    add_wasps()
    logs, copy = Path("lightning_logs/version_0"), Path("copy.ckpt")
    shutil.copy(logs / "checkpoints" / "last.ckpt", copy)
    before = {path: path.stat().st_mtime_ns for path in logs.rglob("*") if path.is_file() and path.name != ".lock"}

    def placed(text: str) -> str:
        return text.replace("RUN", str(logs.resolve())).replace("COPY", str(copy))

    code, out, err = run(f"fit.py {placed(case['argv'])} --max_epochs 2 {SHORT}")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("fit.py: error: ")
    assert placed(case["culprit"]) in err
    assert case["fix"] in err
    assert [path.name for path in logs.parent.iterdir()] == ["version_0"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


# --- failed starts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ("--val_check_interval 500", "`val_check_interval` (500)"),
        ("--lr_scheduler ReduceLROnPlateau --lr_scheduler.factor 2", "Factor should be < 1.0"),
        ("--lr_scheduler OneCycleLR --lr_scheduler.pct_start 2", "pct_start"),
        ("--model LitTransfer --model.weights nowhere.pth", "nowhere.pth"),
        ("--model LitTransfer", "weights of resnet18"),
    ],
)
def test_a_failed_start_leaves_no_run(flags: str, culprit: str) -> None:
    code, _, err = run(f"fit.py --data ShapesDataModule {SMALL} {flags}")
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("fit.py: error: ")
    assert culprit in err
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("flags", ["", "--check_val_every_n_epoch 2 --max_epochs 4", "--data.split_file all.csv"])
def test_photos_without_validation_are_refused_before_training(flags: str) -> None:
    photos = write_photos(Path("photos"))
    for path in photos.glob("*/*/*.jpg"):  # one photo per class is left
        if path.parent.parent.name == "val" or path.name != "0.jpg":
            path.unlink()
    Path("all.csv").write_text("path,label,split\ntrain/ants/0.jpg,ants,train\ntrain/bees/0.jpg,bees,train\n")
    small = f"fit.py --data photos {flags} --model LitTransfer --model.weights none --data.image_size 64 {SHORT}"
    ended = run(small)
    assert ended.code == 2
    problem = "no picture is left for validation: put at least two different pictures into each class"
    if "split_file" in flags:
        problem = "all.csv has no usable picture in val (that of a run with --folds has none): give the split.csv of a "
        problem += "run without --folds, leave --data.split_file out"
    end = f"fit.py: error: {problem}, or train without validation: --limit_val_batches 0"
    assert ended.err.splitlines()[-1] == end
    assert not Path("lightning_logs").exists()
    assert "train_loss" in run_well(f"{small} --limit_val_batches 0")


@pytest.mark.parametrize(("backbone", "size", "works"), [("vit_b_16", 100, 224), ("vgg11", 16, 224)])
def test_a_picture_size_that_the_backbone_cannot_use_is_refused(backbone: str, size: int, works: int) -> None:
    write_photos(Path("photos"))
    ended = run(
        f"fit.py --data photos --model.weights none --model.backbone {backbone} --data.image_size {size} {SHORT}"
    )
    assert ended.code == 2
    last = ended.err.splitlines()[-1]
    assert f"{backbone} cannot use pictures (3, {size}, {size})" in last
    assert last.endswith(f"--data.image_size {works}")
    assert not Path("lightning_logs").exists()


def test_a_folder_name_that_is_too_long_is_refused_in_one_line() -> None:
    ended = run(f"fit.py --default_root_dir {'a' * 300} {SMALL}")
    assert ended.code == 2
    assert "File name too long): choose another folder with --default_root_dir" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("quiet", ["", " --quiet"])
def test_a_failed_download_leaves_no_files(quiet: str) -> None:
    line = f"fit.py --data CIFAR10DataModule --data.root fresh --accelerator cpu --devices 1{quiet}"
    code, out, err = run(line)
    assert code == 2
    assert out.count("downloading CIFAR10 (162 MB)") == (not quiet)
    assert not (quiet and out)
    assert "put cifar-10-python.tar.gz" in err.splitlines()[-1]
    assert not Path("fresh").exists()
    assert not Path("lightning_logs").exists()
    Path("fresh/cifar-10-batches-py").mkdir(parents=True)  # here is something to read, so it is not downloaded
    assert "downloading" not in run(line).out
