import csv
import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lit_models
from lit_training.callbacks import records as provenance
from lit_training.callbacks.resume import ResumePoint
from lit_training.cli.fit import report
from lit_training.cli.parser import FitCLI
from lit_training.errors import CheckpointError, UsageError
from lit_training.runs.folder import choose
from lit_training.runs.processes import Stopped

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ["--data.train_size", "24", "--data.val_size", "8"]  # 6 batches an epoch
ROWS = ["--data.in_features", "6", "--data.out_features", "2", "--data.length", "8", "--data.batch_size", "8"]
QUIET = ["--accelerator", "cpu", "--enable_progress_bar", "false", "--log_every_n_steps", "2"]
SMALL = ["--model.backbone", "shufflenet_v2_x0_5"]
PLATEAU = ["--lr_scheduler", "ReduceLROnPlateau", "--lr_scheduler.patience", "0", "--lr_scheduler.threshold", "0.9"]
CASES = {
    "augmented": [*SHAPES, "--max_epochs", "3", "--data.augment", "true"],
    "accumulated": [*SHAPES, "--max_epochs", "3", "--accumulate_grad_batches", "4"],
    "max_steps": [*SHAPES, "--max_steps", "15"],
    "validation twice an epoch": [*SHAPES, "--max_epochs", "3", "--val_check_interval", "0.5"],
    "validation every other epoch": [*SHAPES, "--max_epochs", "4", "--check_val_every_n_epoch", "2", *PLATEAU],
    "one batch an epoch": ["--data.train_size", "4", "--data.val_size", "8", "--max_epochs", "9", *PLATEAU],
    "plateau": [*SHAPES, "--max_epochs", "4", *PLATEAU],
    "one cycle": [*SHAPES, "--max_epochs", "3", "--lr_scheduler", "OneCycleLR", "--optimizer", "AdamW"],
    "cosine": [*SHAPES, "--max_epochs", "3", "--lr_scheduler", "CosineAnnealingLR"],
    "early stopping": [*SHAPES, "--max_epochs", "9", "--early_stopping", "1"],
    "mlp": ["--model", "LitMLP", *ROWS, "--data.steps", "6", "--max_epochs", "2"],
    "dynamic": ["--model", "LitDynamic", *ROWS, "--data.steps", "6", "--max_epochs", "2"],
}


class Killed(BaseException):
    """As sudden as it gets within one process."""


