"""Test that the bugs in mutants.yaml can be written into the code, and that mutants.py notices failing tests."""

from pathlib import Path

import pytest

from tests.stress.mutants import Mutant, any_test_fails, read_mutants
from tests.support.commands import ROOT

MUTANTS = read_mutants()


def test_there_are_enough_bugs() -> None:
    assert len(MUTANTS) >= 120


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.what}")
def test_bug_can_be_planted_and_names_tests(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1
    assert mutant.old != mutant.new
    assert mutant.tests
    assert all((ROOT / name.partition("::")[0]).is_file() for name in mutant.tests)


@pytest.mark.slow
def test_failing_and_hanging_tests_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("def test_one():\n    assert False\n")
    (tmp_path / "test_two.py").write_text("def test_two():\n    pass\n")
    assert any_test_fails(tmp_path, ["test_one.py"], 300)
    assert not any_test_fails(tmp_path, ["test_two.py"], 300)
    (tmp_path / "test_three.py").write_text("import time\n\n\ndef test_three():\n    time.sleep(600)\n")
    assert any_test_fails(tmp_path, ["test_three.py"], 3)  # hangs
