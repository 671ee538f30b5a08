"""Draws the picture of the method, once for light and once for dark pages: `python docs/_site/draw_method.py`."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"

THEMES = {
    "light": {"ink": "#1f2328", "soft": "#59636e", "rest": "#d8dee4", "line": "#ffffff", "cross": "#b42318"},
    "dark": {"ink": "#e6edf3", "soft": "#9da7b3", "rest": "#3d444d", "line": "#14181d", "cross": "#ff8a80"},
}
TINTS = ("#3b7dd8", "#d97706", "#8b5cf6", "#0d9488", "#c2417c")
INPUTS, CHANNELS, OUTPUTS = 4, 5, 3
REMOVED = 2  # the channel that goes
CELL, WIDTH, HEIGHT = 24, 720, 336
GAP = 62  # between the two layers


def draw(theme: str) -> str:
    """Return the picture as SVG."""
    colours = THEMES[theme]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
        "<title>Which weights form a group: a filter alone, or a filter and what reads its output</title>",
        *_panel(18, "Separate groups", "A filter is a group. What reads it", "is not looked at.", False, colours),
        *_panel(378, "OICSR", "A filter and its readers are one group,", "kept or removed as a whole.", True, colours),
        f'<line x1="360" y1="20" x2="360" y2="{HEIGHT - 20}" stroke="{colours["rest"]}"/>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _panel(left: int, title: str, first: str, second: str, joined: bool, colours: dict[str, str]) -> list[str]:
    top = 118
    start = left + 22 + INPUTS * CELL + GAP
    reader_top = top + CELL
    parts = [
        _text(left, 30, title, colours["ink"], 20, weight="bold"),
        _text(left, 54, first, colours["ink"], 16),
        _text(left, 74, second, colours["ink"], 16),
        _text(left + 22, top - 10, "layer l", colours["soft"], 15),
        _text(start, reader_top - 10, "layer l + 1", colours["soft"], 15),
    ]
    for channel in range(CHANNELS):
        y, tint = top + channel * CELL, TINTS[channel]
        gone = joined and channel == REMOVED
        parts.append(_text(left + 14, y + 17, str(channel + 1), colours["soft"], 14, anchor="end"))
        parts += [_cell(left + 22 + i * CELL, y, tint, gone, colours) for i in range(INPUTS)]
        shade = tint if joined else colours["rest"]
        parts += [_cell(start + channel * CELL, reader_top + o * CELL, shade, gone, colours) for o in range(OUTPUTS)]
        x, y = start + channel * CELL + CELL / 2, reader_top + OUTPUTS * CELL + 16
        parts.append(_text(x, y, str(channel + 1), colours["soft"], 14, anchor="middle"))
    middle, arrow = top + CHANNELS * CELL / 2, left + 22 + INPUTS * CELL
    parts.append(
        f'<path d="M{arrow + 8} {middle} h{GAP - 22} m-7 -5 l8 5 l-8 5" fill="none" stroke="{colours["soft"]}" '
        'stroke-width="1.6"/>'
    )
    parts.append(_text(arrow + GAP / 2 - 1, middle - 12, "ReLU", colours["soft"], 13, anchor="middle"))
    norm = ("√(", "‖row i‖² + ‖column i‖²", ")") if joined else ("", "‖row i‖", "")
    parts.append(_text(left, 276, f"penalty  λ Σ {''.join(norm)}", colours["ink"], 17))
    left_text = "Channel 3 goes: its row and its column." if joined else "A weak row may feed a strong column."
    parts.append(_text(left, 304, left_text, colours["ink"], 16))
    return parts


def _cell(x: float, y: float, fill: str, gone: bool, colours: dict[str, str]) -> str:
    rect = f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="{fill}" stroke="{colours["line"]}"'
    if not gone:
        return rect + "/>"
    cross = f'<path d="M{x + 5} {y + 5} l{CELL - 10} {CELL - 10} m0 {10 - CELL} l{10 - CELL} {CELL - 10}"'
    return f'{rect} fill-opacity="0.25"/>{cross} stroke="{colours["cross"]}" stroke-width="2"/>'


def _text(x: float, y: float, text: str, fill: str, size: int, *, anchor: str = "start", weight: str = "") -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{bold}>{text}</text>'


def main() -> None:
    """Write the two files."""
    for theme in THEMES:
        (ASSETS / f"method-{theme}.svg").write_text(draw(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
