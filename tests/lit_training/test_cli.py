"""The command line: what is typed, and what becomes of it."""

import os
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.strategies import DDPStrategy
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR

from lit_models import LitCNN, LitMLP, LitTransfer, ModelError
from lit_training.cli.flags import TRAINER_FLAGS
from lit_training.cli.parser import FitCLI
from lit_training.errors import UsageError, is_rank_zero, one_line_errors

FUZZ = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "fuzz.py"))
WRONG = yaml.safe_load((Path(__file__).parent / "wrong_inputs.yaml").read_text())
LONG = int(os.environ.get("FUZZ_COMMAND_LINES", "150"))
"""How many command lines are tried; scripts/fuzz.py tries 10,000 others."""


def parse(line: str) -> FitCLI:
    return FitCLI(shlex.split(line))


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# --- wrong inputs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", WRONG["cases"], ids=lambda case: case["argv"])
def test_wrong_input_gets_one_line(case: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if case.get("unless") == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for name, text in WRONG["files"].items():
        path = tmp_path / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.write_text(text)
    before = files_in(tmp_path)
    with pytest.raises(SystemExit) as stopped, one_line_errors("fit.py"):
        parse(case["argv"])
    out, err = capfd.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("fit.py: error: ")
    assert case["culprit"] in err
    assert case["fix"] in err
    assert files_in(tmp_path) == before


def test_there_are_many_wrong_inputs() -> None:
    lines = [case["argv"] for case in WRONG["cases"]]
    assert len(lines) == len(set(lines)) >= 60


def test_a_name_that_is_not_utf8_is_said_to_be(capfd: pytest.CaptureFixture[str]) -> None:
    folder = os.fsdecode(b"caf\xe9")
    Path(folder).mkdir()
    with pytest.raises(SystemExit, match="2"), one_line_errors("fit.py"):
        FitCLI(["--data", folder])
    assert capfd.readouterr().err == "fit.py: error: caf\\udce9 holds bytes that are not UTF-8: rename it\n"


# --- errors of any program --------------------------------------------------------------------------------------------


def test_what_a_terminal_would_obey_is_escaped(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"), one_line_errors("predict.py"):
        raise UsageError("no file \x1b[31mé\x07")
    assert capfd.readouterr().err == "predict.py: error: no file \\x1b[31mé\\x07\n"


def test_ctrl_c_is_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="130"), one_line_errors("predict.py"):
        raise KeyboardInterrupt
    assert capfd.readouterr().err == "predict.py: stopped\n"


@pytest.mark.parametrize(
    ("variables", "rank", "first"),
    [
        ({}, 0, True),
        ({"NODE_RANK": "1"}, 0, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, 0, False),  # one process a GPU, each started by hand
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, 0, True),
        ({"LOCAL_RANK": "1"}, 1, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, 0, True),  # torchrun
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, 2, False),
        ({"SLURM_PROCID": "0", "NODE_RANK": "1"}, 0, True),  # which Lightning does not read there
    ],
)
def test_one_process_speaks(variables: dict[str, str], rank: int, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    assert is_rank_zero() == first


# --- fuzz -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reused() -> Callable[[list[str]], str]:
    return FUZZ["reused_parser"]()


@settings(
    max_examples=LONG,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(draw=st.randoms(use_true_random=False))
def test_any_command_line_parses_or_is_refused(reused: Callable[[list[str]], str], draw: Any) -> None:
    assert reused(FUZZ["command_line"](draw)) in ("parsed", "refused")


def test_the_parser_that_is_fuzzed_tells_right_from_wrong(
    reused: Callable[[list[str]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reused(["--max_epochs", "3"]) == "parsed"
    assert reused(["--max_epoch", "3"]) == "refused"

    def fail(*_: Any) -> None:
        raise KeyError("no error of a user")

    monkeypatch.setattr("lit_training.cli.expand_flags", fail)
    with pytest.raises(AssertionError, match="KeyError"):
        reused([])


# --- what is typed and what is built --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_epochs", "trainer.max_epochs"])
def test_trainer_flags_have_two_spellings(name: str) -> None:
    assert parse(f"--{name} 3").trainer.max_epochs == 3
    assert parse(f"--{name}=3").trainer.max_epochs == 3


@pytest.mark.parametrize("text", ["max_epochs: 3", "trainer: {max_epochs: 3}"])
def test_yaml_takes_both_spellings_and_flags_win(text: str) -> None:
    Path("some.yaml").write_text(f"{text}\nseed: 7\nmodel: LitCNN\n")
    cli = parse("--config some.yaml")
    assert (cli.trainer.max_epochs, cli.config["seed_everything"]) == (3, 7)
    assert parse("--max_epochs 5 --config some.yaml").trainer.max_epochs == 5
    Path("other.yaml").write_text("max_epochs: 4")
    assert parse("--config some.yaml --config other.yaml").trainer.max_epochs == 4


@pytest.mark.parametrize("flag", ["fast_dev_run", "barebones", "deterministic", "detect_anomaly"])
def test_a_bare_switch_is_true(flag: str) -> None:
    assert parse(f"--{flag} --model LitMLP").config["trainer"][flag] is True
    assert isinstance(parse(f"--model LitMLP --{flag} false").model, LitMLP)


def test_model_and_data_bring_their_partner() -> None:
    built = {name: type(parse(f"--model {name}").datamodule).__name__ for name in ("LitCNN", "LitMLP", "LitDynamic")}
    assert built == {"LitCNN": "ShapesDataModule", "LitMLP": "RandomDataModule", "LitDynamic": "RandomDataModule"}
    assert isinstance(parse("--data RandomDataModule").model, LitMLP)
    assert isinstance(parse("--data ShapesDataModule").model, LitCNN)


def test_a_folder_is_data(photo_folder: Path) -> None:
    cli = parse(f"--data {photo_folder} --model.weights none")
    assert isinstance(cli.model, LitTransfer)
    assert cli.datamodule.hparams["root"] == str(photo_folder)
    assert cli.model.hparams["num_classes"] == 2
    Path("photos.yaml").write_text(f"data: {photo_folder}\nmodel: LitCNN\n")
    cli = parse("--config photos.yaml --data.image_size 32")
    assert isinstance(cli.model, LitCNN)
    assert cli.model.hparams["in_channels"] == 3


def test_values_come_from_the_data_where_the_model_takes_them() -> None:
    cli = parse("--data.channels 1")
    assert (cli.model.hparams["in_channels"], cli.model.hparams["num_classes"]) == (1, 10)
    cli = parse("--model LitMLP --data.in_features 5 --data.out_features 2 --model.hidden []")
    assert dict(cli.model.hparams) == {"in_features": 5, "hidden": (), "out_features": 2, "lr": 1e-4}
    assert parse("--model.num_classes 10").model.hparams["num_classes"] == 10


def test_arguments_of_a_class_may_stand_before_it() -> None:
    assert parse("--model.hidden [3,4] --model LitMLP").model.hparams["hidden"] == (3, 4)


def test_constructor_errors_keep_their_kind() -> None:
    with pytest.raises(ModelError, match="widths of 1 or more"):
        parse("--model LitMLP --model.hidden [0]")


def test_a_chosen_optimizer_keeps_groups_and_schedule() -> None:
    cli = parse("--model LitTransfer --model.weights none --data ShapesDataModule --optimizer Adam --optimizer.lr 1e-4")
    configured = cli.model.configure_optimizers()
    (group,) = configured["optimizer"].param_groups
    assert isinstance(configured["optimizer"], Adam)
    assert group["lr"] == 1e-4
    assert [id(p) for p in group["params"]] == [id(p) for p in cli.model.head.parameters()]
    assert isinstance(configured["lr_scheduler"], StepLR)


def test_without_a_choice_the_source_optimizer_stays() -> None:
    optimizer = parse("--model.lr 0.01").model.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, SGD)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.01, 0.9)


@pytest.mark.parametrize(
    ("line", "finds"),
    [
        ("--model LitDynamic --strategy ddp --devices 2", True),
        ("--model LitDynamic --devices 2", True),
        ("--model LitMLP --strategy ddp --devices 2", None),
        ("--model LitDynamic --strategy ddp_find_unused_parameters_false --devices 2", False),
    ],
)
def test_models_that_skip_layers_have_ddp_look_for_them(line: str, finds: bool | None) -> None:
    strategy = parse(f"--accelerator cpu {line}").trainer.strategy
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs.get("find_unused_parameters") == finds


def test_the_saved_configuration_gives_itself(photo_folder: Path) -> None:
    for line in (
        "--max_epochs 2 --optimizer Adam --optimizer.lr 0.01 --lr_scheduler ReduceLROnPlateau --data.channels 1",
        "--model LitMLP --model.hidden [3,4] --data.steps 5 --gradient_clip_val 0.5 --seed 5",
        f"--data {photo_folder} --model.weights none --devices 2 --strategy ddp --accelerator cpu",
        "--callbacks EarlyStopping --callbacks.monitor val_loss",
    ):
        first = parse(line)
        Path("config.yaml").write_text(first.parser.dump(first.config, skip_unset=False))
        again = parse("--config config.yaml")
        assert {**again.config.as_dict(), "config": None} == first.config.as_dict()


def test_help_all_shows_every_trainer_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("--help_all")
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(f"--{name}" in shown for name in TRAINER_FLAGS)
    assert "--model.help LitCNN" in shown


@pytest.mark.parametrize(("line", "argument"), [("--model.help LitCNN", "lr"), ("--optimizer.help Adam", "betas")])
def test_class_help(line: str, argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(line)
    assert stopped.value.code == 0
    assert argument in capsys.readouterr().out


OWN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

class Model(LightningModule):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.net = torch.nn.Linear(width, 1)
    def training_step(self, batch, batch_idx):
        loss = self.net(batch[0]).square().mean()
        self.log("train_loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=4)
"""


def test_classes_of_ones_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own_classes.py").write_text(OWN)
    cli = parse("--model own_classes.Model --data own_classes.Data --model.width 3")
    assert type(cli.model).__name__ == "Model"
    assert cli.trainer.max_epochs == 1
    with pytest.raises(SystemExit), one_line_errors("fit.py"):
        parse("--model own_classes.Model --data own_classes.Data --optimizer Adam")
    assert "Model has its own in configure_optimizers" in capsys.readouterr().err


def test_same_seed_same_network() -> None:
    def first_weight(line: str) -> Any:
        return next(parse(line).model.parameters())

    assert torch.equal(first_weight("--seed 3"), first_weight("--seed 3"))
    assert not torch.equal(first_weight("--seed 3"), first_weight("--seed 4"))


@pytest.mark.parametrize(("nodes", "named", "used"), [(1, None, "lo"), (2, None, None), (1, "eth7", "eth7")])
def test_processes_of_one_machine_talk_over_its_loopback(
    nodes: int, named: str | None, used: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, named or "")
        if named is None:
            monkeypatch.delenv(name)
    parse(f"--accelerator cpu --devices 2 --strategy ddp --num_nodes {nodes}")
    assert {os.environ.get(name) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")} == {used}
