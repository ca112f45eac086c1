"""Draw figures of a run. Only matplotlib's ``Figure`` is used, not pyplot, which has global state and windows."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from datamodules import Preprocessing
from datamodules.text import printable

if TYPE_CHECKING:  # matplotlib takes a second to import, so only the functions that draw import it
    from matplotlib.figure import Figure

PICTURE_INCHES = 1.05
"""Width of a picture in a sheet. TensorBoard shows figures 350 pixels wide, so three pictures are drawn 1 : 1."""
PAIR_INCHES = 2.4  # width of an image and its heat map
POINTS = 8  # font size; 11 pixels in a figure that TensorBoard draws 1 : 1
COLUMNS, MAX_TITLE_LINES = 3, 3  # of a sheet
DPI = 200  # sharp if the figure is enlarged
MAX_NAME_INCHES = 1.6  # in a confusion matrix


@contextmanager
def _no_glyph_warnings() -> Iterator[None]:
    """Do not warn about characters that the font does not have, for example Chinese ones: boxes are drawn for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def _make_figure(**options: Any) -> "Figure":
    """Return a figure that is drawn without warnings about missing characters."""
    from matplotlib.figure import Figure

    figure = Figure(**options)
    figure.draw = _no_glyph_warnings()(figure.draw)  # type: ignore[method-assign]
    return figure


