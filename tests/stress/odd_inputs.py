"""Feed the picture reader and the parser of the command line with odd inputs: ``make stress``.

``python tests/stress/odd_inputs.py`` tries a fixed number of inputs, with ``--minutes 10`` new ones for so long. It
mutates valid files of every format and mixes flags and values. Each input has to work, or to be refused as the user's
to mend. Anything else (another error, a crash, a hang, too much memory) is printed with the number that repeats it.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import string
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules import DataError
from datamodules.photos.dataset import read_pixels
from datamodules.photos.decode import look, read_picture
from lit_training.cli.flags import DATA, MODELS, TRAINER_FLAGS
from lit_training.cli.parser import FitCLI
from lit_training.errors import one_line_errors

HANG = 60
"""Seconds of computing that one input may take; on the clock, where others compute too, it is ten times that."""
MEMORY = 6 << 30
"""Bytes that reading one picture may take: 179 million pixels, the most that is accepted, in RGBA are 0.7 GB, which
libwebp alone holds several times."""


class Wrong(AssertionError):
    """An input was neither taken nor refused."""


# --- pictures -------------------------------------------------------------------------------------------------------


@cache
def whole_pictures() -> tuple[bytes, ...]:
    """Valid tiny files: each format, its modes and ways to pack."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 4), np.uint8)
    colour, clear = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colour, "JPEG", {"quality": 90, "exif": turned}),
        (colour, "JPEG", {"progressive": True}),
        (colour.convert("L"), "JPEG", {}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "PNG", {}),
        (clear, "PNG", {"exif": turned}),
        (colour.quantize(7), "PNG", {"transparency": 3}),
        (colour.convert("1"), "PNG", {}),
        (deep, "PNG", {}),
        (colour, "WEBP", {"lossless": True}),
        (colour, "WEBP", {"quality": 60, "exif": turned}),
        (clear, "WEBP", {"save_all": True, "append_images": [clear.transpose(Image.Transpose.ROTATE_180)]}),
        (colour, "TIFF", {}),
        (colour, "TIFF", {"compression": "tiff_lzw", "save_all": True, "append_images": [colour.convert("L")]}),
        (colour, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (colour, "TIFF", {"compression": "jpeg"}),
        (colour.convert("F"), "TIFF", {}),
        (colour.convert("1"), "TIFF", {"compression": "group4"}),
        (deep, "TIFF", {}),
        (colour, "BMP", {}),
        (colour.quantize(7), "BMP", {}),
        (colour, "PPM", {}),
        (colour.convert("1"), "PPM", {}),
        (deep, "PPM", {}),
    ]
    files = []
    for image, form, options in made:
        file = io.BytesIO()
        image.save(file, form, **options)
        files.append(file.getvalue())
    return *files, b"P3\n2 1\n255\n255 0 0 0 255 0\n", b"P2 2 2 65535 0 9 99 999\n"


