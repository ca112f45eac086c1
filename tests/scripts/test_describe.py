"""Test scripts/describe.py on a model class and on a trained network."""

import shutil
from pathlib import Path

import pytest

from tests.support.commands import run, run_well


def test_describe_a_class() -> None:
    code, out, err = run("describe.py LitCNN --model.loss squared_error --model.in_channels 1")
    assert (code, err) == (0, "")
    assert out.startswith("LitCNN: 61,706 trainable of 61,706 parameters")
    assert "1x16x10x10" in out


def test_describe_a_trained_network() -> None:
    run_well(
        "fit.py --model LitMLP --model.hidden [7] --data.in_features 5 --data.out_features 2 --data.steps 2 "
        "--accelerator cpu --devices 1 --quiet true --dashboard false"
    )
    described = run_well("describe.py latest")
    assert described.startswith("LitMLP: 58 trainable of 58 parameters")  # 5 * 7 + 7 + 7 * 2 + 2
    shutil.copy("lightning_logs/version_0/checkpoints/best.ckpt", "copy.ckpt")
    shutil.rmtree("lightning_logs")
    assert run_well("describe.py copy.ckpt") == described


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ("LitCN", "there is no model LitCN: did you mean LitCNN?"),
        ("litcnn", "there is no model litcnn: did you mean LitCNN?"),
        ("nowhere/run", "nowhere/run does not exist"),
        ("LitCNN --model.los x", "los"),
        ("latest --model.lr 1", "--model.lr: a trained network takes no arguments; leave --model.lr out"),
        ("latest", "no run"),
        ("LitMLP --model.hidden [0]", "widths"),
    ],
)
def test_wrong_input_gets_one_line(line: str, culprit: str) -> None:
    code, out, err = run(f"describe.py {line}")
    assert (code, out) == (2, "")
    assert err.startswith("describe.py: error: ")
    assert err.count("\n") == 1
    assert culprit in err
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize("arguments", ["", " --model.lr 1"])
def test_a_folder_named_like_a_model_is_not_taken_for_a_run(arguments: str) -> None:
    Path("litcnn").mkdir()
    error = "describe.py: error: there is no model litcnn: did you mean LitCNN?\n"
    assert run(f"describe.py litcnn{arguments}") == (2, "", error)
    Path("litcnn/best.ckpt").write_bytes(b"no checkpoint")
    assert "litcnn/best.ckpt" in run("describe.py litcnn").err
