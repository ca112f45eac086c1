"""Fixtures for the tests of photos."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def cache_root() -> Path:
    """The user's cache folder."""
    return Path(os.environ["XDG_CACHE_HOME"])
