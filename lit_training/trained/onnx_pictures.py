"""The part of an ONNX file that resizes and crops pictures: bit for bit as datamodules/photos/dataset.py does it.

torch.export cannot trace a crop whose size depends on the picture, so these are functions of ONNX operators.
"""

from typing import Any

import onnx
from onnx import TensorProto
from onnx.inliner import inline_local_functions
from onnxscript import FLOAT as Float
from onnxscript import UINT8, script
from onnxscript import opset18 as op
from onnxscript.optimizer import optimize

from datamodules import Preprocessing

OPSET = 18
BYTE, INT, LONG = TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64
FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


@script(default_opset=op)
def bilinear(x):
    """Return the weight of a pixel at the distance x, in pixels."""
    return 1.0 - x


@script(default_opset=op)
def bicubic(x):
    """Return the weight of a pixel at the distance x (Keys 1981, with a = -0.5)."""
    return op.Where(x < 1.0, (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0)


FILTERS: dict[str, tuple[Any, float]] = {"bilinear": (bilinear, 1.0), "bicubic": (bicubic, 2.0)}
"""Interpolation -> its filter, and the largest distance at which a pixel has a weight."""


@script(default_opset=op)
def center_crop(pixels, size, new_size):
    """Cut out the center of pictures (N, 3, H, W). Like Python's round(), Round rounds half to even."""
    start = op.Cast(op.Round(op.Cast(size - new_size, to=DOUBLE) * 0.5), to=LONG)
    return op.Slice(pixels, start, start + new_size, [2, 3])


def picture_graph(spec: Preprocessing) -> onnx.ModelProto:
    """Return an ONNX model: ``image`` (N, H, W, 3) uint8 RGB -> ``pixels`` (N, C, S, S) float32, integers 0 to 255.

    ONNX's Resize differs from torch's by one level in 0.3 % of the pixels, which changed a probability by 0.002. So
    this graph computes what torch does: weights of 16 bits, and sums of integers.
    """
    weight, support = FILTERS[spec.interpolation]
    side, resize_size, image_size = spec.image_size, spec.resize_size, [spec.image_size] * 2
    fill = [round(255 * mean) for mean in spec.mean] * (3 // len(spec.mean))  # 0 after the normalization

    @script(default_opset=op)
    def resize_width(pixels, width, new_width):
        scale = op.Cast(width, to=DOUBLE) / op.Cast(new_width, to=DOUBLE)
        stretch = op.Max(scale, op.CastLike(1.0, scale))  # a smaller picture is the mean of more pixels
        center = scale * (op.Cast(op.Range(0, op.Squeeze(new_width), 1), to=DOUBLE) + 0.5)
        first = op.Cast(center - stretch * support + 0.5, to=LONG)
        last = op.Cast(center + stretch * support + 0.5, to=LONG)
        column = op.Unsqueeze(op.Range(0, op.Squeeze(width), 1), [1])
        distance = op.Abs((op.Cast(column, to=DOUBLE) - center + 0.5) * (1.0 / stretch))
        is_used = op.And(op.And(column >= first, column < last), distance < support)
        weights = op.Where(is_used, weight(distance), op.CastLike(0.0, distance))  # (width, new_width)
        share = weights / op.ReduceSum(weights, [0], keepdims=1)
        # the largest power of two for which all weights fit into 16 bits
        powers = op.Pow(op.CastLike(2.0, share), op.Cast(op.Range(1, 23, 1), to=DOUBLE))
        bits = op.ReduceSum(op.Cast(op.ReduceMax(share, keepdims=0) * powers < 32767.5, to=DOUBLE), keepdims=0)
        unit = op.Pow(op.CastLike(2.0, share), bits)
        integers = op.Cast(share * unit + op.Sign(share) * 0.5, to=INT) + 32768
        # Both bytes of the weights are multiplied alone, because MatMulInteger is exact for bytes.
        high = op.MatMulInteger(
            pixels, op.Cast(integers / 256, to=BYTE), op.CastLike(0, pixels), op.CastLike(128, pixels)
        )
        low = op.MatMulInteger(pixels, op.Cast(op.Mod(integers, 256), to=BYTE))
        whole = op.Cast(unit, to=INT)
        rounded = (high * 256 + low + whole / 2) / whole
        return op.Cast(op.Clip(rounded, op.CastLike(0, rounded), op.CastLike(255, rounded)), to=BYTE)

    @script(default_opset=op)
    def resize(pixels, size, new_size):
        height, width = op.Split(size, num_outputs=2)
        new_height, new_width = op.Split(new_size, num_outputs=2)
        wide = resize_width(pixels, width, new_width)
        return op.Transpose(resize_width(op.Transpose(wide, perm=[0, 1, 3, 2]), height, new_height), perm=[0, 1, 3, 2])

    @script(default_opset=op)
    def crop(pixels, size):
        short = op.ReduceMin(size, keepdims=1)
        cut_size = op.Min(size, 4 * short)
        new_size = cut_size * resize_size / short
        resized = resize(center_crop(pixels, size, cut_size), cut_size, new_size)
        return op.Cast(center_crop(resized, new_size, op.Constant(value_ints=image_size)), to=FLOAT)

    @script(default_opset=op)
    def pad(pixels, size):
        exact = op.Cast(size * side, to=DOUBLE) / op.Cast(op.ReduceMax(size, keepdims=1), to=DOUBLE)
        new_size = op.Max(op.Cast(op.Round(exact), to=LONG), [1])
        before = (side - new_size) / 2
        pads = op.Concat(before, side - new_size - before, axis=0)
        color = op.Reshape(op.Constant(value_floats=fill), [1, 3, 1, 1])
        return op.Pad(op.Cast(resize(pixels, size, new_size), to=FLOAT) - color, pads, None, [2, 3]) + color

    @script(default_opset=op)
    def squash(pixels, size):
        return op.Cast(resize(pixels, size, op.Constant(value_ints=image_size)), to=FLOAT)

    @script(default_opset=op)
    def color(square):
        return op.Identity(square)

    @script(default_opset=op)
    def gray(square):
        weights = op.Reshape(op.Constant(value_floats=[0.2989, 0.587, 0.114]), [1, 3, 1, 1])
        return op.Floor(op.ReduceSum(square * weights, [1], keepdims=1))

    to_square, to_channels = (
        {"crop": crop, "pad": pad, "squash": squash}[spec.resize],
        gray if len(spec.mean) == 1 else color,
    )

    @script(default_opset=op)
    def pictures(image: UINT8["N", "H", "W", 3]) -> Float["N", "C", "S", "S"]:  # noqa: F821
        pixels = to_channels(to_square(op.Transpose(image, perm=[0, 3, 1, 2]), op.Shape(image, start=1, end=3)))
        return pixels

    return optimize(inline_local_functions(pictures.to_model_proto()))  # folds constants
