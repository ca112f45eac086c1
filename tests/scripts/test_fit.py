"""scripts/fit.py from what is typed to what is printed, written and returned."""

import csv
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torchvision import models

from datamodules import ImageFolderDataModule
from lit_training.cli import FitCLI
from lit_training.help import FIT_HELP
from lit_training.resume import ResumePoint, StepSeed
from lit_training.signals import Watch
from tests.support import scripted
from tests.support.commands import ENVIRONMENT, start

SCRIPT = Path(__file__).parents[2] / "scripts" / "fit.py"
SMALL = "--data.train_size 12 --data.val_size 10 --max_epochs 1 --accelerator cpu --devices 1"


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Runs fit.py in this process, which has paid for the imports; gives its exit code."""
    main = runpy.run_path(str(SCRIPT))["main"]
    monkeypatch.setattr(Watch, "start", lambda self: None)  # the test run keeps its own signal handlers

    def run(line: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *line.split()])
        code: Any = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
        return code

    return run


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_answered_before_torch_is_imported(flag: str) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['fit.py', {flag!r}]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "heavy = {'torch', 'lightning', 'jsonargparse', 'numpy', 'yaml', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == FIT_HELP.strip()


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_says_how_good_it_is_and_what_to_type_next(
    fit: Callable[[str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(SMALL) == 0
    out = capsys.readouterr().out
    for part in ("global batch = 4", "62,006 trainable", "val_acc", "n = 10", "lightning_logs/version_0"):
        assert part in out
    for line in ("scripts/evaluate.py latest", "scripts/predict.py latest", "tensorboard --logdir lightning_logs"):
        assert line in out
    assert Path("lightning_logs/version_0/checkpoints/best.ckpt").is_file()
    # The configuration that it wrote is one that it reads, and gives the same.
    saved = Path("lightning_logs/version_0/config.yaml")
    again = FitCLI(["--config", str(saved)])
    assert yaml.safe_load(again.parser.dump(again.config, skip_unset=False)) == yaml.safe_load(saved.read_text())


@pytest.mark.parametrize(
    ("flags", "reports", "checkpoint"),
    [
        ("--fast_dev_run", ["val_acc"], None),
        ("--barebones", ["nothing was measured"], None),
        ("--logger false", ["val_acc", "scripts/evaluate.py ."], "checkpoints/best.ckpt"),
        ("--enable_checkpointing false", ["val_acc", "run "], None),
        ("--overfit_batches 2", ["val_acc"], "lightning_logs/version_0/checkpoints/best.ckpt"),
        ("--limit_train_batches 2", ["val_acc"], "lightning_logs/version_0/checkpoints/best.ckpt"),
        ("--limit_val_batches 0", ["train_loss"], "lightning_logs/version_0/checkpoints/best.ckpt"),
        ("--max_epochs -1 --max_steps 2", ["val_acc", "n = 10"], None),
        ("--check_val_every_n_epoch 2", ["val_acc", "n = 10"], None),
        ("--max_epochs 0", ["val_acc"], None),
    ],
)
def test_trainer_flags_end_well(
    flags: str, reports: list[str], checkpoint: str | None, fit: Callable[[str], int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit(f"{SMALL} {flags}") == 0
    out, err = capfd.readouterr()
    assert all(part in out for part in reports)
    assert "Traceback" not in err
    if checkpoint is not None:
        assert Path(checkpoint).is_file()


OWN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split

class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3, 1)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
    def loss(self, batch):
        while not isinstance(batch, torch.Tensor):
            batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        return (self.scale * self.net(batch)).square().mean()
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss
    def validation_step(self, batch, batch_idx):
        self.log("val_acc", self.loss(batch) < 1e9, batch_size=4)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Named(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return {"x": torch.ones(3)}

class Endless(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(8, 3))

class Data(LightningDataModule):
    class_names = ("one", "other")
    def __init__(self, kind: str = "rows"):
        super().__init__()
        rows = TensorDataset(torch.ones(8, 3))
        part, _ = random_split(TensorDataset(torch.ones(9, 3)), [8, 1])
        loaders = [DataLoader(data, batch_size=4) for data in (rows, part, Named(), Endless(), Endless())]
        loaders[-1] = {"a": DataLoader(rows, batch_size=4), "b": DataLoader(rows, batch_size=4)}
        self.loader = dict(zip(("rows", "part", "named", "endless", "several"), loaders))[kind]
    def train_dataloader(self):
        return self.loader
    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=4)
"""


