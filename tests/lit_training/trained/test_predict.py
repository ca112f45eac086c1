import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lit_training.prediction import predict_in_order
from PIL import Image

from datamodules import ImageFolderDataModule, ShapesDataModule
from datamodules.loading.order import EvalSampler, in_input_order
from datamodules.photos.dataset import PhotoFiles
from datamodules.photos.find import PICTURE_SUFFIXES
from lit_models import LitCNN, LitMLP
from lit_training.errors import UsageError
from lit_training.trained import predict as prediction
from lit_training.trained.evaluate import evaluate
from lit_training.trained.inputs import find_files, read_pictures, read_rows
from lit_training.trained.predict import Prediction, predict


@pytest.fixture
def network():
    """Two classes, alphabetical order reversed, so that a name taken by folder order would be the wrong one."""
    model = LitCNN(num_classes=2).eval()
    model.class_names = ("bees", "ants")
    return model


def files_of(folder: Path) -> list[str]:
    return find_files([str(folder)], PICTURE_SUFFIXES)


def decoded(files: list[str], preprocessing: dict[str, Any], batch_size: int) -> list[torch.Tensor]:
    return [sample.x for sample in read_pictures(files, preprocessing, batch_size) if sample.x is not None]


# --- inputs ---------------------------------------------------------------------------------------------------


