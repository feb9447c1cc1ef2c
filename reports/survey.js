"use strict";
// The report of a survey: the map, the distributions, the table of adapters, and one adapter in detail.
(() => {
  const { data, byId, make, number, term, chart } = deltaw;
  const rows = data.rows.map((values, i) =>
    Object.fromEntries([["_i", i], ...data.columns.map((c, j) => [c, values[j]])]),
  );
  const byName = new Map(rows.map((row) => [row.name, row._i]));
  const dialog = byId("detail");
  const shares = new Set(data.shares);
  let marked = data.mark;
  let opener = null;

  const known = (value) => value !== null && value !== undefined && value !== "";
  const shown = (row, name) => deltaw.written(name, row[name]);

  const fixed = (cosine) => cosine.toFixed(3).replace("-", "−");

  function describe(row) {
    const list = make("dl");
    for (const name of ["cluster", "relative_change", "rank", "nearest_cosine", "flags"])
      if (known(row[name])) list.append(make("dt", {}, name.replace("_", " ")), make("dd", {}, shown(row, name)));
    return [make("p", { className: "tip-name" }, make("bdi", {}, row.name)), list];
  }

  // ── one adapter ───────────────────────────────────────────────────────────────────────────────────────────────
  function nearest(row) {
    const buttons = data.nearest[row._i].map(([i, cosine, half]) =>
      make(
        "button",
        { type: "button", className: "chip", onclick: () => open(i) },
        make("bdi", {}, rows[i].name),
        ` ${fixed(cosine)}${half > 0.0005 ? ` ± ${fixed(half)}` : ""}`,
      ),
    );
    return buttons.length ? make("p", { className: "chips" }, make("span", {}, "Nearest (cosine)"), ...buttons) : null;
  }

  function curves(row) {
    const blocks = (data.spectra.of[row._i] ?? []).filter(([layer]) => layer !== null);
    if (new Set(blocks.map(([layer]) => layer)).size < 2) return [];
    const kind = (b) => data.spectra.kinds[b[1]];
    const change = blocks.filter((b) => b[3]).map((b) => ({ layer: b[0], kind: kind(b), value: b[2] / b[3] }));
    const sigma = blocks.flatMap((b) => b[4].map((value, i) => ({ layer: b[0], kind: kind(b), i: i + 1, value })));
    const common = { x: { label: "layer", tickFormat: "d" }, width: 520, height: 240 };
    const figure = (title, what, options) => {
      const svg = chart({ ...common, ...options });
      svg.setAttribute("aria-label", title);
      return make("figure", {}, make("figcaption", {}, make("h3", {}, title), make("p", {}, what)), svg);
    };
    const palette = [
      "var(--c0072b2)",
      "var(--cd55e00)",
      "var(--c00865f)",
      "var(--cb4568c)",
      "var(--c9a7500)",
      "var(--c3a8fbf)",
      "var(--c6e7781)",
    ];
    const kinds = [...new Set(blocks.map(kind))];
    const paint = (name) => palette[kinds.indexOf(name) % palette.length];
    const out = [];
    if (change.length)
      out.push(
        figure("Relative change by layer", "‖ΔW‖ / ‖W0‖, by kind of module", {
          y: { label: "relative change", grid: true, zero: true },
          marks: [
            Plot.line(change, {
              x: "layer",
              y: "value",
              z: "kind",
              stroke: { value: (d) => paint(d.kind), scale: null },
              strokeWidth: 1.8,
            }),
            Plot.dot(change, { x: "layer", y: "value", fill: { value: (d) => paint(d.kind), scale: null }, r: 2.5 }),
          ],
        }),
      );
    const legend = make(
      "p",
      { className: "legend" },
      ...kinds.map((name) => {
        const swatch = make("span", { className: "swatch", "aria-hidden": "true" });
        swatch.style.background = paint(name);
        return make("span", {}, swatch, name);
      }),
    );
    out[0]?.append(legend);
    if (sigma.length)
      out.push(
        figure("Spectrum by layer", "Leading singular values, one line each; root mean squares over a block", {
          fx: { label: null },
          y: { label: "σ", grid: true, zero: true, ticks: 5 },
          marks: [
            Plot.line(sigma, {
              x: "layer",
              y: "value",
              z: (d) => `${d.kind} ${d.i}`,
              fx: "kind",
              stroke: { value: (d) => paint(d.kind), scale: null },
              strokeOpacity: (d) => 1 - 0.1 * (d.i - 1),
            }),
          ],
        }),
      );
    return [make("div", { className: "charts" }, ...out)];
  }

  function facts(row) {
    const list = make("dl");
    data.columns
      .filter((c) => known(row[c]))
      .forEach((c) =>
        list.append(make("div", {}, make("dt", {}, term(c)), make("dd", {}, make("bdi", {}, shown(row, c))))),
      );
    return make("div", { className: "columns" }, make("section", {}, list));
  }

  function open(i, from = null) {
    const row = rows[i];
    if (!row) return;
    if (from) opener = from;
    if (!dialog.open) dialog.showModal();
    history.replaceState(null, "", `#a=${encodeURIComponent(row.name)}`);
    const close = make(
      "button",
      { type: "button", className: "close", "aria-label": "Close", onclick: () => dialog.close() },
      "✕",
    );
    const heading = make("h2", { id: "detail-title", tabIndex: -1 }, make("code", {}, make("bdi", {}, row.name)));
    const place = [
      row.method,
      known(row.cluster) ? `cluster ${row.cluster}` : "",
      known(row.rank) ? `rank ${row.rank}` : "",
    ];
    dialog.replaceChildren(
      ...[
        make("header", {}, heading, close),
        make("p", { className: "place" }, place.filter(Boolean).join(" · ")),
        row.why ? make("p", { className: "caution" }, make("bdi", {}, row.why)) : null,
        make(
          "p",
          { className: "chips" },
          make("button", { type: "button", className: "chip", onclick: () => mark(i) }, "Mark in all figures"),
          deltaw.copyButton("Copy name", () => row.name),
          deltaw.copyButton("Copy link", () => location.href),
        ),
        nearest(row),
        ...curves(row),
        facts(row),
      ].filter(Boolean),
    );
    dialog.scrollTop = 0;
    heading.focus();
  }

  function follow() {
    const found = location.hash.match(/^#a=(.*)$/);
    if (!found) return;
    let name = found[1];
    try {
      name = decodeURIComponent(name);
    } catch {
      // a stray percent sign
    }
    if (byName.has(name)) open(byName.get(name));
  }

  dialog.addEventListener("close", () => {
    if (location.hash.startsWith("#a=")) history.replaceState(null, "", location.pathname + location.search);
    opener?.focus?.();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  addEventListener("hashchange", follow);

  // ── where one lies among all ──────────────────────────────────────────────────────────────────────────────────
  function distribution(name, { label, log }) {
    const values = rows.filter((r) => known(r[name]) && (!log || r[name] > 0)).map((r) => r[name]);
    if (values.length < 2) return null;
    const [low, high] = d3.extent(values);
    const scale = shares.has(name) ? 100 : 1;
    const mine = rows[marked]?.[name];
    const isShown = known(mine) && (!log || mine > 0);
    // Equal steps on the axis that is drawn.
    const steps = d3
      .range(25)
      .map((i) => (log && low > 0 ? low * (high / low) ** (i / 24) : low + ((high - low) * i) / 24));
    const bins = high > low ? d3.bin().domain([low, high]).thresholds(steps.slice(1, -1))(values) : [];
    const bars = bins.map((b) => ({ x1: b.x0 * scale, x2: b.x1 * scale, n: b.length }));
    const below = isShown ? values.filter((v) => v < mine).length / values.length : null;
    const caption = isShown
      ? `${shown(rows[marked], name)}: above ${number(100 * below, 2)} % of ${number(values.length)}`
      : high > low
        ? `${number(values.length)} adapters`
        : `${shown({ [name]: low }, name)} in all of them`;
    const figure = make(
      "figure",
      {},
      make("figcaption", {}, make("h3", {}, term(name, label)), make("p", {}, caption)),
    );
    if (!bars.length) return figure;
    const svg = chart({
      height: 190,
      width: 380,
      x: {
        label: shares.has(name) ? `${label} in %` : label,
        ...(log ? { type: "log", tickFormat: (v) => number(v) } : {}), // a linear axis has the decimals of its step
        ticks: 5,
      },
      y: { label: "adapters", grid: true, ticks: 4, tickFormat: "d" },
      marks: [
        Plot.rect(bars, { x1: "x1", x2: "x2", y1: 0, y2: "n", fill: "var(--c0072b2)", inset: 0.4 }),
        ...(isShown ? [Plot.ruleX([mine * scale], { stroke: "var(--cd55e00)", strokeWidth: 2.5 })] : []),
      ],
    });
    svg.setAttribute("aria-label", `${label}: ${caption}`);
    figure.append(svg);
    return figure;
  }

  function distributions() {
    const names = Object.keys(data.drawn).filter(
      (n) => n !== "fro_norm" || rows.every((r) => r.relative_change === null),
    );
    byId("among-charts").replaceChildren(...names.map((n) => distribution(n, data.drawn[n])).filter(Boolean));
  }

  function mark(i) {
    marked = i;
    distributions();
    atlas.redraw();
    const input = byId("among-name");
    if (input) input.value = rows[i]?.name ?? "";
  }

  function chooser() {
    const list = make("datalist", { id: "all-names" }, ...rows.map((r) => make("option", { value: r.name })));
    const input = make("input", {
      id: "among-name",
      type: "search",
      placeholder: "an adapter's name",
      value: rows[marked]?.name ?? "",
      onchange: (event) => mark(byName.get(event.target.value) ?? -1),
    });
    input.setAttribute("list", "all-names");
    const show = make("button", { type: "button", onclick: () => open(marked, input) }, "Open it");
    byId("among-tools").append(make("label", {}, "Mark ", input), show, list);
  }

  // ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────
  function adapters() {
    const width = {
      name: 220,
      nearest: 180,
      flags: 120,
      why: 260,
      source: 260,
      base_name: 160,
      method: 84,
      cluster: 84,
    };
    const columns = data.columns.map((field) => ({
      field,
      title: field,
      numeric: data.numeric.includes(field),
      frozen: field === "name" && innerWidth > 900,
      width: width[field] ?? Math.max(96, 8 * field.length + 36),
    }));
    deltaw.table(byId("adapters-table"), columns, rows, {
      file: "adapters.csv",
      toolbar: byId("adapters-tools"),
      open,
    });
  }

  const atlas = deltaw.atlas.draw(rows, { open, describe, marked: () => marked });
  chooser();
  distributions();
  adapters();
  follow();
  deltaw.survey = { atlas, open, mark };
  document.documentElement.dataset.ready = "true";
})();
