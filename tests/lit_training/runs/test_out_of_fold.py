"""out_of_fold.csv: what is written is read again, whatever the names are."""

import numpy as np
import pytest

from lit_training.errors import UsageError
from lit_training.runs.out_of_fold import OutOfFold, read_out_of_fold


def example() -> OutOfFold:
    return OutOfFold(
        ("path", "=SUM(1)", "'a,b"),
        np.array(["+x/1.jpg", "a\udcff.png", "'q.jpg"], object),
        np.array([1, 1, 2]),
        np.array([1, 2, 1]),
        np.array([0, 1, 2]),
        np.array([[0.9, 0.1, 1e-12], [1 / 3, 1 / 6, 1 / 2], [0, 0, 1]]),
    )


def test_the_same_is_read_as_was_written(tmp_path):
    example().write(tmp_path / "o.csv")
    found = read_out_of_fold(tmp_path / "o.csv")
    assert found.class_names == example().class_names
    for name in ("paths", "repeats", "folds", "labels", "predicted"):
        assert getattr(found, name).tolist() == getattr(example(), name).tolist()
    np.testing.assert_allclose(found.probabilities, example().probabilities, rtol=1e-8)
    assert found.correct.tolist() == [True, False, True]


HEAD = "path,repeat,fold,label,prediction,a"


@pytest.mark.parametrize("text", ["", "path,repeat\n", f"{HEAD}\nx,1,1,b,a,1\n", f"{HEAD},a\nx,1,1,a,a,1,0\n"])
def test_another_file_gets_one_line(tmp_path, text):
    (tmp_path / "o.csv").write_text(text)
    with pytest.raises(UsageError, match="--folds 5"):
        read_out_of_fold(tmp_path / "o.csv")


def test_repeats_are_averaged_by_path():
    paths = np.array(["b", "a", "a", "b"], object)
    shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    runs = OutOfFold(("x", "y"), paths, np.array([1, 1, 2, 2]), np.array([1, 2, 1, 2]), np.array([1, 0, 0, 1]), shares)
    mean = runs.average_repeats()
    assert (mean.paths.tolist(), mean.labels.tolist()) == (["a", "b"], [0, 1])
    np.testing.assert_allclose(mean.probabilities, [[0.4, 0.6], [0.6, 0.4]])


def test_the_accuracy_is_the_mean_of_the_folds():
    """The first of two folds has three samples, all of them right; the other one has one, which is wrong."""
    rows = np.arange(4), np.ones(4, int), np.array([1, 1, 1, 2]), np.zeros(4, int)
    found = OutOfFold(("x", "y"), *rows, np.array([[0.9, 0.1]] * 3 + [[0.1, 0.9]]))
    assert found.summary().startswith("0.5000  (")
    assert found.summary().endswith(", n = 4, 2 folds x 1 repeat)")
