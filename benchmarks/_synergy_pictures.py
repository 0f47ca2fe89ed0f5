"""The grid of the study `synergy` as a picture: a tile a cell, its shade the gain over the row's greedy answer.

Orange tiles lose, blue ones gain; the number in a tile is how often it is right, so that no colour has to be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maieutic.report.markup import el

#: Okabe and Ito's orange and blue, and what a tile without a gain has.
LOSS, GAIN, NOTHING = (213, 94, 0), (0, 114, 178), (255, 255, 255)
#: Points of gain or loss at which a tile is darkest.
MOST = 0.35
LEFT, TOP, WIDE, TALL = 120, 44, 84, 34


def heat_map(rows: Mapping[str, Mapping[str, Mapping[str, float]]], columns: Sequence[str], k: int) -> str:
    """The picture as an SVG document."""
    tiles, words = [], []
    for i, (row, cells) in enumerate(rows.items()):
        y = TOP + TALL * i
        tiles.append(el("text", row, x=LEFT - 8, y=y + TALL / 2 + 4, text_anchor="end"))
        for j, column in enumerate(columns):
            gain = cells[column]["value"] - cells["greedy"]["value"]
            x, shown = LEFT + WIDE * j, f"{100 * cells[column]['value']:.1f}"
            said = el("title", f"{row}, {column}: {shown} %, {100 * gain:+.1f} over greedy")
            fill, dark = shade(gain)
            tiles.append(el("rect", said, x=x, y=y, width=WIDE - 2, height=TALL - 2, fill=fill, stroke="#d9dde2"))
            ink = "#ffffff" if dark else "#1f2328"
            at = {"x": x + WIDE / 2 - 1, "y": y + TALL / 2 + 4}
            tiles.append(el("text", shown, **at, text_anchor="middle", fill=ink))
        words.append(f"{row}: greedy {100 * cells['greedy']['value']:.0f} %")
    heads = []
    for j, column in enumerate(columns):
        named = column.replace("@k", f"@{k}").replace("of k", f"of {k}")
        first, _, rest = named.partition(" ")
        if first == "weighted":
            heads.append(el("text", first, x=LEFT + WIDE * (j + 0.5), y=TOP - 20, text_anchor="middle"))
            named = rest
        heads.append(el("text", named, x=LEFT + WIDE * (j + 0.5), y=TOP - 6, text_anchor="middle"))
    wide, tall = LEFT + WIDE * len(columns) + 8, TOP + TALL * len(rows) + 26
    title = "Right, %; shade: the gain (blue) or loss (orange) over the row's greedy answer"
    foot = el("text", title, x=LEFT, y=tall - 8)
    paper = el("rect", width=wide, height=tall, fill="#ffffff")
    drawing = el(
        "svg", paper, heads, tiles, foot, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {wide} {tall}",
        width=wide, role="img", aria_label=f"{title}. {'; '.join(words)}", font_family="sans-serif", font_size=12,
        fill="#1f2328",
    )  # fmt: skip
    return drawing + "\n"


def shade(gain: float) -> tuple[str, bool]:
    """The colour of a gain, and whether it is dark enough for white letters."""
    share = min(1.0, abs(gain) / MOST)
    end = GAIN if gain >= 0 else LOSS
    mixed = [round(a + (b - a) * share) for a, b in zip(NOTHING, end, strict=True)]
    return f"rgb({', '.join(map(str, mixed))})", share > 0.8
