"""Paths is a sequence of strings that needs little memory."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.photos.paths import Paths


@given(st.lists(st.binary(max_size=20).map(os.fsdecode), max_size=20), st.data())
@settings(deadline=None)
def test_paths_are_a_sequence(strings: list[str], data: st.DataObject) -> None:
    paths = Paths.from_iterable(strings)
    assert list(paths) == strings == [paths[i] for i in range(len(paths))]
    assert list(pickle.loads(pickle.dumps(paths))) == strings
    if strings:
        chosen = data.draw(st.lists(st.integers(0, len(strings) - 1)))
        assert list(paths.take(np.array(chosen, int))) == [strings[i] for i in chosen]
        assert paths[-1] == strings[-1]
    with pytest.raises(IndexError):
        paths[len(strings)]


def test_paths_are_small() -> None:
    paths = Paths.from_iterable(f"class_{i % 100}/picture_{i}.jpg" for i in range(10_000))
    assert len(pickle.dumps(paths)) < 10_000 * 40
