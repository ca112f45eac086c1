"""scripts/serve.py with a real HTTP client: the answers of predict.py, and one line for each hostile request."""

import asyncio
import base64
import contextlib
import importlib
import importlib.util
import io
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.text import printable
from lit_training import load
from lit_training.trained.explain import explain_picture
from tests.stress.clients import Server, form, pictures, server, stress
from tests.support.commands import ENVIRONMENT, ROOT, run, run_well
from tests.support.photos import scene
from tests.support.training import own_caches

pytest.importorskip("uvicorn")
serve = importlib.import_module("lit_training.trained.serve")
NAMES = ("<script>alert(1)<", 'a "b" & c\udce9', "10")


def write_photos(root: Path) -> None:
    """Write photos in three classes, whose names are HTML, a number, or hold a byte that is not UTF-8."""
    for channel, name in enumerate(NAMES):
        for split, count in (("train", 12), ("val", 9)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.array(scene(100 * channel + number + 50 * (split == "val"), (64, 48)), np.float32) * 0.7
                pixels[..., channel] += 60
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{number}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos and a run of a LeNet on them."""
    workspace = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        own_caches(workspace, patch)
        patch.chdir(workspace)
        write_photos(workspace / "photos")
        flags = "--data.image_size 32 --data.augment false --data.num_workers 0 --data.batch_size 4 --max_epochs 8"
        run_well(f"fit.py --data photos --model LitCNN --model.lr 0.01 {flags} --dashboard false --quiet")
    return workspace


@pytest.fixture(scope="module")
def running(trained: Path) -> Iterator[Server]:
    with server(f"{trained}/lightning_logs/version_0 --port 0") as found:
        yield found


@pytest.fixture
def here(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "lightning_logs", "lightning_logs")
    (tmp_path / "photos").symlink_to(trained / "photos")


def predictions(files: list[str]) -> list[dict[str, Any]]:
    """Return the answers of predict.py."""
    line = " ".join(f"'{file}'" for file in files)
    run_well(f"predict.py latest {line} --coverage 0.9 --top_k 9 --batch_size 1 --output answers.json")
    return [
        {
            "class": entry["label"],
            "probabilities": {one["label"]: one["probability"] for one in entry["top"]},
            "set": entry["set"],
            "note": entry.get("note", ""),
        }
        for entry in json.loads(Path("answers.json").read_text())
    ]


def test_the_answer_is_that_of_predict_py(here: None, running: Server) -> None:
    files = sorted(map(str, Path("photos/val").rglob("*.png")))
    for seed, picture in enumerate(pictures(4)):
        Path(f"{seed}.jpg").write_bytes(picture)
        files.append(f"{seed}.jpg")
    expected = predictions(files)
    assert {one["class"] for one in expected} == set(NAMES)
    assert len({str(one["set"]) for one in expected} | {one["note"] for one in expected}) > 3
    for file, right in zip(files, expected, strict=True):
        content = Path(file).read_bytes()
        body, kind = form(("comment", None, b"hello"), ("image", "../../etc/passwd", content))
        for status, text in (
            running.ask(content),
            running.ask(content, Content_Type="application/x-www-form-urlencoded"),  # curl --data-binary
            running.ask(iter([content[:9], content[9:]])),  # chunked, without a length
            running.ask(body, Content_Type=kind),
        ):
            assert status == 200
            assert json.loads(text) == right


class Tags(HTMLParser):
    """Count the tags of a page, and keep its text and the values of its bars."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text, self.values = "", list[float]()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[Any]) -> None:
        self.tags.append(tag)
        self.values += [float(value) for name, value in attributes if (tag, name) == ("progress", "value")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_the_answer(here: None, running: Server) -> None:
    for name in NAMES:
        file = next(Path("photos/train", name).iterdir())
        [right] = predictions([str(file)])
        body, kind = form(("image", "a.png", file.read_bytes()))
        status, page = running.ask(body, "/", Content_Type=kind)
        found = Tags(page)
        assert status == 200
        assert re.findall(r"<h2>(.*)</h2>", page)[0].count("<") == 0
        assert right["class"] == name
        assert all(f"{printable(n)} {100 * p:.1f} %" in found.text for n, p in right["probabilities"].items())
        assert found.values == list(right["probabilities"].values())
        assert f"is one of these: {', '.join(map(printable, right['set'])) or 'none'}" in found.text
        assert found.tags.count("img") == 1
        [shown] = re.findall(r"data:image/png;base64,([\w+/=]+)", page)
        heat = explain_picture(load().model(), str(file), name)
        assert heat is not None
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(shown)))), (heat[0] * 255).byte().permute(1, 2, 0)
        )
        assert "script" not in found.tags
        assert "http" not in page  # it needs no network


