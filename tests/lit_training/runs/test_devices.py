"""The chosen device, and the mode of modules after an evaluation."""

import pytest
import torch
from torch import nn

from lit_training.errors import UsageError
from lit_training.runs.devices import evaluation_mode, find_device


def test_the_chosen_device_is_returned() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("gpu", "mps", "chosen"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_fastest_available_device(
    gpu: bool, mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert find_device("auto").type == chosen


def test_gpu_is_also_the_gpu_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("gpu").type == "mps"


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps"])
def test_a_missing_device_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match=f"--accelerator {name}: no GPU was found; use --accelerator cpu, or auto"):
        find_device(name)


def test_the_mode_of_each_module_is_restored_even_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    assert set(modes) == {True, False}
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        _ = 1 / 0
    assert [module.training for module in model.modules()] == modes
