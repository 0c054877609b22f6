"""A bar chart as SVG, with no library. It is readable on light and on dark pages, and by screen readers.

    chart(title, unit, bars) ── the file's text
"""

import html
from typing import List, NamedTuple, Optional, Sequence

_WIDTH, _LEFT, _RIGHT = 860, 230, 150  # pixels: of all, of the labels, of the figures
_TOP, _ROW, _BAR = 74, 26, 18
_STEPS = (1, 2, 2.5, 5, 10)  # of which the axis' numbers are multiples, by powers of ten
_LINES = 6  # on the axis, at most
_STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 } .small { font-size: 12px; fill: #59636e }
  .grid { stroke: #d1d9e0 } .mark { stroke: #1f2328; stroke-width: 2 } .page { fill: #ffffff }
  .a { fill: #9a6700 } .b { fill: #0969da } .c { fill: #1a7f37 } .d { fill: #8250df }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .small { fill: #9198a1 } .grid { stroke: #3d444d } .mark { stroke: #f0f6fc }
    .page { fill: #0d1117 } .a { fill: #d29922 } .b { fill: #4493f8 } .c { fill: #3fb950 } .d { fill: #ab7df8 }
  }
"""
_COLOURS = "abcd"


class Bar(NamedTuple):
    """One bar: its label, its value, a note behind it, and a mark to compare it with. Bars of a kind have a colour."""

    label: str
    value: float
    kind: str
    note: str = ""
    mark: Optional[float] = None


def chart(title: str, subtitle: str, unit: str, mark: str, bars: Sequence[Bar]) -> str:
    """Return an SVG file's text: horizontal bars from 0, with an axis of `unit`; `mark` says what the marks are."""
    largest = max([bar.value for bar in bars] + [bar.mark or 0.0 for bar in bars] + [1e-9])
    step = step_for(largest)
    scale = (_WIDTH - _LEFT - _RIGHT) / largest
    height = _TOP + _ROW * len(bars) + 40
    kinds = list(dict.fromkeys(bar.kind for bar in bars))
    described = "; ".join("%s: %.1f" % (bar.label, bar.value) for bar in bars)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img"'
        ' aria-labelledby="title described">' % (_WIDTH, height, _WIDTH, height),
        '<title id="title">%s</title><desc id="described">%s</desc>' % (html.escape(title), html.escape(described)),
        "<style>%s</style>" % _STYLE,
        '<rect class="page" width="100%" height="100%"/>',
        _text(16, 28, title, "title"),
        _text(16, 48, subtitle, "small"),
    ]
    parts += _axis(largest, step, scale, _TOP + _ROW * len(bars), unit)
    for number, bar in enumerate(bars):
        parts += _bar(bar, _TOP + _ROW * number, scale, _COLOURS[kinds.index(bar.kind) % len(_COLOURS)])
    if any(bar.mark for bar in bars):
        parts.append(_text(_WIDTH - 16, height - 12, "| " + mark, "small", "end"))
    return "\n".join(parts + ["</svg>"]) + "\n"


def step_for(largest: float) -> float:
    """Return the distance of an axis' lines: a round number that makes few of them up to `largest`."""
    power = 10.0 ** -6
    while True:
        for step in _STEPS:
            if largest / (step * power) <= _LINES:
                return step * power
        power *= 10


def _axis(largest: float, step: float, scale: float, bottom: int, unit: str) -> List[str]:
    parts, number = [], 0
    while number * step <= largest:
        x = _LEFT + number * step * scale
        parts.append('<line class="grid" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>' % (x, _TOP - 8, x, bottom))
        parts.append(_text(x, bottom + 16, "%g" % (number * step), "small", "middle"))
        number += 1
    return parts + [_text(_LEFT, bottom + 32, unit, "small")]


def _bar(bar: Bar, y: int, scale: float, colour: str) -> List[str]:
    middle, size = y + _BAR // 2 + 5, bar.value * scale
    parts = [
        _text(_LEFT - 10, middle, bar.label, "", "end"),
        '<rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/>' % (colour, _LEFT, y, size, _BAR),
    ]
    end = max(size, (bar.mark or 0.0) * scale) + _LEFT + 8
    if bar.mark:
        x = _LEFT + bar.mark * scale
        parts.append('<line class="mark" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>' % (x, y - 2, x, y + _BAR + 2))
    figures = "%.1f%s" % (bar.value, " (%s)" % bar.note if bar.note else "")
    return parts + [_text(end, middle, figures)]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    more = (' class="%s"' % kind if kind else "") + (' text-anchor="%s"' % anchor if anchor else "")
    return '<text x="%.1f" y="%.1f"%s>%s</text>' % (x, y, more, html.escape(text))
