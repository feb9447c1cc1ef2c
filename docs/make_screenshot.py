"""Take the README's picture: the first screen of the demo's real report, in a headless Chromium.

After `make demo`: `python docs/make_screenshot.py deltaw-demo/report.html docs/report.png`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT, SCALE = 1200, 1010, 1.5  # CSS pixels; the picture is sharp on a dense screen and still small


def screenshot(report: Path, picture: Path, dark: bool = False) -> None:
    """Write a PNG of the first screen of a report."""
    from playwright.sync_api import sync_playwright

    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"No browser found: put one of {', '.join(BROWSERS)} on the PATH.")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(
            viewport={"width": WIDTH, "height": HEIGHT},
            device_scale_factor=SCALE,
            color_scheme="dark" if dark else "light",
        )
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("html[data-ready]")
        page.screenshot(path=picture)
        chromium.close()


def main() -> None:
    """Parse the arguments and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("report", type=Path, nargs="?", default=Path("deltaw-demo/report.html"))
    parser.add_argument("picture", type=Path, nargs="?", default=Path("docs/report.png"))
    parser.add_argument("--dark", action="store_true")
    arguments = parser.parse_args()
    if not arguments.report.is_file():
        sys.exit(f"{arguments.report} is not there; run `make demo` first.")
    screenshot(arguments.report, arguments.picture, arguments.dark)


if __name__ == "__main__":
    main()