@pytest.mark.parametrize("kind", ["rows", "part", "named", "endless", "several"])
def test_classes_of_ones_own_train(
    kind: str, fit: Callable[[str], int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own_run.py").write_text(OWN)
    scripted.put_clock_back(monkeypatch)
    data = f"--model own_run.Model --data own_run.Data --data.kind {kind} --callbacks {scripted.NAME}.Clock"
    assert fit(f"{data} --max_epochs 2 --accelerator cpu --devices 1") == 0
    out = capsys.readouterr().out
    assert "5 trainable" in out
    assert "train_loss" in out
    assert "\nval_acc     1.0000\n" in out  # of how many is its own affair: no interval
    assert Path("lightning_logs/version_0/checkpoints/best.ckpt").is_file()
    with Path("lightning_logs/version_0/metrics.csv").open(newline="") as file:
        speeds = [float(row["samples_per_second"]) for row in csv.DictReader(file) if row["samples_per_second"]]
    assert speeds == [4 / scripted.Clock.STEP] * 2  # batches of four


@pytest.mark.parametrize("flags", ["", "--model.freeze false", "--data.augment true"])
def test_a_last_batch_of_one_picture(
    flags: str, photo_folder: Path, fit: Callable[[str], int], capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(2, 8):
        (photo_folder / "train/ants" / f"{number}.jpg").unlink()
    (photo_folder / "train/bees/7.jpg").unlink()  # 2 + 7 = 2 * 4 + 1
    command = f"--data {photo_folder} --data.image_size 72 --data.num_workers 0 --model.backbone shufflenet_v2_x0_5"
    assert fit(f"{command} --model.weights none --max_epochs 1 --accelerator cpu --devices 1 {flags}") == 0
    assert "n = 8" in capfd.readouterr().out


# --- a photo that vanishes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "gone", "kept"),
    [
        ("--data.num_workers 0", "train/bees/5.jpg", None),
        ("--data.num_workers 2", "train/bees/5.jpg", None),
        ("--data.num_workers 0 --accumulate_grad_batches 4", "train/bees/5.jpg", 4),
        ("--data.num_workers 0", "val/ants/2.jpg", 1),
        pytest.param("--data.num_workers 2", "val/ants/2.jpg", 1, marks=pytest.mark.slow),
    ],
)
def test_a_photo_that_vanishes_is_named_and_the_run_goes_on_when_it_is_back(
    flags: str,
    gone: str,
    kept: int | None,
    photo_folder: Path,
    fit: Callable[[str], int],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``kept``: batches behind the resume point; None: all that were trained on."""
    monkeypatch.setattr(ResumePoint, "COST", 1e-9)  # none is due by the clock, which a busy machine would move
    command = f"--data {photo_folder} --data.image_size 72 {flags} --model.backbone shufflenet_v2_x0_5 "
    command += "--model.weights none --model.freeze false --max_epochs 3 --accelerator cpu --devices 1"
    assert fit(f"{command} --default_root_dir peace") == 0
    photo, away = photo_folder / gone, photo_folder.parent / "away.jpg"
    seed, steps = StepSeed.on_train_batch_start, 0

    def vanish(self: StepSeed, trainer: Any, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            photo.rename(away)
        seed(self, trainer, *arguments)

    monkeypatch.setattr(StepSeed, "on_train_batch_start", vanish)
    capfd.readouterr()
    command += " --default_root_dir broken --resume auto"
    assert fit(command) == 2
    err = capfd.readouterr().err
    assert err == (
        f"fit.py: error: {photo}: unreadable (No such file or directory), though it was whole when the run began: "
        "bring it back, then go on with --resume broken/lightning_logs/version_0\n"
    )
    point = Path("broken/lightning_logs/version_0/checkpoints/last.ckpt")
    behind = torch.load(point, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    assert behind == (steps if kept is None else kept)
    away.rename(photo)
    assert fit(command) == 0
    assert [path.name for path in point.parents[2].iterdir()] == ["version_0"]
    ends = [torch.load(Path(root, *point.parts[1:]), weights_only=True) for root in ("peace", "broken")]
    assert all(torch.equal(weight, ends[1]["state_dict"][name]) for name, weight in ends[0]["state_dict"].items())
    assert ends[0]["global_step"] == ends[1]["global_step"]


def test_a_photo_that_vanishes_before_the_first_step_leaves_nothing(
    photo_folder: Path, fit: Callable[[str], int], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    announce = ImageFolderDataModule.report

    def vanish(self: ImageFolderDataModule) -> str:
        report = announce(self)
        (photo_folder / "train/ants/3.jpg").unlink()
        return report

    monkeypatch.setattr(ImageFolderDataModule, "report", vanish)
    command = f"--data {photo_folder} --data.num_workers 0 --model.backbone shufflenet_v2_x0_5 --model.weights none"
    assert fit(f"{command} --accelerator cpu --devices 1") == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"fit.py: error: {photo_folder}/train/ants/3.jpg: unreadable (No such file or directory), though it was whole "
        "when the run began: bring it back, then start again"
    )
    assert not Path("lightning_logs").exists()


# --- resume points of something else ---------------------------------------------------------------------------------

WRONG = yaml.safe_load((Path(__file__).parents[1] / "lit_training" / "wrong_inputs.yaml").read_text())["resumes"]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case['begun']} {case['argv']}")
def test_a_resume_point_of_something_else_is_refused_in_one_line(
    case: dict[str, str], photo_folder: Path, fit: Callable[[str], int], capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photo_folder, "more")
    for split in ("train", "val"):
        shutil.copytree(f"more/{split}/bees", f"more/{split}/wasps")
        for path in Path("more", split, "wasps").iterdir():  # copies would be left out
            Image.open(path).rotate(90).save(path)
    short = " --max_epochs 1 --limit_train_batches 2 --accelerator cpu --devices 1 --dashboard false --quiet true"
    assert fit(case["begun"] + short) == 0
    run, copy = Path("lightning_logs/version_0"), Path("copy.ckpt")
    shutil.copy(run / "checkpoints" / "last.ckpt", copy)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    capfd.readouterr()
    places = {"RUN": str(run.resolve()), "COPY": str(copy)}

    def placed(text: str) -> str:
        return text.replace("RUN", places["RUN"]).replace("COPY", places["COPY"])

    further = short.replace("--max_epochs 1", "--max_epochs 2")
    assert fit(placed(case["argv"]) + further) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("fit.py: error: ")
    assert placed(case["culprit"]) in err
    assert case["fix"] in err
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


# --- failed starts --------------------------------------------------------------------------------------------------


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
def test_a_failed_start_leaves_nothing(
    flags: str, culprit: str, fit: Callable[[str], int], capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit(f"--data ShapesDataModule {SMALL} {flags}") == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("fit.py: error: ")
    assert culprit in err
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(("weights", "said"), [("nowhere.pth", "no weights file nowhere.pth"), ("DEFAULT", "fetch ")])
def test_missing_weights_are_said_before_a_photo_is_opened(
    weights: str,
    said: str,
    photo_folder: Path,
    fit: Callable[[str], int],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFolderDataModule, "examine", lambda self: pytest.fail("photos were opened"))
    assert fit(f"--data {photo_folder} --model.weights {weights} --accelerator cpu --devices 1") == 2
    out, err = capfd.readouterr()
    assert "pictures" not in out
    assert err.count("\n") == 1
    assert said in err
    assert not Path("lightning_logs").exists()


def test_a_run_that_goes_on_needs_no_weights_file(
    photo_folder: Path, fit: Callable[[str], int], capfd: pytest.CaptureFixture[str]
) -> None:
    weights = Path("weights.pth")
    torch.save(models.get_model("shufflenet_v2_x0_5").state_dict(), weights)
    command = f"--data {photo_folder} --data.image_size 72 --data.num_workers 0 --model.backbone shufflenet_v2_x0_5 "
    command += f"--model.weights {weights} --accelerator cpu --devices 1"
    assert fit(f"{command} --max_epochs 1") == 0
    weights.unlink()
    assert fit(f"{command} --max_epochs 2 --resume latest") == 0
    assert "resume  lightning_logs/version_0/checkpoints/last.ckpt, after step 4" in capfd.readouterr().out


def test_a_folder_that_cannot_be_learned_from_leaves_nothing(photo_folder: Path, fit: Callable[[str], int]) -> None:
    for photo in (photo_folder / "train" / "bees").iterdir():
        photo.write_bytes(b"")
    assert fit(f"--data {photo_folder} --model.weights none --accelerator cpu --devices 1") == 2
    assert not Path("lightning_logs").exists()


def test_a_failed_download_leaves_nothing(fit: Callable[[str], int], capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("--data CIFAR10DataModule --data.root fresh --accelerator cpu --devices 1") == 2
    assert "put cifar-10-python.tar.gz" in capfd.readouterr().err.splitlines()[-1]
    assert not Path("fresh").exists()
    assert not Path("lightning_logs").exists()


@pytest.mark.slow
def test_as_a_program_it_says_one_line() -> None:
    Path("evil.yaml").write_text("a: !!python/object/apply:os.system ['touch canary']")
    lines = {
        "--config evil.yaml": "remove the tag",
        f"{SMALL} --val_check_interval 500": "`val_check_interval` (500)",
    }
    programs = {line: start(f"fit.py {line}") for line in lines}
    for line, program in programs.items():
        _, err = program.communicate(timeout=120)
        assert program.returncode == 2, err
        assert err.count("\n") == 1, err
        assert err.startswith("fit.py: error: ")
        assert lines[line] in err
    assert {path.name for path in Path().iterdir()} == {"evil.yaml"}


@pytest.mark.slow
def test_under_ddp_one_rank_says_it() -> None:
    """Lightning would kill the first rank as soon as another has ended, and nothing would be said."""
    line = f"{SMALL.replace('--devices 1', '--devices 2')} --strategy ddp --val_check_interval 500"
    program = start(f"fit.py {line}")
    _, err = program.communicate(timeout=180)
    assert program.returncode == 2, err
    assert err.count("\n") == 1, err
    assert "`val_check_interval` (500)" in err
    assert not Path("lightning_logs").exists()
