"""Bars as inline SVG, for pages that must be one file."""

from collections.abc import Sequence
from html import escape

import numpy as np


__all__ = ["draw_bars", "draw_histogram"]

WIDTH, HEIGHT, MARGIN, LETTER_WIDTH = 460, 170, 26, 5.5


def draw_bars(names: Sequence[str], values: Sequence[float], unit: str, title: str) -> str:
    """
    Draw one bar per name, with its value when the pointer rests on it.

    Args:
        names (sequence of `str`): under the bars; where there are many, only some are written.
        values (sequence of `float`): heights, from 0 up.
        unit (`str`): of the values.
        title (`str`): above the bars.
    """
    top, step = max([*values, 1e-9]), (WIDTH - 2) / max(len(values), 1)
    every = max(1, len(names) // 8)
    width = max(3, int(every * step / LETTER_WIDTH))
    parts = [f'<text x="0" y="14" class="title">{escape(title)}</text>']
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        height = (HEIGHT - 2 * MARGIN) * value / top
        x, y = index * step, HEIGHT - MARGIN - height
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(step - 2, 1):.1f}" height="{height:.1f}">')
        parts.append(f"<title>{escape(name)}: {value:,.6g} {escape(unit)}</title></rect>")
        if index % every == 0:
            short = name if len(name) <= width else name[: width - 1] + "…"
            parts.append(f'<text x="{x + step / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(short)}</text>')
    parts.append(f'<text x="{WIDTH}" y="14" text-anchor="end">highest: {top:,.6g} {escape(unit)}</text>')
    label = escape(title, quote=True)
    view = f'viewBox="-14 0 {WIDTH + 28} {HEIGHT}" width="{WIDTH}"'
    return f'<svg class="bars" role="img" aria-label="{label}" {view}>{"".join(parts)}</svg>'


def draw_histogram(values: Sequence[float], unit: str, title: str, num_bins: int = 24) -> str:
    """Draw how often values occur, up to their 99 % quantile; the few above are counted in the last bar.

    Args:
        values (sequence of `float`): at least one.
        unit (`str`): of what is counted.
        title (`str`): above the bars.
        num_bins (`int`): bars.
    """
    low, high = min(values), float(np.quantile(values, 0.99))
    edges = np.linspace(low, max(high, low + 1), num_bins + 1)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return draw_bars([f"{edge:,.0f}" for edge in edges[:-1]], counts.tolist(), unit, title)
