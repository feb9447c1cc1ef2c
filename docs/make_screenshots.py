"""Look at the reports: every kind of pair, comparison and survey, on a light, a dark, a small and a printed page.

`python docs/make_screenshots.py OUT` writes OUT/KIND/report.html and OUT/KIND-{light,dark,phone,print}.png;
`--only KIND` takes some of them. `python docs/make_screenshots.py --readme docs/report.png` takes the README's picture:
the first screen of the demo's report.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from example_pairs import ANALYSES, COMPARISONS, SURVEYS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

KINDS = {**ANALYSES, **COMPARISONS, **SURVEYS}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Screen:
    """One way to look at a page: its size in CSS pixels, and how it is shown."""

    width: int
    height: int
    scheme: str = "light"
    media: str = "screen"
    scale: float = 1.0
    whole: bool = True


SCREENS = {
    "first": Screen(1200, 1010, whole=False),
    "light": Screen(1200, 900),
    "dark": Screen(1200, 900, scheme="dark"),
    "phone": Screen(390, 800),
    "print": Screen(794, 1123, media="print"),
}
README = Screen(1200, 1010, scale=1.5, whole=False)


def take(browser: Browser, report: Path, picture: Path, screen: Screen) -> None:
    """Write a PNG of a report."""
    page = browser.new_page(
        viewport={"width": screen.width, "height": screen.height},
        device_scale_factor=screen.scale,
        color_scheme="dark" if screen.scheme == "dark" else "light",
    )
    page.goto(report.resolve().as_uri())
    page.wait_for_selector("html[data-ready]")
    page.emulate_media(media="print" if screen.media == "print" else "screen")
    page.screenshot(path=picture, full_page=screen.whole)
    page.close()


def render(kinds: list[str], out: Path) -> list[Path]:
    """Measure the pairs and write their reports."""
    reports = []
    for kind in kinds:
        folder = out / kind
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as inputs:
            result = KINDS[kind](Path(inputs))
            reports.append(result.report(folder / "report.html"))
        sys.stdout.write(f"{reports[-1]}\n")
    return reports


def main() -> None:
    """Parse the arguments and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("screenshots"))
    parser.add_argument("--only", action="append", choices=list(KINDS), default=[])
    parser.add_argument("--screen", action="append", choices=[*SCREENS], default=[])
    parser.add_argument("--readme", type=Path, metavar="PNG", help="only this picture")
    arguments = parser.parse_args()
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        sys.exit(f"No browser found: put one of {', '.join(BROWSERS)} on the PATH.")
    reports = render(["demo"] if arguments.readme else arguments.only or list(KINDS), arguments.out)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for report in reports:
            if arguments.readme:
                take(browser, report, arguments.readme, README)
                continue
            for name in arguments.screen or SCREENS:
                take(browser, report, arguments.out / f"{report.parent.name}-{name}.png", SCREENS[name])
        browser.close()


if __name__ == "__main__":
    main()
