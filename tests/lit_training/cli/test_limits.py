"""Values that the Trainer would refuse late are refused before anything is built; wrong_inputs.yaml has the lines."""

from typing import Any

import pytest
import torch

from lit_training.cli.limits import CHOICES, LOWEST, SHARES, check_devices, check_trainer, trainer_error
from lit_training.errors import UsageError
from tests.support.fits import parse


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """Trainer flags as they are where nothing is typed."""
    return parse("--logger false --accelerator cpu --devices 1").config["trainer"].as_dict()


@pytest.mark.parametrize("name", CHOICES)
def test_a_name_is_one_of_those_that_lightning_knows(name: str, config: dict[str, Any]) -> None:
    for choice in CHOICES[name]:
        check_trainer({**config, "devices": "auto", name: choice})
        check_trainer({**config, "devices": "auto", name: choice.upper()})
    with pytest.raises(UsageError, match=f"--{name} nonsense: "):
        check_trainer({**config, name: "nonsense"})


@pytest.mark.parametrize("name", LOWEST)
def test_a_number_is_not_below_its_lowest(name: str, config: dict[str, Any]) -> None:
    lowest = LOWEST[name]
    check_trainer({**config, name: lowest})
    for value in (lowest - 1, float("nan")):
        with pytest.raises(UsageError, match=f"--{name} starts at {lowest}, not at {value}"):
            check_trainer({**config, name: value})


@pytest.mark.parametrize("name", SHARES)
def test_a_share_is_a_fraction_or_a_number_of_batches(name: str, config: dict[str, Any]) -> None:
    for value in (1, 2, 0.5, 1.0):
        check_trainer({**config, name: value})
    for value in (-1, 1.5, float("nan")):
        with pytest.raises(UsageError, match=f"--{name} {value} is neither a share"):
            check_trainer({**config, name: value})


@pytest.mark.parametrize(
    ("accelerator", "devices", "fine"),
    [
        ("cpu", "auto", True),
        ("cpu", 1, True),
        ("cpu", "2", True),
        ("cpu", 0, False),
        ("cpu", "1,2", False),
        ("cpu", 100_000, False),
        ("gpu", "1,2", True),  # Lightning knows which there are
    ],
)
def test_processes_on_the_cpu_are_counted(accelerator: str, devices: Any, fine: bool) -> None:
    if fine:
        check_devices(accelerator, devices)
        return
    with pytest.raises(UsageError, match=f"--devices {devices}"):
        check_devices(accelerator, devices)


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--devices 0 is not a number of processes"):
        check_devices("auto", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_devices("auto", 0)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("No supported gpu backend found!", "--accelerator gpu: no GPU was found; use --accelerator cpu, or auto"),
        ("`max_epochs` and what else", "--max_epochs 3: `max_epochs` and what else"),
        ("something else", "something else"),
    ],
)
def test_what_the_trainer_refuses_names_the_flag(error: str, line: str) -> None:
    assert trainer_error(ValueError(error), {"accelerator": "gpu", "max_epochs": 3}) == line
