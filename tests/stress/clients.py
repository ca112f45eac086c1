"""Let 32 programs at a time ask ``serve.py`` and check each answer: ``python tests/stress/clients.py [SECONDS]``.

Each client sends its own pictures, as a body, in chunks or in a form, and compares the answer with ``load().predict``
to the last digit. The memory of the server must not grow.
"""

import http.client
import io
import json
import os
import re
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from lit_training import load
from tests.support.commands import run_well, start
from tests.support.photos import scene

CLIENTS = 32


class Server:
    """A running serve.py."""

    def __init__(self, process: Any, lines: list[str]) -> None:
        self.process, self.lines = process, lines
        [self.port] = map(int, re.findall(r":(\d+) \(Ctrl-C", lines[-1]))

    def ask(self, body: Any = b"", path: str = "/predict", method: str = "POST", **headers: str) -> tuple[int, str]:
        """Send a request. Return the status and the text of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def memory(self) -> int:
        """Return the memory of the process in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) // 1000


@contextmanager
def server(line: str = "latest --port 0") -> Iterator[Server]:
    """Start serve.py; end it with Ctrl-C, and check that it ends without a traceback."""
    process = start(f"serve.py {line}")
    assert process.stdout is not None
    lines = []
    for text in process.stdout:
        lines.append(text)
        if text.startswith("open "):
            break
    else:
        raise AssertionError(process.communicate()[1])
    try:
        running = Server(process, lines)
        running.ask(path="/", method="GET")  # it is ready for Ctrl-C
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "serve.py: stopped\n")


def form(*fields: tuple[str, str | None, bytes]) -> tuple[bytes, str]:
    """Return the body and the Content-Type of a form. A field is its name, the name of a file or None, and bytes."""
    border, body = uuid.uuid4().hex, b""
    for name, file, content in fields:
        named = "" if file is None else f'; filename="{file}"'
        body += f'--{border}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + f"--{border}--\r\n".encode(), f"multipart/form-data; boundary={border}"


def pictures(count: int) -> list[bytes]:
    """Return JPEG files of different sizes."""
    files = []
    for seed in range(count):
        file = io.BytesIO()
        scene(seed, (40 + 13 * seed % 500, 30 + 29 * seed % 400)).save(file, "JPEG")
        files.append(file.getvalue())
    return files


def stress(running: Server, expected: dict[bytes, Any], seconds: float) -> int:
    """Let the clients ask until the time is over. Return the number of answers, all of which were right."""
    end, files = time.monotonic() + seconds, list(expected)

    def client(number: int) -> int:
        count = 0
        while count < 3 or time.monotonic() < end:  # also each client's own pictures, in each of three ways
            file = files[(number + CLIENTS * count) % len(files)]
            if count % 3 == 0:
                status, text = running.ask(file)
            elif count % 3 == 1:
                status, text = running.ask(iter([file[:99], file[99:]]))
            else:
                body, kind = form(("image", "a.jpg", file))
                status, text = running.ask(body, Content_Type=kind)
            assert status == 200, text
            assert json.loads(text) == expected[file]
            count += 1
        return count

    with ThreadPoolExecutor(CLIENTS) as threads:
        return sum(threads.map(client, range(CLIENTS)))


def main(seconds: float) -> None:
    torch.set_num_threads(1)  # as in the server
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run_well("fit.py --max_epochs 2 --model.lr 0.02 --dashboard false --quiet --accelerator cpu")
        files, saved = pictures(3 * CLIENTS), load()
        for number, file in enumerate(files):
            Path(f"{number}.jpg").write_bytes(file)
        found: Any = [saved.predict(f"{number}.jpg", "cpu", 0.9) for number in range(len(files))]
        expected = {
            file: {
                "class": one.label,
                "probabilities": one.probabilities,
                "set": list(one.set),
                "note": one.note,
            }
            for file, one in zip(files, found, strict=True)
        }
        with server("latest --port 0 --accelerator cpu") as running:
            stress(running, expected, seconds / 5)
            before = running.memory()
            count = stress(running, expected, seconds)
            print(f"{count} answers of {CLIENTS} clients in {seconds:.0f} s are right")
            print(f"memory: {before} MB before, {running.memory()} MB after")
            assert running.memory() < before + 100


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60)
