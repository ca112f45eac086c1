"""Show a classifier of pictures in a web page, and answer programs that POST a picture to ``/predict``."""

import asyncio
import base64
import json
import logging
import re
import socket
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette import applications, requests, responses, routing, templating
from starlette.exceptions import HTTPException
from torchvision.io import encode_png

from datamodules.text import printable
from lit_training.errors import UsageError
from lit_training.runs.threads import choose_threads
from lit_training.trained import describe, explain, predict

PAGES = templating.Jinja2Templates(Path(__file__).parent)  # it escapes the names of classes
# also names with bytes that are not UTF-8
PAGES.env.finalize = lambda value: printable(value) if isinstance(value, str) else value
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'"
MAX_BYTES, MAX_SECONDS, MAX_REQUESTS = 20_000_000, 60, 40  # size and time of a request; the requests in memory
LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(saved: Any, device: torch.device, host: str, port: int) -> None:
    """Show the network of a SavedRun until Ctrl-C. Raise a UsageError if it, or the address, cannot be used."""
    model, calibration = saved.model(), saved.calibration
    if model.task != "classification" or model.sample_ndim != 3:
        raise UsageError(f"serve.py is for classifiers of pictures, not for {type(model).__name__}: use predict.py")
    coverage = 0.9 if calibration is not None and len(calibration.scores) >= 9 else None  # 0.9 needs 9 scores
    torch.set_num_threads(choose_threads(model, describe.sample_input(model), 32))  # as predict.py: the same digits
    names = {*LOCAL, host.lower(), socket.gethostname().lower()}
    slots, turn = asyncio.Semaphore(MAX_REQUESTS), asyncio.Lock()

    def show_page(request: requests.Request, **values: Any) -> responses.Response:
        return PAGES.TemplateResponse(request, "page.html", values, headers={"Content-Security-Policy": POLICY})

    def compute(request: requests.Request, picture: bytes) -> responses.Response:
        [found] = predict.predict(model, [picture], calibration=calibration, coverage=coverage, device=device)
        if found.error:
            raise HTTPException(400, f"the picture cannot be read: {found.error}")
        if request.url.path == "/predict":
            values = {"probabilities": found.probabilities, "set": found.set, "note": found.note}
            return responses.Response(json.dumps({"class": found.label, **values}), media_type="application/json")
        try:
            heat: Any = explain.explain_picture(model, picture, found.label)
        except UsageError:  # no layer has a feature map
            return show_page(request, found=found)
        png = encode_png((heat[0] * 255).byte()).numpy()
        return show_page(request, found=found, heat_map=base64.b64encode(png).decode())

    async def answer(request: requests.Request) -> responses.Response:
        address, origin = (request.headers.get(name, "").lower() for name in ("host", "origin"))
        name, sender = re.sub(r":\d*$", "", address).strip("[]"), re.sub("^https?://", "", origin)
        is_number = host not in LOCAL and re.fullmatch(r"[\d.]+|[\da-f]*:[\da-f:.]+", name)  # no name of a DNS
        if not (name in names or is_number) or sender not in ("", address):
            raise HTTPException(403, "refused: open the address that serve.py printed, or start it with --host NAME")
        async with slots:  # the others wait before they send
            try:
                picture = await asyncio.wait_for(receive_picture(request), MAX_SECONDS)
            except (asyncio.TimeoutError, requests.ClientDisconnect, ValueError):
                raise HTTPException(400, f"not complete after {MAX_SECONDS} s, or the form is damaged") from None
            async with turn:  # one picture at a time: torch uses all cores, and the largest picture needs 3 GB
                return await asyncio.to_thread(compute, request, picture)

    routes = [routing.Route(path, answer, methods=["POST"]) for path in ("/", "/predict")]
    app = applications.Starlette(routes=[*routes, routing.Route("/", show_page)])
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(f"no server at {host}, port {port} ({error}): try --port 0, or another --host") from error
    if host not in LOCAL:
        print(f"note: anyone in the network can use it, on machine {socket.gethostname()}")
    shown = f"[{host}]" if ":" in host else host
    print(f"open http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of damaged forms
    server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", log_level="error", timeout_graceful_shutdown=3))
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)  # it cancels slow requests
    server.run([listener])


async def receive_picture(request: requests.Request) -> bytes:
    """Return the picture in the body or in the form of a request. Raise an HTTPException if there is none."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk if len(body) <= MAX_BYTES else b""  # read the rest, or the client could not read the answer
    if len(body) > MAX_BYTES:
        raise HTTPException(413, f"the request is larger than {MAX_BYTES:,} bytes")
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return bytes(body)
    messages: Any = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": bytes(body)})
    form = await requests.Request(request.scope, messages.get).form(max_files=1, max_fields=10)
    if isinstance(file := form.get("image", ""), str):
        raise HTTPException(400, "the form needs one picture, in the field image")
    return await file.read()
