"""The list of hashes of a run: what it lists, what is found, and that no command leaves a wrong list."""

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from lit_training.errors import UsageError
from lit_training.runs.hashes import find_changed_files, hash_file, recorded, write_hashes


@pytest.fixture
def folder() -> Path:
    """A folder like that of a run, with its list."""
    files = {
        "config.yaml": 40,
        "metrics.csv": 700,
        "checkpoints/best.ckpt": 2_500_000,
        "evaluation/predictions.csv": 90,
    }
    files |= {"evaluation/other/predictions.csv": 50, "checkpoints/resume/last.ckpt": 5000, ".lock": 0, "a/.part": 3}
    numbers = random.Random(0)
    for name, size in files.items():
        (path := Path("run", name)).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbers.randbytes(size))
    write_hashes(Path("run"))
    return Path("run")


def flip_a_byte(path: Path, numbers: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[numbers.randrange(len(content))] ^= 1 << numbers.randrange(8)
    path.write_bytes(content)


def test_each_flipped_byte_is_found_in_its_file(folder: Path) -> None:
    numbers = random.Random(1)
    names = list(json.loads((folder / "sha256.json").read_text()))
    assert names == sorted(names)
    assert {"checkpoints/resume/last.ckpt", "evaluation/other/predictions.csv"} <= {*names}
    assert not {".lock", "a/.part", "sha256.json"} & {*names}
    for number in range(200):
        path = folder / (name := names[number % len(names)])
        before = path.read_bytes()
        flip_a_byte(path, numbers)
        assert find_changed_files(folder) == [f"changed {name}"]
        path.write_bytes(before)
    assert find_changed_files(folder) == []


def test_a_large_file_is_hashed_as_a_whole(folder: Path) -> None:
    path = folder / "checkpoints/best.ckpt"
    assert hash_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_added_missing_and_replaced_files_are_named(folder: Path) -> None:
    (folder / "notes.txt").touch()
    (folder / "evaluation/.DS_Store").touch()
    (folder / "metrics.csv").unlink()
    (folder / "config.yaml").unlink()
    os.mkfifo(folder / "config.yaml")  # opening it would wait for ever
    assert sorted(find_changed_files(folder)) == ["added notes.txt", "missing config.yaml", "missing metrics.csv"]


def test_a_copy_of_the_folder_and_links_agree(folder: Path) -> None:
    folder.rename("moved")
    Path("moved/checkpoints").rename("elsewhere")
    Path("moved/checkpoints").symlink_to(Path("elsewhere").resolve())
    assert find_changed_files(Path("moved")) == []


def test_a_command_keeps_the_hashes_of_the_files_that_it_does_not_write(folder: Path) -> None:
    (folder / "metrics.csv").write_text("by hand")
    with recorded(folder, folder / "evaluation"):
        (folder / "evaluation/predictions.csv").write_text("new")
        (folder / "evaluation/per_class.csv").write_text("new")
        (folder / "evaluation/other/predictions.csv").write_text("by hand")
    assert find_changed_files(folder) == ["changed evaluation/other/predictions.csv", "changed metrics.csv"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError])
def test_a_killed_command_leaves_no_list_but_one_that_fails_updates_it(folder: Path, error: Any) -> None:
    (folder / "metrics.csv").write_text("by hand")

    def evaluate() -> None:
        with recorded(folder, folder / "evaluation"):
            (folder / "evaluation/predictions.csv").write_text("new")
            with pytest.raises(UsageError, match=r"run has no sha256.json, .*fit.py --resume run writes it"):
                find_changed_files(folder)
            raise error

    with pytest.raises(error):
        evaluate()
    assert find_changed_files(folder) == ["changed metrics.csv"]


def test_a_folder_without_a_list_gets_none_but_one_written_meanwhile_is_updated(folder: Path) -> None:
    (folder / "sha256.json").unlink()
    with recorded(folder, folder / "evaluation"):
        pass
    assert not (folder / "sha256.json").exists()
    with recorded(folder, folder / "evaluation"):
        write_hashes(folder)  # a training that ends
        (folder / "evaluation/predictions.csv").write_text("new")
    assert find_changed_files(folder) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 99_999, '{"a": 1}', '{"../../etc/passwd": "0"}', '{"/etc/passwd": "0"}', "\udcff"]
)
def test_a_damaged_list_gets_one_line(folder: Path, text: str) -> None:
    (folder / "sha256.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError, match=r"run/sha256.json is damaged: delete it, then .*--resume run writes it again"):
        find_changed_files(folder)