class KillAt(Callback):
    """Ends the run in the middle of the step ``step`` (of batches, over all epochs)."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.fit_loop.total_batch_idx >= self.step:
            raise Killed


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResumePoint, "COST", 1e9)


def fit(*arguments: str, kill_at: int | None = None) -> FitCLI:
    cli = FitCLI([*arguments, *QUIET])
    if kill_at is not None:
        cli.trainer.callbacks.append(KillAt(kill_at))  # type: ignore[attr-defined]
    killed = False
    try:
        cli.trainer.fit(cli.model, cli.datamodule, weights_only=True)
    except Killed:
        killed = True
    except SystemExit as stop:
        if stop.code:
            raise
    assert killed == (kill_at is not None), "the run came to its end before the kill"
    return cli


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v and k != "samples_per_second"} for row in csv.DictReader(file)]


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_end(run: Path, other: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (run, other))
        for key, weight in a["state_dict"].items():
            assert torch.equal(weight, b["state_dict"][key]), f"{name}: {key}"
        assert (a["global_step"], a["epoch"]) == (b["global_step"], b["epoch"])
        assert a["lr_schedulers"] == b["lr_schedulers"]
        assert [o["param_groups"] for o in a["optimizer_states"]] == [o["param_groups"] for o in b["optimizer_states"]]
    scores = [
        [state["best_model_score"] for state in last(folder)["callbacks"].values() if "best_model_score" in state]
        for folder in (run, other)
    ]
    assert scores[0] == scores[1]
    assert rows(run) == rows(other)


@pytest.mark.parametrize("case", CASES)
def test_killed_and_started_again_is_the_uninterrupted_run(case: str) -> None:
    peace = fit(*CASES[case], "--default_root_dir", "peace").start.run  # type: ignore[union-attr]
    steps = last(peace)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    command = [*CASES[case], "--default_root_dir", "killed", "--resume", "auto"]
    for step in (steps // 3, 3 * steps // 4):
        fit(*command, kill_at=step)
    run = fit(*command).start.run  # type: ignore[union-attr]
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert_same_end(peace, run)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_fine_tuning_goes_on_across_the_unfreezing_epoch(photo_folder: Path, workers: int) -> None:
    command = ["--data", str(photo_folder), "--model.weights", "none", "--model.freeze", "false", "--max_epochs", "3"]
    command += ["--model.unfreeze_epoch", "1", "--data.image_size", "72", "--data.num_workers", str(workers), *SMALL]
    peace = fit(*command, "--default_root_dir", "peace").start.run  # type: ignore[union-attr]
    command += ["--default_root_dir", "killed", "--resume", "auto"]
    for step in (2, 5):
        fit(*command, kill_at=step)
    run = fit(*command).start.run  # type: ignore[union-attr]
    assert_same_end(peace, run)


def test_the_frozen_backbone_stays_frozen_in_an_epoch_that_goes_on(photo_folder: Path) -> None:
    command = ["--data", str(photo_folder), "--model.weights", "none", "--model.freeze", "false", "--max_epochs", "1"]
    command += ["--model.unfreeze_epoch", "5", "--data.image_size", "32", "--resume", "auto", *SMALL]
    fit(*command, kill_at=2)
    before = last(Path("lightning_logs/version_0"))["state_dict"]
    model = fit(*command).model
    assert torch.equal(before["net.conv1.0.weight"], model.net.conv1[0].weight)
    assert not torch.equal(before["net.fc.weight"], model.net.fc.weight)


def test_a_resume_reads_no_pretrained_weights(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = Path("weights.pth")
    torch.save(lit_models.LitTransfer(SMALL[1], weights=None, num_classes=1000).net.state_dict(), weights)
    command = ["--data", str(photo_folder), "--model.weights", str(weights), "--max_epochs", "2", "--resume", "auto"]
    command += ["--data.image_size", "32", *SMALL]
    fit(*command, kill_at=3)
    weights.unlink()
    assert last(fit(*command).start.run)["callbacks"]["ResumePoint"]["finished"]  # type: ignore[union-attr]


def test_each_sample_is_used_once_an_epoch_in_the_history_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, tuple[int, list[float]]] = {}

    class Notes(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen[trainer.fit_loop.total_batch_idx] = trainer.current_epoch, batch[0].sum((1, 2, 3)).tolist()

    build = FitCLI.instantiate_trainer
    monkeypatch.setattr(
        FitCLI,
        "instantiate_trainer",
        lambda cli: (trainer := build(cli), trainer.callbacks.append(Notes()))[0],  # type: ignore[attr-defined]
    )
    for step in (2, 5, 8, 13, None):
        fit(*SHAPES, "--max_epochs", "3", "--resume", "auto", kill_at=step)
    epochs = [sorted(x for number, batch in seen.values() if number == epoch for x in batch) for epoch in range(3)]
    assert len(set(epochs[0])) == 24
    assert epochs[0] == epochs[1] == epochs[2]


def test_after_the_end_nothing_is_done() -> None:
    command = [*SHAPES, "--max_epochs", "1", "--resume", "auto"]
    run = fit(*command).start.run  # type: ignore[union-attr]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = fit(*command)
    assert again.start is not None
    assert again.start.finished
    del before[run / ".lock"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_more_epochs_go_on_from_a_finished_run_and_need_no_other_flag() -> None:
    fit(*SHAPES, "--max_epochs", "3", "--default_root_dir", "long")
    fit(*SHAPES, "--max_epochs", "1", "--default_root_dir", "short")
    fit("--resume", "short/lightning_logs/version_0", "--max_epochs", "3")
    assert_same_end(Path("long/lightning_logs/version_0"), Path("short/lightning_logs/version_0"))


def test_a_run_that_was_moved_keeps_its_best_score() -> None:
    command = [*SHAPES, "--max_epochs", "3", "--model.lr", "0.02"]
    fit(*command, "--default_root_dir", "peace")
    fit(*command, "--default_root_dir", "here", kill_at=14)
    Path("here").rename("there")
    fit("--resume", "there/lightning_logs/version_0")
    assert_same_end(Path("peace/lightning_logs/version_0"), Path("there/lightning_logs/version_0"))
    assert not Path("here").exists()


def test_auto_begins_where_no_run_has_the_same_settings() -> None:
    fit(*SHAPES, "--max_epochs", "1", "--resume", "auto", kill_at=3)
    other = fit(*SHAPES, "--max_epochs", "1", "--resume", "auto", "--seed", "1", kill_at=3)
    assert other.start is not None
    assert other.start.run.name == "version_1"
    same = fit(*SHAPES, "--max_epochs", "1", "--resume", "auto", kill_at=5)
    assert same.start is not None
    assert (same.start.run.name, same.start.step) == ("version_0", 3)
    never = fit(*SHAPES, "--max_epochs", "1", kill_at=1)
    assert never.start is not None
    assert (never.start.run.name, never.start.checkpoint) == ("version_2", None)


def test_a_broken_last_is_said_and_previous_taken(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*SHAPES, "--max_epochs", "3", "--resume", "auto"]
    peace = fit(*command, "--default_root_dir", "peace").start.run  # type: ignore[union-attr]
    fit(*command, kill_at=9)
    folder = Path("lightning_logs/version_0/checkpoints")
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-1000])
    cli = fit(*command)
    assert cli.start is not None
    assert (cli.start.checkpoint, cli.start.step) == (folder / "previous.ckpt", 8)
    assert "last.ckpt is no checkpoint that can be read safely" in capsys.readouterr().err
    assert (folder / "last.ckpt.broken").exists()
    assert_same_end(peace, folder.parent)


def test_settings_of_a_run_cannot_be_changed_on_the_way() -> None:
    fit(*SHAPES, "--max_epochs", "1", kill_at=3)
    with pytest.raises(UsageError, match="begun with another --model: leave it out to go on"):
        FitCLI(["--resume", "latest", "--model.lr", "0.5", *QUIET])
    for flags in (["--accumulate_grad_batches", "2"], ["--limit_train_batches", "0.5"]):
        cli = FitCLI(["--resume", "latest", *flags, *QUIET])
        with pytest.raises(CheckpointError, match="resume point is of 1 process with 6 batches an epoch"):
            cli.trainer.fit(cli.model, cli.datamodule)


def test_changed_data_is_refused(photo_folder: Path) -> None:
    command = ["--data", str(photo_folder), "--model.weights", "none", "--data.image_size", "32", "--max_epochs", "1"]
    command += SMALL
    fit(*command, kill_at=2)
    source = next((photo_folder / "train" / "ants").iterdir())
    source.unlink()
    cli = FitCLI([*command, "--resume", "auto", *QUIET])
    with pytest.raises(CheckpointError, match=r"batches an epoch|training data is not what it was"):
        cli.trainer.fit(cli.model, cli.datamodule)


@pytest.mark.parametrize(
    ("resume", "message"),
    [
        ("nowhere", "there is no such run"),
        ("latest", "no run under"),
        ("lightning_logs/version_0/checkpoints/best.ckpt", "is no resume point"),
        ("lightning_logs/version_0", "holds no resume point"),
    ],
)
def test_what_cannot_be_resumed_is_named(resume: str, message: str) -> None:
    if "version_0" in resume:
        run = fit(*SHAPES, "--max_epochs", "1").start.run  # type: ignore[union-attr]
        for path in (run / "checkpoints").glob("*"):
            if "best" not in resume or path.name != "best.ckpt":
                path.unlink()
    with pytest.raises(CheckpointError, match=message):
        FitCLI([*SHAPES, "--max_epochs", "1", "--resume", resume, *QUIET])


def test_a_copy_of_a_finished_runs_resume_point_goes_further_in_a_folder_of_its_own_or_does_nothing() -> None:
    fit(*SHAPES, "--max_epochs", "3", "--default_root_dir", "long")
    fit(*SHAPES, "--max_epochs", "1")
    copy = Path("copy.ckpt")
    copy.write_bytes(Path("lightning_logs/version_0/checkpoints/last.ckpt").read_bytes())
    again = fit(*SHAPES, "--max_epochs", "1", "--resume", str(copy)).start
    assert again is not None
    assert again.finished
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    fit(*SHAPES, "--max_epochs", "3", "--resume", str(copy))
    weights = [last(Path(root, "lightning_logs", run)) for root, run in (("long", "version_0"), ("", "version_1"))]
    assert weights[0]["global_step"] == weights[1]["global_step"]
    for name, weight in weights[0]["state_dict"].items():
        assert torch.equal(weight, weights[1]["state_dict"][name])


@pytest.mark.parametrize("flag", ["--default_root_dir=runs", "--trainer.default_root_dir runs"])
def test_latest_is_the_newest_run_of_the_root_however_that_is_written(flag: str) -> None:
    fit(*SHAPES, "--max_epochs", "1", "--model.lr", "0.5", "--default_root_dir", "runs")
    cli = FitCLI(["--resume=latest", *flag.split(), "--max_epochs", "2", *QUIET])
    assert cli.start is not None
    assert cli.start.step == 6
    assert cli.model.hparams["lr"] == 0.5


def test_the_evaluation_after_training_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may take longer than --timeout: each of its batches is a sign of life."""
    cli = fit(*SHAPES, "--max_epochs", "1", "--num_sanity_val_steps", "1")
    signs: list[int] = []
    monkeypatch.setattr(cli.watch, "alive", lambda: signs.append(1))
    report(cli)
    assert len(signs) == 1  # 8 pictures, in batches of 100


