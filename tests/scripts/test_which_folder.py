"""No run overwrites the files of another run, and each path means one folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities import rank_zero_only

from tests.support.ants_and_bees import write_photos
from tests.support.commands import run, run_well
from tests.support.own_classes import remember_imports

ROWS = "fit.py --data RandomDataModule --data.steps 2 --accelerator cpu --devices 1 --dashboard false"
LOGGER = '''
from lightning.pytorch.loggers.logger import Logger

class Own(Logger):
    """Like the loggers of services: one folder for all runs, and no log_dir."""
    save_dir, name, version = "service", "name", "0"
    def log_metrics(self, metrics, step=None): pass
    def log_hyperparams(self, *args, **options): pass
'''


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def contents(*names: str) -> dict[Path, bytes]:
    return {path: path.read_bytes() for name in names for path in Path(name).rglob("*") if path.is_file()}


def test_runs_without_a_logger_keep_each_others_checkpoints() -> None:
    run_well(f"{ROWS} --logger false --quiet")
    before = contents("checkpoints")
    assert [path.name for path in before] == ["best.ckpt"]
    out = run_well(f"{ROWS} --logger false --seed 3 --max_epochs 3")
    after = contents("checkpoints")
    assert before.items() < after.items()
    assert sorted(path.name for path in after) == ["best-v1.ckpt", "best.ckpt"]
    assert "evaluate.py checkpoints/best-v1.ckpt" in out


def test_a_logger_with_a_fixed_version_keeps_the_files_of_earlier_starts() -> None:
    command = f"{ROWS} --quiet --logger CSVLogger --logger.save_dir own --logger.name null --logger.version 3"
    run_well(command)
    before = contents("own")
    assert sorted(path.name for path in before) == ["hparams.yaml", "metrics.csv"]
    run_well(f"{command} --seed 3")
    run_well("fit.py --resume latest --max_epochs 30 --quiet")
    after = contents("own")
    assert {path.with_stem(f"{path.stem}-1"): content for path, content in before.items()}.items() < after.items()
    assert len(after) == 6
    run_well("fit.py --resume latest --quiet")  # nothing to do
    assert contents("own") == after


def test_a_logger_with_one_folder_for_all_runs_overwrites_nothing() -> None:
    Path("service_logger.py").write_text(LOGGER)
    Path("service").mkdir()
    Path("service/config.yaml").write_text("of the user")
    with remember_imports():
        for _ in range(2):
            run_well(f"{ROWS} --quiet --logger service_logger.Own")
    assert contents("service") == {Path("service/config.yaml"): b"of the user"}
    assert len(list(Path().glob("lightning_logs/version_?/checkpoints/best.ckpt"))) == 2


@pytest.fixture
def keeps_rank() -> Iterator[None]:
    rank: Any = rank_zero_only.rank  # type: ignore[attr-defined]
    yield
    rank_zero_only.rank = rank  # type: ignore[attr-defined]


@pytest.mark.parametrize("variable", ["NODE_RANK", "GROUP_RANK", "RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_the_rank_of_another_job_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch, keeps_rank: None) -> None:
    run_well(f"{ROWS} --quiet")
    before = contents("lightning_logs")
    monkeypatch.setenv(variable, "1")
    rank_zero_only.rank = int(variable in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))  # type: ignore[attr-defined]  # as after import
    for command in (f"{ROWS} --seed 3", "evaluate.py latest"):
        monkeypatch.setenv(variable, "1")
        ended = run(command)
        assert (ended.code, ended.out) == (2, "")
        assert (
            f"the environment has {variable}=1, but this run has 1 process: start with env -u {variable}" in ended.err
        )
    assert contents("lightning_logs") == before


def test_a_path_of_the_home_folder_means_one_folder(home: Path) -> None:
    first = run_well(f"{ROWS} --default_root_dir=~/runs/ --resume auto")
    logs = home / "runs" / "lightning_logs"
    assert f"run         {logs.relative_to(Path.cwd())}/version_0" in first
    Path("home.yaml").write_text("default_root_dir: $HOME/runs")
    for command in (f"{ROWS} --default_root_dir {home}/runs --resume auto", f"{ROWS} --config home.yaml --resume auto"):
        assert "nothing to do" in run_well(command)
    assert "nothing to do" in run_well("fit.py --resume=~/runs/lightning_logs/version_0/")
    run_well("evaluate.py ~/runs/lightning_logs/version_0")
    assert sorted(path.name for path in Path().iterdir()) == ["home", "home.yaml"]


def test_photos_and_results_in_the_home_folder(home: Path) -> None:
    write_photos(home / "photos")
    small = "--model.weights none --model.backbone shufflenet_v2_x0_5 --data.image_size 64 --max_epochs 1 --quiet"
    Path("home.yaml").write_text("data: ~/photos")
    run_well(f"fit.py --config home.yaml {small} --resume auto")
    assert run_well(f"fit.py --data=~/photos/ {small.replace('--quiet', '')} --resume auto").endswith(
        "--resume never\n"
    )
    run_well("check.py '~/photos'")
    run_well("predict.py latest '~/photos' --output=~/answers.csv")
    assert (home / "answers.csv").is_file()
    assert not Path("~").exists()


def test_any_spelling_of_the_same_folders_continues_the_same_run(home: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    small = "--model.weights none --model.backbone shufflenet_v2_x0_5 --data.image_size 64 --max_epochs 1 --resume auto"
    saver = "--callbacks ModelCheckpoint --callbacks.dirpath"
    run_well(f"fit.py {small} --data photos {saver} saved --default_root_dir runs --quiet")
    Path("link").symlink_to(tmp_path, target_is_directory=True)
    Path("other").mkdir()
    for folder in ("link", "~/../other/.."):
        line = f"fit.py {small} --data {folder}/photos/ {saver} {folder}/saved --default_root_dir {folder}/runs"
        assert "nothing to do" in run_well(line), folder
    other = run_well(f"fit.py {small} --data photos {saver} other --default_root_dir runs --quiet")
    assert "version_1" in other
    run_well(f"fit.py --data link/photos --resume {tmp_path}/link/runs/lightning_logs/version_0 --max_epochs 1 --quiet")


def test_the_current_folder_is_the_default_folder() -> None:
    run_well(f"{ROWS} --quiet")
    for root in (".", str(Path.cwd())):
        assert "nothing to do" in run_well(f"{ROWS} --default_root_dir {root} --resume auto")


@pytest.mark.parametrize(
    "flags",
    [
        "--default_root_dir s3://bucket/runs",
        "--default_root_dir=file:///abs/runs",
        "--default_root_dir memory://",
        "--default_root_dir C:\\\\runs",
        "--default_root_dir '$NOWHERE/runs'",
        "--default_root_dir ~nobody-here/runs",
        "--logger CSVLogger --logger.save_dir gs://bucket",
        "--callbacks ModelCheckpoint --callbacks.dirpath hdfs://bucket",
    ],
)
def test_a_place_that_is_no_local_folder_is_refused(flags: str) -> None:
    ended = run(f"{ROWS} {flags}")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "is not a local folder, but runs are written to one: --default_root_dir FOLDER" in ended.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("flag", ["--data", "--default_root_dir", "--resume", "--photos", "--model"])
def test_an_empty_value_is_refused(flag: str) -> None:
    ended = run(f"fit.py {flag} ''")
    assert (ended.code, ended.err) == (2, f"fit.py: error: {flag} needs a value: {flag} VALUE\n")
    Path("empty.yaml").write_text('data: ""')
    assert "there is no such folder" in run("fit.py --config empty.yaml").err
