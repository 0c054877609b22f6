"""The bench's picture: an SVG file whose bars are as long as their values."""

import xml.etree.ElementTree

import pytest

from core.commands.plot import Bar, chart, step_for

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*bars):
    return xml.etree.ElementTree.fromstring(chart("Title", "on <this> & that", "tokens/s", "a mark", bars))


def lengths(picture):
    return [float(each.get("width")) for each in picture.iter(SVG + "rect") if each.get("class") != "page"]


def texts(picture):
    return [each.text for each in picture.iter(SVG + "text")]


def test_bars_are_as_long_as_their_values_and_say_them():
    picture = drawn(Bar("one by one", 30.0, "a"), Bar("engine", 60.0, "b", "2.0×", mark=45.0))
    first, second = lengths(picture)
    assert second == pytest.approx(2 * first, abs=0.2)
    assert "30.0" in texts(picture) and "60.0 (2.0×)" in texts(picture)
    (mark,) = [each for each in picture.iter(SVG + "line") if each.get("class") == "mark"]
    bar = [each for each in picture.iter(SVG + "rect")][-1]
    assert float(mark.get("x1")) - float(bar.get("x")) == pytest.approx(0.75 * second, abs=0.2)


def test_what_models_and_machines_are_called_is_text_only():
    picture = drawn(Bar("</svg><script>", 1.0, "a"))
    assert "</svg><script>" in texts(picture) and "on <this> & that" in texts(picture)


def test_everything_stays_inside():
    picture = drawn(*[Bar("bar %d" % number, 10.0**number, "a", mark=10.0**number) for number in range(6)])
    wide, high = float(picture.get("width")), float(picture.get("height"))
    for each in picture.iter(SVG + "rect"):
        if each.get("class") != "page":
            assert float(each.get("x")) + float(each.get("width")) < wide - 100
            assert float(each.get("y")) + float(each.get("height")) < high


@pytest.mark.parametrize("largest, step", [(1, 0.2), (60, 10), (61, 20), (0.09, 0.02), (1234, 250)])
def test_the_axis_has_few_lines_at_round_numbers(largest, step):
    assert step_for(largest) == pytest.approx(step)


def test_nothing_to_draw_is_an_empty_picture():
    assert lengths(drawn()) == []
