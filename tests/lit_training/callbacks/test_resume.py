"""A run that is killed at any moment and resumed gives the same result as an uninterrupted run."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

import lit_models
from datamodules.text import command
from lit_training.callbacks.resume import ResumePoint
from lit_training.cli.parser import FitCLI
from lit_training.errors import CheckpointError
from lit_training.runs.processes import Stopped
from lit_training.trained.calibrate import write_calibration
from tests.stress import kill_runs
from tests.support.commands import run
from tests.support.fits import (
    QUIET,
    SHAPES,
    SMALL_NET,
    assert_same_end,
    assert_same_weights,
    fit,
    fit_run,
    kill_and_resume,
    last,
    parse,
    run_of,
)
from tests.support.forks import Fork
from tests.support.own_classes import write_own_classes

pytestmark = pytest.mark.usefixtures("at_every_step")

WAVY = """
class WavyModel(PictureModel):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1)]
"""
CopyRun = Callable[..., Path]
ROWS = "--data.in_features 6 --data.out_features 2 --data.length 8 --data.batch_size 8 --data.steps 6"
PLATEAU = "--lr_scheduler ReduceLROnPlateau --lr_scheduler.patience 0 --lr_scheduler.threshold 0.9"
CASES = {
    "augmented": f"{SHAPES} --max_epochs 3 --data.augment true",
    "accumulated": f"{SHAPES} --max_epochs 3 --accumulate_grad_batches 4 --data.augment flip,trivial",
    "max_steps": f"{SHAPES} --max_steps 15",
    "validation twice an epoch": f"{SHAPES} --max_epochs 3 --val_check_interval 0.5",
    "validation every other epoch": f"{SHAPES} --max_epochs 4 --check_val_every_n_epoch 2 {PLATEAU}",
    "one batch an epoch": f"--data.train_size 4 --data.val_size 8 --max_epochs 9 {PLATEAU}",
    "plateau": f"{SHAPES} --max_epochs 4 {PLATEAU}",
    "one cycle": f"{SHAPES} --max_epochs 3 --lr_scheduler OneCycleLR --optimizer AdamW",
    "cosine": f"{SHAPES} --max_epochs 3 --lr_scheduler CosineAnnealingLR",
    "early stopping": f"{SHAPES} --max_epochs 9 --early_stopping 1 --dashboard true",
    "stopped before min_epochs": f"{SHAPES} --max_epochs 9 --min_epochs 4 --early_stopping 1 --model.lr 0.2 "
    "--monitor val_loss:max",  # the fourth epoch is better than the second, after which the run is to stop
    "mlp": f"--model LitMLP {ROWS} --max_epochs 2",
    "dynamic": f"--model LitDynamic {ROWS} --max_epochs 2",
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_and_resumed_run_equals_the_uninterrupted_run(case: str) -> None:
    uninterrupted = fit_run(f"{CASES[case]} --default_root_dir uninterrupted")
    steps = last(uninterrupted)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    line = f"{CASES[case]} --default_root_dir killed --resume auto"
    for step in (steps // 3, 3 * steps // 4):
        fit(line, kill_at=step)
    run = fit_run(line)
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert_same_end(uninterrupted, run)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_fine_tuning_resumes_before_and_after_the_unfreezing_epoch(photo_folder: Path, workers: int) -> None:
    line = f"--data {photo_folder} {SMALL_NET} --model.freeze false --max_epochs 3 --model.unfreeze_epoch 1"
    line += f" --data.image_size 72 --data.num_workers {workers} --dashboard true"
    assert_same_end(*kill_and_resume(line, 2, 5))


def test_averaged_weights_and_mixed_pictures_are_resumed(photo_folder: Path) -> None:
    """The parts of photos_best.yaml. The last batch of an epoch has three pictures."""
    (photo_folder / "train" / "ants" / "0.jpg").unlink()
    line = f"--data {photo_folder} {SMALL_NET} --model.freeze false --model.unfreeze_epoch 1 --model.mix both"
    line += " --model.label_smoothing 0.1 --model.average_flips true --data.balance loss --data.image_size 32"
    line += " --data.batch_size 4 --max_epochs 3 --optimizer AdamW --lr_scheduler OneCycleLR"
    line += " --callbacks+ EMAWeightAveraging --callbacks.decay 0.5"
    uninterrupted, run = kill_and_resume(line, 2, 5, 10)
    assert_same_end(uninterrupted, run)
    for name in ("best.ckpt", "last.ckpt"):
        one, two = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (uninterrupted, run))
        trained, resumed = one["current_model_state"], two["current_model_state"]
        assert all(torch.equal(weight, resumed[key]) for key, weight in trained.items())
        assert one["averaging_state"] == two["averaging_state"]
    assert one["averaging_state"]["n_averaged"] == 12
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert not torch.equal(best["state_dict"]["net.fc.weight"], best["current_model_state"]["net.fc.weight"])


def test_the_frozen_backbone_stays_frozen_in_a_resumed_epoch(photo_folder: Path) -> None:
    line = f"--data {photo_folder} {SMALL_NET} --model.freeze false --max_epochs 1 --model.unfreeze_epoch 5"
    line += " --data.image_size 32 --resume auto"
    fit(line, kill_at=2)
    before = last(Path("lightning_logs/version_0"))["state_dict"]
    model = fit(line).model
    assert torch.equal(before["net.conv1.0.weight"], model.net.conv1[0].weight)
    assert not torch.equal(before["net.fc.weight"], model.net.fc.weight)


def test_a_resumed_run_reads_no_pretrained_weights(photo_folder: Path) -> None:
    weights = Path("weights.pth")
    torch.save(lit_models.LitTransfer("shufflenet_v2_x0_5", weights=None, num_classes=1000).net.state_dict(), weights)
    line = f"--data {photo_folder} {SMALL_NET} --model.weights {weights} --max_epochs 2 --data.image_size 32"
    line += " --resume auto"
    fit(line, kill_at=3)
    weights.unlink()
    assert last(fit_run(line))["callbacks"]["ResumePoint"]["finished"]


def test_each_sample_is_used_once_per_epoch_if_repeated_steps_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, tuple[int, list[float]]] = {}

    class RecordSamples(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen[trainer.fit_loop.total_batch_idx] = trainer.current_epoch, batch[0].sum((1, 2, 3)).tolist()

    build = FitCLI.instantiate_trainer
    monkeypatch.setattr(
        FitCLI,
        "instantiate_trainer",
        lambda cli: (trainer := build(cli), trainer.callbacks.append(RecordSamples()))[0],  # type: ignore[attr-defined]
    )
    for step in (2, 5, 8, 13, None):
        fit(f"{SHAPES} --max_epochs 3 --resume auto", kill_at=step)
    epochs = [sorted(x for number, batch in seen.values() if number == epoch for x in batch) for epoch in range(3)]
    assert len(set(epochs[0])) == 24
    assert epochs[0] == epochs[1] == epochs[2]


def test_resuming_a_finished_run_changes_nothing(copy_run: CopyRun) -> None:
    line = f"{SHAPES} --max_epochs 1"
    run = copy_run(line)
    write_calibration(run / "checkpoints" / "best.ckpt", None)  # as print_result() does for a run that has no labels
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    second_start = fit(f"{line} --resume auto").run.start
    assert second_start is not None
    assert second_start.finished
    del before[run / ".lock"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_max_epochs_alone_extends_a_finished_run(copy_run: CopyRun) -> None:
    long = copy_run(f"{SHAPES} --max_epochs 3", root="long")
    short = copy_run(f"{SHAPES} --max_epochs 1", root="short")
    fit(f"--resume {short} --max_epochs 3")
    assert_same_end(long, short)


def test_a_run_that_was_moved_keeps_its_best_score() -> None:
    line = f"{SHAPES} --max_epochs 3 --model.lr 0.02"
    uninterrupted = fit_run(f"{line} --default_root_dir uninterrupted")
    fit(f"{line} --default_root_dir here", kill_at=14)
    Path("here").rename("there")
    fit("--resume there/lightning_logs/version_0")
    assert_same_end(uninterrupted, Path("there/lightning_logs/version_0"))
    assert not Path("here").exists()


def test_a_broken_last_ckpt_is_renamed_and_previous_ckpt_is_used(
    copy_run: CopyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{SHAPES} --max_epochs 3"
    uninterrupted = copy_run(line, root="uninterrupted")
    folder = copy_run(line, kill_at=9) / "checkpoints" / "resume"
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:-1000])
    start = fit(f"{line} --resume auto").run.start
    assert start is not None
    assert (start.checkpoint, start.step) == (folder / "previous.ckpt", 8)
    assert "last.ckpt is not a checkpoint that can be read safely" in capsys.readouterr().err
    assert (folder / "last.ckpt.broken").exists()
    assert_same_end(uninterrupted, folder.parent.parent)


def test_a_run_without_a_readable_resume_point_is_left_alone(copy_run: CopyRun) -> None:
    """Restarting it at step 0 in the same folder would destroy it."""
    line = f"{SHAPES} --max_epochs 3"
    run = copy_run(line, kill_at=9)
    for path in (run / "checkpoints" / "resume").iterdir():
        path.write_bytes(path.read_bytes()[:-1000])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for resume in ("auto", "latest", str(run)):
        with pytest.raises(CheckpointError, match=r"last.ckpt is not .*previous.ckpt is not .* --resume never"):
            parse(f"{QUIET} {line} --resume {resume}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("flag", ["--accumulate_grad_batches 2", "--limit_train_batches 0.5"])
def test_the_batches_of_an_epoch_cannot_be_changed_by_a_resume(flag: str, copy_run: CopyRun) -> None:
    copy_run(f"{SHAPES} --max_epochs 1", kill_at=3)
    with pytest.raises(CheckpointError, match="resume point has 1 process with 6 batches per epoch"):
        fit(f"--resume latest {flag}")


def test_a_resumed_run_goes_on_with_its_schedule_of_accumulation() -> None:
    name = "lightning.pytorch.callbacks.GradientAccumulationScheduler"
    config = {"class_path": name, "init_args": {"scheduling": {0: 1, 1: 3, 2: 2}}}
    Path("more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [config]}}))
    line = f"{SHAPES} --max_epochs 3 --config more.yaml"
    uninterrupted = fit_run(f"{line} --default_root_dir uninterrupted")
    line += " --default_root_dir killed --resume auto"
    for step in (4, 8, 14):
        fit(line, kill_at=step)
    run = fit_run(line)
    assert last(run)["global_step"] == 6 + 2 + 3
    assert_same_end(uninterrupted, run)


@pytest.mark.parametrize(
    ("begun", "step", "longer", "message"),
    [
        ("--max_epochs 1 --lr_scheduler OneCycleLR", None, "--max_epochs 2", "ends after 6 steps"),
        ("--max_epochs 2 --lr_scheduler CosineAnnealingLR", 8, "--max_epochs 3", "ends after 12 steps"),
        ("--max_steps 7 --lr_scheduler CosineAnnealingLR", 3, "--max_steps 20", "ends after 12 steps"),
    ],
)
def test_a_run_is_not_extended_beyond_the_end_of_its_schedule(
    begun: str, step: int | None, longer: str, message: str, copy_run: CopyRun
) -> None:
    folder = copy_run(f"{SHAPES} {begun}", kill_at=step)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, _, err = run(f"fit.py --resume {folder} {longer}")
    assert code == 2
    assert message in err
    assert "leave --max_epochs and --max_steps out" in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    fit(f"--resume {folder}")  # without the longer limit it goes on


def test_a_cosine_of_the_users_own_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "own_classes", raising=False)  # that of another test has no WavyModel
    monkeypatch.syspath_prepend(Path.cwd())
    line = f"--model own_classes.WavyModel --data ShapesDataModule {SHAPES}"
    write_own_classes()
    with Path("own_classes.py").open("a") as file:
        file.write(WAVY)
    long = fit_run(f"{line} --max_epochs 3 --default_root_dir long")
    short = fit_run(f"{line} --max_epochs 2 --default_root_dir short")
    fit(f"--resume {short} --max_epochs 3")
    assert_same_weights(long, short)


def test_changed_data_is_refused(photo_folder: Path) -> None:
    line = f"--data {photo_folder} {SMALL_NET} --data.image_size 32 --max_epochs 1"
    fit(line, kill_at=2)
    next((photo_folder / "train" / "ants").iterdir()).unlink()
    with pytest.raises(CheckpointError, match=r"batches per epoch|training data has changed"):
        fit(f"{line} --resume auto")


def test_a_copy_of_a_finished_resume_point_trains_more_epochs_in_a_new_folder_or_does_nothing(
    copy_run: CopyRun,
) -> None:
    long = copy_run(f"{SHAPES} --max_epochs 3", root="long")
    copy = Path("copy.ckpt")
    copy.write_bytes((copy_run(f"{SHAPES} --max_epochs 1") / "checkpoints" / "last.ckpt").read_bytes())
    second_start = fit(f"{SHAPES} --max_epochs 1 --resume {copy}").run.start
    assert second_start is not None
    assert second_start.finished
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    fit(f"{SHAPES} --max_epochs 3 --resume {copy}")
    assert_same_weights(long, Path("lightning_logs/version_1"))


def test_a_run_killed_before_its_first_step_starts_again_in_its_folder() -> None:
    for _ in range(2):
        start = parse(f"{SHAPES} {QUIET} --max_epochs 1 --resume auto").run.start
        assert start is not None
        assert (start.folder.name, start.checkpoint) == ("version_0", None)


def test_the_seed_decides_all_randomness() -> None:
    line = "--data.train_size 16 --data.val_size 8 --data.augment true --max_epochs 1"
    first, second, other = (fit_run(f"{line} --seed {seed}") for seed in (1, 1, 2))
    assert_same_end(first, second)
    a, b = (last(run)["state_dict"]["net.conv1.weight"] for run in (first, other))
    assert not torch.equal(a, b)


def test_a_signal_stops_between_two_steps_and_gives_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    cli = parse(f"{SHAPES} {QUIET} --max_epochs 2 --resume auto")
    cli.model.on_train_batch_end = lambda *_: setattr(cli.run.watch, "signum", 15)
    with pytest.raises(Stopped) as stop:
        cli.trainer.fit(cli.model, cli.datamodule)
    assert stop.value.code == 143
    hint = f"go on with {command('fit.py')} --resume lightning_logs/version_0"
    assert f"stopped by SIGTERM after step 1; {hint}" in capsys.readouterr().out
    assert last(run_of(cli))["global_step"] == 1


@pytest.mark.parametrize(
    ("flags", "step"),
    [
        ("--max_epochs 2", 11),
        ("--max_epochs 1 --val_check_interval 0.5", 5),
        ("--max_epochs 2 --val_check_interval 4 --check_val_every_n_epoch null", 7),
        ("--max_epochs 4 --check_val_every_n_epoch 2", 23),
        ("--max_epochs 2 --accumulate_grad_batches 4", 3),
    ],
)
def test_a_signal_in_a_long_validation_loses_one_step(flags: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", 1e-9)
    monkeypatch.setattr(ResumePoint, "SECONDS_TO_END_VALIDATION", -1.0)  # each validation is longer
    uninterrupted = fit_run(f"{SHAPES} {flags} --default_root_dir uninterrupted")
    cli = parse(f"{SHAPES} {QUIET} {flags} --default_root_dir stopped")
    validations = itertools.count(1)
    cli.model.on_validation_start = lambda: setattr(cli.run.watch, "signum", 15 if next(validations) == 2 else 0)
    with pytest.raises(Stopped):
        cli.trainer.fit(cli.model, cli.datamodule)
    run = run_of(cli)
    assert (last(run)["global_step"], cli.trainer.global_step) == (step, step + 1)
    fit(f"--resume {run}")
    assert_same_end(uninterrupted, run)


def test_resume_points_cost_one_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time between two writes is at least 100 times the time of a write. The clock is simulated."""
    monkeypatch.setattr(ResumePoint, "TIME_SHARE", 0.01)
    now, times = 0.0, []
    monkeypatch.setattr("lit_training.callbacks.resume.time", SimpleNamespace(monotonic=lambda: now))
    cli = parse(f"{SHAPES} {QUIET} --max_epochs 20")
    save = cli.trainer.save_checkpoint

    def slow_save(path: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal now
        if Path(path).name == "last.ckpt":  # not best.ckpt
            times.append(now)
            now += 0.3
        save(path, *args, **kwargs)

    def step(*_: Any) -> None:
        nonlocal now
        now += 1.0

    monkeypatch.setattr(cli.trainer, "save_checkpoint", slow_save)
    cli.model.on_train_batch_end = step
    cli.trainer.fit(cli.model, cli.datamodule)
    between = [b - a - 0.3 for a, b in itertools.pairwise(times[:-1])]
    assert times[0] == pytest.approx(11.0)  # the first write is assumed to take 0.1 s
    assert between
    assert min(between) >= 30.0 - 1e-6


def test_a_model_from_outside_this_project_is_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    write_own_classes()
    line = f"--model own_classes.PictureModel --data ShapesDataModule {SHAPES} --max_epochs 3"
    uninterrupted = fit_run(f"{line} --default_root_dir uninterrupted")
    line += " --default_root_dir killed --resume auto"
    for step in (4, 11):
        fit(line, kill_at=step)
    start = fit(line).run.start
    assert start is not None
    assert start.step == 11
    assert "warning" not in capsys.readouterr().err
    assert_same_end(uninterrupted, start.folder)


def test_the_training_loss_of_a_point_of_an_older_version_counts_the_whole_epoch() -> None:
    uninterrupted = fit_run(f"{SHAPES} --max_epochs 2 --default_root_dir uninterrupted")
    line = f"{SHAPES} --max_epochs 2 --default_root_dir killed --resume auto"
    fit(line, kill_at=9)
    point = Path("killed/lightning_logs/version_0/checkpoints/resume/last.ckpt")
    checkpoint = torch.load(point, weights_only=True)
    state = checkpoint["callbacks"]["ResumePoint"]
    [own] = state.pop("own")
    state["losses"] = [own["model"]["epoch_losses",]]
    for name in ("results", "reload_epoch", "shuffled", "limits"):
        del state[name]
    torch.save(checkpoint, point)
    assert_same_end(uninterrupted, fit_run(line))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["augmented", "unfreezing"])
def test_real_kills_signals_and_full_disks(case: str) -> None:
    """Run tests/stress/kill_runs.py once for each case whose name contains ``case``."""
    process = Fork(f"{kill_runs.__file__} --case {case} --seed 1 --one_process")
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    count = sum(case in name for name in kill_runs.CASES)
    assert f"{count}  runs equal to the uninterrupted one" in out
