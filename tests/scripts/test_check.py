"""Test the output and the exit codes of scripts/check.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from datamodules.photos import check
from tests.support.commands import ENVIRONMENT, ROOT, run
from tests.support.photos import scene


def test_a_folder_without_findings(photo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("check.py photos") == (0, "24 pictures in 2 classes: nothing found\n", "")
    inspect = mock.Mock(wraps=check.scan_photos)
    monkeypatch.setattr(check, "scan_photos", inspect)
    for flags in ("--workers 0", "--workers 2", ""):
        code, out, err = run(f"check.py photos --json {flags}")
        assert (code, err) == (0, "")
        assert json.loads(out)["findings"] == []
    assert [call.kwargs["num_workers"] for call in inspect.call_args_list] == [0, 2, None]


def test_a_folder_with_one_class(photo_folder: Path) -> None:
    code, out, _ = run("check.py photos/train --json --workers 0")
    assert code == 0
    for photo in (photo_folder / "train" / "bees").iterdir():
        photo.unlink()
    (photo_folder / "train" / "bees").rmdir()
    code, out, _ = run("check.py photos/train")
    assert code == 1
    assert "8 pictures in 1 class\n" in out
    assert "one class only" in out


def test_the_table_prints_file_names_safely(photo_folder: Path) -> None:
    for name in ("[red]a.jpg", "b\x1b[31m.jpg", "c.jpg", "d.jpg"):
        (photo_folder / "val" / "ants" / name).write_bytes(b"")
    code, out, err = run("check.py photos")
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == "24 pictures in 2 classes"
    assert lines[1:3] == ["", "empty: 4  (copy them again or delete them)"]
    assert lines[3:] == ["  val/ants/[red]a.jpg", "  val/ants/b\\x1b[31m.jpg", "  val/ants/c.jpg", "  ..."]


def test_long_file_names_stay_whole(photo_folder: Path) -> None:
    """Names longer than a terminal are printed on lines of their own."""
    names = [f"{letter * 90} $x$ é.jpg" for letter in "ab"]
    for name in names:
        (photo_folder / "val" / "ants" / name).write_bytes((photo_folder / "val" / "bees" / "0.jpg").read_bytes())
    lines = run("check.py photos")[1].splitlines()
    assert f"  val/ants/{names[0]}" in lines
    assert f"    = val/ants/{names[1]}" in lines


def test_table_and_json_show_the_same_findings(photo_folder: Path) -> None:
    (photo_folder / "train" / "ants" / "empty.jpg").write_bytes(b"")
    twin = (photo_folder / "train" / "ants" / "0.jpg").read_bytes()
    (photo_folder / "train" / "bees" / "twin.jpg").write_bytes(twin)
    code, out, _ = run("check.py photos --json")
    document = json.loads(out)
    assert (code, document["pictures"]) == (1, 23)
    assert {finding["kind"]: finding["items"] for finding in document["findings"]} == {
        "empty": [["train/ants/empty.jpg"]],
        "same picture under two classes": [["train/ants/0.jpg", "train/bees/twin.jpg"]],
    }
    code, out, _ = run("check.py photos")
    assert code == 1
    assert out.startswith("23 pictures in 2 classes\n")
    assert "  train/ants/0.jpg\n    = train/bees/twin.jpg\n" in out


def test_groups_are_those_of_fit(photo_folder: Path) -> None:
    """Photos 1 and 6 of ants in train are joined by their names, photo 3 of bees has a smaller copy."""
    folder = photo_folder / "train"
    for old, new in (("ants/1.jpg", "ants/nest7 a.jpg"), ("ants/6.jpg", "ants/nest7 b.jpg")):
        (folder / old).rename(folder / new)
    for number in range(4):
        scene(number).save(folder / "bees" / f"{number}.jpg", quality=90)
    scene(3).resize((80, 60)).save(folder / "bees" / "small.png")

    def found(flags: str, root: str = "photos/train") -> dict[str, list[list[str]]]:
        code, out, _ = run(f"check.py {root} --json {flags}")
        findings = json.loads(out)["findings"]
        assert code == bool(findings)
        return {one["kind"]: one["items"] for one in findings}

    near = {"near duplicates": [["bees/3.jpg", "bees/small.png"]]}
    nest = {"kept together": [["ants/nest7 a.jpg", "ants/nest7 b.jpg"]]}
    assert found("") == found("--data.group near") == near
    assert found("--data.group exact") == {}
    assert found("--data.group none --data.group_by nest.") == nest
    assert found("--data.group_by nest.") == near | nest
    joined = found("--data.group_by 'nest.|3|small'")["kept together"]
    assert joined == [["ants/3.jpg", "bees/3.jpg", "bees/small.png"], ["ants/nest7 a.jpg", "ants/nest7 b.jpg"]]
    (folder / "ants" / "nest7 b.jpg").rename(photo_folder / "val" / "ants" / "nest7 b.jpg")
    across = found("--data.group_by nest.", "photos")
    assert across["kept together, but across splits"] == [["train/ants/nest7 a.jpg", "val/ants/nest7 b.jpg"]]
    assert "kept together" not in across


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nowhere", "nowhere does not exist: give the folder that contains your class folders"),
        ("x --jsn", "there is no --jsn: did you mean --json?"),
        ("x --worker=2", "there is no --worker=2: did you mean --workers?"),
        ("x --workers -1", "argument --workers: -1 must be an integer of at least 0"),
        (
            "photos --data.group_by [",
            "group_by [ is not a regular expression (unterminated character set at position 0): "
            "--data.group_by 'patient[0-9]+'",
        ),
        (
            "photos --data.group_by nest",
            "--data.group_by nest matches no path such as train/ants/0.jpg: change the pattern",
        ),
        ("", "the following arguments are required: DIR"),
    ],
)
def test_wrong_input_gets_one_line(line: str, message: str, photo_folder: Path) -> None:
    assert run(f"check.py {line}") == (2, "", f"check.py: error: {message}\n")


def test_the_exit_code_of_the_process_shows_findings(photo_folder: Path) -> None:
    (photo_folder / "val" / "ants" / "x.jpg").write_bytes(b"")
    command = [sys.executable, str(ROOT / "scripts" / "check.py"), "photos", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["pictures"] == 24
