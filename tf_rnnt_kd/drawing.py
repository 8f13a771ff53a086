"""Heat maps over time, with axes that can be read, as pixels."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# viridis (Smith and van der Walt, CC0) at 20 equal steps: equal differences of a value look equally large.
_SCALE = (
    "440154 481467 482576 453781 404688 39558c 33638d 2d718e 287d8e "
    "238a8d 1f968b 20a386 29af7f 3dbc74 56c667 75d054 95d840 bade28 dde318 fde725"
)
_NOT_A_NUMBER = (200, 200, 200)
INK, PAPER = (40, 40, 40), (255, 255, 255)
_WIDTH, _HEIGHT = 900, 300  # pixels that a panel's cells take, about
_MOST_WIDTH = 1400  # beyond which neighbouring columns share a pixel
_LEFT, _RIGHT, _TITLE, _PANEL_TITLE, _BELOW = 96, 84, 30, 24, 22
_SMALL, _LARGE = 12, 15  # font sizes


class Path(NamedTuple):
    """A line over a panel.

    Attributes:
      name: for the legend.
      color: RGB.
      points: (x, y) in cells from the lower left corner.
    """

    name: str
    color: tuple[int, int, int]
    points: Sequence[tuple[float, float]]


class Marks(NamedTuple):
    """Words in a row above a panel, each with a thin line through it.

    Attributes:
      name: of the row.
      color: RGB.
      places: x in cells.
      words: one a place; those of one place are joined, those that would overlap are left out.
    """

    name: str
    color: tuple[int, int, int]
    places: Sequence[float]
    words: Sequence[str]


class Panel(NamedTuple):
    """One heat map.

    Attributes:
      title: what it shows, with its unit.
      values: [rows, columns] floating, the first row at the bottom; NaN is grey.
      limits: the values at the two ends of the colour scale; what lies beyond has the colour of the end.
      row_names: (y in cells, text) of the axis; those that would overlap are left out.
      paths: lines over it, the first on top.
      marks: rows of words above it.
      logarithmic: whether equal ratios, not differences, look equally large.
    """

    title: str
    values: np.ndarray
    limits: tuple[float, float]
    row_names: Sequence[tuple[float, str]] = ()
    paths: Sequence[Path] = ()
    marks: Sequence[Marks] = ()
    logarithmic: bool = False


def draw(title: str, panels: Sequence[Panel], seconds: float) -> np.ndarray:
    """Panels one below the other, over the same seconds.

    Cells are squares or bars of whole pixels; of more columns or rows than there are pixels, each pixel shows the
    largest value that falls on it.

    Args:
      title: of the whole.
      panels: at least one.
      seconds: that each panel lasts, whatever its number of columns.

    Returns:
      [H, W, 3] uint8.
    """
    maps = [_pixels(panel) for panel in panels]
    width = max(each.shape[1] for each in maps)
    heights = [_above(panel) + each.shape[0] + _BELOW for panel, each in zip(panels, maps, strict=True)]
    image = Image.new("RGB", (_LEFT + width + _RIGHT, _TITLE + sum(heights) + 16), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((_LEFT, 8), title, INK, _font(_LARGE))
    top = _TITLE
    for panel, pixels, height in zip(panels, maps, heights, strict=True):
        box = (_LEFT, top + _above(panel), _LEFT + width, top + _above(panel) + pixels.shape[0])
        image.paste(Image.fromarray(pixels).resize((width, pixels.shape[0]), Image.Resampling.NEAREST), box[:2])
        _draw_frame(pen, panel, box, seconds)
        top += height
    pen.text((_LEFT + width, top), "seconds", INK, _font(_SMALL), anchor="rt")
    return np.asarray(image)


def colors(values: np.ndarray, limits: tuple[float, float], logarithmic: bool = False) -> np.ndarray:
    """[...] floating -> [..., 3] uint8."""
    if logarithmic:
        return colors(np.log(np.maximum(values, limits[0])), (float(np.log(limits[0])), float(np.log(limits[1]))))
    stops = np.array([[int(stop[i : i + 2], 16) for i in (0, 2, 4)] for stop in _SCALE.split()], np.float64)
    low, high = limits
    share = np.clip((np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / (high - low), 0.0, 1.0)
    place = share * (len(stops) - 1)
    mixed = np.stack([np.interp(place, range(len(stops)), stops[:, i]) for i in range(3)], axis=-1)
    return np.where(np.isnan(values)[..., None], _NOT_A_NUMBER, np.round(mixed)).astype(np.uint8)


def _pixels(panel: Panel) -> np.ndarray:
    """[height, width, 3] of a panel's cells, the first row at the bottom."""
    values = np.asarray(panel.values, np.float64)
    for axis, most in ((0, 2 * _HEIGHT), (1, _MOST_WIDTH)):
        values = _largest(values, -(-values.shape[axis] // most), axis)
    rows, columns = values.shape
    cells = colors(values[::-1], panel.limits, panel.logarithmic)
    readable = _SMALL + 1 if rows * (_SMALL + 1) <= 2 * _HEIGHT else 1  # so that every row has its name
    return cells.repeat(max(readable, round(_HEIGHT / rows)), axis=0).repeat(max(1, round(_WIDTH / columns)), axis=1)


def _largest(values: np.ndarray, count: int, axis: int) -> np.ndarray:
    """The largest of `count` neighbours; NaN wins, as it must be seen."""
    if count == 1:
        return values
    return np.maximum.reduceat(values, range(0, values.shape[axis], count), axis=axis)


def _above(panel: Panel) -> int:
    return _PANEL_TITLE + 16 * len(panel.marks)


def _draw_frame(pen: ImageDraw.ImageDraw, panel: Panel, box: tuple[int, int, int, int], seconds: float) -> None:
    left, top, right, bottom = box
    rows, columns = np.shape(panel.values)
    scale = (right - left) / columns, (bottom - top) / rows

    def place(x: float, y: float) -> tuple[float, float]:
        return left + x * scale[0], bottom - y * scale[1]

    pen.rectangle((left - 1, top - 1, right, bottom), outline=INK)
    _draw_title(pen, panel, left, top)
    _draw_time(pen, box, seconds)
    free = bottom + _SMALL  # the lowest pixel that is not written on
    for y, name in panel.row_names:
        at = place(0, y)[1]
        if free - at >= _SMALL:
            pen.line((left - 5, at, left - 1, at), INK)
            pen.text((left - 8, at), _shortened(name), INK, _font(_SMALL), anchor="rm")
            free = at
    for above, path in enumerate(reversed(panel.paths)):
        points, thick = [place(*point) for point in path.points], 2 if min(scale) >= 4 else 1
        thick += 3 * (len(panel.paths) - 1 - above)  # the lower ones show on both sides of the upper ones
        pen.line(points, INK, thick + 2, joint="curve")
        pen.line(points, path.color, thick, joint="curve")
    for row, marks in enumerate(panel.marks):
        _draw_marks(pen, marks, [place(x, 0)[0] for x in marks.places], (left, top, bottom), len(panel.marks) - row)
    _draw_scale(pen, panel, (right + 14, top, right + 26, bottom))


def _draw_title(pen, panel, left, top):
    y = top - 16 * len(panel.marks) - 5
    pen.text((left, y), panel.title, INK, _font(_SMALL), anchor="ls")
    x = left + pen.textlength(panel.title, _font(_SMALL)) + 24
    for path in panel.paths:
        pen.line((x, y - 4, x + 24, y - 4), INK, 4)
        pen.line((x, y - 4, x + 24, y - 4), path.color, 2)
        pen.text((x + 30, y), path.name, INK, _font(_SMALL), anchor="ls")
        x += 30 + pen.textlength(path.name, _font(_SMALL)) + 20


def _draw_time(pen, box, seconds):
    left, _, right, bottom = box
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000) if s * (right - left) >= 40 * seconds)
    for n in range(int(seconds / step) + 1):
        x = left + n * step / seconds * (right - left)
        pen.line((x, bottom, x, bottom + 4), INK)
        pen.text((x, bottom + 6), f"{n * step:.3g}", INK, _font(_SMALL), anchor="mt")


