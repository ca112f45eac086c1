"""Folders that the commands made are not read as photos. Photos that cannot be read are counted, or refused."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from datamodules.photos import decode
from tests.support.commands import run, run_well
from tests.support.photos import write_cats_and_dogs, write_pictures

FIT = "fit.py --data . --model.backbone resnet18 --model.weights none --data.image_size 32 --max_epochs 1 "
FIT += "--accelerator cpu --devices 1 --dashboard false"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_runs_evaluations_and_heat_maps_are_not_data(photos: Path) -> None:
    write_cats_and_dogs(photos)
    run_well(FIT)
    run_well("evaluate.py latest")
    assert run_well("predict.py latest . --explain").count(".jpg") == 12
    logs = Path("lightning_logs")
    shutil.copytree(logs / "version_0", "cat/old_run")
    shutil.copytree(logs / "version_0" / "evaluation", "evaluated")
    Path("evaluated/confusion_matrix.csv").unlink()
    shutil.copytree(logs / "version_0", "dog/unmarked")
    Path("dog/unmarked/.lit_classics_output").unlink()
    shutil.copytree("explanations", "maps")
    Path("explanations/.lit_classics_output").unlink()  # as those of older versions
    out = run_well(FIT)
    assert "\n12 pictures in 2 classes" in f"\n{out}"
    note = "not read, because this project made them: cat/old_run, dog/unmarked, evaluated, ..."
    assert f"note: {note}\n" in out
    assert run_well("predict.py latest .").count(".jpg") == 12
    evaluated = run("evaluate.py latest --data . --all")
    assert ": 12 samples\n" in evaluated.out
    assert note in evaluated.err
    assert run("check.py .") == (0, "12 pictures in 2 classes: nothing found\n", "")
    assert ".png" in run_well("predict.py latest maps")  # a folder that was typed is read


def test_a_run_resumes_without_the_settings_that_it_did_not_have(photos: Path) -> None:
    write_cats_and_dogs(photos)
    run_well(FIT)
    config = Path("lightning_logs/version_0/config.yaml")
    config.write_text("".join(line for line in config.open() if "layout" not in line))
    run_well(f"{FIT} --max_epochs 2 --resume lightning_logs/version_0")
    assert run(f"{FIT} --data.val_size 0.3 --resume lightning_logs/version_0").code == 2


def test_a_typed_layout_reaches_all_commands(photos: Path) -> None:
    write_pictures(photos, {f"{top}/{name}": 3 for top in ("cat", "dog") for name in ("indoor", "outdoor")})
    for command in (FIT, "check.py ."):
        ended = run(command)
        assert (ended.code, "--data.layout classes" in ended.err) == (2, True)
        assert "12 pictures in 2 classes" in run_well(f"{command} --data.layout classes")
    for flags, said in (("--apply no.csv", "no.csv cannot be read"), ("--labels .", ". has no out_of_fold.csv")):
        assert said in run(f"check.py . {flags} --data.layout classes").err
    assert "val: 2 samples" in run_well("evaluate.py latest")
    assert "photos: 12 samples" in run_well("evaluate.py latest --data . --all")


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The extra heif is not installed."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    decode._prepare_pillow.cache_clear()
    yield
    decode._prepare_pillow.cache_clear()


@pytest.mark.usefixtures("without_heif")
def test_a_class_that_loses_half_of_its_pictures_is_refused(photos: Path) -> None:
    write_pictures(photos, {"many": 40, "ant": 2})
    for number in range(2):
        Path(f"ant/{number}.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    ended = run(f"{FIT} --data.max_bad_fraction 0.1")
    assert ended.code == 2
    problem = "2 of 44 pictures cannot be read, more than 10% or half of a class (2 of 4 pictures of ant in train)"
    assert problem in ended.err
    assert "pip install 'lit-classics[heif]' for HEIC" in ended.err
    assert ended.err.endswith("--data.max_bad_fraction 0.5\n")
    out = run_well(f"{FIT} --data.max_bad_fraction 0.5")
    assert "left out: 2 files\n  2 not a format we read\n    ant/0.heic: HEIC: pip install" in out
    assert "note: left out, because they cannot be read: 2 of 4 pictures of ant in train\n" in out


def test_heic_files_are_read_with_the_extra(photos: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    write_cats_and_dogs(photos)
    for number in range(4):
        Image.linear_gradient("L").rotate(90 * number).convert("RGB").save(f"cat/{number}.heic", quality=90)
    assert "16 pictures in 2 classes" in run_well(FIT)
    assert run_well("predict.py latest cat").count(".heic") == 4


@pytest.mark.parametrize("suffix", ["dcm", "mpo"])
def test_pictures_with_an_unknown_suffix_are_counted(suffix: str, photos: Path) -> None:
    write_cats_and_dogs(photos / "all", 8)
    run_well(FIT.replace("--data .", "--data all"))
    for file in sorted(Path("all/cat").iterdir())[2:]:
        file.rename(file.with_suffix(f".{suffix}"))
    refused = run(FIT.replace("--data .", "--data all"))
    assert (refused.code, "6 of 8 pictures of cat in train" in refused.err) == (2, True)
    assert "6 of 8 pictures of cat in train" in run("evaluate.py latest --data all --all").err
