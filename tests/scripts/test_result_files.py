"""Files of results that are opened in a spreadsheet: names with umlauts, and names that begin like a formula."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.files import write_csv
from lit_training import load
from lit_training.trained.outputs import PREDICTION_COLUMNS
from tests.support.commands import run, run_well

NAMES = ("'=1", "'quoted", "-1", "=1+1", "@Möwe")  # in the order of the classes


@pytest.fixture
def photos() -> Path:
    """Four gray pictures in each class."""
    for label, name in enumerate(NAMES):
        for split in ("train", "val"):
            folder = Path("photos", split, name)
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = np.full((8, 8, 3), 50 * label + 10 * number, np.uint8)
                pixels[number, number + (split == "val")] = 255
                Image.fromarray(pixels).save(folder / f"+{number}.png")
    return Path("photos")


def cells_of(file: Path) -> list[list[str]]:
    """Return the cells as a spreadsheet gets them. Raise a UnicodeDecodeError if the file has no byte order mark."""
    assert file.read_bytes().startswith(b"\xef\xbb\xbf")
    with file.open(newline="", encoding="utf-8-sig") as lines:
        return list(csv.reader(lines))


def test_no_name_becomes_a_formula_and_compare_knows_the_names(photos: Path) -> None:
    for seed in (0, 1):
        fit = f"fit.py --data photos --model LitCNN --max_epochs 1 --dashboard false --seed {seed} --data.num_workers 0"
        run_well(fit)
        run_well(f"evaluate.py lightning_logs/version_{seed}")
    quoted = [f"'{name}" for name in NAMES]
    folder = Path("lightning_logs/version_1/evaluation")
    head, *rows = cells_of(folder / "predictions.csv")
    assert [row[:2] for row in rows] == [[f"val/{name}/+{k}.png", f"'{name}"] for name in NAMES for k in range(4)]
    assert {row[2] for row in rows} <= set(quoted)
    head, *classes = cells_of(folder / "per_class.csv")
    assert head == ["class", "precision", "recall", "f1", "support"]
    for name, row in zip(quoted, classes, strict=True):
        right = sum(one[1] == one[2] == name for one in rows)
        predicted = sum(one[2] == name for one in rows)
        shares = [right / predicted if predicted else None, right / 4, 2 * right / (4 + predicted)]
        assert row == [name, *("" if share is None else f"{share:.6f}" for share in shares), "4"]
    with (folder / "confusion_matrix.csv").open(newline="", encoding="utf-8") as lines:
        assert [row[0] for row in csv.reader(lines)] == ["label", *quoted]
    assert "the same 20 samples" in run_well("compare.py lightning_logs/version_0 lightning_logs/version_1")
    plain = [[cell.removeprefix("'") for cell in row] for row in rows if not row[1].startswith("''")]
    write_csv(folder / "predictions.csv", [PREDICTION_COLUMNS, *plain])  # as an earlier version wrote it
    other = Path("lightning_logs/version_0/evaluation/predictions.csv")
    other.write_bytes(b"".join(line for line in other.read_bytes().splitlines(True) if b",''" not in line))
    assert "the same 12 samples" in run_well("compare.py lightning_logs/version_0 lightning_logs/version_1")


def test_predictions_of_inputs_with_such_names(photos: Path) -> None:
    run_well("fit.py --data photos --model LitCNN --max_epochs 1 --dashboard false --data.num_workers 0")
    shutil.copy("photos/val/-1/+0.png", "=cmd.png")
    out = run_well("predict.py latest =cmd.png --output p.csv --top_k 5").splitlines()
    assert out[1].split()[0] == "=cmd.png"  # no prefix in the terminal
    [[path, label, probability, *_]] = cells_of(Path("p.csv"))[1:]
    assert (path, label.removeprefix("'") in NAMES, float(probability) > 0.2) == ("'=cmd.png", True, True)
    assert run("predict.py latest =cmd.png --output p.xlsx").err.count(".csv, .json or .jsonl") == 1


def test_negative_outputs_stay_numbers() -> None:
    run_well("fit.py --model LitMLP --max_epochs 1 --dashboard false --data.length 8")
    width = load("latest").model().hparams["in_features"]
    Path("rows.csv").write_text("\n".join([",".join(["-9"] * width), ",".join(["9"] * width)]))
    run_well("predict.py latest rows.csv --output p.csv")
    head, *rows = cells_of(Path("p.csv"))
    values = [cell for row in rows for cell, name in zip(row, head, strict=True) if name.startswith("output_")]
    assert any(value.startswith("-") for value in values)
    assert all(abs(float(value)) < 1e6 for value in values)


def test_split_file_that_excel_saved_is_read(photos: Path) -> None:
    run_well("fit.py --data photos --model LitCNN --max_epochs 1 --dashboard false --data.num_workers 0")
    split = Path("lightning_logs/version_0/split.csv").read_text(encoding="utf-8")
    assert split.startswith("path,")
    Path("excel.csv").write_text(split, encoding="utf-8-sig")
    line = "fit.py --data photos --model LitCNN --max_epochs 1 --dashboard false --data.num_workers 0"
    run_well(f"{line} --data.split_file excel.csv")
    assert Path("lightning_logs/version_1/split.csv").read_text(encoding="utf-8") == split