def test_sets_need_nine_scores(here: None) -> None:
    saved: Any = load()
    answers, request = list[Any](), {"type": "http.request", "body": JPEG}
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"host", b"localhost")]}

    async def receive() -> Any:
        return request

    async def send(message: Any) -> None:
        answers.append(message)

    for count in (8, 9):
        kept = replace(saved.calibration, scores=saved.calibration.scores[:count])
        with mock.patch("uvicorn.Config", side_effect=KeyboardInterrupt) as config, pytest.raises(KeyboardInterrupt):
            serve.serve(SimpleNamespace(model=saved.model, calibration=kept), torch.device("cpu"), "127.0.0.1", 0)
        with mock.patch.object(serve, "MAX_BYTES", len(JPEG)):  # this is not too large
            asyncio.run(config.call_args.args[0](scope, receive, send))
    assert [one["status"] for one in answers[::2]] == [200, 200]
    assert [json.loads(one["body"])["set"] is None for one in answers[1::2]] == [True, False]


def test_the_page_runs_no_script(running: Server) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert "capture" in answer.read().decode()
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "script-src" not in policy
    assert "Access-Control-Allow-Origin" not in answer.headers


def bomb(width: int, height: int) -> bytes:
    """Return a PNG file of a few KB whose picture has many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    data = zlib.compress(bytes(10**6))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(form: str) -> bytes:
    file = io.BytesIO()
    scene(0).save(file, form)
    return file.getvalue()


JPEG = encoded("JPEG")
BODIES = {
    "empty": (b"", 400, "empty"),
    "text": (b"hello", 400, "text inside"),
    "HTML": (b"<html><script>alert(1)</script>", 400, "a web page inside"),
    "SVG": (b"<svg onload='alert(1)'>", 400, "SVG or XML inside"),
    "GIF": (encoded("GIF"), 400, "GIF inside"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], 400, "truncated"),
    "bomb": (bomb(50_000, 50_000), 400, "more than 178,956,970 pixels"),
    "too large": (bytes(20_000_001), 413, "larger than 20,000,000 bytes"),
    "too large in chunks": ((bytes(1_000_000) for _ in range(30)), 413, "larger than 20,000,000 bytes"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_no_picture(running: Server, name: str) -> None:
    body, code, message = BODIES[name]
    status, text = running.ask(body)
    assert (status, len(text.splitlines())) == (code, 1)
    assert message in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "the form needs one picture, in the field image"),
        ([("photo", "a.jpg", JPEG)], "the form needs one picture, in the field image"),
        ([("image", None, JPEG)], "the form needs one picture, in the field image"),
        ([("image", "a.jpg", JPEG)] * 2, "Too many files"),
        ([("a", None, b"")] * 99, "Too many fields"),
        ([("a", None, bytes(2_000_000))], "exceeded maximum size"),
        ([("image", "", b"")], "empty"),
    ],
)
def test_wrong_forms(running: Server, fields: list[Any], message: str) -> None:
    body, kind = form(*fields)
    status, text = running.ask(body, Content_Type=kind)
    assert (status, len(text.splitlines())) == (400, 1)
    assert message in text


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=x", "multipart/form-data; charset=undefined; {}"]
)
def test_damaged_forms(running: Server, kind: str) -> None:
    body, right = form(("image", "ä.jpg", JPEG))
    status, text = running.ask(body, Content_Type=kind.format(right.partition("; ")[2]))
    assert (status, len(text.splitlines())) == (400, 1)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        *[(method, "/predict", 405) for method in ("GET", "PUT", "DELETE", "OPTIONS", "FOO")],
        *[
            ("GET", path, 404)
            for path in ("/x", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/%00", "/page.html")
        ],
    ],
)
def test_wrong_methods_and_paths(running: Server, method: str, path: str, code: int) -> None:
    status, text = running.ask(method=method, path=path)
    assert (status, len(text.splitlines())) == (code, 1)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "localhost:{}"}, 200),
        ({"Host": "[::1]:{}"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:{}"}, 403),
        ({"Host": "localhost.evil.example:{}"}, 403),
        ({"Host": "10.0.0.1:{}"}, 403),
        ({"Host": "[["}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:{}", "Origin": "http://localhost:{}"}, 200),
        ({"Host": "localhost:{}", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:{}", "Origin": "http://localhost:1"}, 403),
        ({"Host": "localhost:{}", "Origin": "null"}, 403),
    ],
)
def test_other_web_pages_are_refused(running: Server, headers: dict[str, str], code: int) -> None:
    for path in ("/", "/predict"):
        assert running.ask(JPEG, path, **{name: text.format(running.port) for name, text in headers.items()})[0] == code


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x00\x50",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000,
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\nends here",
    ],
)
def test_what_is_not_http(running: Server, data: bytes) -> None:
    client = socket.create_connection(("127.0.0.1", running.port), timeout=100)
    with client, contextlib.suppress(OSError):  # the server can close the connection before all is sent
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(12) in (b"HTTP/1.1 400", b"")
    assert running.ask(JPEG)[0] == 200  # the fixture checks that the server has printed no traceback


def test_refusals(here: None, running: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ROOT / "tests" / "fixtures" / "old_runs" / "mlp" / "checkpoints" / "best.ckpt"
    for line, message in (
        (f"latest --port {running.port}", "Address already in use"),
        ("latest --port 70000", "try --port 0"),
        ("latest --host 203.0.113.7", "Cannot assign requested address"),
        ("latest --host a..b", "no server at a..b"),
        (rows, "serve.py is for classifiers of pictures, not for LitMLP: use predict.py"),
    ):
        code, out, err = run(f"serve.py {line}")
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert message in err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "starlette" else True)
    assert "the page needs starlette: pip install 'lit-classics[serve]'" in run("serve.py latest").err


# --- slow -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_network_is_asked_for(here: None) -> None:
    with server("latest --port 0 --host 0.0.0.0") as running:
        assert running.lines[0].startswith("note: anyone in the network can use it")
        hosts = ("10.1.2.3:80", "[fe80::1]", "localhost", socket.gethostname(), "evil.example", "a.b:c")
        assert [running.ask(JPEG, Host=host)[0] for host in hosts] == [200, 200, 200, 200, 403, 403]


@pytest.mark.slow
def test_slow_and_idle_clients_do_not_stop_others(here: None) -> None:
    code = (
        "from lit_training.trained import serve as s; from lit_training import load; s.MAX_SECONDS, s.MAX_REQUESTS = "
    )
    code += "5, 3; s.serve(load(), 'cpu', '127.0.0.1', 0)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        running = Server(process, [process.stdout.readline()])
        clients = [socket.create_connection(("127.0.0.1", running.port), timeout=100) for _ in range(150)]
        for client in clients[:5]:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\nabc")
        assert running.ask(JPEG)[0] == 200
        assert clients[0].recv(12) == b"HTTP/1.1 400"
        process.terminate()


@pytest.mark.slow
def test_ctrl_c_while_a_picture_is_sent(here: None) -> None:
    with server() as running:
        client = socket.create_connection(("127.0.0.1", running.port))
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\nabc")
        time.sleep(0.5)
    client.close()


@pytest.mark.slow
def test_many_clients_get_their_own_answers(here: None, running: Server) -> None:
    files = pictures(64)
    for number, file in enumerate(files):
        Path(f"{number}.jpg").write_bytes(file)
    expected = dict(zip(files, predictions([f"{number}.jpg" for number in range(64)]), strict=True))
    assert len({str(one) for one in expected.values()}) > 60
    assert stress(running, expected, 5) >= 96
