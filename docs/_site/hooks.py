"""What MkDocs does not do by itself: pages from outside docs/, notebooks as pages, and formulas as MathML.

Documents link to each other by their places in the repository, so that the same links work on a code host. A link to a
document, figure or table outside docs/ takes that file into the site, below `repository/`. A link to source code or to
a folder becomes plain text: the site holds no source.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = "repository/"
ALWAYS = ("PAPER.md", "RESULTS.md", "LOG.md", "CONTRIBUTING.md", "CHANGELOG.md")
KINDS = {".md", ".svg", ".png", ".pdf", ".html", ".csv", ".tex", ".json", ".cff"}

FENCE = re.compile(r"(^```.*?^```\s*$)", re.MULTILINE | re.DOTALL)
EMPTY_HEADER = re.compile(r"<th( [^>]*)?></th>")
LINK = re.compile(r"(?<!\\)(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write formulas as MathML, on pages and in docstrings alike."""
    config.markdown_extensions.append(Formulas())  # type: ignore[arg-type]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebooks and what the documents link to outside docs/."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text = notebook_page(Path(str(notebook.abs_src_path)))
        files.append(File.generated(config, notebook.src_uri.removesuffix("ipynb") + "md", content=text))
    waiting = [ROOT / name for name in ALWAYS]
    waiting += [path for file in files.documentation_pages() for path in _linked(Path(config.docs_dir, file.src_uri))]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or path.is_relative_to(config.docs_dir):
            continue
        seen.add(path)
        name = OUTSIDE + path.relative_to(ROOT).as_posix()
        if path.suffix == ".md":
            files.append(File.generated(config, name, content=path.read_text("utf-8")))
            waiting += _linked(path)
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let every link lead to the place of its file in the site."""
    source = page.file.src_uri
    origin = posixpath.dirname(source.removeprefix(OUTSIDE) if source.startswith(OUTSIDE) else f"docs/{source}")

    def rewrite(match: re.Match[str]) -> str:
        mark, text, link = match.groups()
        file, hash_, anchor = link.partition("#")
        if not file or "://" in link or link.startswith("mailto:"):
            return match[0]
        target = posixpath.normpath(posixpath.join(origin, file))
        inside = target.startswith("docs/")
        name = target.removeprefix("docs/") if inside else OUTSIDE + target
        if name.endswith(".ipynb") and text != "notebook file":
            name = name.removesuffix("ipynb") + "md"
        if files.get_file_from_path(name) is None:
            return text if not inside else match[0]  # MkDocs names the broken ones
        return f"{mark}[{text}]({posixpath.relpath(name, posixpath.dirname(source) or '.')}{hash_}{anchor})"

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(rewrite, part) for part in parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the empty corner of a table as a cell: a header without text says nothing to a screen reader."""
    return EMPTY_HEADER.sub(r"<td\1></td>", html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Name the search dialog."""
    return _name_search(output)


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """Name it on the page for addresses that do not exist, too."""
    return _name_search(output_content)


def _name_search(html: str) -> str:
    """Return a page whose search dialog has the name that the theme does not give it."""
    dialog = ' data-md-component="search" role="dialog"'
    return html.replace(dialog, f'{dialog} aria-label="Search"')


def _linked(path: Path) -> Iterator[Path]:
    """Yield the files that a document links to and that the site can show."""
    if not path.is_file():
        return
    for part in FENCE.split(path.read_text("utf-8")):
        if part.startswith("```"):
            continue
        for _, _, link in LINK.findall(part):
            target = Path(os.path.normpath(path.parent / link.partition("#")[0]))
            if target.suffix in KINDS and target.is_file() and target.is_relative_to(ROOT):
                yield target


def notebook_page(path: Path) -> str:
    """Return a notebook as Markdown: texts, code, and what it printed and drew."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            parts += [text for output in cell["outputs"] if (text := _output(output))]
    title, _, rest = "\n\n".join(parts).partition("\n")
    return f"{title}\n\n*This page is the [notebook file]({path.name}), saved with its outputs.*\n{rest}\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![Output of the cell](data:image/png;base64,{''.join(data['image/png']).strip()})"
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


class Formulas(Extension):
    """Formulas between `$$` or in `$`...`$`, and those of docstrings in reStructuredText, become MathML."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register with Python-Markdown: after fences are set aside, before HTML blocks are."""
        md.preprocessors.register(_ToMathML(md), "formulas", 22)


class _ToMathML(Preprocessor):
    BLOCK = re.compile(r"^\$\$\n?(.+?)\n?\$\$$|^\.\. math::\s+(.+?)(?=\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
    INLINE = re.compile(r"\$`(.+?)`\$|:math:`(.+?)`", re.DOTALL)

    def run(self, lines: list[str]) -> list[str]:
        """Replace formulas by placeholders of their MathML."""
        text = self.BLOCK.sub(self._block, "\n".join(lines))
        return self.INLINE.sub(self._inline, text).split("\n")

    def _block(self, match: re.Match[str]) -> str:
        html = convert(" ".join((match[1] or match[2]).split()), display="block")
        return "\n\n" + self.md.htmlStash.store(f'<div class="formula">{html}</div>') + "\n\n"

    def _inline(self, match: re.Match[str]) -> str:
        return self.md.htmlStash.store(convert(" ".join((match[1] or match[2]).split())))
