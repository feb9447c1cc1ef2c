"""What a page shows that cannot be read: beyond its edge, cut off, or one text over another."""

from typing import Any

# Boxes of texts hold a whole line: two touch where more than a third of the lower one is covered.
FAULTS = r"""
(paper) => {
  const out = [];
  const width = document.documentElement.clientWidth;
  const seen = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const scrolls = (e) => !paper && ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const hides = (e) => getComputedStyle(e).overflowX !== "visible" && !scrolls(e);
  const ours = (e) => !e.closest(".vh, .skip, .tabulator"); // for the ear, and a table that scrolls by itself
  const about = (e) => `${e.closest("[id]")?.id}: ${e.textContent.trim().slice(0, 40)}`;
  for (const e of document.body.querySelectorAll(":not(svg *)")) {
    const box = e.getBoundingClientRect();
    if (!box.width || !seen(e) || !ours(e)) continue;
    let around = e.parentElement;
    while (around && !scrolls(around)) around = around.parentElement;
    if (!around && box.right > width + 1) out.push(`beyond the edge ${about(e)}`);
    if (hides(e) && e.scrollWidth > e.clientWidth + 1 && e.textContent.trim()) out.push(`cut off ${about(e)}`);
  }
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    if (!frame.width || !seen(svg)) continue;
    const texts = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim());
    const boxes = texts.map((t) => [t, t.getBoundingClientRect()]);
    for (const [t, b] of boxes) {
      const over = Math.max(frame.left - b.left, b.right - frame.right, frame.top - b.top, b.bottom - frame.bottom);
      if (over > 2) out.push(`out of its figure ${about(t)}`);
    }
    boxes.forEach(([a, p], i) => {
      for (const [b, q] of boxes.slice(i + 1)) {
        const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
        const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
        if (wide > 1 && high > Math.max(1, 0.34 * Math.min(p.height, q.height)))
          out.push(`one over the other ${about(a)} / ${b.textContent}`);
      }
    });
  }
  return [...new Set(out)];
}
"""


def faults(page: Any, *, paper: bool = False) -> list[str]:
    """What cannot be read on an open page, as it is shown, or on A4 paper."""
    if paper:
        page.set_viewport_size({"width": 687, "height": 1000})  # 182 mm, what the margins leave
        page.emulate_media(media="print")
    found: list[str] = page.evaluate(FAULTS, paper)
    return found