def test_a_run_in_training_is_left_alone() -> None:
    fit(*SHAPES, "--max_epochs", "1", kill_at=3)
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, "lightning_logs/version_0/.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    # This process holds the lock itself, for all of its fits; the other one gets it when it is let go.
    from lit_training.runs import folder as rundir

    while rundir._locks:
        rundir._locks.popitem()[1].close()
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(UsageError, match="version_0 is being trained by another process"):
        FitCLI([*SHAPES, "--max_epochs", "1", "--resume", "auto", *QUIET])
    other.communicate()


def test_two_starts_at_once_get_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def other_is_first(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name == "version_0":
            make(self)
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", other_is_first)
    assert choose("never", ".", "{}").run == Path("lightning_logs/version_1")


def test_a_run_killed_before_its_first_step_is_begun_again_in_its_folder() -> None:
    for _ in range(2):
        start = FitCLI([*SHAPES, "--max_epochs", "1", "--resume", "auto", *QUIET]).start
        assert start is not None
        assert (start.run.name, start.checkpoint) == ("version_0", None)


def test_a_run_that_fails_before_its_first_step_leaves_no_folder() -> None:
    with pytest.raises(UsageError):
        FitCLI([*SHAPES, "--devices", "0", *QUIET])
    assert not Path("lightning_logs").exists()


def test_one_seed_governs_everything() -> None:
    command = ["--data.train_size", "16", "--data.val_size", "8", "--data.augment", "true", "--max_epochs", "1"]
    first, second, other = (
        fit(*command, "--seed", seed).start.run  # type: ignore[union-attr]
        for seed in ("1", "1", "2")
    )
    assert_same_end(first, second)
    a, b = (last(run)["state_dict"]["net.conv1.weight"] for run in (first, other))
    assert not torch.equal(a, b)


def test_tensorboard_and_csv_show_each_step_once() -> None:
    command = [*SHAPES, "--max_epochs", "3", "--resume", "auto"]
    for step in (4, 9, None):
        fit(*command, kill_at=step)
    board = EventAccumulator("lightning_logs/version_0").Reload()
    assert [event.step for event in board.Scalars("train_loss_step")] == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert [event.step for event in board.Scalars("val_loss")] == [5, 11, 17]
    table = rows(Path("lightning_logs/version_0"))
    assert [int(row["step"]) for row in table if "train_loss_step" in row] == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert [int(row["step"]) for row in table if "val_loss" in row] == [5, 11, 17]


def test_a_signal_stops_between_two_steps_and_is_told_as_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    cli = FitCLI([*SHAPES, "--max_epochs", "2", "--resume", "auto", *QUIET])
    cli.model.on_train_batch_end = lambda *_: setattr(cli.watch, "signum", 15)
    with pytest.raises(Stopped) as stop:
        cli.trainer.fit(cli.model, cli.datamodule)
    assert stop.value.code == 143
    assert "stopped by SIGTERM after step 1; go on with --resume lightning_logs/version_0" in capsys.readouterr().out
    assert last(Path("lightning_logs/version_0"))["global_step"] == 1


def test_resume_points_cost_one_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only saving moves: the time between two points is a hundred times what one takes."""
    monkeypatch.setattr(ResumePoint, "COST", 0.01)
    now, times = 0.0, []
    monkeypatch.setattr("lit_training.resume.time", SimpleNamespace(monotonic=lambda: now))
    cli = FitCLI([*SHAPES, "--max_epochs", "20", *QUIET])
    save = cli.trainer.save_checkpoint

    def slow(*args: Any, **kwargs: Any) -> None:
        nonlocal now
        times.append(now)
        now += 0.3
        save(*args, **kwargs)

    def step(*_: Any) -> None:
        nonlocal now
        now += 1.0

    monkeypatch.setattr(cli.trainer, "save_checkpoint", slow)
    cli.model.on_train_batch_end = step
    cli.trainer.fit(cli.model, cli.datamodule)
    between = [b - a - 0.3 for a, b in itertools.pairwise(times[:-1])]
    assert times[0] == pytest.approx(11.0)  # the first one is expected to take 0.1 s
    assert between
    assert min(between) >= 30.0 - 1e-6


def test_run_json_says_what_the_run_was_made_with() -> None:
    command = [*SHAPES, "--max_epochs", "1", "--resume", "auto", "--seed", "7"]
    fit(*command, kill_at=3)
    fit(*command)
    starts = json.loads(Path("lightning_logs/version_0/run.json").read_text())
    assert [start["from_step"] for start in starts] == [0, 3]
    assert starts[0]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert starts[0]["seed"] == 7
    assert starts[0]["data"] == starts[1]["data"]


def test_run_json_names_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        fit(*SHAPES, "--max_epochs", "1")
    finally:
        torch.set_num_threads(threads)
    [start] = json.loads(Path("lightning_logs/version_0/run.json").read_text())
    machine = start["machine"]
    assert machine["system"] == platform.platform()
    assert machine["cpus"] == os.cpu_count()
    assert machine["threads"] == threads + 1
    assert (machine["device"], machine["processes"]) == ("cpu", 1)
    assert start["python"] == sys.version.split()[0]
    assert start["packages"] == {name: importlib.metadata.version(name) for name in provenance.PACKAGES}
    assert start["command"] == shlex.join(sys.argv)


def test_run_json_names_the_commit_and_what_differs_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code's, wherever the run is started."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # a hook of git has these
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    code = tmp_path / "code" / "lit_training"
    code.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(code / "provenance.py"))

    def git(*arguments: str) -> str:
        author = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
        command = ["git", *author, *arguments]
        return subprocess.run(command, cwd=code.parent, check=True, capture_output=True, text=True).stdout.strip()

    def told() -> Any:
        run = fit(*SHAPES, "--max_epochs", "1", "--limit_train_batches", "1").start.run  # type: ignore[union-attr]
        return json.loads((run / "run.json").read_text())[0]["git"]

    assert told() is None  # no repository
    (code / "provenance.py").write_text("first")
    (code / "other.py").write_text("first")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    assert told() == {"commit": git("rev-parse", "HEAD"), "changed": []}
    (code / "provenance.py").write_text("second")
    (code / "new.py").write_text("not git's")
    first = git("rev-parse", "HEAD")
    assert told() == {"commit": first, "changed": ["lit_training/provenance.py"]}
    git("commit", "--quiet", "--all", "--message", "second")
    assert git("rev-parse", "HEAD") != first
    assert told() == {"commit": git("rev-parse", "HEAD"), "changed": []}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["augmented", "unfreezing"])
def test_real_kills_signals_and_full_disks(case: str) -> None:
    """One round of scripts/torture.py for each of the two cases whose names contain ``case``."""
    command = [sys.executable, str(ROOT / "scripts" / "torture.py"), "--case", case, "--seed", "1", "--one_process"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stdout
    assert "2  runs equal to the uninterrupted one" in ended.stdout


OWN = """
import torch
from lightning.pytorch import LightningModule

class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(3072, 10))
    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01, 0.9)
"""


def test_a_model_of_ones_own_goes_on_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own_resumed.py").write_text(OWN)
    command = ["--model", "own_resumed.Model", "--data", "ShapesDataModule", *SHAPES, "--max_epochs", "3"]
    peace = fit(*command, "--default_root_dir", "peace").start.run  # type: ignore[union-attr]
    command += ["--default_root_dir", "killed", "--resume", "auto"]
    for step in (4, 11):
        fit(*command, kill_at=step)
    cli = fit(*command)
    assert cli.start is not None
    assert cli.start.step == 11
    assert "is set aside" not in capsys.readouterr().err
    assert_same_end(peace, cli.start.run)
