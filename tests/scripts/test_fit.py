"""Test the output and the files of scripts/fit.py."""

from pathlib import Path

import pytest
import yaml

from lit_training.cli.parser import FitCLI
from tests.support import printed, scripted
from tests.support.ants_and_bees import write_photos
from tests.support.commands import run, run_well, start
from tests.support.fits import SMALL_NET
from tests.support.forks import Fork

SMALL = "--data.train_size 12 --data.val_size 10 --max_epochs 1 --accelerator cpu --devices 1"


def test_a_run_prints_its_result_and_the_next_commands() -> None:
    out = run_well(f"fit.py {SMALL}")
    for part in ("global batch = 4", "62,006 trainable", "val_acc", "n = 10", "lightning_logs/version_0"):
        assert part in out
    for line in ("scripts/evaluate.py latest", "scripts/predict.py latest", "--logdir lightning_logs"):
        assert line in out
    assert Path("lightning_logs/version_0/checkpoints/best.ckpt").is_file()
    # The saved configuration parses to itself.
    saved = Path("lightning_logs/version_0/config.yaml")
    again = FitCLI(["--config", str(saved)])
    assert yaml.safe_load(again.parser.dump(again.config, skip_unset=False)) == yaml.safe_load(saved.read_text())


def test_config_yaml_is_replaced_as_a_whole() -> None:
    """``--resume auto`` finds a run by this file, so a run that is killed at any moment must have it."""
    run_well(f"fit.py {SMALL}")
    saved, before = Path("lightning_logs/version_0/config.yaml"), Path("before.yaml")
    before.hardlink_to(saved)  # a file that is overwritten, not replaced, would change under both names
    run_well(f"fit.py {SMALL} --max_epochs 2 --resume latest")
    assert "max_epochs: 1" in before.read_text()
    assert "max_epochs: 2" in saved.read_text()


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
def test_runs_with_trainer_flags_succeed(flags: str, reports: list[str], checkpoint: str | None) -> None:
    code, out, err = run(f"fit.py {SMALL} {flags}")
    assert code == 0, err
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
def test_custom_classes_train(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_run.py").write_text(OWN)
    scripted.put_clock_back(monkeypatch)
    data = f"--model own_run.Model --data own_run.Data --data.kind {kind} --callbacks {scripted.NAME}.Clock"
    out = run_well(f"fit.py {data} --max_epochs 2 --accelerator cpu --devices 1")
    assert "5 trainable" in out
    assert "train_loss" in out
    assert "\nval_acc     1.0000\n" in out  # the model does not count its samples: no interval
    assert Path("lightning_logs/version_0/checkpoints/best.ckpt").is_file()
    speeds = printed.column(printed.read_csv(Path("lightning_logs/version_0/metrics.csv")), "samples_per_second")
    assert speeds == [4 / scripted.Clock.STEP] * 2  # batches of 4


@pytest.mark.parametrize("flags", ["", "--model.freeze false", "--data.augment true"])
def test_the_last_batch_may_hold_one_image(flags: str, photo_folder: Path) -> None:
    for number in range(2, 8):
        (photo_folder / "train/ants" / f"{number}.jpg").unlink()
    (photo_folder / "train/bees/7.jpg").unlink()  # 2 + 7 = 2 * 4 + 1
    line = f"fit.py --data photos --data.image_size 72 --data.num_workers 0 {SMALL_NET} {flags}"
    assert "n = 8" in run_well(f"{line} --max_epochs 1 --accelerator cpu --devices 1")


@pytest.mark.slow
def test_a_process_prints_errors_in_one_line() -> None:
    Path("evil.yaml").write_text("a: !!python/object/apply:os.system ['touch canary']")
    lines = {
        "--config evil.yaml": "is not plain YAML (line 1): could not determine a constructor for the tag",
        f"{SMALL} --val_check_interval 500": "`val_check_interval` (500)",
    }
    programs = {line: Fork(f"fit.py {line}") for line in lines}
    for line, program in programs.items():
        _, err = program.communicate()
        assert program.returncode == 2, err
        assert err.count("\n") == 1, err
        assert err.startswith("fit.py: error: ")
        assert lines[line] in err
    assert {path.name for path in Path().iterdir()} == {"evil.yaml"}


# --- two processes ----------------------------------------------------------------------------------------------------

TWO = "--accelerator cpu --devices 2 --strategy ddp"


@pytest.mark.slow
def test_one_of_two_ranks_prints_the_error() -> None:
    """If not, Lightning kills the first rank as soon as another rank ends, and no error is printed."""
    program = Fork(f"fit.py {SMALL.replace('--devices 1', '')} {TWO} --val_check_interval 500")
    _, err = program.communicate()
    assert program.returncode == 2, err
    assert err.count("\n") == 1, err
    assert "`val_check_interval` (500)" in err
    assert not Path("lightning_logs").exists()


@pytest.mark.slow
def test_each_rank_prints_its_device_report_and_rank_0_writes() -> None:
    line = f"fit.py --max_epochs 1 --data.train_size 16 --data.val_size 11 {TWO}"
    program = start(f"{line} --callbacks+ lit_training.callbacks.device_report.DeviceReport")
    out, err = program.communicate(timeout=180)
    assert program.returncode == 0, err
    for rank in (0, 1):
        size = "input size torch.Size([4, 3, 32, 32]) output size torch.Size([4, 10])"
        assert out.count(f"In Model: {size} (rank {rank} of 2, cpu)") == 1
    assert out.count("Outside: input size torch.Size([8, 3, 32, 32]) output_size torch.Size([8, 10])") == 1
    pictures = ["training/samples", "validation/confusion_matrix", "validation/most_confident_mistakes"]
    board = printed.board(Path("lightning_logs/version_0"))
    assert sorted(board.Tags()["images"]) == pictures  # written by rank 0, with the data of both ranks


@pytest.mark.slow
def test_second_rank_does_not_take_an_old_run_for_its_own() -> None:
    """Rank 0 chooses the folder. The others begin with version_0, which here is of a version without --data.group."""
    write_photos(Path("photos"))
    Path("lightning_logs/version_0").mkdir(parents=True)
    Path("lightning_logs/version_0/config.yaml").write_text("data: {init_args: {seed: 0}}")
    line = f"fit.py --data photos --data.image_size 32 --model LitCNN --max_epochs 1 --data.group exact {TWO}"
    program = Fork(line)
    out, err = program.communicate()
    assert program.returncode == 0, err
    assert "lightning_logs/version_1" in out
