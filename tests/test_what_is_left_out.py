"""The browser tests are skipped with a message, or fail if a browser is required."""

from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.forks import Fork

PYTEST = f"""
import os, sys, pytest
os.chdir({str(ROOT)!r})
sys.path.insert(0, os.getcwd())
sys.exit(pytest.main("-q -p no:cacheprovider -m slow tests/test_browser.py::test_command_and_configuration".split()))
"""


def run_browser_test(tmp_path: Path, **environment: str) -> tuple[int, str]:
    """Run a browser test without a browser on PATH; return exit code and output."""
    path = tmp_path / "bin"
    path.mkdir(exist_ok=True)
    script = tmp_path / "run_pytest.py"
    script.write_text(PYTEST)
    process = Fork(str(script), PATH=str(path), **environment)
    out, err = process.communicate()
    assert err == ""
    return process.returncode or 0, out


@pytest.mark.slow
def test_browser_tests_are_skipped_with_a_message_or_fail_if_required(tmp_path: Path) -> None:
    code, out = run_browser_test(tmp_path, REQUIRE_BROWSER="0")
    assert code == 0
    assert "NO BROWSER: 1 tests of tests/test_browser.py were skipped" in out
    code, out = run_browser_test(tmp_path, REQUIRE_BROWSER="1")
    assert code == 1
    assert "there is no chromium and no chromedriver on PATH" in out
    assert "NO BROWSER" not in out
    (tmp_path / "bin" / "chromedriver").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "chromedriver").chmod(0o755)
    code, out = run_browser_test(tmp_path, REQUIRE_BROWSER="0")
    assert code == 1
    assert "there is no chromium on PATH" in out
