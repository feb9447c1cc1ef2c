"""The browser that reports are opened in: one for all tests of a process, which can run no second one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium, or a skip that says what is missing."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install deltaw[dev])"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Visit:
    """A page of a report, and whatever it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in {"error", "warning"} else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(path.as_uri())

    def ready(self) -> Any:
        self.page.wait_for_selector("html[data-ready]", timeout=20_000)
        # A table lays its rows out anew in the frame after it was built: a click in between would meet a row that goes.
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self.page

    def open_row(self, number: int) -> Any:
        """The dialog of a matrix, opened by a click on its row of the table."""
        page = self.ready()
        # The first cell stays in view: to reach the middle of a wide row, the table would be scrolled under the click.
        page.locator("#layers-table .tabulator-row").nth(number).locator(".tabulator-cell").first.click()
        page.wait_for_selector("#detail[open] dt")
        return page

    def quiet(self) -> None:
        """Nothing in the console, and no request but for the file (and what is inside it)."""
        assert self.errors == []
        assert [r for r in self.requests if not r.startswith(("file:", "data:", "blob:"))] == []
        assert len([r for r in self.requests if r.startswith("file:")]) == 1


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    """Open a report; at the end it must have been quiet, whatever was done to it."""
    visits: list[Visit] = []

    def open_(path: Path, **options: Any) -> Visit:
        visits.append(Visit(chromium, path, **options))
        return visits[-1]

    yield open_
    for v in visits:
        v.quiet()
        v.context.close()
