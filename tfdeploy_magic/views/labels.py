"""Names written at points of a plot: none covers another, and none stands nearer to a point that is not its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from matplotlib.axes import Axes

from tfdeploy_magic.views.figures import INK

_FAR = (9, 15, 22, 30, 40, 52, 66, 82, 100)  # points
_NEXT_TO = 10  # points; a name that is farther off has a line to its point
_DOT = 5  # points, from the middle of a marker to its edge


@dataclass(frozen=True)
class Named:
    """A point and what is written at it.

    Args:
        x: In the units of the axis.
        y: In the units of the axis.
        name: What is written.
    """

    x: float
    y: float
    name: str


_Point = tuple[float, float]
_Line = tuple[_Point, _Point]


class _Box(NamedTuple):
    left: float
    low: float
    right: float
    high: float

    def overlaps(self, other: _Box) -> bool:
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high

    def nearest(self, point: _Point) -> _Point:
        return min(max(point[0], self.left), self.right), min(max(point[1], self.low), self.high)

    def is_crossed(self, line: _Line) -> bool:
        (x0, y0), (x1, y1) = line
        if not self.overlaps(_Box(min(x0, x1) - 1e-6, min(y0, y1) - 1e-6, max(x0, x1) + 1e-6, max(y0, y1) + 1e-6)):
            return False
        corners = itertools.product((self.left, self.right), (self.low, self.high))
        sides = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in corners]
        return min(sides) < 0 < max(sides)


@dataclass(frozen=True)
class _Place:
    """Where a name could stand: so far from its point, so aligned, and the box it fills in pixels."""

    dx: float
    dy: float
    across: Literal["left", "center", "right"]
    up: Literal["bottom", "center", "top"]
    box: _Box


@dataclass
class _Taken:
    """What is there already, in pixels."""

    inside: _Box
    spots: list[_Point]
    dot: float
    names: list[_Box] = field(default_factory=list)
    lines: list[_Line] = field(default_factory=list)

    def trouble(self, place: _Place, own: int) -> float:
        """Return how bad a place is: to cover a name is worst, then a point, then to be taken for another's name."""
        box, spot = place.box, self.spots[own]
        away = math.dist(box.nearest(spot), spot)
        line = (spot, box.nearest(spot))
        inside = self.inside.nearest((box.left, box.low)) == (box.left, box.low)
        inside &= self.inside.nearest((box.right, box.high)) == (box.right, box.high)
        trouble = 0.0 if inside else 1000.0
        trouble += sum(1000.0 * box.overlaps(name) + 200.0 * name.is_crossed(line) for name in self.names)
        trouble += sum(200.0 for other in self.lines if box.is_crossed(other))
        for number, (x, y) in enumerate(self.spots):
            dot = _Box(x - self.dot, y - self.dot, x + self.dot, y + self.dot)
            if number != own and (x, y) != spot:
                trouble += 400.0 * box.overlaps(dot) + 150.0 * (math.dist(box.nearest((x, y)), (x, y)) < away)
        return trouble


def write_names(axes: Axes, points: Sequence[Named], steps: Sequence[_Point], size: float) -> None:
    """Write each name near its point, with a line to it where it is not right beside it.

    Args:
        axes: Placed, and with their limits set.
        points: What to write where.
        steps: The corners of a line of steps, right and then up, that names keep clear of.
        size: Of the letters, points.
    """
    pixel = axes.get_figure().dpi / 72  # type: ignore[union-attr]
    frame = axes.get_window_extent()
    spots = [_spot(axes, (point.x, point.y)) for point in points]
    inside = _Box(frame.x0, frame.y0, frame.x1, frame.y1)
    taken = _Taken(inside, spots, _DOT * pixel, lines=_lines([_spot(axes, corner) for corner in steps]))
    crowd = [sum(math.dist(spot, other) < 60 * pixel for other in spots) for spot in spots]
    # The least crowded first: they stand where nobody else wants to, and the others go around them.
    for own in sorted(range(len(points)), key=lambda number: (crowd[number], -spots[number][1])):
        place = _write(axes, points[own], own, taken, size, pixel)
        margin = 1.5 * pixel
        left, low, right, high = place.box
        taken.names.append(_Box(left - margin, low - margin, right + margin, high + margin))
        if math.hypot(place.dx, place.dy) > _NEXT_TO:
            end = place.box.nearest(spots[own])
            taken.lines.append((spots[own], end))
            x, y = axes.transData.inverted().transform(end)
            axes.plot((points[own].x, x), (points[own].y, y), color=INK, linewidth=0.5, zorder=2)


def _write(axes: Axes, point: Named, own: int, taken: _Taken, size: float, pixel: float) -> _Place:
    written = axes.annotate(
        point.name, (point.x, point.y), xytext=(0, 0), textcoords="offset points", color=INK, fontsize=size, zorder=5
    )
    extent = written.get_window_extent()
    best, least = None, math.inf
    for place in _places(taken.spots[own], extent.width, extent.height, pixel):
        trouble = taken.trouble(place, own)
        if trouble + math.hypot(place.dx, place.dy) < least:
            best, least = place, trouble + math.hypot(place.dx, place.dy)
        if not trouble:  # those that follow are farther off
            break
    assert best is not None
    written.set_position((best.dx, best.dy))
    written.set_horizontalalignment(best.across)
    written.set_verticalalignment(best.up)
    return best


def _spot(axes: Axes, point: _Point) -> _Point:
    x, y = axes.transData.transform(point)
    return float(x), float(y)


def _lines(corners: Sequence[_Point]) -> list[_Line]:
    found = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        found += [((x0, y0), (x1, y0)), ((x1, y0), (x1, y1))]
    return found


def _places(spot: _Point, width: float, height: float, pixel: float) -> Iterator[_Place]:
    """Yield places around a point, the nearest first."""
    for far, step in itertools.product(_FAR, range(24)):
        angle = 2 * math.pi * step / 24
        dx, dy = far * math.cos(angle), far * math.sin(angle)
        across: Literal["left", "center", "right"] = "center"
        if abs(dx) > 0.3 * far:
            across = "left" if dx > 0 else "right"
        up: Literal["bottom", "center", "top"] = "bottom" if dy > 0 else "top"
        if across != "center" and abs(dy) < 0.75 * far:
            up = "center"
        left = spot[0] + dx * pixel - {"left": 0.0, "center": width / 2, "right": width}[across]
        low = spot[1] + dy * pixel - {"bottom": 0.0, "center": height / 2, "top": height}[up]
        yield _Place(dx, dy, across, up, _Box(left, low, left + width, low + height))