def test_inputs_keep_their_order_and_folders_their_names(tmp_path):
    for name in ("b/2.jpg", "b/10.PNG", "b/a/deep.jpg", "b/.hidden.jpg", "b/.ipynb_checkpoints/x.jpg", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("z.jpg", "y1.jpg", "y2.jpg", "what[1].jpg", "odd.name"):
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    found = find_files(["z.jpg", "b", "y*.jpg", "what[1].jpg", "none*.jpg", "gone.jpg", "odd.name"], PICTURE_SUFFIXES)
    assert found == [
        *("z.jpg", "b/10.PNG", "b/2.jpg", "b/a/deep.jpg", "y1.jpg", "y2.jpg", "what[1].jpg"),
        *("none*.jpg", "gone.jpg", "odd.name"),
    ]
    assert find_files(["**/*.jpg"], PICTURE_SUFFIXES)[:2] == ["b/2.jpg", "b/a/deep.jpg"]


def test_pictures_are_what_validation_sees(photo_folder, network, bare):
    data = ImageFolderDataModule(str(photo_folder), image_size=72)
    data.follow(network)
    data.setup("fit")
    files = files_of(photo_folder / "val")
    spec = data.preprocessing
    x = prediction.normalize(torch.stack(decoded(files, spec, 2)), spec["mean"], spec["std"])
    validation: Any = data.val_dataloader()
    assert torch.equal(x, next(iter(validation))[0])


@pytest.mark.parametrize(("ahead", "seen"), [(0, 5), (1, 10), (2, 15), (9, 24)])
def test_pictures_are_decoded_a_batch_at_a_time_and_batches_ahead(photo_folder, network, ahead, seen, monkeypatch):
    files, read = files_of(photo_folder), PhotoFiles.read
    started: list[int] = []

    def watched(photos: PhotoFiles, index: int) -> torch.Tensor:
        started.append(index)
        return read(photos, index)

    monkeypatch.setattr(PhotoFiles, "read", watched)
    monkeypatch.setattr(prediction, "available_cores", lambda: 1)
    samples = read_pictures(files, network.preprocessing, 5, ahead)
    first = [next(samples) for _ in range(5)]
    assert [sample.path for sample in first] == files[:5]
    assert len(started) <= seen  # nothing is asked for beyond that
    rest = list(samples)
    assert [sample.path for sample in rest] == files[5:]
    assert started == list(range(24))


def test_every_file_that_is_no_picture_says_why(photo_folder, network, tmp_path):
    good = files_of(photo_folder)[0]
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.jpg").write_bytes(Path(good).read_bytes()[:900])
    (tmp_path / "nothing").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    names = ["empty.jpg", "text.jpg", "cut.jpg", "nothing", "pipe.jpg", "loop.jpg", "gone.jpg", "g*.bmp"]
    answers = list(predict(network, [good, *names, good]))
    assert [answer.path for answer in answers] == [good, *names, good]
    assert [answer.error for answer in answers] == [
        "",
        "empty (0 bytes)",
        "not a picture (text inside)",
        answers[3].error,
        "a folder without files to predict",
        "a named pipe, no file",
        "unreadable (Too many levels of symbolic links)",
        "no such file",
        "matches no file",
        "",
    ]
    assert answers[3].error.startswith("truncated")
    assert answers[0] == answers[-1]


def test_probabilities_names_and_order(photo_folder, network):
    files = files_of(photo_folder)
    answers = list(predict(network, files, top_k=5, batch_size=3))
    x = torch.stack(decoded(files, network.preprocessing, 7))
    with torch.no_grad():
        expected = network(x.float() / 127.5 - 1).softmax(1)
    for answer, row in zip(answers, expected, strict=True):
        assert dict(answer.top) == pytest.approx({"bees": float(row[0]), "ants": float(row[1])}, abs=1e-5)
        assert answer.top[0][1] >= answer.top[1][1]
    short = list(predict(network, files, top_k=1, batch_size=100))
    assert [answer.top[0][0] for answer in short] == [answer.top[0][0] for answer in answers]
    assert {len(answer.top) for answer in short} == {1}


def test_without_class_names_classes_have_numbers(photo_folder):
    answers = list(predict(LitCNN(num_classes=2), files_of(photo_folder)[:1]))
    assert sorted(label for label, _ in answers[0].top) == ["0", "1"]


def test_one_channel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("colour.png")
    model = LitCNN(in_channels=1, num_classes=2).eval()
    answer = next(predict(model, ["colour.png"]))
    luma = pixels @ np.array([0.2989, 0.587, 0.114])  # ITU-R 601
    with torch.no_grad():
        x = torch.tensor(luma, dtype=torch.float32).view(1, 1, 32, 32) / 127.5 - 1
        assert max(probability for _, probability in answer.top) == pytest.approx(
            float(model(x).softmax(1).max()), abs=1e-3
        )


# --- rows -----------------------------------------------------------------------------------------------------


def test_rows_of_csv_and_npy(tmp_path):
    Path("a.csv").write_text("\ufefffirst,second\n1,2\n\n3,4.5\n5\nx,1\nnan,1\n1e999,1\n", encoding="utf-8")
    Path("headless.csv").write_text("-1, 2\n")
    np.save("b.npy", np.array([[1, 2], [3, 4]], dtype=np.int16))
    np.save("one.npy", np.array([0.5, 2.0]))
    np.save("object.npy", np.array([{}], dtype=object))
    np.save("cube.npy", np.zeros((2, 2, 2)))
    Path("empty.csv").touch()
    Path("binary.csv").write_bytes(b"\xff\xfe\x00")
    Path("rows.txt").write_text("1,2")
    names = ["a.csv", "headless.csv", "b.npy", "one.npy", "object.npy", "cube.npy", "empty.csv", "binary.csv"]
    samples = list(read_rows([*names, "rows.txt", "gone.csv"], 2))
    read = [(sample.path, sample.row, sample.x.tolist()) for sample in samples if sample.x is not None]
    assert read == [
        ("a.csv", 1, [1, 2]),
        ("a.csv", 2, [3, 4.5]),
        ("headless.csv", 1, [-1, 2]),
        ("b.npy", 1, [1, 2]),
        ("b.npy", 2, [3, 4]),
        ("one.npy", 1, [0.5, 2]),
    ]
    errors = [(sample.path, sample.row, sample.error) for sample in samples if sample.x is None]
    assert errors[:4] == [
        ("a.csv", 3, "1 value where the network takes 2"),
        ("a.csv", 4, "x is no finite number"),
        ("a.csv", 5, "nan is no finite number"),
        ("a.csv", 6, "1e999 is no finite number"),
    ]
    assert [path for path, _, _ in errors[4:]] == [*names[4:], "rows.txt", "gone.csv"]
    assert errors[6][2] == "holds no rows"
    assert errors[8][2] == "no rows: give a .csv or .npy file"
    assert {sample.x.dtype for sample in samples if sample.x is not None} == {torch.float32}


@settings(max_examples=100)
@given(
    head=st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',"]),
    content=st.binary(max_size=60) | st.text("0123456789.,-\n\"'{}():", max_size=60).map(str.encode),
    suffix=st.sampled_from(["csv", "npy"]),
)
def test_no_content_of_a_file_raises(head, content, suffix, tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / f"any.{suffix}"
    file.write_bytes(head + content)
    for sample in read_rows([str(file)], 2):
        assert (sample.x is None) == bool(sample.error)


def test_regression_gives_outputs(tmp_path):
    model = LitMLP(in_features=3, hidden=(), out_features=2).eval()
    Path("rows.csv").write_text("1,2,3\n1,2\n0,0,0\n")
    first, bad, zero = predict(model, ["rows.csv"], batch_size=2)
    weight, bias = (parameter.detach() for parameter in model.parameters())
    assert first.outputs == pytest.approx((weight @ torch.tensor([1.0, 2.0, 3.0]) + bias).tolist())
    assert zero.outputs == pytest.approx(bias.tolist())
    assert (bad.row, bad.outputs) == (2, ())


# --- results --------------------------------------------------------------------------------------------------

ANSWERS = [
    Prediction("a, b.jpg", top=(("bees", 0.75), ("ants", 0.25))),
    Prediction("é.jpg", error="no such file"),
]


def test_csv_and_json(tmp_path):
    prediction.write(ANSWERS, "p.csv")
    with Path("p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "path": "a, b.jpg",
        "label": "bees",
        "probability": "0.750000",
        "label_2": "ants",
        "probability_2": "0.250000",
        "error": "",
    }
    assert (rows[1]["path"], rows[1]["label"], rows[1]["error"]) == ("é.jpg", "", "no such file")
    prediction.write([*ANSWERS, Prediction("r.csv", 3, outputs=(0.5, 1.0))], "p.json")
    ranked = [{"label": "bees", "probability": 0.75}, {"label": "ants", "probability": 0.25}]
    assert json.loads(Path("p.json").read_text()) == [
        {"path": "a, b.jpg", "label": "bees", "probability": 0.75, "top": ranked},
        {"path": "é.jpg", "error": "no such file"},
        {"path": "r.csv", "row": 3, "outputs": [0.5, 1.0]},
    ]


@pytest.mark.parametrize("output", ["p.txt", "nowhere/p.csv"])
def test_output_that_cannot_be(output, tmp_path):
    with pytest.raises(UsageError, match=output):
        prediction.check_output(output)


def test_devices():
    assert prediction.find_device("cpu") == torch.device("cpu")
    assert prediction.find_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="--accelerator cpu"):
            prediction.find_device("gpu")


# --- several devices ------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 7), st.integers(1, 40))
def test_rows_of_all_ranks_come_in_input_order(length, ranks, batch_size, limit):
    """Also where the ranks have gone through some of their batches alone."""
    shares = [
        torch.tensor(list(EvalSampler(length, ranks, rank, batch_size)))[: limit * batch_size, None]
        for rank in range(ranks)
    ]
    loader = SimpleNamespace(dataset=range(length), batch_sampler=SimpleNamespace(batch_size=batch_size))
    handed_over: list[torch.Tensor] = []

    def hand_over(rows: torch.Tensor) -> torch.Tensor:
        handed_over.append(rows)
        return rows[None]

    strategy = SimpleNamespace(root_device="cpu", all_gather=hand_over)
    trainer = SimpleNamespace(world_size=ranks, strategy=strategy)
    for share in shares:
        in_input_order(trainer, share, loader)
    strategy.all_gather = lambda rows: torch.stack(handed_over)
    seen = min(length, limit * batch_size * ranks)
    for share in shares:
        assert in_input_order(trainer, share, loader).flatten().tolist() == list(range(seen))


TWO_PROCESSES = """
import torch
from pathlib import Path
from lightning.pytorch import Trainer
from datamodules import ShapesDataModule
from lit_training import checkpoints, evaluation
from lit_training.prediction import predict_in_order

torch.set_num_threads(1)
path = Path("model.ckpt")
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False)
model = checkpoints.load_model(checkpoints.read(path))
rows = predict_in_order(trainer, model, ShapesDataModule(train_size=10, val_size=7))
found, tells = evaluation.evaluate(path, None, "cpu", "2")
if tells:
    torch.save((rows, found.outputs, found.targets, found.loss, found.confusion()), "two.pt")
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(bare):
    data, model = ShapesDataModule(train_size=10, val_size=7), LitCNN()
    trainer = bare(max_epochs=1)
    trainer.fit(model, data)
    trainer.save_checkpoint("model.ckpt")
    Path("ask.py").write_text(TWO_PROCESSES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "ask.py"], check=True, env=environment, timeout=300)
    rows, outputs, targets, loss, confusion = torch.load("two.pt", weights_only=True)
    alone, _ = evaluate(Path("model.ckpt"), accelerator="cpu")
    assert rows.shape == (7, 10)
    assert torch.equal(rows, predict_in_order(bare(), model, data))
    assert torch.equal(outputs, alone.outputs)
    assert torch.equal(targets, alone.targets)
    assert loss == alone.loss
    assert torch.equal(confusion, alone.confusion())
    assert int(confusion.sum()) == 7
