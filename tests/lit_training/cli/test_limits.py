"""limits.py refuses wrong Trainer arguments. wrong_inputs.yaml has more wrong command lines."""

import inspect
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging

from datamodules.text import plural
from lit_training.cli.limits import (
    CHOICES,
    FRACTIONS,
    FRACTIONS_ABOVE_ZERO,
    MINIMA,
    check_devices,
    check_trainer,
    explain_trainer_error,
)
from lit_training.errors import UsageError
from tests.support.commands import run
from tests.support.fits import SharedParserCLI, parse

FLAGS = (
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "val_check_interval",
    "overfit_batches",
)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """Default values of the Trainer flags."""
    return parse("--logger false --accelerator cpu --devices 1").config["trainer"].as_dict()


@pytest.mark.parametrize("name", CHOICES)
def test_names_must_be_known_to_lightning(name: str, config: dict[str, Any]) -> None:
    for choice in CHOICES[name]:
        check_trainer({**config, "devices": "auto", name: choice})
        check_trainer({**config, "devices": "auto", name: choice.upper()})
    with pytest.raises(UsageError, match=f"--{name} nonsense: "):
        check_trainer({**config, name: "nonsense"})


@pytest.mark.parametrize(("name", "minimum"), [(name, minimum) for minimum in MINIMA for name in MINIMA[minimum]])
def test_numbers_below_the_minimum_are_refused(name: str, minimum: int, config: dict[str, Any]) -> None:
    check_trainer({**config, name: minimum})
    for value in (minimum - 1, float("nan")):
        with pytest.raises(UsageError, match=f"--{name} must be at least {minimum}, but is {value}"):
            check_trainer({**config, name: value})


@pytest.mark.parametrize("name", FRACTIONS + FRACTIONS_ABOVE_ZERO)
def test_fractions_are_at_most_1_and_numbers_of_batches_are_integers(name: str, config: dict[str, Any]) -> None:
    accepted, refused = [1, 2, 0.5, 1.0, 2.0], [-1, 1.5, float("nan"), float("inf")]
    (refused if name in FRACTIONS_ABOVE_ZERO else accepted).extend((0, 0.0))
    for value in accepted:
        check_trainer({**config, name: value})
    for value in refused:
        with pytest.raises(UsageError, match=f"--{name} {value} must be a fraction"):
            check_trainer({**config, name: value})


@pytest.mark.parametrize(
    ("accelerator", "devices", "accepted"),
    [
        ("cpu", "auto", True),
        ("cpu", 1, True),
        ("cpu", "2", True),
        ("cpu", 0, False),
        ("cpu", "1,2", False),
        ("cpu", 100_000, False),
    ],
)
def test_the_number_of_processes_on_a_cpu_is_checked(accelerator: str, devices: Any, accepted: bool) -> None:
    if accepted:
        check_devices(accelerator, devices)
        return
    with pytest.raises(UsageError, match=f"--devices {devices}"):
        check_devices(accelerator, devices)


