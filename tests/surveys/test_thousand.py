"""The report of a thousand adapters of 32 layers: not too large, and soon in the reader's hands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.surveys.test_report import made_up

LARGEST = 15e6  # bytes
SOON = 3.0  # seconds of the page's own thread, whatever else the machine does


@pytest.mark.browser
def test_a_thousand_adapters_are_soon_interactive(visit: Any, tmp_path: Path):
    report = made_up(1000, layers=32).report(tmp_path / "report.html")
    assert report.stat().st_size < LARGEST
    visited = visit(report)
    session = visited.context.new_cdp_session(visited.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    visited.requests.clear()
    visited.page.reload()
    page = visited.ready()
    metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    assert 0.05 < metrics["TaskDuration"] < SOON
    page.locator("#adapters-table .tabulator-header-filter input").first.press_sequentially("run-777")
    page.locator("#adapters-table .tabulator-row").nth(1).wait_for(state="detached")
    page.locator("#adapters-table .tabulator-row .tabulator-cell").first.click()
    page.wait_for_selector("#detail[open]")
    assert "run-777" in page.locator("#detail-title").inner_text()
