"""Each part that Lightning ships trains, does its work, and resumes exactly, or the manual says why not."""

from pathlib import Path

import pytest
from lightning.pytorch import callbacks

from tests.stress import matrix, matrix_callbacks
from tests.stress.matrix import Row
from tests.stress.matrix_rows import ROWS

IN_MAKE_TEST = ("BatchSizeFinder", "LBFGS", "ModelCheckpoint")


def names(rows: list[Row]) -> list[str]:
    return [row.part for row in rows]


FAST = [row for row in ROWS if row.part in IN_MAKE_TEST]


@pytest.mark.parametrize("row", FAST, ids=names(FAST))
def test_a_part_trains_and_resumes(row: Row, tmp_path: Path) -> None:
    matrix.run_row(row, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS[::5], ids=names(ROWS[::5]))
def test_a_fifth_of_all_parts(row: Row, tmp_path: Path) -> None:
    matrix.run_row(row, tmp_path)


def test_each_callback_is_in_the_matrix() -> None:
    known = " ".join(names(ROWS)).split() + list(matrix_callbacks.NOT_TRAINED)
    assert not set(callbacks.__all__) - set(known)


def test_the_manual_has_the_table_of_the_matrix() -> None:
    assert matrix.in_manual() == matrix.table(ROWS), "python tests/stress/matrix.py --write"