def picture(draw: random.Random) -> bytes:
    """A file that was whole once, or never."""
    data = bytearray(draw.choice(whole_pictures()))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(data) + 1)
        # Heads decide what is done with the rest.
        at = draw.choice((at, min(at, draw.randrange(64))))
        kind = draw.randrange(7)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + draw.randrange(1, 16)]
        elif kind == 2:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 3:  # a number that means a size, an offset, a count
            form = draw.choice(("<H", ">H", "<I", ">I"))
            number = draw.choice((0, 1, 2, 7, 255, 300, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
            packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
            data[at : at + len(packed)] = packed
        elif kind == 4:
            data[at:at] = data[at : at + draw.randrange(1, 64)] * draw.randrange(1, 5)
        elif kind == 5:
            other = draw.choice(whole_pictures())
            data[at:] = other[draw.randrange(len(other)) :]
        else:
            data[at:at] = draw.randbytes(draw.randrange(1, 32))
    return _checksummed(bytes(data)) if draw.random() < 0.7 else bytes(data)


def _checksummed(data: bytes) -> bytes:
    """A PNG whose checksums are right again, so that a decoder goes on to what is wrong; others as they are."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    whole, at = bytearray(data), 8
    while at + 12 <= len(whole):
        end = at + 8 + int.from_bytes(whole[at : at + 4], "big")
        if end + 4 > len(whole):
            break
        whole[end : end + 4] = struct.pack(">I", zlib.crc32(whole[at + 4 : end]))
        at = end + 4
    return bytes(whole)


def try_picture(data: bytes, path: Path) -> str:
    """Read ``data`` in every way that this project does.

    Returns:
        what became of it: ``read`` or the kind of its fault.

    Raises:
        Wrong: an error that is no DataError, or the ways contradict one another.
    """
    path.write_bytes(data)
    size: tuple[int, ...] | None = None
    try:
        judged = look(path, True)
        with contextlib.suppress(DataError):
            size = read_picture(path).size[::-1]
        try:
            pixels = read_pixels(path)
        except DataError as error:
            if "\n" in str(error) or path.name not in str(error):
                raise Wrong(f"does not name the file in one line: {error!r}") from error
            if size is not None:
                raise Wrong("read_picture reads what read_pixels refuses") from error
        else:
            if pixels.ndim != 3 or pixels.shape[0] != 3 or (size is not None and tuple(pixels.shape[1:]) != size):
                raise Wrong(f"read_pixels gives {tuple(pixels.shape)}, read_picture {size}")
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"{type(error).__name__}: {error}") from error
    if not judged.kind and size is None:
        raise Wrong("look takes what read_picture refuses")
    return judged.kind or "read"


# --- command lines --------------------------------------------------------------------------------------------------


def words() -> tuple[list[str], list[str]]:
    """Names of flags, and values."""
    names = [*TRAINER_FLAGS, "model", "data", "optimizer", "lr_scheduler", "config", "seed", "resume", "print_config"]
    names += [f"trainer.{name}" for name in TRAINER_FLAGS] + [
        "model.lr",
        "model.hidden",
        "data.batch_size",
        "data.root",
    ]
    names += ["optimizer.lr", "optimizer.betas", "lr_scheduler.step_size", "callbacks+", "help_all", "model.help"]
    values = ["0", "1", "-1", "1e9", "nan", "inf", "true", "null", "", "[]", "{}", "[[", "{a: 1}", "!!python/none"]
    values += ["*a", "auto", "cpu", "gpu", "ddp", "16-mixed", "00:00:01:00", "recipe.yaml", ".", "/", "~", "a.b", ".."]
    values += ["-", "--", *MODELS, *DATA, "Adam", "SGD", "StepLR", "OneCycleLR", "EarlyStopping", "torch.optim.Adam"]
    return names, [*values, "os.getcwd"]


def command_line(draw: random.Random) -> list[str]:
    """What might be typed after fit.py: flags right and wrong, values right and wrong, neither."""
    names, values = words()

    def flag() -> str:
        name = draw.choice(names)
        if draw.random() < 0.33:
            at = draw.randrange(len(name))
            name = f"{name[:at]}{draw.choice(string.ascii_letters + '.+_ =é')}{name[at + 1 :]}"
        return f"--{name}"

    def value() -> str:
        kind = draw.randrange(4)
        if kind == 0:
            return str(draw.randint(-(10**9), 10**9))
        if kind == 1:
            return str(draw.uniform(-1e9, 1e9))
        if kind == 2:
            return "".join(chr(draw.choice((draw.randrange(1, 128), draw.randrange(1, 0xD800)))) for _ in range(5))
        return draw.choice(values)

    pieces: list[str] = []
    for _ in range(draw.randrange(6)):
        kind = draw.randrange(4)
        pieces += ([flag(), value()], [flag()], [value()], [f"{flag()}={value()}"])[kind]
    return pieces


def reused_parser() -> Callable[[list[str]], str]:
    """Parses one command line after the other; gives ``parsed`` or ``refused``, raises Wrong for anything else."""
    cli = FitCLI(["--logger", "false"])

    def parse(arguments: list[str]) -> str:
        code: Any = 0
        cli.arguments = arguments
        try:
            with one_line_errors("fit.py"):
                cli.parse_arguments(cli.parser, None)
        except SystemExit as stopped:
            code = stopped.code
        except Exception as error:
            raise Wrong(f"{type(error).__name__}: {error}") from error
        if code not in (0, 2):
            raise Wrong(f"exit code {code}")
        return "refused" if code else "parsed"

    return parse


# --- many of them ---------------------------------------------------------------------------------------------------


def tried_pictures(folder: Path) -> Callable[[random.Random], str]:
    path = folder / "picture.jpg"
    return lambda draw: try_picture(picture(draw), path)


def tried_command_lines(folder: Path) -> Callable[[random.Random], str]:
    parse = reused_parser()
    return lambda draw: parse(command_line(draw))


KINDS = {"pictures": tried_pictures, "command lines": tried_command_lines}


def attempts(kind: str, first: int, count: int) -> tuple[Counter[str], list[str]]:
    """Try the inputs ``first`` to ``first + count`` of a kind, in a fork of this process, so that it outlives them.

    Returns:
        what became of how many, and what was wrong with which.
    """
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="odd_inputs") as name:
        folder, after = Path(name), first + count
        while first < after:
            child = os.fork()
            if not child:
                _try_all(kind, range(first, after), folder)  # does not return
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            for line in (folder / "outcomes").read_text().splitlines():
                first, outcome, error = json.loads(line)
                counts[f"{kind} tried: {outcome}"] += 1
                first += 1
                if error:
                    wrong.append(f"{kind} {first - 1}: {error}")
            (folder / "outcomes").unlink()
            if code:
                what = "a hang" if code in (-signal.SIGPROF, -signal.SIGALRM) else f"exit code {code}"
                wrong.append(f"{kind} {first}: {what}")
                counts[f"{kind} tried: wrong"] += 1
                first += 1
    return counts, wrong


def _try_all(kind: str, seeds: range, folder: Path) -> None:
    code = 70
    try:
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_WRONLY)  # parsers and decoders speak
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        warnings.simplefilter("ignore")
        with (folder / "outcomes").open("w", buffering=1) as outcomes:
            one = KINDS[kind](folder)
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for seed in seeds:
                signal.setitimer(signal.ITIMER_PROF, HANG)
                signal.alarm(10 * HANG)
                error = ""
                try:
                    outcome = one(random.Random(f"{kind} {seed}"))
                except Wrong as wrong:
                    outcome, error = "wrong", str(wrong)
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                if (peak - used) * 1024 > MEMORY:
                    outcome, error, used = "wrong", f"took {(peak - used) / 1024:.0f} MB", peak
                print(json.dumps([seed, outcome, error]), file=outcomes)
        code = 0
    finally:
        os._exit(code)


AT_ONCE = {"pictures": 1000, "command lines": 100}
"""Inputs between two looks at the clock."""


def budgets(options: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """Yield (kind, first, count) until all inputs have been tried, or the time is over."""
    if options.minutes is None:
        for kind, total in (("pictures", options.pictures), ("command lines", options.command_lines)):
            for start in range(0, total, AT_ONCE[kind]):
                yield kind, options.first + start, min(AT_ONCE[kind], total - start)
        return
    end = time.monotonic() + 60 * options.minutes
    following = dict.fromkeys(KINDS, random.SystemRandom().randrange(10**9))
    while True:
        for kind, count in AT_ONCE.items():
            if time.monotonic() > end:
                return
            yield kind, following[kind], count
            following[kind] += count


def main() -> None:
    parser = argparse.ArgumentParser("odd_inputs.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=None, help="try new inputs of both kinds for so long")
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--command_lines", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind: to repeat one")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    failures = 0
    for kind, first, count in budgets(options):
        found, wrong = attempts(kind, first, count)
        counts += found
        failures += len(wrong)
        for line in wrong:
            print(f"WRONG {line}", flush=True)
    for what, number in sorted(counts.items()):
        print(f"{number:7}  {what}")
    print(f"{failures:7}  failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
