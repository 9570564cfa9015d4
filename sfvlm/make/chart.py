"""A drawing of what was measured, as SVG inside the page: how far each way is from the dense LLaVA, over the time to its first word."""

from dataclasses import dataclass
from xml.sax.saxutils import escape

from .ways import Way, Ways

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 58, 56, 16, 46  # room around the field, at the right for names
LINE = 15  # pixels between two names
CHARACTER = 7  # pixels that one takes, about


@dataclass
class Dot:
    """A way in the field."""

    way: Way
    name: str  # of the dense and the new one; the others have numbers, in the order of the table
    x: float
    y: float
    low: float
    high: float
    label_y: float = 0.0


def chart(ways: Ways) -> str:
    """The drawing; colours come from the page."""
    drawn = ways.all
    right = 1.05 * max(way.first_word for way in drawn)
    top = 1.08 * max((way.divergence.high for way in drawn if way.divergence), default=1.0)
    across, down = _ticks(right * 1e3), _ticks(top)

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / right

    def y(nats: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(nats / top, 1.0)

    dots, names = [], labels(ways)
    for way in drawn:
        value, low, high = (
            (0.0, 0.0, 0.0)
            if way.divergence is None
            else (way.divergence.value, way.divergence.low, way.divergence.high)
        )
        dots.append(Dot(way, names[way.name], x(way.first_word), y(value), y(low), y(high)))
    _part_labels(dots)
    described = "; ".join(_described(way) for way in drawn)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="chart-title chart-text" class="chart">',
        '<title id="chart-title">Distance from the dense LLaVA over the time to the first word</title>',
        f'<desc id="chart-text">{escape(described)}.</desc>',
    ]
    for tick in down:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in across:
        place = x(tick / 1e3)
        parts.append(
            f'<text class="tick" x="{place:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts += [
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">time to the first word, ms</text>',
        f'<text class="axis" x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})">nats a word</text>',
    ]
    for dot in dots:
        parts += _drawn(dot, ways)
    return "\n".join([*parts, "</svg>"])


def labels(ways: Ways) -> dict[str, str]:
    """What each way is called in the drawing: a number, but for the dense one and the new one."""
    numbers = {way.name: str(number) for number, way in enumerate(ways.others, 1)}
    return {way.name: numbers.get(way.name, way.name) for way in ways.all}


def _drawn(dot: Dot, ways: Ways) -> list[str]:
    kind = "dense" if dot.way is ways.dense else "sparse" if dot.way is ways.sparse else "other"
    size = 5 if kind == "other" else 7
    parts = [f'<g class="{kind}">']
    if dot.way.divergence is not None:
        parts.append(
            f'<line class="whisker" x1="{dot.x:.1f}" x2="{dot.x:.1f}" y1="{dot.low:.1f}" y2="{dot.high:.1f}"/>'
        )
    parts.append(f'<circle cx="{dot.x:.1f}" cy="{dot.y:.1f}" r="{size}"/>')
    begin = dot.x + 10
    parts.append(f'<path class="lead" d="M{dot.x + size:.1f} {dot.y:.1f} L{begin:.1f} {dot.label_y:.1f}"/>')
    parts.append(f'<text x="{begin + 2:.1f}" y="{dot.label_y + 4:.1f}">{escape(dot.name)}</text></g>')
    return parts


def _part_labels(dots: list[Dot]) -> None:
    """Moves names that would lie on each other apart, downwards from the highest; and all of them up again where room ends."""
    placed: list[tuple[float, float, float]] = []  # left, right, y
    for dot in sorted(dots, key=lambda each: each.y):
        left, right, height = dot.x + 10, dot.x + 12 + CHARACTER * len(dot.name), dot.y
        for _ in range(2 * len(dots)):
            above = [
                other for start, end, other in placed if start < right and left < end and abs(other - height) < LINE
            ]
            if not above:
                break
            height = max(above) + LINE
        if height > HEIGHT - BOTTOM - 4:  # no room below: the nearest free place above
            height = min([dot.y, *(other for start, end, other in placed if start < right and left < end)]) - LINE
        dot.label_y = height
        placed.append((left, right, height))


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to `most`, four to six of them."""
    step = 10.0 ** len(str(int(most))) if most >= 1 else 1.0
    for part in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001):
        if most / (step * part) >= 4:
            step *= part
            break
    return [round(number * step, 10) for number in range(int(most / step) + 1)]


def _described(way: Way) -> str:
    near = "" if way.divergence is None else f", {way.divergence.value:.3f} nats a word"
    return f"{way.name}: {way.first_word * 1e3:.3g} ms{near}"