def _draw_marks(pen, marks, places, box, row):
    left, top, bottom = box
    y = top - 16 * row + 8
    pen.text((left - 8, y), marks.name, marks.color, _font(_SMALL), anchor="rm")
    words: dict[float, str] = {}
    for x, word in zip(places, marks.words, strict=True):
        words[x] = words.get(x, "") + word
    free = left
    for x, word in words.items():
        pen.line((x, top, x, bottom), marks.color)
        half = pen.textlength(_shortened(word), _font(_SMALL)) / 2
        if x - half >= free:
            pen.text((x, y), _shortened(word), marks.color, _font(_SMALL), anchor="mm")
            free = x + half + 2


def _draw_scale(pen, panel, box):
    left, top, right, bottom = box
    for y in range(top, bottom):
        share = (bottom - 1 - y) / max(bottom - 1 - top, 1)
        pen.line((left, y, right, y), tuple(colors(np.array(share), (0.0, 1.0)).tolist()))
    pen.rectangle((left - 1, top - 1, right + 1, bottom), outline=INK)
    space = np.geomspace if panel.logarithmic else np.linspace
    for y, value in zip(np.linspace(bottom - 1, top, 5), space(*panel.limits, 5), strict=True):
        pen.text((right + 6, y), f"{value:.3g}", INK, _font(_SMALL), anchor="lm")


def _shortened(word: str, length: int = 10) -> str:
    return word if len(word) <= length else word[: length - 1] + "…"


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own has ASCII alone: one that most systems have is taken for other letters, where it is there."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)
