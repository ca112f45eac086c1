"""limits.py refuses wrong Trainer arguments. wrong_inputs.yaml has more wrong command lines."""

from typing import Any

import pytest
import torch

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
from tests.support.fits import parse


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
    accepted, refused = [1, 2, 0.5, 1.0], [-1, 1.5, float("nan")]
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
        ("gpu", "1,2", True),  # Lightning checks GPUs
    ],
)
def test_the_number_of_processes_on_a_cpu_is_checked(accelerator: str, devices: Any, accepted: bool) -> None:
    if accepted:
        check_devices(accelerator, devices)
        return
    with pytest.raises(UsageError, match=f"--devices {devices}"):
        check_devices(accelerator, devices)


def test_auto_is_the_cpu_if_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--devices 0 must be an integer of at least 1"):
        check_devices("auto", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_devices("auto", 0)


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
