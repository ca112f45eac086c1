"""Write TIFF files of any pixel layout, also of those that Pillow cannot write."""

import struct
from typing import Any, Literal

import numpy as np


def tiff_bytes(
    pixels: Any,
    photometric: int = 1,
    *,
    big_endian: bool = False,
    planar: bool = False,
    bits: int | None = None,
    data: bytes | None = None,
    tags: dict[int, list[int]] | None = None,
) -> bytes:
    """Return an uncompressed TIFF of one page. The list of tags comes first, then the pixels.

    Args:
        pixels: (H, W) or (H, W, C) of any number type.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 LAB.
        planar: store one plane per channel.
        bits: bits per channel, if not those of the type.
        data: the stored bytes, if not those of ``pixels``.
        tags: more tags, of 16 bits.
    """
    order: Literal["<", ">"] = ">" if big_endian else "<"
    array = np.atleast_3d(np.asarray(pixels))
    height, width, channels = array.shape
    array = array.astype(array.dtype.newbyteorder(order))
    planes = [array[..., channel] for channel in range(channels)] if planar else [array]
    strips = [data] if data is not None else [plane.tobytes() for plane in planes]
    sample_format = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    lengths = [len(strip) for strip in strips]
    entries = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [bits or array.dtype.itemsize * 8] * channels),
        259: ("H", [1]),
        262: ("H", [photometric]),
        273: ("I", [0] * len(strips)),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", lengths),
        284: ("H", [2 if planar else 1]),
        339: ("H", [sample_format] * channels),
        **{tag: ("H", values) for tag, values in (tags or {}).items()},
    }
    long_values = {tag: len(values) * struct.calcsize(kind) for tag, (kind, values) in entries.items()}
    begin = 8 + 2 + 12 * len(entries) + 4  # of the values that do not fit into an entry
    first = begin + sum(size for size in long_values.values() if size > 4)
    entries[273] = ("I", [first + sum(lengths[:number]) for number in range(len(strips))])
    head, outside = struct.pack(order + "H", len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        raw = struct.pack(f"{order}{len(values)}{kind}", *values)
        field = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(order + "I", begin + len(outside))
        outside += raw if len(raw) > 4 else b""
        head += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + field
    start = (b"MM\0*" if big_endian else b"II*\0") + struct.pack(order + "I", 8)
    return start + head + struct.pack(order + "I", 0) + outside + b"".join(strips)
