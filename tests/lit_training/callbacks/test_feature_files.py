"""Features that are kept for later runs: used only if they are the same to the bit, never needed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lit_training.callbacks import features
from lit_training.callbacks.features import read_features, write_features
from tests.support.commands import run
from tests.support.fits import SMALL_NET, assert_same_end, fit_run

FAST = "--accelerator cpu --dashboard false --log_every_n_steps 50"
USED = "features of an earlier run are used again, from "


@pytest.fixture
def line(photo_folder: Path) -> str:
    torch.save(feature_net(), "net.pth")
    net = SMALL_NET.replace("none", "net.pth")
    return f"--data {photo_folder} {net} --data.image_size 72 --data.num_workers 0 --max_epochs 2 {FAST}"


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


def test_a_killed_run_goes_on_with_the_same_features(line: str, computed: list[str]) -> None:
    undisturbed = fit_run(f"{line} --default_root_dir one")
    for file in kept():
        file.unlink()
    fit_run(f"{line} --default_root_dir two --resume auto", kill_at=7)
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


def test_other_features_are_computed(
    line: str, computed: list[str], photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def assert_new(flags: str = "", *splits: str) -> None:
        computed.clear()
        fit_run(f"{line} --max_epochs 1 {flags}")
        assert computed == list(splits)

    assert_new("", "train", "val")
    assert_new("")
    assert_new("--data.resize pad", "train", "val")
    assert_new("--precision 64-true", "train", "val")
    assert_new("--precision bf16-true", "train", "val")
    photo = next((photo_folder / "train").rglob("*.jpg"))
    Image.open(photo).rotate(180).save(photo)
    assert_new("", "train")
    photo.unlink()
    assert_new("", "train")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 2)
        assert_new("", "train", "val")
    assert_new("")
    net = feature_net()
    net["conv5.0.weight"] = net["conv5.0.weight"] + 1e-3
    torch.save(net, "net.pth")
    assert_new("", "train", "val")


def test_a_damaged_file_is_computed_again(line: str, computed: list[str]) -> None:
    before = fit_run(line)
    contents = [file.read_bytes() for file in kept()]
    for file, content in zip(kept(), contents, strict=True):
        file.write_bytes(content[:-9] if file == kept()[0] else b"")
    after = fit_run(line)
    assert computed == ["train", "val"] * 2
    assert_same_end(before, after)
    assert [file.read_bytes() for file in kept()] == contents


def test_damaged_and_foreign_files_are_not_read(tmp_path: Path) -> None:
    file, other = tmp_path / "a" / "one", tmp_path / "a" / "two"
    rows = torch.arange(6.0).view(3, 2).bfloat16()
    assert read_features(file) is None
    write_features(file, rows)
    found = read_features(file)
    assert found is not None
    assert torch.equal(found, rows)
    assert found.dtype == rows.dtype
    good = file.read_bytes()
    for bad in (good[:-1], good[:-2] + bytes([good[-2] ^ 1]) + good[-1:], b"", b"hello" * 9):
        file.write_bytes(bad)
        assert read_features(file) is None
    other.write_bytes(good)  # right in itself, but under the name of other features
    assert read_features(other) is None


@pytest.mark.parametrize("place", ["file", "/proc/none"])
def test_a_run_does_not_need_the_folder(place: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(place).absolute()))
    code, out, err = run(f"fit.py {line}")
    assert code == 0
    assert err.count("\n") == 1
    assert err.startswith("note: features are not kept for later runs: cannot write to ")
    assert "val_acc" in out


def test_the_files_that_were_not_used_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, used, new = (tmp_path / "features" / name for name in ("old", "used", "new"))
    write_features(old, torch.ones(9, 9))
    write_features(used, torch.ones(9, 9))
    monkeypatch.setattr(features, "MAX_BYTES", 2 * old.stat().st_size)
    os.utime(used, (1, 1))
    os.utime(old, (2, 2))
    assert read_features(used) is not None
    write_features(new, torch.ones(9, 9))
    assert set((tmp_path / "features").iterdir()) == {used, new}
