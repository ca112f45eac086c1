"""Open every picture once: is it whole, how large is it, what does it look like.

One file is judged by :func:`look`; a folder by :func:`examine_files`, in parallel processes that never import
torch, with what was found whole remembered between runs. What :func:`look` accepts, :func:`read_picture`
reads.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from datamodules.listing import SUFFIXES, DataError, Listing, shown

# Pillow tries only these: decoders such as EPS, which start other programs, are never reached.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
# Where Pillow, too, refuses by default; our own because programs do switch Pillow's off. A phone's photo of
# 108 megapixels passes, a bomb of 50,000 x 50,000 does not.
MAX_PIXELS = 178_956_970
_TOO_LARGE = f"more than {MAX_PIXELS:,} pixels"
MAX_SIDE = 65_535  # what a JPEG can be; decoders of other formats take minutes for strips of millions

MISNAMED, ROTATED = 1, 2  # bits of Look.flags

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_THUMBNAIL = 64  # pixels: the least side that JPEG decoding may be reduced to, enough for a hash of 9 x 8
_STRIP = 1 << 22  # pixels that are converted at a time where that takes several copies
_CHUNK = 64  # files per message to a worker: about 0.1 s of work
_WORTH_A_PROCESS = 32 << 20  # bytes: opening fewer takes about as long as starting a process for it

# One row per picture. content is 0 where nobody asked for it: two files of different size cannot be copies.
VERDICT = np.dtype([("flags", "u1"), ("width", "u4"), ("height", "u4"), ("dhash", "u8"), ("content", "u8")])
_CACHE_ROW = np.dtype([("key", "u8"), ("size", "i8"), ("mtime", "i8"), ("verdict", VERDICT)])


@functools.cache
def _quiet_pillow() -> None:
    """Both would come up on the user's screen for pictures that are read all the same. Not done by an import."""
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", "(?s).*Corrupt EXIF data", UserWarning)


class BadPicture(DataError):
    """One file that is no whole picture.

    Args:
        name: the file, as the user knows it.
        kind: "truncated", "empty", "not a picture", "damaged", "too large" or "unreadable".
        reason: what exactly is wrong.
    """

    def __init__(self, name: str, kind: str, reason: str) -> None:
        super().__init__(f"{shown(name)}: {kind} ({reason}): replace the file or leave it out")
        self.name = name
        self.kind = kind
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadPicture], tuple[str, str, str]]:
        return BadPicture, (self.name, self.kind, self.reason)


class Look(NamedTuple):
    """What opening one file told; `kind` is "" for a whole picture.

    `width` and `height` are pixels as stored, `dhash` the 64 bits of the perceptual hash, `content` 64 bits of
    the content's BLAKE2b (two of a million different pictures agree in one of 30 million folders).
    """

    kind: str = ""
    reason: str = ""
    flags: int = 0
    width: int = 0
    height: int = 0
    dhash: int = 0
    content: int = 0


def read_picture(source: str | Path | BinaryIO) -> Image.Image:
    """Read one picture the way every part of this project sees it.

    Args:
        source: path or open binary file of a JPEG, PNG, BMP, WEBP, TIFF or PPM file, whatever its name says.

    Returns:
        The (first) picture in mode RGB, 8 bits, upright by its EXIF tag, transparency laid on white.

    Raises:
        DataError: (a :class:`BadPicture`) the file cannot be opened or decoded; names it.
    """
    if isinstance(source, str | Path):
        with _naming(str(source)), Path(source).open("rb") as file:
            return _upright_rgb(_opened(file))
    with _naming(str(getattr(source, "name", "the picture"))):
        return _upright_rgb(_opened(source))


def look(path: Path, with_content: bool) -> Look:
    """Decode the file at `path` completely, at reduced scale where its format allows, and say what it is.

    Never raises for a bad file: `kind` and `reason` tell. `with_content` asks for `Look.content`.
    """
    try:
        with _naming(str(path)), path.open("rb") as file:
            image = _opened(file)
            width, height = image.size
            expected = SUFFIXES.get(path.suffix[1:].lower())
            # MPO is what phones write: a JPEG with more pictures behind the first.
            flags = MISNAMED * (image.format != expected and (image.format, expected) != ("MPO", "JPEG"))
            # Reduced decoding reads the whole file all the same, so it finds the same faults, only faster.
            image.draft(image.mode, (_THUMBNAIL, _THUMBNAIL))
            if image.format == "PNG":  # its EXIF tag may stand behind its pixels: asked for, it decodes them, and hides
                image.load()  # that it fails. TIFF forgets the tag once decoded.
            flags |= ROTATED * (orientation(image) in _UPRIGHT)
            dhash = _dhash(_upright_rgb(image))
            return Look("", "", flags, width, height, dhash, _content(file) if with_content else 0)
    except BadPicture as bad:
        return Look(bad.kind, bad.reason)


