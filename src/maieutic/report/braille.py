"""Curves in a terminal: every character is 2 × 4 dots (Unicode's braille patterns, U+2800 …).

The dots of a character are numbered in the order in which braille grew, not row by row:

    1 4      bit 0   bit 3
    2 5      bit 1   bit 4
    3 6      bit 2   bit 5
    7 8      bit 6   bit 7
"""

from __future__ import annotations

from maieutic.report.curves import Points, finite, thinned

#: Bit of the dot in column x (0, 1) and row y (0 … 3, from above).
BITS = ((0, 1, 2, 6), (3, 4, 5, 7))


def braille(points: Points, width: int, height: int) -> list[str]:
    """The curve as `height` lines of `width` characters: steps to the right, values upwards, both over their range.

    Neighbouring points are joined. A constant curve runs through the middle. Points that are no numbers are left out.

    >>> braille([(0, 0.0), (1, 1.0)], 1, 1)
    ['⡜']
    """
    shown = thinned(finite(points), 2 * width)
    cells = [[0] * width for _ in range(height)]
    if not shown:
        return [" " * width] * height
    dots = _dots(shown, 2 * width, 4 * height)
    for (x0, y0), (x1, y1) in zip(dots, dots[1:] or dots):
        count = max(abs(x1 - x0), abs(y1 - y0), 1)
        for i in range(count + 1):
            x, y = round(x0 + (x1 - x0) * i / count), round(y0 + (y1 - y0) * i / count)
            cells[y // 4][x // 2] |= 1 << BITS[x % 2][y % 4]
    return ["".join(chr(0x2800 + cell) for cell in row) for row in cells]


def _dots(points: Points, columns: int, rows: int) -> list[tuple[int, int]]:
    """The points as (column, row from above)."""
    first, last = points[0][0], points[-1][0]
    low, high = min(v for _, v in points), max(v for _, v in points)
    across = (columns - 1) / max(last - first, 1)
    if high <= low:
        return [(round((step - first) * across), rows // 2) for step, _ in points]
    return [(round((step - first) * across), round((high - v) / (high - low) * (rows - 1))) for step, v in points]
