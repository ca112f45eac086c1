"""Features that are kept for later runs: used only if they are the same to the bit, never needed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lit_training.callbacks import feature_files, features
from tests.support.commands import run
from tests.support.fits import SMALL_NET, assert_same_end, fit_run

USED = "features of an earlier run are used again, from "
Compute = Callable[..., list[str]]


@pytest.fixture
def line(photo_folder: Path) -> str:
    torch.save(feature_net(), "net.pth")
    net = SMALL_NET.replace("none", "net.pth")
    return f"--data {photo_folder} {net} --data.image_size 72 --data.num_workers 0 --max_epochs 3 --accelerator cpu"


def feature_net() -> dict[str, Any]:
    from torchvision.models import shufflenet_v2_x0_5

    return shufflenet_v2_x0_5(num_classes=2).state_dict()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits whose features were computed."""
    splits: list[str] = []
    real = features._compute_features

    def compute(*arguments: Any) -> Any:
        splits.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(features, "_compute_features", compute)
    return splits


def kept(cache: str = "") -> list[Path]:
    return sorted((Path(cache or os.environ["XDG_CACHE_HOME"]) / "lit-classics" / "features").iterdir())


@pytest.mark.usefixtures("computed")
def test_a_killed_run_goes_on_with_the_same_features(line: str, computed: list[str]) -> None:
    undisturbed = fit_run(f"{line} --default_root_dir one")
    for file in kept():
        file.unlink()
    fit_run(f"{line} --default_root_dir two --resume auto", kill_at=9)
    assert computed == ["train", "val"] * 2
    resumed = fit_run(f"{line} --default_root_dir two --resume auto")
    assert computed == ["train", "val"] * 2
    assert_same_end(undisturbed, resumed)


def test_another_seed_uses_them_and_says_so(line: str, computed: list[str]) -> None:
    for flags, said in (("", 0), ("--seed 1 --model.lr 0.1", 1), ("--seed 2 --quiet", 0)):
        code, out, err = run(f"fit.py {line} {flags}")
        assert (code, err) == (0, "")
        assert out.count(USED) == said
    assert computed == ["train", "val"]


@pytest.mark.parametrize("change", ["photo", "weights", "resize", "precision", "threads", "seed of the split"])
def test_other_features_are_computed(
    change: str, line: str, computed: list[str], photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_run(line)
    if change == "photo":
        photo = next(photo_folder.rglob("*.jpg"))
        Image.open(photo).rotate(180).save(photo)
    elif change == "weights":
        net = feature_net()
        net["conv5.0.weight"] = net["conv5.0.weight"] + 1e-3
        torch.save(net, "net.pth")
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    flags = {"resize": "--data.resize pad", "precision": "--precision bf16-true"}.get(change, "")
    if change == "seed of the split":
        flags = "--data.val_size 0.4 --data.seed 5"
    fit_run(f"{line} {flags}")
    assert computed[:3] == ["train", "val", "train"]


@pytest.mark.parametrize("damage", ["cut", "one bit", "of another file", "text", "wrong count"])
def test_a_damaged_or_foreign_file_is_computed_again(damage: str, line: str, computed: list[str]) -> None:
    run_folder = fit_run(line)
    contents = [file.read_bytes() for file in kept()]
    for file, content, other in zip(kept(), contents, reversed(contents), strict=True):
        bad = {"cut": content[:-9], "of another file": other, "text": b"hello"}.get(damage)
        file.write_bytes(bad or content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        if damage == "wrong count":
            save_file({"features": torch.zeros(3, 1024)}, file, {"checksum": "0"})
    again = fit_run(line)
    assert computed == ["train", "val"] * 2
    assert_same_end(run_folder, again)
    assert [file.read_bytes() for file in kept()] == contents


@pytest.mark.parametrize("place", ["file", "/proc/none"])
def test_a_run_does_not_need_the_folder(place: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(place).absolute()))
    code, out, err = run(f"fit.py {line}")
    assert code == 0
    assert err.count("\n") == 1
    assert err.startswith("note: features are not kept for later runs: cannot write to ")
    assert "val_acc" in out


def test_the_files_that_were_not_used_are_deleted(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fit_run(line)
    old = kept()
    size = sum(file.stat().st_size for file in old)
    for number, file in enumerate(old):
        os.utime(file, (number, number))
    monkeypatch.setattr(feature_files, "MAX_BYTES", size)
    fit_run(f"{line} --data.resize pad")
    assert not set(old) & set(kept())
    assert sum(file.stat().st_size for file in kept()) <= size
    assert all(load_file(file)["features"].ndim == 2 for file in kept())
