"""What is saved in a checkpoint opens without executing code, and keeps its value."""

import datetime
import enum
import functools
import io
from collections import Counter, OrderedDict, defaultdict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse.typing import PositiveInt

from datamodules.text import print_once
from lit_training.runs.plain import NOT_SAVED, create, plain_checkpoint, to_plain

Level = enum.IntEnum("Level", {"LOW": 1, "HIGH": 2})
Pair = namedtuple("Pair", "one other")


@pytest.fixture(autouse=True)
def _all_notes() -> None:
    print_once.cache_clear()


def opened(value: Any) -> Any:
    torch.save(value, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize(
    ("value", "expected", "changed"),
    [
        (np.float64(0.1), 0.1, []),
        (np.float32(0.1), float(np.float32(0.1)), []),
        (np.int64(3), 3, []),
        (np.bool_(True), True, []),
        (np.str_("a"), "a", []),
        ({"a": [np.int64(1), (2, None)]}, {"a": [1, (2, None)]}, []),
        ({1, 2}, {1, 2}, []),
        (Counter("aab"), Counter("aab"), []),
        (torch.float16, torch.float16, []),
        (torch.Size([2]), torch.Size([2]), []),
        (PositiveInt(3), 3, ["PositiveInt"]),
        (Level.HIGH, "HIGH", ["Level"]),
        ({Path("a"): Path("b")}, {"a": "b"}, [type(Path()).__name__] * 2),
        (defaultdict(int, a=1), {"a": 1}, ["defaultdict"]),
    ],
)
def test_values_and_their_plain_form(value: Any, expected: Any, changed: list[str]) -> None:
    noted: list[str] = []
    plain = to_plain(value, noted)
    assert (plain, type(plain), noted) == (expected, type(expected), changed)
    assert opened(plain) == expected


def test_arrays_become_tensors_of_the_same_values() -> None:
    array = np.arange(6.0)[::-2].astype(np.float32)
    plain = opened(to_plain({"array": array}, []))["array"]
    assert plain.dtype == torch.float32
    assert plain.tolist() == array.tolist()


def test_the_weights_keep_their_versions() -> None:
    weights = torch.nn.BatchNorm1d(2).state_dict()
    plain = to_plain(weights, [])
    assert type(plain) is OrderedDict
    assert plain._metadata == weights._metadata  # type: ignore[attr-defined]
    assert plain["weight"] is weights["weight"]


@pytest.mark.parametrize(
    "value",
    [functools.partial(int), torch.nn.ReLU(), torch.nn.ReLU, datetime.timedelta(1), Pair(1, 2), lambda: 1],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_plain_form_is_named_and_refused(value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kind = type(value).__name__
    states: dict[str, Any] = {"Good": {"seen": 1}, "Bad": {"value": np.int64(1), "other": [value]}}
    checkpoint = {"epoch": 3, "mine": value, "callbacks": states, "hyper_parameters": {"lr": 0.1, "act": value}}
    saved = opened(plain_checkpoint(checkpoint))
    assert saved == {
        "epoch": 3,
        "callbacks": {"Good": {"seen": 1}},
        "hyper_parameters": {"lr": 0.1, "act": NOT_SAVED + kind},
        "left_out": f"; it does not hold Bad ({kind}), mine ({kind}): let on_save_checkpoint save plain values",
    }
    assert capsys.readouterr().err.splitlines() == [
        f"note: Bad ({kind}): checkpoints do not hold its state: --resume starts it anew",
        f"note: act ({kind}): checkpoints do not hold it: --resume works, but not evaluate.py and predict.py",
        f"note: mine ({kind}): checkpoints do not hold it: --resume has to do without it",
    ]
    plain_checkpoint(checkpoint)
    assert capsys.readouterr().err == ""  # said once
    assert states["Bad"]["other"] == [value]  # the state itself does not change


def test_arguments_get_their_classes_back() -> None:
    class Net:
        def __init__(
            self, a: Path, b: Level | None, c: list[Path], d: str, e=Level.LOW, f: "dict[str, Path] | None" = None, g=1
        ) -> None:
            self.values = dict(zip("abcdefg", (a, b, c, d, e, f, g), strict=True))

    class Wrong:
        def __init__(self, b: int, level: Level = Level.LOW, **others: Any) -> None:
            self.values = {"b": b, "level": level, **others}

    values = {
        "a": Path("x"),
        "b": Level.HIGH,
        "c": [Path("y")],
        "d": "LOW",
        "e": Level.HIGH,
        "f": {"k": Path("z")},
        "g": "x",
    }
    plain = {name: to_plain(value, []) for name, value in values.items()}
    again = create(Net, opened(plain)).values
    assert again == values
    assert again["b"] is again["e"] is Level.HIGH
    kept = {"b": None, "other": "x"}  # None is not an int, and the constructor does not name "other"
    assert create(Wrong, {**kept, "level": "HIGH"}).values == {**kept, "level": Level.HIGH}
