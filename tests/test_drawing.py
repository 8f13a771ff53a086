"""Heat maps, looked at pixel by pixel."""

import numpy as np
import pytest

from tf_rnnt_kd.drawing import Marks, Panel, Path, colors, draw

DARK, BRIGHT, GREY = (68, 1, 84), (253, 231, 37), (200, 200, 200)


def count(image, color):
    return int(np.all(image == color, axis=-1).sum())


def places(image, color):
    return np.argwhere(np.all(image == color, axis=-1))


def test_colours_run_from_dark_to_bright_and_show_what_is_no_number():
    values = np.array([-1.0, 0.0, 1.0, 2.0, np.inf, -np.inf, np.nan])
    assert list(map(tuple, colors(values, (0.0, 1.0)))) == [DARK, DARK, BRIGHT, BRIGHT, BRIGHT, DARK, GREY]
    steps = colors(np.linspace(0.0, 1.0, 50), (0.0, 1.0)).astype(float) @ (0.299, 0.587, 0.114)  # brightness
    assert np.all(np.diff(steps) > 0.0)


def test_logarithmic_colours_show_ratios():
    values = np.array([0.0, 0.01, 0.1, 1.0, 10.0])
    expected = colors(np.array([0.0, 0.0, 0.5, 1.0, 1.0]), (0.0, 1.0))
    np.testing.assert_array_equal(colors(values, (0.01, 1.0), logarithmic=True), expected)
    assert tuple(colors(np.array(np.nan), (0.01, 1.0), logarithmic=True)) == GREY


def test_the_first_row_is_at_the_bottom_and_the_first_column_on_the_left():
    values = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    image = draw("title", [Panel("panel", values, (0.0, 1.0))], 1.0)
    plot = places(image, DARK)[:, 1] < 950  # beside it is the colour scale
    top, left = places(image, DARK)[plot].min(axis=0)
    bright = places(image, BRIGHT)
    bright = bright[bright[:, 1] < 950]
    assert bright[:, 1].min() == left and bright[:, 0].min() > top + 100
    assert len(bright) == 300 * 150  # one cell of 900 x 300 pixels


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 3), (301, 1000), (700, 3000)])
def test_any_number_of_cells_makes_a_picture_of_about_the_same_size(rows, columns):
    values = np.zeros([rows, columns])
    values[rows // 2, columns // 2] = 1.0
    names = [(y, "token") for y in range(rows)]
    path = Path("way", (255, 0, 0), [(0.0, 0.5), (columns, rows - 0.5)])
    image = draw("a title", [Panel("one", values, (0.0, 1.0), names, [path])], 0.04 * columns)
    assert image.dtype == np.uint8 and image.shape[2] == 3
    assert 300 <= image.shape[0] < 1000 and 700 <= image.shape[1] < 1700
    assert count(image, BRIGHT) > 0 or rows == 1  # no single cell is lost, however small


def test_a_path_goes_through_its_cells_and_lower_paths_stay_visible():
    red, blue = (255, 0, 0), (0, 0, 255)
    points = [(0.0, 0.5), (5.0, 0.5), (5.0, 1.5), (10.0, 1.5)]
    image = draw("t", [Panel("p", np.zeros([2, 10]), (0, 1), (), [Path("a", red, points), Path("b", blue, points)])], 1)
    for color in (red, blue):
        found = places(image, color)
        found = found[found[:, 0] > 60]  # above is the legend
        assert found[:, 1].min() <= 97 and found[:, 1].max() >= 994
        assert abs(np.ptp(found[:, 0]) - 150) < 10
    alone = draw("t", [Panel("p", np.zeros([2, 10]), (0, 1), (), [Path("a", red, points)])], 1)
    assert count(alone, red) > 0 and count(alone, blue) == 0


def test_marks_are_lines_with_words_above_them():
    red = (255, 0, 0)
    panel = Panel("p", np.zeros([4, 10]), (0.0, 1.0), marks=[Marks("row", red, [2.5, 2.5, 7.5], ["AB", "C", "D"])])
    bare = draw("t", [panel._replace(marks=[Marks("row", red, [], [])])], 1.0)
    image = draw("t", [panel], 1.0)
    assert image.shape == bare.shape
    columns, lengths = np.unique(places(image, red)[:, 1], return_counts=True)
    assert list(columns[lengths > 290]) == [96 + 225, 96 + 675]
    changed = np.any(image != bare, axis=-1)[:70]
    assert changed[:, 300:345].any() and changed[:, 760:785].any() and not changed[:, 400:700].any()


def test_panels_of_one_picture_share_their_time_and_keep_their_order():
    dark, bright = (Panel(name, np.full([2, n], n - 2.0), (0.0, 1.0)) for name, n in (("a", 2), ("b", 3)))
    image = draw("t", [dark, bright], 2.0)
    assert places(image, DARK)[0, 0] < places(image[:, :950], BRIGHT)[0, 0]


def test_every_row_has_its_name_as_long_as_there_is_room():
    names = [(row, "I") for row in range(1, 40)]
    image = draw("t", [Panel("p", np.zeros([40, 90]), (0.0, 1.0), names)], 1.0)
    ticks = np.all(image[:, 91:95] == (40, 40, 40), axis=(1, 2))
    assert ticks.sum() == 39
