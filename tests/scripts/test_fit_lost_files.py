"""Missing photos and weights files: fit.py names them, and resumes when they are restored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from datamodules import ImageFolderDataModule
from datamodules.text import command
from lit_training.callbacks.resume import ResumePoint
from lit_training.runs.loaders import StepSeed
from tests.support.ants_and_bees import write_photos
from tests.support.commands import run, run_well
from tests.support.fits import SMALL_NET
from tests.support.training import own_caches

# --- a photo that vanishes --------------------------------------------------------------------------------------------

TUNING = f"--data photos --data.image_size 72 {SMALL_NET} --model.freeze false --max_epochs 3"
ONE = "--accelerator cpu --devices 1 --dashboard false"


@pytest.fixture(scope="module")
def undisturbed_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """``undisturbed_run(flags)`` returns the last checkpoint of an undisturbed run. It trains once per ``flags``."""
    known: dict[str, dict[str, Any]] = {}

    def train(flags: str) -> dict[str, Any]:
        if flags not in known:
            workspace = tmp_path_factory.mktemp("undisturbed")
            write_photos(workspace / "photos")
            with pytest.MonkeyPatch.context() as patch:
                own_caches(workspace, patch)
                patch.chdir(workspace)
                run_well(f"fit.py {TUNING} {ONE} --data.num_workers 0 {flags}")
            known[flags] = last_checkpoint(workspace)
        return known[flags]

    return train


def last_checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "lightning_logs/version_0/checkpoints/resume/last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("workers", "flags", "gone", "kept"),
    [
        (0, "", "train/bees/5.jpg", None),
        (2, "", "train/bees/5.jpg", None),
        (0, "--accumulate_grad_batches 4", "train/bees/5.jpg", 4),
        (0, "", "val/ants/2.jpg", 1),
        pytest.param(2, "", "val/ants/2.jpg", 1, marks=pytest.mark.slow),
    ],
)
def test_a_run_names_a_deleted_photo_and_resumes_when_it_is_restored(
    workers: int,
    flags: str,
    gone: str,
    kept: int | None,
    undisturbed_run: Callable[[str], dict[str, Any]],
    photo_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``kept`` is the number of batches in the resume point; None means all trained batches."""
    monkeypatch.setattr(
        ResumePoint, "TIME_SHARE", 1e-9
    )  # no resume points by the clock, which depends on the load of the machine
    undisturbed = undisturbed_run(flags)
    photo, away = photo_folder / gone, photo_folder.parent / "away.jpg"
    seed, steps = StepSeed.on_train_batch_start, 0

    def vanish(self: StepSeed, trainer: Any, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            photo.rename(away)
        seed(self, trainer, *arguments)

    monkeypatch.setattr(StepSeed, "on_train_batch_start", vanish)
    line = f"fit.py {TUNING} {ONE} --data.num_workers {workers} {flags} --default_root_dir broken --resume auto"
    code, _, err = run(line)
    assert code == 2
    assert err == (
        f"fit.py: error: photos/{gone}: unreadable (No such file or directory), but it was readable when the run "
        f"started: restore it, then go on with {command('fit.py')} --resume broken/lightning_logs/version_0\n"
    )
    behind = last_checkpoint(Path("broken"))["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    assert behind == (steps if kept is None else kept)
    away.rename(photo)
    run_well(line)
    assert [path.name for path in Path("broken/lightning_logs").iterdir()] == ["version_0"]
    ended = last_checkpoint(Path("broken"))
    assert ended["state_dict"].keys() == undisturbed["state_dict"].keys()
    assert all(torch.equal(weight, ended["state_dict"][name]) for name, weight in undisturbed["state_dict"].items())
    assert ended["global_step"] == undisturbed["global_step"]


def test_a_photo_deleted_before_the_first_step_leaves_no_run(
    photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = ImageFolderDataModule.report

    def vanish(self: ImageFolderDataModule) -> str:
        found = report(self)
        (photo_folder / "train/ants/3.jpg").unlink()
        return found

    monkeypatch.setattr(ImageFolderDataModule, "report", vanish)
    code, _, err = run(f"fit.py --data photos --data.num_workers 0 {SMALL_NET} {ONE}")
    assert code == 2
    assert err.splitlines()[-1] == (
        "fit.py: error: photos/train/ants/3.jpg: unreadable (No such file or directory), but it was readable when the "
        "run started: restore it, then start again"
    )
    assert not Path("lightning_logs").exists()


def test_a_folder_that_is_refused_leaves_no_run(photo_folder: Path) -> None:
    for photo in (photo_folder / "train" / "bees").iterdir():
        photo.write_bytes(b"")
    assert run(f"fit.py --data photos --model.weights none {ONE}").code == 2
    assert not Path("lightning_logs").exists()


# --- weights files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"), [("nowhere.pth", "no weights file nowhere.pth"), ("DEFAULT", "download ")]
)
def test_missing_weights_are_reported_before_photos_are_opened(
    weights: str, message: str, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFolderDataModule, "examine", lambda self: pytest.fail("photos were opened"))
    code, out, err = run(f"fit.py --data photos --model.weights {weights} {ONE}")
    assert code == 2
    assert "pictures" not in out
    assert err.count("\n") == 1
    assert message in err
    assert not Path("lightning_logs").exists()


def test_a_resumed_run_needs_no_weights_file(photo_folder: Path) -> None:
    weights = Path("weights.pth")
    torch.save(models.get_model("shufflenet_v2_x0_5").state_dict(), weights)
    line = f"fit.py --data photos --data.image_size 72 --data.num_workers 0 {SMALL_NET} {ONE}"
    line = line.replace("--model.weights none", f"--model.weights {weights}")
    run_well(f"{line} --max_epochs 1")
    weights.unlink()
    out = run_well(f"{line} --max_epochs 2 --resume latest")
    assert "resume  lightning_logs/version_0/checkpoints/resume/last.ckpt, after step 4" in out
