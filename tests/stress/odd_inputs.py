"""Test the image reader and the command line parser with random invalid inputs: ``make stress``.

``python tests/stress/odd_inputs.py`` tries a fixed number of inputs. ``--minutes 10`` tries new inputs for 10 minutes.
The script changes valid image files of all formats, and combines random flags and values. The project must accept each
input, or refuse it with an error message for the user. Any other result (another error, a crash, a hang, too much
memory) is printed with the number of the input. ``--first`` repeats the input with this number.
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
from datamodules.photos.decode import inspect_picture, read_picture
from lit_training.cli.flags import DATA_MODULES, MODELS, TRAINER_FLAGS
from lit_training.cli.parser import FitCLI
from lit_training.errors import one_line_errors

CPU_SECONDS_LIMIT = 60
"""CPU time limit for one input. The limit of real time is 10 times as long, because the machine may be busy."""
MEMORY_LIMIT_BYTES = 6 << 30
"""Memory limit for one input. The largest accepted image (179 million pixels) needs 0.7 GB in RGBA, and libwebp
keeps several copies."""


class Wrong(AssertionError):
    """An input caused a wrong result: it was neither accepted nor refused with an error message for the user."""


# --- pictures -------------------------------------------------------------------------------------------------------


@cache
def valid_pictures() -> tuple[bytes, ...]:
    """Return the contents of tiny valid image files of several formats, color modes and compressions."""
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


def mutated_picture(draw: random.Random) -> bytes:
    """Return a valid file with random changes."""
    data = bytearray(draw.choice(valid_pictures()))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 8))):
        position = draw.randrange(len(data) + 1)
        # Change the first 64 bytes more often: they tell decoders how to read the rest.
        position = draw.choice((position, min(position, draw.randrange(64))))
        kind = draw.randrange(7)
        if kind == 0:
            del data[position:]
        elif kind == 1:
            del data[position : position + draw.randrange(1, 16)]
        elif kind == 2:
            data[position : position + 1] = bytes([draw.randrange(256)])
        elif kind == 3:  # write a number: it may be a size, an offset or a count
            form = draw.choice(("<H", ">H", "<I", ">I"))
            number = draw.choice((0, 1, 2, 7, 255, 300, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
            packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
            data[position : position + len(packed)] = packed
        elif kind == 4:
            data[position:position] = data[position : position + draw.randrange(1, 64)] * draw.randrange(1, 5)
        elif kind == 5:
            other = draw.choice(valid_pictures())
            data[position:] = other[draw.randrange(len(other)) :]
        else:
            data[position:position] = draw.randbytes(draw.randrange(1, 32))
    return _correct_checksums(bytes(data)) if draw.random() < 0.7 else bytes(data)


def _correct_checksums(data: bytes) -> bytes:
    """Correct the checksums of a PNG, so that decoders read its invalid data. Return other files unchanged."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    whole, position = bytearray(data), 8
    while position + 12 <= len(whole):
        end = position + 8 + int.from_bytes(whole[position : position + 4], "big")
        if end + 4 > len(whole):
            break
        whole[end : end + 4] = struct.pack(">I", zlib.crc32(whole[position + 4 : end]))
        position = end + 4
    return bytes(whole)


def try_picture(data: bytes, path: Path) -> str:
    """Read ``data`` with each function of this project that reads images.

    Returns:
        ``read`` or the kind of the error.

    Raises:
        Wrong: an error is not a DataError, or one function accepts an image that another function refuses.
    """
    path.write_bytes(data)
    size: tuple[int, ...] | None = None
    try:
        judged = inspect_picture(path)
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
        raise Wrong("inspect_picture accepts what read_picture refuses")
    return judged.kind or "read"


# --- command lines --------------------------------------------------------------------------------------------------


def flag_names_and_values() -> tuple[list[str], list[str]]:
    """Return the names of flags and the values that random command lines are made of."""
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
    values += ["-", "--", *MODELS, *DATA_MODULES, "Adam", "SGD", "StepLR", "OneCycleLR", "EarlyStopping"]
    return names, [*values, "torch.optim.Adam", "os.getcwd"]


def random_command_line(draw: random.Random) -> list[str]:
    """Return random arguments of fit.py, with valid and invalid flags and values."""
    names, values = flag_names_and_values()

    def flag() -> str:
        name = draw.choice(names)
        if draw.random() < 0.33:
            position = draw.randrange(len(name))
            name = f"{name[:position]}{draw.choice(string.ascii_letters + '.+_ =é')}{name[position + 1 :]}"
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


def make_parse_function() -> Callable[[list[str]], str]:
    """Return a function that parses a command line, returns ``parsed`` or ``refused``, and raises Wrong otherwise."""
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


# --- many inputs ---------------------------------------------------------------------------------------------------


def make_picture_trial(folder: Path) -> Callable[[random.Random], str]:
    path = folder / "picture.jpg"
    return lambda draw: try_picture(mutated_picture(draw), path)


def make_command_line_trial(folder: Path) -> Callable[[random.Random], str]:
    parse = make_parse_function()
    return lambda draw: parse(random_command_line(draw))


KINDS = {"pictures": make_picture_trial, "command lines": make_command_line_trial}


def try_inputs(kind: str, first: int, count: int) -> tuple[Counter[str], list[str]]:
    """Try ``count`` inputs of a kind, from number ``first``, in a fork, so that this process survives a crash.

    Returns:
        The number of inputs per outcome, and a message for each wrong outcome.
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
    """Try inputs, write their outcomes to ``folder/outcomes``, and end this process."""
    code = 70
    try:
        os.chdir(folder)
        silence = os.open(os.devnull, os.O_WRONLY)  # parsers and decoders print messages
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        warnings.simplefilter("ignore")
        with (folder / "outcomes").open("w", buffering=1) as outcomes:
            one = KINDS[kind](folder)
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for seed in seeds:
                signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS_LIMIT)
                signal.alarm(10 * CPU_SECONDS_LIMIT)
                error = ""
                try:
                    outcome = one(random.Random(f"{kind} {seed}"))
                except Wrong as wrong:
                    outcome, error = "wrong", str(wrong)
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                if (peak - used) * 1024 > MEMORY_LIMIT_BYTES:
                    outcome, error, used = "wrong", f"took {(peak - used) / 1024:.0f} MB", peak
                print(json.dumps([seed, outcome, error]), file=outcomes)
        code = 0
    finally:
        os._exit(code)


INPUTS_PER_PART = {"pictures": 1000, "command lines": 100}
"""Number of inputs per part. The time is checked before each part."""


def split_into_parts(options: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """Yield (kind, first, count) until all inputs are tried or the time is up."""
    if options.minutes is None:
        for kind, total in (("pictures", options.pictures), ("command lines", options.command_lines)):
            for start in range(0, total, INPUTS_PER_PART[kind]):
                yield kind, options.first + start, min(INPUTS_PER_PART[kind], total - start)
        return
    end = time.monotonic() + 60 * options.minutes
    following = dict.fromkeys(KINDS, random.SystemRandom().randrange(10**9))
    while True:
        for kind, count in INPUTS_PER_PART.items():
            if time.monotonic() > end:
                return
            yield kind, following[kind], count
            following[kind] += count


def main() -> None:
    parser = argparse.ArgumentParser("odd_inputs.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=None, help="try new inputs of both kinds for this time")
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--command_lines", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind (default 0)")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    failures = 0
    for kind, first, count in split_into_parts(options):
        found, wrong = try_inputs(kind, first, count)
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