@pytest.mark.parametrize("typed", ["1", "1.0", "2", "2.0", "0.5"])
def test_an_integer_counts_batches_whatever_order_typing_has_cached(
    typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """typing gives Lightning ``float | int`` if another package wrote ``Optional[Union[float, int]]`` first."""
    annotations = inspect.unwrap(Trainer.__init__).__annotations__
    for name in FLAGS:
        monkeypatch.setitem(annotations, name, float | int | None)
    monkeypatch.setattr(SharedParserCLI, "shared", None)
    for clear_cache in typing._cleanups:  # type: ignore[attr-defined]  # it may have the order of another test
        clear_cache()
    monkeypatch.setitem(StochasticWeightAveraging.__init__.__annotations__, "swa_epoch_start", float | int)
    swa = "--callbacks+ StochasticWeightAveraging --callbacks.swa_lrs 0.1 --callbacks.swa_epoch_start 2"  # not 2.0
    wanted = float(typed) if typed in ("1.0", "0.5") else int(float(typed))
    for flags in (["overfit_batches"], [name for name in FLAGS if name != "overfit_batches"]):  # not together
        run = parse(" ".join(f"--{name} {typed}" for name in flags) + f" --logger false --max_epochs 3 {swa}")
        saved = yaml.safe_load(run.parser.dump(run.config, skip_unset=False))["trainer"]
        for found in (vars(run.trainer), saved):
            values = [found[name] for name in flags]
            assert values == [wanted] * len(flags)
            assert {type(value) for value in values} == {type(wanted)}


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("ddp_spawn", "ddp"),
        ("ddp_notebook", "ddp"),
        ("DDP_FORK_find_unused_parameters_true", "ddp_find_unused_parameters_true"),
        ("ddp_find_unused_parameters_false", "ddp_find_unused_parameters_false"),
        ("fsdp", "fsdp"),
    ],
)
def test_processes_are_not_spawned_or_forked(
    given: str, used: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Signals do not reach such processes, and a finished run would wait for them for ever."""
    checked = config | {"strategy": given}
    check_trainer(checked)
    assert checked["strategy"] == used
    assert ("note: " in capsys.readouterr().err) == (given.lower() != used)


def test_a_yaml_file_has_batches_and_fractions_too(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "limit_train_batches: 2.0\ntrainer:\n  limit_val_batches: 1\nlimit_test_batches: 1.0\n"
    )
    trainer = parse(f"--config {tmp_path}/run.yaml --logger false").trainer
    values = [trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches]
    assert list(map(repr, values)) == ["2", "1", "1.0"]


def test_auto_is_the_cpu_if_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match="--devices 0 must be an integer of at least 1"):
        check_devices("auto", 0)


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "auto"])
@pytest.mark.parametrize(
    ("gpus", "devices", "accepted"),
    [
        (1, "2", False),
        (1, "0,1", False),
        (1, [0, 1], False),
        (2, "0,2", False),
        (2, "1,1", False),
        (2, "0", False),
        (2, "two", False),
        (2, [], False),
        (1, "-2", False),
        (2, "1,", True),
        (2, "-1", True),
        (2, [1, 0], True),
        (2, "2", True),
    ],
)
def test_the_gpus_of_this_machine_are_named(
    accelerator: str, gpus: int, devices: Any, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = {"accelerator": accelerator, "devices": devices}
    if accepted:
        check_devices(**config)
        return
    line = f"--devices {devices}: this machine has {plural(gpus, 'GPU')}, numbered from 0; --devices {gpus}, or auto"
    with pytest.raises(UsageError, match=re.escape(line)):
        check_devices(**config)
    if gpus == 1:  # the whole command, through the Trainer
        ended = run(f"fit.py --accelerator {accelerator} --devices '{devices}' --logger false")
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert "this machine has 1 GPU" in ended.err


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
@pytest.mark.parametrize("devices", ["2", "0,1", "[0,1]", "-1"])
def test_without_a_gpu_the_advice_can_be_typed(accelerator: str, devices: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    line = f"--accelerator {accelerator}: no GPU was found; use --accelerator cpu --devices 1, or auto"
    with pytest.raises(UsageError, match=re.escape(line)):
        check_devices(accelerator, devices)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("No supported gpu backend found!", "--accelerator gpu: no GPU was found; use --accelerator cpu, or auto"),
        ("`max_epochs` is wrong", "--max_epochs 3: `max_epochs` is wrong; change or remove --max_epochs"),
        ("something else", "something else"),
    ],
)
def test_errors_of_the_trainer_get_the_name_of_the_flag(error: str, line: str) -> None:
    assert explain_trainer_error(ValueError(error), {"accelerator": "gpu", "max_epochs": 3}) == line


def test_a_function_can_be_an_argument_of_a_callback() -> None:
    run = parse("--callbacks ThroughputMonitor --callbacks.batch_size_fn builtins.len --logger false --max_epochs 3")
    names = [type(one).__name__ for one in run.trainer.callbacks]  # type: ignore[attr-defined]
    assert names.count("ThroughputMonitor") == 1