def examine_files(
    listing: Listing,
    *,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: bool = True,
) -> tuple[np.ndarray, dict[int, tuple[str, str]]]:
    """Look at every file, in parallel; the result does not depend on the number of workers.

    Args:
        listing: the n files. Contents are hashed only where two sizes agree.
        num_workers: processes at most, fewer for little work; 0 works in this one; None: one per core.
        progress: called with (files done, files in all) now and then.
        cache: remember whole pictures by path, size and mtime. Bad files are looked at again every time: what
            was wrong with them may have been mended without a trace, as permissions are.

    Returns:
        Array (n,) of :data:`VERDICT`, and for each bad file its index with (kind, reason).
    """
    n, base = len(listing.paths), listing.root.absolute()  # absolute: a worker has its own current folder
    verdicts, done = np.zeros(n, VERDICT), np.zeros(n, bool)
    _, same_size, copies = np.unique(listing.sizes, return_inverse=True, return_counts=True)
    with_content = copies[same_size] > 1
    known = np.zeros(n, _CACHE_ROW)
    cache_file = _cache_file(base) if cache else None
    if cache_file:
        known["key"], known["size"], known["mtime"] = listing.paths.hashes(), listing.sizes, listing.mtimes
        done = _recall(cache_file, known)
        verdicts[done] = known["verdict"][done]
    done &= (verdicts["content"] != 0) | ~with_content
    todo = np.flatnonzero(~done)
    bad: dict[int, tuple[str, str]] = {}

    def request(rows: np.ndarray) -> list[tuple[str, bool]]:
        return [(f"{base}/{listing.paths[row]}", bool(with_content[row])) for row in rows]

    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    finished, size = n - len(todo), int(listing.sizes[todo].sum())
    try:
        for rows, looks in zip(chunks, _looks(chunks, request, size, num_workers), strict=True):
            for row, seen in zip(rows.tolist(), looks, strict=True):
                if seen.kind:
                    bad[row] = (seen.kind, seen.reason)
                else:
                    verdicts[row] = seen[2:]
                    done[row] = True
            finished += len(rows)
            if progress:
                progress(finished, n)
    finally:  # an interrupted look at a large folder goes on where it stopped
        if cache_file and len(todo):
            known["verdict"] = verdicts
            _remember(cache_file, known[done])
    return verdicts, bad


