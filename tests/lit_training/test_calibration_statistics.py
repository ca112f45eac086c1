"""Temperature, calibration error and conformal threshold against scipy, torchmetrics and MAPIE, and by simulation."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from lit_training.statistics import (
    PRIOR_SAMPLES,
    bootstrap_interval,
    calibration_error,
    chance_error,
    conformal_threshold,
    fit_temperature,
    samples_for_coverage,
)


def draw(n: int, classes: int, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits (n, classes), and labels that the logits divided by ``temperature`` predict correctly on average."""
    random = np.random.default_rng(seed)
    logits = 3 * random.normal(size=(n, classes))
    noise = random.gumbel(size=(n, classes))
    return logits, (logits / temperature + noise).argmax(1)


@pytest.mark.parametrize(("temperature", "seed"), [(0.5, 0), (1.7, 1), (4.0, 2)])
def test_temperature_is_the_maximum_likelihood_of_labels_and_prior(temperature: float, seed: int) -> None:
    logits, labels = draw(300, 4, temperature, seed)
    own = np.exp(log_softmax(logits, 1))

    def loss(log_temperature: float) -> float:
        logs = log_softmax(logits / np.exp(log_temperature), 1)
        of_prior = PRIOR_SAMPLES * (own * logs).sum(1).mean()
        return -float(logs[np.arange(300), labels].sum() + of_prior)

    best = np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x)
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=1e-5)
    many, answers = draw(20_000, 4, temperature, seed)
    assert fit_temperature(many, answers) == pytest.approx(temperature, rel=0.05)


LOGITS, _ = draw(6, 3, 1.0, 3)


@pytest.mark.parametrize(
    ("logits", "labels", "low", "high"),
    [
        (LOGITS, LOGITS.argmax(1), 0.5, 1.0),  # all right: more certain, but not without limit
        (LOGITS, LOGITS.argmin(1), 2.0, 20.0),  # all wrong
        (LOGITS[:1], [0], 0.5, 2.0),
        (LOGITS, [1] * 6, 0.05, 20.0),  # the other classes are missing
        (LOGITS[:0], [], 1.0, 1.0),
        (LOGITS[:, :1], [0] * 6, 1.0, 1.0),  # one class
        (LOGITS * 0, [0] * 6, 1.0, 1.0),
        (LOGITS * np.nan, [0] * 6, 1.0, 1.0),
        (np.where(LOGITS.max(1, keepdims=True) == LOGITS, 0, -np.inf), [0] * 6, 1.0, 20.0),  # the log of 0
    ],
)
def test_temperature_is_always_sensible(logits: np.ndarray, labels: list[int], low: float, high: float) -> None:
    assert low <= fit_temperature(logits, np.array(labels, int)) <= high * (1 + 1e-9)


def test_rows_that_are_not_finite_are_left_out() -> None:
    logits, labels = draw(50, 3, 2.0, 4)
    broken = np.concatenate([logits, np.full((2, 3), np.nan), [[np.inf, 0, 0]]])
    assert fit_temperature(broken, np.append(labels, [0, 1, 2])) == fit_temperature(logits, labels)


def test_calibration_error_equals_torchmetrics() -> None:
    logits, labels = draw(400, 5, 2.0, 5)
    p = torch.from_numpy(logits).softmax(1)
    p = torch.cat([p, torch.eye(5, dtype=torch.float64)])  # confidence 1
    labels = np.append(labels, [0, 1, 2, 3, 3])
    found = calibration_error(p.amax(1).numpy(), p.argmax(1).numpy() == labels)
    assert found == pytest.approx(float(multiclass_calibration_error(p, torch.from_numpy(labels), 5)), abs=1e-6)
    assert found > chance_error(p.amax(1).numpy())
    p = torch.tensor([[0.95, 0.05]] * 8 + [[1.0, 0.0]] * 2)  # too careful, and sure but wrong: two bins, as there
    labels = np.array([0] * 8 + [1] * 2)
    found = calibration_error(p.amax(1).numpy(), p.argmax(1).numpy() == labels)
    assert found == pytest.approx(float(multiclass_calibration_error(p, torch.from_numpy(labels), 2)), abs=1e-6)


def test_chance_error_is_exceeded_by_5_percent_of_calibrated_networks() -> None:
    random, confidences = np.random.default_rng(6), np.random.default_rng(7).uniform(0.3, 1, 200)
    limit = chance_error(confidences)
    share = np.mean([calibration_error(confidences, random.random(200) < confidences) > limit for _ in range(2000)])
    assert 0.02 < share < 0.09


def test_bootstrap_interval_contains_the_mean_in_95_percent() -> None:
    samples = np.random.default_rng(8).exponential(size=(200, 80))
    intervals = [bootstrap_interval(lambda rows, x=x: float(x[rows].mean()), 80) for x in samples]  # type: ignore[misc]
    assert 0.9 < np.mean([low <= 1 <= high for low, high in intervals]) < 0.98


@pytest.mark.parametrize(("coverage", "needed"), [(0.9, 9), (0.95, 19), (0.99, 99), (0.5, 1), (0.7, 3), (1e-7, 1)])
def test_samples_for_a_coverage(coverage: float, needed: int) -> None:
    assert samples_for_coverage(coverage) == needed
    scores = np.arange(1.0, needed + 1)
    assert conformal_threshold(scores, coverage) == needed
    assert conformal_threshold(scores[1:], coverage) == np.inf


def test_coverage_by_simulation() -> None:
    """With n scores the mean coverage is ceil((n + 1) c) / (n + 1)."""
    random = np.random.default_rng(9)
    covered = [conformal_threshold(random.random(12), 0.8) for _ in range(20_000)]  # of a uniform score
    assert np.mean(covered) == pytest.approx(11 / 13, abs=0.003)


@pytest.mark.parametrize("coverage", [0.6, 0.8, 0.93])
def test_sets_equal_those_of_mapie(coverage: float) -> None:
    classification, base = pytest.importorskip("mapie.classification"), pytest.importorskip("sklearn.base")

    class Given(base.ClassifierMixin, base.BaseEstimator):  # type: ignore[name-defined]
        classes_ = np.arange(4)

        def fit(self, x: np.ndarray, y: np.ndarray) -> "Given":
            return self

        def predict_proba(self, x: np.ndarray) -> np.ndarray:
            return x

        def predict(self, x: np.ndarray) -> np.ndarray:
            return x.argmax(1)

        def __sklearn_is_fitted__(self) -> bool:
            return True

    random = np.random.default_rng(10)
    p, labels = random.dirichlet(np.ones(4), 300), random.integers(4, size=57)
    kind = classification.SplitConformalClassifier
    oracle = kind(Given(), confidence_level=coverage, conformity_score="lac", prefit=True).conformalize(p[:57], labels)
    threshold = conformal_threshold(1 - p[np.arange(57), labels], coverage)
    assert ((1 - p[57:] <= threshold) == oracle.predict_set(p[57:])[1][:, :, 0]).all()
