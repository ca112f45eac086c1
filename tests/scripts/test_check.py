"""The examination on its own: what it finds, what it prints, how it exits."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from datamodules.photos.folder import examine

SCRIPT = Path(__file__).parents[2] / "scripts" / "check.py"


def load() -> ModuleType:
    """The script as a module; scripts are no package."""
    spec = importlib.util.spec_from_file_location("check", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["check"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


check = load()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Smooth blots, which keep their perceptual hash when they are compressed or scaled."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


def save(picture: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A folder with nothing to find."""
    folders = ("train/cat", "train/dog", "val/cat", "val/dog")
    for number, folder in enumerate(f for f in folders for _ in range(4)):
        save(scene(number), tmp_path / "photos" / folder / f"{number}.jpg", quality=90)
    return tmp_path / "photos"


def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[list[str]]]]:
    code = check.main([str(folder), "--json", "--workers", "0"])
    document = json.loads(capsys.readouterr().out)
    for finding in document["findings"]:
        assert finding["count"] == len(finding["items"])
        assert finding["advice"]
    return code, {finding["kind"]: finding["items"] for finding in document["findings"]}


def test_clean(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(clean, capsys) == (0, {})
    assert check.main([str(clean)]) == 0
    assert capsys.readouterr().out == "16 pictures in 2 classes: nothing found\n"


def test_bad_files(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (clean / "train/cat/0.jpg").read_bytes()
    (clean / "train/cat/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (clean / "train/cat/empty.jpg").write_bytes(b"")
    (clean / "train/dog/text.jpg").write_text("text")
    (clean / "train/dog/moving.gif").write_bytes(b"GIF89a")
    (clean / "train/dog/notes.txt").write_text("text")
    (clean / "train/loose.jpg").write_bytes(whole)
    (clean / "train/hollow").mkdir()
    assert run(clean, capsys) == (
        1,
        {
            "truncated": [["train/cat/cut.jpg"]],
            "empty": [["train/cat/empty.jpg"]],
            "not a picture": [["train/dog/text.jpg"]],
            "not a format we read": [["train/dog/moving.gif"]],
            "not a picture by its name": [["train/dog/notes.txt"]],
            "in no class folder": [["train/loose.jpg"]],
            "folder passed over": [["train/hollow/ holds no pictures: passed over"]],
        },
    )


def test_odd_pictures(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    save(scene(50), clean / "val/cat/phone.jpg", exif=exif)
    save(scene(51), clean / "val/cat/named.jpg", format="PNG")
    save(scene(52, (1600, 1200)), clean / "val/cat/huge.jpg")
    save(scene(53, (16, 12)), clean / "val/dog/tiny.png")
    assert run(clean, capsys)[1] == {
        "wrong suffix": [["val/cat/named.jpg"]],
        "turned by EXIF": [["val/cat/phone.jpg"]],
        "unusual size": [["val/cat/huge.jpg"], ["val/dog/tiny.png"]],
    }


def test_duplicates(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, copy in enumerate(("train/cat/copy.jpg", "val/cat/copy.jpg", "train/dog/copy.jpg")):
        (clean / copy).write_bytes((clean / f"train/cat/{number}.jpg").read_bytes())
    save(scene(4), clean / "train/dog/near.png")
    save(scene(5).resize((320, 240)), clean / "val/dog/near.jpg", quality=70)
    code, found = run(clean, capsys)
    assert code == 1
    assert found == {
        "exact duplicates": [["train/cat/0.jpg", "train/cat/copy.jpg"]],
        "exact duplicates across splits": [["train/cat/1.jpg", "val/cat/copy.jpg"]],
        "same picture under two classes": [["train/cat/2.jpg", "train/dog/copy.jpg"]],
        "near duplicates": [["train/dog/4.jpg", "train/dog/near.png"]],
        "near duplicates across splits": [["train/dog/5.jpg", "val/dog/near.jpg"]],
    }


def test_plain_pictures_are_not_alike(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for colour in ("red", "blue", "white"):
        save(Image.new("RGB", (160, 120), colour), clean / f"val/cat/{colour}.jpg")
    assert run(clean, capsys) == (0, {})


def test_classes(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(40):
        save(scene(100 + number), clean / f"train/bird/{number}.jpg")
    save(scene(200), clean / "val/fish/0.jpg")
    found = run(clean, capsys)[1]
    assert found == {
        "classes differ between splits": [["bird is not in val"], ["fish is only in val"]],
        "uneven classes": [["cat: 4", "bird: 40"]],
    }


def test_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(scene(0), tmp_path / "cat" / "0.jpg")
    assert run(tmp_path, capsys) == (1, {"one class only": [["cat"]]})
    assert check.main([str(tmp_path)]) == 1
    assert "1 picture in 1 class" in capsys.readouterr().out


def test_nothing_but_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"")
    assert run(tmp_path, capsys)[1]["empty"] == [["cat/x.jpg"], ["dog/x.jpg"]]


def test_table_names_files_as_they_are(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("[red]a.jpg", "b\x1b[31m.jpg", "c.jpg", "d.jpg"):
        (clean / "val/cat" / name).write_bytes(b"")
    assert check.main([str(clean)]) == 1
    out = capsys.readouterr().out
    assert "16 pictures in 2 classes" in out
    assert "[red]a.jpg" in out
    assert "\\x1b[31m" in out
    assert "d.jpg" not in out
    assert "..." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist: name the folder that holds your class folders"),
        (["x", "--jsn"], "unknown: --jsn, did you mean --json?; see python scripts/check.py --help"),
        (["x", "--worker=2"], "unknown: --worker=2, did you mean --workers?; see python scripts/check.py --help"),
        (["x", "--workers", "-1"], "--workers starts at 0, not at -1; see python scripts/check.py --help"),
        ([], "the following arguments are required: DIR; see python scripts/check.py --help"),
    ],
)
def test_refusals_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = check.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert capsys.readouterr() == ("", message + "\n")


def test_command_imports_nothing_that_takes_seconds() -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['check.py', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'torchvision', 'lightning', 'torchmetrics', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--json" in done.stdout


def test_command_exits_with_its_findings(clean: Path) -> None:
    (clean / "val/cat/x.jpg").write_bytes(b"")
    done = subprocess.run([sys.executable, str(SCRIPT), str(clean), "--json"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["pictures"] == 16


def test_pictures_are_counted_as_training_counts_them(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clean / "train/cat/empty.jpg").write_bytes(b"")
    os.mkfifo(clean / "train/cat/pipe.jpg")
    (clean / "train/dog/twin.jpg").write_bytes((clean / "train/cat/0.jpg").read_bytes())
    trained_on = examine(clean, num_workers=0, max_bad_fraction=0.5)
    assert check.main([str(clean), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["pictures"] == len(trained_on.paths) == 15
    assert list(document["counts"].values()) == trained_on.counts().tolist() == [[3, 4], [4, 4], [0, 0]]
    assert {finding["kind"]: finding["items"] for finding in document["findings"]} == {
        "empty": [["train/cat/empty.jpg"]],
        "no file": [["train/cat/pipe.jpg"]],
        "same picture under two classes": [["train/cat/0.jpg", "train/dog/twin.jpg"]],
    }
    assert check.main([str(clean)]) == 1
    assert "15 pictures in 2 classes" in capsys.readouterr().out


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.data())
@settings(deadline=None)
def test_near_pairs_are_all_pairs_that_are_near(hashes: list[int], data: st.DataObject) -> None:
    for value in list(hashes):  # else two random hashes are never near
        bits = data.draw(st.sets(st.integers(0, 63), max_size=5))
        hashes.append(value ^ sum(1 << bit for bit in bits))
    one, other = check._near_pairs(np.array(hashes, np.uint64))
    found = {frozenset(pair) for pair in zip(one.tolist(), other.tolist(), strict=True)}
    assert found == {
        frozenset((i, j))
        for i in range(len(hashes))
        for j in range(i)
        if (hashes[i] ^ hashes[j]).bit_count() <= check.DISTANCE
    }


def test_near_pairs_of_many_are_found_without_comparing_each_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    count, compared = check._count_bits, []

    def counted(values: np.ndarray) -> np.ndarray:
        compared.append(len(values))
        return count(values)

    monkeypatch.setattr(check, "_count_bits", counted)
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, np.uint64)
    hashes[-1] = hashes[0] ^ np.uint64(0b101)
    one, other = check._near_pairs(hashes)
    assert sum(compared) < 1_000_000  # each with each are 5,000,000,000
    assert (one.tolist(), other.tolist()) in (([0] * 3, [99_999] * 3), ([99_999] * 3, [0] * 3))


def test_hash_survives_compression_and_scaling() -> None:
    from datamodules.photos.decode import _dhash

    for seed in range(10):
        picture = scene(seed)
        file = io.BytesIO()
        picture.resize((80, 60)).save(file, "JPEG", quality=60)
        assert (_dhash(picture) ^ _dhash(Image.open(file))).bit_count() <= check.DISTANCE
