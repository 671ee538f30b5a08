"""Headless Chromium, without a driver: open a page, run steps in it, read what they noted down."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
# the first notes down every error, the second runs the steps when the page is ready and leaves what they return
LISTEN = (
    "<script>window.faults=[];addEventListener('error',e=>faults.push(String(e.message)));"
    "addEventListener('securitypolicyviolation',e=>faults.push('policy: '+e.violatedDirective+' '+e.sourceFile));"
) + "".join(f"console.{kind}=(...a)=>faults.push('{kind}: '+a.join(' '));" for kind in ("error", "warn"))
LEAVE = (
    "<script>(async()=>{{let found;try{{found=await (async()=>{{{steps}}})()}}catch(e){{faults.push(String(e.stack))}}"
    "parent.postMessage(JSON.stringify({{found,faults}}),'*')}})()</script>"
)
# a headless window is never narrower than 500 pixels, a frame in it is; the pages of the list are shown in turn
FRAME = """<!doctype html><style>body{{margin:0}}iframe{{border:0;width:{width}px;height:{height}px}}</style>
<body><iframe></iframe><script>const pages={pages},notes=[],frame=document.querySelector('iframe');
const next=()=>{{if(notes.length<pages.length)frame.src=pages[notes.length];else{{
const note=document.createElement('pre');note.id='noted';
note.textContent=JSON.stringify(notes);document.body.append(note)}}}};
addEventListener('message',e=>{{notes.push(JSON.parse(e.data));next()}});next()</script></body>"""
NOTED = re.compile(r'<pre id="noted">(.*?)</pre>', re.DOTALL)


def find_browser() -> str | None:
    """Return the path of a Chromium, or None."""
    named = os.environ.get("CHROMIUM")
    found = [shutil.which(name) for name in (named, "chromium", "chromium-browser", "google-chrome") if name]
    return next((path for path in found if path), None)


def run_in_page(page: Path, steps: str, folder: Path, width: int = 1400) -> dict[str, Any]:
    """Run JavaScript in a copy of a page; return `{"found": its value, "faults": errors}`.

    Raises:
        RuntimeError: The browser left no note.
    """
    copy = folder / f"copy-{width}.html"
    copy.write_text(_listening(page, steps), encoding="utf-8")
    return _notes_of([copy], folder, width)[0]


def run_in_site(pages: Sequence[Path], steps: str, folder: Path, width: int, *, dark: bool) -> list[dict[str, Any]]:
    """Run JavaScript in each of a site's pages, in copies beside them, which find what the pages load.

    Raises:
        RuntimeError: The browser left no note.
    """
    copies = [page.with_name(f"copy-of-{page.name}") for page in pages]
    for page, copy in zip(pages, copies, strict=True):
        copy.write_text(_listening(page, steps), encoding="utf-8")
    try:
        return _notes_of(copies, folder, width, f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    finally:
        for copy in copies:
            copy.unlink()


def _listening(page: Path, steps: str) -> str:
    """Return a page's source with the script that notes down errors, and the one that runs the steps."""
    text = page.read_text(encoding="utf-8")
    leave = LEAVE.format(steps=steps)
    for script in (f"{LISTEN}</script>", leave):  # the page's policy stays, and lets these two run beside its own
        text = text.replace("script-src ", f"script-src '{_hash(script)}' ", 1)
    head, found, rest = text.rpartition("</body>")
    assert found, f"{page} has no </body>"
    return head.replace("<head>", f"<head>{LISTEN}</script>", 1) + leave + found + rest


def _notes_of(copies: Sequence[Path], folder: Path, width: int, *flags: str) -> list[dict[str, Any]]:
    frame = _frame(copies, folder, width, 1000)
    size = f"--window-size={max(width, 500)},1000"
    budget = f"--virtual-time-budget={8000 * len(copies)}"
    output = _start(frame, folder, [budget, size, "--dump-dom", *flags], seconds=120 + 10 * len(copies))
    noted = NOTED.search(output)
    if noted is None:
        raise RuntimeError(f"the browser left no note; it printed {output[:500]!r}")
    plain = noted.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return list(json.loads(plain))


def _hash(script: str) -> str:
    inner = script.removeprefix("<script>").removesuffix("</script>")
    return f"sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}"


def screenshot(page: Path, image: Path, folder: Path, width: int, height: int = 1600) -> None:
    """Draw a page into a PNG."""
    size = f"--window-size={max(width, 500)},{height}"
    _start(_frame([page], folder, width, height), folder, [f"--screenshot={image}", size, "--virtual-time-budget=4000"])


def _frame(pages: Sequence[Path], folder: Path, width: int, height: int) -> Path:
    frame = folder / f"frame-{width}.html"
    sources = json.dumps([page.resolve().as_uri() for page in pages])
    frame.write_text(FRAME.format(width=width, height=height, pages=sources), encoding="utf-8")
    return frame


def _start(page: Path, folder: Path, flags: list[str], seconds: int = 120) -> str:
    browser = find_browser()
    assert browser is not None, "no Chromium is installed"
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [browser, *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    return done.stdout