def available_cores() -> int:
    """Cores that this process may use: its affinity, or the container's quota where that is less."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max": no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


# --- one file ------------------------------------------------------------


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a BadPicture that names the file."""
    try:
        yield
    except BadPicture as bad:
        raise BadPicture(name, bad.kind, bad.reason) from bad
    except MemoryError as error:
        raise BadPicture(name, "too large", "does not fit into memory") from error
    except OSError as error:
        if error.errno is not None:  # the system's, not a decoder's
            raise BadPicture(name, "unreadable", error.strerror or "no reason given") from error
        kind = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise BadPicture(name, kind, _one_line(error)) from error
    except Exception as error:  # decoders raise SyntaxError, struct.error, EOFError, IndexError, ...
        raise BadPicture(name, "damaged", _one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _opened(file: BinaryIO) -> Image.Image:
    """The picture in `file` with its header read and its pixels not; BadPicture where there is none."""
    _quiet_pillow()
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadPicture("", "too large", _TOO_LARGE) from None
    except OSError as error:  # UnidentifiedImageError is one, too
        if error.errno is not None:
            raise
        file.seek(0)
        head = file.read(256)
        raise BadPicture("", *_what_else(head, file.seek(0, os.SEEK_END))) from None
    if image.width * image.height > MAX_PIXELS:
        raise BadPicture("", "too large", _TOO_LARGE)
    if max(image.size) > MAX_SIDE:
        raise BadPicture("", "too large", f"a side of more than {MAX_SIDE:,} pixels")
    return image


def _what_else(head: bytes, size: int) -> tuple[str, str]:
    """(kind, reason) for a file of `size` bytes that Pillow does not open, from its first bytes."""
    if not head:
        return "empty", "0 bytes"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")):
        return "truncated", "breaks off in its header"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        whole = int.from_bytes(head[4:8], "little") + 8
        return ("truncated", f"{size} of {whole} bytes") if size < whole else ("damaged", "cannot be decoded")
    text = head.lstrip().lower()
    if head.startswith(b"GIF8"):
        inside = "a GIF"
    elif head[4:8] == b"ftyp":
        inside = "HEIC, AVIF or video"
    elif text.startswith((b"<!doctype html", b"<html")):
        inside = "a web page"
    elif text.startswith((b"<svg", b"<?xml")):
        inside = "SVG or XML"
    elif b"\0" not in head:
        inside = "text"
    else:
        inside = "unknown data"
    return "not a picture", f"{inside} inside"


def orientation(image: Image.Image) -> int:
    """What its EXIF tag says: 1 for upright, 2 to 8 for mirrored and turned; anything else is of no meaning."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken tag does not make a broken picture
        return 1


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Decode `image` and bring it into the one form that the rest of the project knows."""
    image.load()
    if image.mode == "I" or image.mode.startswith("I;16"):
        rgb = _in_strips(image, _from_sixteen_bits)
    elif image.mode == "F":
        rgb = _in_strips(image, _from_floats)
    elif image.has_transparency_data:
        rgb = _in_strips(image, _on_white)
    else:
        rgb = image.convert("RGB")
    rgb.info.clear()  # or whoever honours the EXIF tag in it would turn the picture a second time
    turn = _UPRIGHT.get(orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _in_strips(image: Image.Image, plain: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`plain` of the picture in RGB, a part at a time: at once it would take many times the picture's memory."""
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(plain(image.crop(box)).convert("RGB"), box)
    return rgb


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).clip(0, 65535)  # Pillow's own conversion would clip at 255
    return Image.fromarray((values / 257 + 0.5).astype(np.uint8))


def _from_floats(image: Image.Image) -> Image.Image:
    """Of a TIFF: 0 to 1 by convention."""
    return Image.fromarray((np.nan_to_num(np.asarray(image)).clip(0, 1) * 255 + 0.5).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)


def _dhash(image: Image.Image) -> int:
    import imagehash  # here: what only reads pictures need not pay for it

    return int.from_bytes(np.packbits(imagehash.dhash(image).hash).tobytes(), "big")


def _content(file: BinaryIO) -> int:
    file.seek(0)
    digest = hashlib.blake2b(digest_size=8)
    while block := file.read(1 << 20):
        digest.update(block)
    return int.from_bytes(digest.digest(), "little") or 1  # 0 says: not hashed


# --- many files ----------------------------------------------------------


def _looks(
    chunks: list[np.ndarray],
    request: Callable[[np.ndarray], list[tuple[str, bool]]],
    size: int,
    num_workers: int | None,
) -> Iterator[list[Look]]:
    """The looks of each chunk of rows, in order; `request` names a chunk's files (a million names at once are
    too many to hold) and says whose content to hash."""
    if num_workers is None:
        num_workers = available_cores()
    num_workers = min(num_workers, size // _WORTH_A_PROCESS)
    if num_workers < 2:
        for chunk in chunks:
            yield [look(Path(name), with_content) for name, with_content in request(chunk)]
        return
    # Own processes instead of multiprocessing's: a spawned one imports the caller's main module again, torch
    # included, and does not work at all below a script without a __main__ guard.
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    workers = [_start_worker() for _ in range(num_workers)]
    for worker in workers:
        idle.put(worker)

    def ask(rows: np.ndarray) -> list[Look]:
        worker = idle.get()
        try:
            answer = _answer(worker, request(rows))
            if answer is not None:
                return answer
            if worker.wait() == 1:  # a Python error, on its standard error: ours, no file's
                raise RuntimeError("a process that examines pictures failed; its own message stands above")
            # A decoder took its process down. Each file on its own tells which one it was.
            worker = _start_worker()
            workers.append(worker)
        finally:
            idle.put(worker)
        if len(rows) == 1:
            return [Look("damaged", "its decoder crashed")]
        return [found for row in rows for found in ask(row[None])]

    threads = ThreadPoolExecutor(num_workers)
    try:
        yield from threads.map(ask, chunks)
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.communicate()  # closes its input, at which it ends


def _start_worker() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "datamodules.examination"],
        cwd=Path(__file__).parents[1],  # where -m finds the package, installed or not
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _answer(worker: subprocess.Popen[bytes], chunk: list[tuple[str, bool]]) -> list[Look] | None:
    """What `worker` says about `chunk`; None when it died over it."""
    assert worker.stdin
    assert worker.stdout
    try:
        worker.stdin.write(json.dumps(chunk).encode() + b"\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return None
    line = worker.stdout.readline()
    return [Look(*fields) for fields in json.loads(line)] if line else None


def _serve() -> None:
    """A worker's life: chunks come in as lines of JSON, looks go out, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, once
    for line in sys.stdin.buffer:
        print(
            json.dumps([look(Path(name), with_content) for name, with_content in json.loads(line)]),
            flush=True,
        )


# --- memory between runs -------------------------------------------------


def _cache_file(root: Path) -> Path | None:
    """Where what is known of `root` is kept; None where there is no home."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-classics"
        name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=8).hexdigest()
    except (OSError, RuntimeError):
        return None
    return folder / f"pictures-1-{name}.npy"  # 1: raise it when look() judges or hashes differently


def _recall(file: Path, wanted: np.ndarray) -> np.ndarray:
    """Fill in the verdicts of the `wanted` rows that `file` holds; say which, as a bool array."""
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there yet, or damaged: look again
        return np.zeros(len(wanted), bool)
    if rows.dtype != _CACHE_ROW or rows.ndim != 1 or not len(rows):
        return np.zeros(len(wanted), bool)
    found = rows[np.searchsorted(rows["key"], wanted["key"]).clip(max=len(rows) - 1)]
    unchanged = np.all([found[column] == wanted[column] for column in ("key", "size", "mtime")], axis=0)
    wanted["verdict"] = found["verdict"]
    return unchanged


def _remember(file: Path, rows: np.ndarray) -> None:
    """Write `rows`, all or none of them; a cache that cannot be written is done without."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
            try:
                np.save(part, rows[np.argsort(rows["key"])])
            except OSError:
                Path(part.name).unlink()
                raise
        Path(part.name).replace(file)


if __name__ == "__main__":
    _serve()
