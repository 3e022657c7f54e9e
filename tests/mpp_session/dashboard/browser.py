"""A real Chromium, which fails the test for each violation of the pages' policy.

One serves all tests of a process; each test has a context of its own, as for another person.
"""

import asyncio
import atexit
import functools
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import BrowserContext, Page, ViewportSize, async_playwright, expect

from debian import find_program
from tests.waiting import PATIENCE_S

__all__ = ["DESKTOP", "PHONE", "open_page"]

expect.set_options(timeout=1000 * PATIENCE_S)

DESKTOP = ViewportSize(width=1200, height=800)
PHONE = ViewportSize(width=360, height=740)


@asynccontextmanager
async def open_page(
    *,
    size: ViewportSize = DESKTOP,
    scheme: Literal["light", "dark"] = "light",
    scripts: bool = True,
) -> AsyncIterator[Page]:
    """Open an empty page; at its end check that no script failed and no policy was violated."""
    found = find_program("chromium")
    if found.path is None:
        pytest.skip(found.reason)
    url = await asyncio.to_thread(_start, str(found.path))
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(url)
        try:
            context = await browser.new_context(
                viewport=size, color_scheme=scheme, java_script_enabled=scripts
            )
            page = await context.new_page()
            faults: list[str] = []
            await _collect(context, page, faults)
            yield page
            assert faults == []
        finally:
            await browser.close()


@functools.cache
def _start(program: str) -> str:
    """Start the browser of this process, and return where it takes orders."""
    folder = Path(tempfile.mkdtemp(prefix="chromium-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    browser = subprocess.Popen(  # noqa: S603 - Debian's
        [
            program,
            "--headless=new",
            "--no-sandbox",
            "--hide-scrollbars",
            "--font-render-hinting=none",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(browser.wait)
    atexit.register(browser.terminate)  # the last that is registered is the first that runs
    port, until = folder / "DevToolsActivePort", time.monotonic() + PATIENCE_S
    while not port.exists() or not port.read_text():
        assert browser.poll() is None, "the browser ended"
        assert time.monotonic() < until, "the browser does not start"
        time.sleep(0.02)
    return f"http://127.0.0.1:{port.read_text().split()[0]}"


async def _collect(context: BrowserContext, page: Page, faults: list[str]) -> None:
    """Chromium reports a violated policy, and a script's failure, as errors of its console."""
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(f"a dialog: {dialog.message}"))

    def report(directive: str) -> None:
        faults.append(directive)

    await context.expose_function("report", report)
    await context.add_init_script(
        "addEventListener('securitypolicyviolation', e => report(e.violatedDirective))"
    )