def undo_normalization(inputs: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Convert normalized network inputs, (B, 1 or 3, H, W), to pictures, (B, 3, H, W) float32 in [0, 1] on the CPU."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (inputs.detach().cpu().float() * std + mean).clamp(0, 1).expand(-1, 3, -1, -1)


def draw_sheet(pictures: Tensor, titles: Sequence[str], heat_maps: bool = False) -> "Figure":
    """Draw pictures, (B, 3, H, W) float32 in [0, 1], in a grid, each with a title above it.

    ``heat_maps``: each picture is an image beside its heat map. Then a key at the bottom explains the colours.
    """
    count, _, height, width = pictures.shape
    columns, inches = min(COLUMNS, count), PAIR_INCHES if heat_maps else PICTURE_INCHES
    texts = ["\n".join(_wrap(line, inches) for line in title.split("\n")) for title in titles]
    lines = max(text.count("\n") + 1 for text in texts)
    # All pictures share one axes: one axes per picture takes four times as long. The unit is an inch.
    gap, line_height, picture_height = 0.1, 1.25 * POINTS / 72, inches * height / width
    row_height = lines * line_height + picture_height + gap
    sheet_width = columns * (inches + gap) + gap
    sheet_height = -(-count // columns) * row_height + gap + 2 * line_height * heat_maps
    figure = _make_figure(figsize=(sheet_width, sheet_height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, sheet_width), ylim=(sheet_height, 0))
    axes.set_axis_off()
    for index, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left, bottom = gap + index % columns * (inches + gap), (index // columns + 1) * row_height
        top = bottom - picture_height
        axes.imshow(picture.permute(1, 2, 0).numpy(), extent=(left, left + inches, bottom, top), aspect="auto")
        # parse_math=False: file names can contain dollar signs
        axes.text(left, top - 0.03, text, fontsize=POINTS, verticalalignment="bottom", parse_math=False)
    if heat_maps:
        middle = sheet_height - line_height
        axes.imshow([range(256)], cmap="jet", extent=(gap, gap + 0.5, middle + 0.06, middle - 0.06), aspect="auto")
        axes.text(gap + 0.55, middle, "red: most important", fontsize=POINTS, verticalalignment="center")
    return figure


def draw_mistakes(
    pictures: Tensor, names: Sequence[str], answers: Sequence[Any], files: Sequence[str] | None, heat_maps: bool = False
) -> "Figure":
    """Draw B pictures whose class was predicted wrongly, with :func:`draw_sheet`.

    ``names`` are those of all classes, ``files`` the B paths. An answer is (true class, predicted class, probability).
    """
    used = {number: names[number] for answer in answers for number in answer[:2]}
    shown = _tell_apart(used, lambda name: _wrap(f"100% {name}", PICTURE_INCHES))
    titles = [f"{probability:.0%} {shown[wrong]}\nis {shown[label]}" for label, wrong, probability in answers]
    if files is not None:
        titles = [f"{title}\n{printable(file).rpartition('/')[2]}" for title, file in zip(titles, files, strict=True)]
    return draw_sheet(pictures, titles, heat_maps=heat_maps)


def draw_confusion(matrix: Tensor, names: Sequence[str]) -> "Figure":
    """Draw a confusion matrix, (K, K) int64 ``matrix[true, predicted]``. Darker cells have a larger share of their row.

    The figure has no counts if there are more than 40 classes, and no class names if there are more than 115.
    """
    count = len(names)
    inches = 2.0 if count <= 10 else min(0.3 * count, 12)  # width of the matrix
    points = min(POINTS, 0.8 * 72 * inches / count)  # font size of the names
    cut = partial(_shorten, inches=MAX_NAME_INCHES, points=points)
    short_names = [*map(cut, _tell_apart(dict(enumerate(names)), cut).values())] if points >= 6 else []
    margin = 0.45 + max((_text_width(name, points) for name in short_names), default=0)
    width, height = margin + inches + 0.65, margin + inches + 0.5
    figure = _make_figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((margin / width, margin / height, inches / width, inches / height))
    share = matrix / matrix.sum(1, keepdim=True).clamp(min=1)  # (K, K) in [0, 1]
    image = axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    key = axes.inset_axes((1 + 0.1 / inches, 0, 0.1 / inches, 1))
    figure.colorbar(image, cax=key, ticks=[0, 0.5, 1], format="{x:.0%}").ax.tick_params(labelsize=POINTS)
    axes.set_title("confusion matrix\ncolour: share of the true class (row)", fontsize=POINTS)
    axes.set_xlabel("predicted", fontsize=POINTS)
    axes.set_ylabel("true", fontsize=POINTS)
    axes.set_xticks(range(len(short_names)), short_names, rotation=90, parse_math=False, fontsize=points)
    axes.set_yticks(range(len(short_names)), short_names, parse_math=False, fontsize=points)
    if count <= 40:
        digits = len(str(int(matrix.max())))
        number_points = min(POINTS, 72 * inches / count / max(0.7 * digits, 1.3))
        for true, predicted in matrix.nonzero().tolist():
            color, number = "white" if share[true, predicted] > 0.5 else "black", str(int(matrix[true, predicted]))
            axes.text(predicted, true, number, ha="center", va="center", color=color, fontsize=number_points)
    return figure


def _text_width(text: str, points: float) -> float:
    """Return the width of a line of text in inches, at a font size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    with _no_glyph_warnings():
        return text_to_path.get_text_width_height_descent(text, FontProperties(size=points), ismath=False)[0] / 72


def _shorten(text: str, inches: float, points: float) -> str:
    """Escape the characters of ``text`` that are not printable, then cut its middle out to fit a width in inches."""
    text = short = printable(text)
    keep = len(text)
    while keep > 2 and _text_width(short, points) > inches:
        keep -= 1
        short = text[: keep - keep // 2] + "…" + text[-(keep // 2) :]
    return short


def _tell_apart(names: Mapping[int, str], cut: Callable[[str], str]) -> dict[int, str]:
    """Return the names, with their numbers in front if ``cut`` makes two different names equal."""
    are_alike = len({*map(cut, names.values())}) < len({*names.values()})
    return {number: f"{number} {name}" if are_alike else name for number, name in names.items()}


def _wrap(text: str, inches: float) -> str:
    """Escape unprintable characters, and break the text into lines that fit. The last line shows the text's end."""
    text, lines = printable(text), list[str]()
    while len(lines) < MAX_TITLE_LINES - 1 and _text_width(text, POINTS) > inches:
        fitting = next(n for n in range(len(text), 0, -1) if n == 1 or _text_width(text[:n].rstrip(), POINTS) <= inches)
        words = re.split(r"(?<=[\W_])(?=[^\W_])", text[: fitting + 1])
        line = "".join(words[:-1]) or text[:fitting]
        lines.append(line.rstrip())
        text = text[len(line) :]
    return "\n".join([*lines, _shorten(text, inches, POINTS)])


def draw_curves(charts: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> "Figure":
    """Draw charts side by side. ``charts[title][name]`` is a curve: its epochs and its values."""
    from cycler import cycler
    from matplotlib import rcParams

    names = list(dict.fromkeys(name for lines in charts.values() for name in lines))
    figure = _make_figure(figsize=(max(5 * len(charts), 7), 4 + 0.2 * len(names)), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(charts), squeeze=False).flat, charts.items(), strict=True):
        axes.set_prop_cycle(cycler(linestyle=["-", "--", ":"]) * rcParams["axes.prop_cycle"])
        for name in names:  # a name without a curve here uses up a colour too
            axes.plot(*lines.get(name, ([], [])), marker="o", markersize=3, label=name)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    cut = partial(_shorten, inches=figure.get_figwidth() - 0.8, points=9)
    labels = [*map(cut, _tell_apart(dict(enumerate(names)), cut).values())]
    legend = figure.legend(axes.lines, labels, loc="outside lower left", fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def draw_reliability(confidences: Mapping[str, Tensor], right: Tensor) -> "Figure":
    """Draw the share of ``right`` predictions, (N,) bool, in ten bins of each name's ``confidences``, (N,) float32."""
    axes = (figure := _make_figure(figsize=(4, 4), dpi=100, layout="constrained")).add_subplot()
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":", label="perfect")
    for name, values in confidences.items():
        bins = (values * 10).long().clamp(max=9)
        sums = [torch.bincount(bins, one.double(), 10) for one in (torch.ones_like(values), values, right)]
        is_used = sums[0] > 0
        axes.plot(*((one / sums[0])[is_used] for one in sums[1:]), marker="o", label=name)
    axes.set(xlabel="probability of the predicted class", ylabel="share of right predictions", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    return figure
