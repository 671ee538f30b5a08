"""Escaping of texts from files: one function per output format.

Whatever a record, a sweep or a table from elsewhere holds is text and nothing else: no markup, formula or command.
HTML is escaped by the template `reporting/assets/report.html`, which escapes everything.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

# what a Markdown reader takes for markup inside a line: emphasis, code, links, images, cells, mathematics
MARKDOWN = re.compile(r"([\\`*\[\]#|~$]|(?<![^\W_])_|_(?![^\W_]))")

HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}

# what Markdown readers turn into links
ADDRESS = re.compile(
    r"(?i)([a-z][a-z0-9+.-]*(?=://)|\b(?:mailto|xmpp|javascript|vbscript|data)(?=:)):|(www)\.|(?<=\S)@(?=\S)"
)

BROKEN = {"\ue000": "&#58;", "\ue001": "&#46;", "\ue002": "&#64;"}  # `one_line` leaves none of these in a text

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "°": r"$^\circ$",
    "−": "$-$",
    "×": r"$\times$",
    "λ": r"$\lambda$",
}

FULL_WIDTH = ("\uff1d", "\uff0b", "\uff0d", "\uff20")  # =, +, - and @ as East Asian keyboards have them

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", *FULL_WIDTH)  # how a cell begins that a spreadsheet computes

HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # Unicode categories that steer a terminal or the order of what is read


def one_line(text: str) -> str:
    """Return a text in one line: breaks become spaces, and characters that are not seen disappear."""
    spaced = re.sub(r"[\s\x85\u2028\u2029]+", " ", text)
    return "".join(character for character in spaced if unicodedata.category(character) not in HIDDEN).strip()


def for_markdown(text: str) -> str:
    r"""Return a text as Markdown that shows it, inside a line and without a link.

    Examples:
        >>> for_markdown("a|b <script>")
        'a\\|b &lt;script&gt;'
        >>> for_markdown("javascript:alert(1)")
        'javascript&#58;alert(1)'
    """
    escaped = MARKDOWN.sub(r"\\\1", ADDRESS.sub(_broken, one_line(text)))
    for character, entity in HTML.items():
        escaped = escaped.replace(character, entity)
    for private, entity in BROKEN.items():
        escaped = escaped.replace(private, entity)
    return escaped


def _broken(found: re.Match[str]) -> str:
    scheme, www = found.groups()
    return f"{scheme}\ue000" if scheme else f"{www}\ue001" if www else "\ue002"


def for_latex(text: str) -> str:
    r"""Return a text as LaTeX that prints it.

    Examples:
        >>> for_latex(r"50 % \input{x}")
        '50 \\% \\textbackslash{}input\\{x\\}'
    """
    return "".join(LATEX.get(character, character) for character in one_line(text))


def for_figure(text: str) -> str:
    r"""Return a text that matplotlib draws as it is: dollars do not begin a formula; line breaks stay.

    Examples:
        >>> for_figure(r"$\frac$")
        '\\$\\frac\\$'
    """
    return "\n".join(one_line(line).replace("$", r"\$") for line in text.split("\n"))


def for_csv(text: str) -> str:
    """Return a text as a cell that no spreadsheet computes: a formula gets an apostrophe in front.

    Examples:
        >>> for_csv("=HYPERLINK(1)")
        "'=HYPERLINK(1)"
    """
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) or text.lstrip().startswith(FORMULA) else text


def for_terminal(text: str) -> str:
    r"""Return a text that moves no cursor: what is not seen is written as its code, lines and tabs stay.

    Examples:
        >>> for_terminal("red\x1b[31m")
        'red\\x1b[31m'
    """
    return "".join(_seen(character) for character in text)


def _seen(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in HIDDEN:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def for_script(values: Any) -> str:
    r"""Return values as JSON for a `<script>` element: nothing in it can end the element or begin a comment.

    Examples:
        >>> for_script({"title": "<!--<script>"})
        '{"title":"\\u003c!--\\u003cscript\\u003e"}'
    """
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return "".join(_harmless(character) for character in text)


def _harmless(character: str) -> str:
    if character not in "<>&" and unicodedata.category(character) not in HIDDEN:
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
