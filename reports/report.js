"use strict";
// The report of an analysis: the live heatmaps, the table of layers, and one matrix in detail.
(() => {
  const { data, byId, make, number, term, chart } = deltaw;
  const { columns, spectra, noise, labels, slots, sections } = data;
  // A row knows its number in the whole table, of which the page may hold a part; `params` is no column of the files.
  const rows = data.rows.map((values, i) => {
    const row = Object.fromEntries([["_i", data.numbers[i]], ...columns.map((c, j) => [c, values[j]])]);
    row.params = row.rows * (row.ndim === 1 ? 1 : row.cols);
    return row;
  });
  const byNumber = new Map(rows.map((row) => [row._i, row]));
  const key = (row) => (row.part ? `${row.name}[${row.part}]` : row.name);
  const dialog = byId("detail");
  let opener = null;

  const title = (row) => labels[row._i] ?? key(row);
  const place = (row) => [
    row.kind,
    row.layer === null ? null : `layer ${row.layer}`,
    row.ndim === 1 ? `${row.rows}` : `${row.rows} × ${row.cols}`,
  ];

  function describe(cell) {
    const row = byNumber.get(Number(cell.dataset.m));
    const more = Number(cell.dataset.n || 1);
    const lines = [
      ["relative_change", 3],
      ["rank_90", 3],
      ["rank_90_ratio", 3],
      ["signal_rank", 3],
      ["energy_at_16", 3],
    ];
    const list = make("dl");
    for (const [name, digits] of lines) {
      if (row[name] !== null && row[name] !== undefined)
        list.append(make("dt", {}, name), make("dd", {}, interval(row, name, digits)));
    }
    if (row.resolution) list.append(make("dt", {}, "resolution"), make("dd", {}, row.resolution.replace("_", " ")));
    return [
      make("p", { className: "tip-name" }, make("bdi", {}, title(row))),
      make(
        "p",
        { className: "tip-place" },
        place(row).filter(Boolean).join(" · ") +
          (more > 1 ? ` · one of ${more} matrices in this cell, at their median` : ""),
      ),
      row.route === "unchanged" ? make("p", {}, "unchanged") : list,
    ];
  }

  function interval(row, name, digits = 4) {
    const low = row[`${name}_low`],
      high = row[`${name}_high`];
    const value = deltaw.written(name, row[name], digits);
    return low === null || low === undefined || low === high
      ? value
      : `${value} (${deltaw.written(name, low, digits)} – ${deltaw.written(name, high, digits)})`;
  }

  // ── one matrix ────────────────────────────────────────────────────────────────────────────────────────────────
  function curve(i) {
    const found = spectra[i];
    if (!found) return null;
    const index = data.indices[found.k];
    return found.s.map((sigma, j) => ({ i: index[j], sigma, energy: found.e[j] }));
  }

  function noiseOf(row, norm) {
    const law = noise[`${row.rows}x${row.cols}`];
    return law ? law.i.map((i, j) => ({ i, sigma: law.s[j] * norm, energy: law.e[j] })) : [];
  }

  function spectrumChart(row, points, width) {
    const top = points[0].sigma;
    const positive = points.filter((p) => p.sigma > top * 1e-6);
    const low = positive.at(-1).sigma; // what is below a millionth of σ1 is the solver's own error
    const edge = row.noise_edge > low * 0.02 ? row.noise_edge : null;
    const bottom = Math.min(low, edge ?? low) * 0.5;
    const same = noiseOf(row, row.fro_norm ?? 0).filter((p) => p.sigma >= bottom);
    const rounding = row.rounding_noise > 0 ? noiseOf(row, row.rounding_noise).filter((p) => p.sigma > bottom) : [];
    const marks = [
      Plot.areaY(rounding, { x: "i", y1: bottom, y2: "sigma", fill: "var(--c59636e)", fillOpacity: 0.22 }),
      Plot.line(same, { x: "i", y: "sigma", stroke: "var(--c59636e)", strokeDasharray: "5 4" }),
      edge ? Plot.ruleY([edge], { stroke: "var(--cd55e00)", strokeWidth: 1.25 }) : null,
      edge
        ? Plot.text([edge], {
            y: (d) => d,
            text: ["noise edge"],
            frameAnchor: "right",
            dy: -7,
            textAnchor: "end",
            fill: "var(--cd55e00)",
          })
        : null,
      Plot.line(positive, { x: "i", y: "sigma", stroke: "var(--c0072b2)", strokeWidth: 1.75 }),
      positive.length <= 80 ? Plot.dot(positive, { x: "i", y: "sigma", r: 2.2, fill: "var(--c0072b2)" }) : null,
      Plot.tip(
        positive,
        Plot.pointerX({ x: "i", y: "sigma", fill: "var(--page)", title: (p) => `i = ${p.i}\nσ = ${number(p.sigma)}` }),
      ),
    ];
    return chart({
      width,
      marks: marks.filter(Boolean),
      ariaLabel: `Singular values of ${title(row)} on logarithmic axes`,
      x: { type: "log", label: "i", ticks: 5, tickFormat: (d) => number(d) },
      y: {
        type: "log",
        label: "σᵢ",
        domain: [bottom, top * 1.6],
        ticks: 5,
        tickFormat: (d) => number(d, 2),
        grid: true,
      },
    });
  }

  function energyChart(row, points, width) {
    const ranks = ["rank_50", "rank_90", "rank_95", "rank_99"]
      .map((name) => ({ name, rank: row[name], share: Number(name.slice(5)) / 100 }))
      .filter((d) => d.rank >= 1)
      .map((d) => Object.assign(d, { share: onCurve(points, d.rank, d.share) }));
    const marks = [
      Plot.line(noiseOf(row, 1), { x: "i", y: "energy", stroke: "var(--c59636e)", strokeDasharray: "5 4" }),
      Plot.line(points, { x: "i", y: "energy", stroke: "var(--c0072b2)", strokeWidth: 1.75 }),
      Plot.ruleX(ranks, { x: "rank", y1: 0, y2: "share", stroke: "var(--c9a7500)", strokeWidth: 1 }),
      Plot.dot(ranks, { x: "rank", y: "share", r: 3, fill: "var(--c9a7500)" }),
      Plot.text(separate(ranks), {
        x: "rank",
        y: "share",
        text: (d) => d.label,
        textAnchor: "end",
        dx: -7,
        dy: -6,
        fill: "currentColor",
        fontSize: 11,
      }),
      Plot.tip(
        points,
        Plot.pointerX({
          x: "i",
          y: "energy",
          fill: "var(--page)",
          title: (p) => `r = ${p.i}\n${number(100 * p.energy)} % of the energy`,
        }),
      ),
    ];
    return chart({
      width,
      marks,
      ariaLabel: `Cumulative energy of ${title(row)} against rank`,
      x: { type: "log", label: "rank r", ticks: 5, tickFormat: (d) => number(d) },
      y: { label: "energy of the first r", domain: [0, 1], tickFormat: (d) => `${Math.round(100 * d)} %`, grid: true },
    });
  }

  // Where a curve that is drawn through some of its points (on a logarithmic axis) stands at rank r.
  function onCurve(points, r, otherwise) {
    const after = points.findIndex((p) => p.i >= r);
    if (after < 0) return otherwise;
    if (points[after].i === r || after === 0) return points[after].energy;
    const [a, b] = [points[after - 1], points[after]];
    return a.energy + ((b.energy - a.energy) * Math.log(r / a.i)) / Math.log(b.i / a.i);
  }

  // Ranks that coincide share one label, at the highest of their shares.
  function separate(ranks) {
    const out = new Map();
    for (const d of ranks)
      out.set(d.rank, {
        ...d,
        label:
          [...(out.get(d.rank)?.label.replace(/:.*/, "").split(", ") ?? []), `${d.name.slice(5)} %`].join(", ") +
          `: ${number(d.rank)}`,
      });
    return [...out.values()];
  }

  function charts(row) {
    const points = curve(row._i);
    if (!points || !points.some((p) => p.sigma > 0)) {
      return [
        make(
          "p",
          { className: "absent" },
          row.route === "unchanged"
            ? "This tensor is the same on both sides: there is no update to draw."
            : "A vector has no spectrum.",
        ),
      ];
    }
    const width = Math.min(
      520,
      Math.max(300, Math.floor((dialog.clientWidth || innerWidth) / (innerWidth > 900 ? 2 : 1)) - 48),
    );
    const figure = (heading, note, svg) =>
      make("figure", {}, make("figcaption", {}, make("h3", {}, heading), make("p", {}, note)), svg);
    const seen = points.findLast((p) => p.sigma > points[0].sigma * 1e-6).sigma;
    const rounding = !(row.rounding_noise > 0)
      ? ""
      : row.noise_edge > seen * 0.02
        ? " Grey: the Marchenko–Pastur bulk of its rounding."
        : ` Its rounding lies below the picture: noise edge ${number(row.noise_edge)}.`;
    return [
      make(
        "div",
        { className: "charts" },
        figure(
          "Singular values",
          `Dashed: noise with the norm of this update.${rounding}`,
          spectrumChart(row, points, width),
        ),
        figure(
          "Cumulative energy",
          "Dashed: noise of this shape. Dots: ranks that hold 50, 90, 95 and 99 %.",
          energyChart(row, points, width),
        ),
      ),
    ];
  }

  function warning(row) {
    const text = {
      noisy:
        "Rounding explains 1–50 % of this update's energy: its ranks and its spectrum mix the update with rounding. Only what stands above the noise edge is the update's own.",
      below_precision:
        "Rounding explains more than half of what is stored here: neither the rank nor the spectrum of the update can be read.",
    }[row.resolution];
    return text ? make("p", { className: "caution" }, text) : null;
  }

  const sameSlot = (row) => (other) => slots[other._i] === slots[row._i] && other.stack === row.stack;
  const leadingTo = (r, text) =>
    make("button", { type: "button", className: "chip", onclick: () => open(r._i) }, make("bdi", {}, text));
  const chips = (heading, buttons) =>
    buttons.length ? make("p", { className: "chips" }, make("span", {}, heading), ...buttons) : null;

  // The same module in the layers before and after.
  function steps(row) {
    const column = rows
      .filter((r) => sameSlot(row)(r) && r.layer !== row.layer && r.layer !== null)
      .sort((a, b) => a.layer - b.layer);
    const before = column.findLast((r) => r.layer < row.layer),
      after = column.find((r) => r.layer > row.layer);
    return [
      before && leadingTo(before, `← layer ${before.layer}`),
      after && leadingTo(after, `layer ${after.layer} →`),
    ].filter(Boolean);
  }

  function neighbours(row) {
    const same = sameSlot(row);
    const twins = rows.filter((r) => same(r) && r.layer === row.layer && r._i !== row._i);
    const layer = rows.filter(
      (r) => r.layer === row.layer && r.stack === row.stack && r._i !== row._i && !same(r) && r.ndim !== 1,
    );
    return make(
      "nav",
      { "aria-label": "Neighbours" },
      chips(
        "Same layer",
        layer.slice(0, 24).map((r) => leadingTo(r, r.part ? `${r.module}[${r.part}]` : r.module)),
      ),
      chips(
        "Same cell",
        twins.slice(0, 64).map((r) => leadingTo(r, r.part || r.module)),
      ),
    );
  }

  // What a reader asks first: how far it moved, its rank against noise, what an adapter keeps.
  function headline(row) {
    const hidden = (name) => data.hidden_by_noise.includes(name) && row.resolution && row.resolution !== "resolved";
    const known = (name) => row[name] !== null && row[name] !== undefined && row[name] !== "";
    const null_ = known("rank_90_null") ? `noise: ${number(row.rank_90_null)}` : "";
    const items = [
      ["relative_change", "relative change", "‖ΔW‖ / ‖W0‖"],
      ["rank_90", "rank for 90 %", null_],
      ["rank_90_denoised", "rank for 90 %, denoised", null_],
      ["signal_rank", "above rounding", "directions"],
      ["energy_at_16", "kept by rank 16", "at best"],
      ["energy_at_16_denoised", "kept by rank 16, denoised", "at best"],
    ].filter(([name]) => known(name) && !hidden(name));
    if (!items.length) return null;
    return make(
      "dl",
      { className: "five" },
      ...items.map(([name, label, meaning]) =>
        make(
          "div",
          {},
          make("dt", {}, term(name, label)),
          make("dd", {}, make("strong", {}, interval(row, name, 3)), make("span", {}, meaning)),
        ),
      ),
    );
  }

  // The name, a link to this matrix, and its numbers as two columns of a spreadsheet.
  function copies(row) {
    const numbers = columns
      .filter((c) => row[c] !== null && row[c] !== undefined && row[c] !== "")
      .map((c) => `${c}\t${row[c]}`);
    return [
      deltaw.copyButton("Copy name", () => key(row)),
      deltaw.copyButton("Copy link", () => location.href),
      deltaw.copyButton("Copy numbers", () => numbers.join("\n")),
    ];
  }

  function facts(row) {
    const block = (heading, names) => {
      const known = names.filter((n) => row[n] !== null && row[n] !== undefined && row[n] !== "");
      if (!known.length) return null;
      const list = make("dl");
      known.forEach((n) =>
        list.append(make("div", {}, make("dt", {}, term(n)), make("dd", {}, make("bdi", {}, interval(row, n, 6))))),
      );
      return make("section", {}, make("h3", {}, heading), list);
    };
    return make(
      "div",
      { className: "columns" },
      ...[...Object.entries(sections).slice(1), ["identity", sections.identity]]
        .map(([heading, names]) => block(heading, names))
        .filter(Boolean),
    );
  }

  function open(i, from = null) {
    const row = byNumber.get(i);
    if (!row) return;
    if (from) opener = from;
    if (!dialog.open) dialog.showModal();
    history.replaceState(null, "", `#m=${encodeURIComponent(key(row))}`);
    const close = make(
      "button",
      { type: "button", className: "close", "aria-label": "Close", onclick: () => dialog.close() },
      "✕",
    );
    const heading = make("h2", { id: "detail-title", tabIndex: -1 }, make("code", {}, make("bdi", {}, title(row))));
    dialog.replaceChildren(
      ...[
        make("header", {}, heading, close),
        make(
          "p",
          { className: "place" },
          place(row).filter(Boolean).join(" · "),
          ` · ${row.base_dtype || "no base"} → ${row.ft_dtype} · ${row.route}, ${row.method}`,
        ),
        make("p", { className: "chips" }, ...steps(row), ...copies(row)),
        warning(row),
        headline(row),
        ...charts(row),
        facts(row),
        neighbours(row),
      ].filter(Boolean),
    );
    dialog.scrollTop = 0;
    heading.focus();
  }

  // `#m=NAME` opens a matrix: a link to it can be sent.
  function follow() {
    const found = location.hash.match(/^#m=(.*)$/);
    if (!found) return;
    const wanted = decoded(found[1]);
    const row = rows.find((r) => key(r) === wanted);
    if (row) open(row._i);
  }

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // a stray percent sign
    }
  }

  dialog.addEventListener("close", () => {
    if (location.hash.startsWith("#m=")) history.replaceState(null, "", location.pathname + location.search);
    opener?.focus?.();
  });
  addEventListener("hashchange", follow);
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    const buttons = [...dialog.querySelectorAll(".chip")];
    if (event.key === "ArrowLeft" && event.altKey) buttons.find((c) => c.textContent.startsWith("←"))?.click();
    if (event.key === "ArrowRight" && event.altKey) buttons.find((c) => c.textContent.endsWith("→"))?.click();
  });

  // ── the table of layers ───────────────────────────────────────────────────────────────────────────────────────
  const overview = [
    "name",
    "kind",
    "layer",
    "params",
    "relative_change",
    "rank_90",
    "rank_90_ratio",
    "signal_rank",
    "energy_at_16",
    "resolution",
  ];
  const text = new Set(data.text_columns);

  function layers() {
    const element = byId("layers-table");
    if (!element || !rows.length) return;
    const width = { name: 256, layer: 70, kind: 96, resolution: 104, params: 96 };
    const define = (field) => ({
      field,
      title: field,
      numeric: !text.has(field),
      frozen: field === "name" && innerWidth > 900,
      // Wide enough for the heading in one line.
      width: width[field] ?? (text.has(field) ? undefined : Math.max(96, 8 * field.length + 36)),
    });
    const saved = columns.map(define);
    const all = [...saved, define("params")];
    const used = new Set(["params", ...columns].filter((c) => rows.some((r) => r[c] !== null && r[c] !== "")));
    const choose = (names) => names.map((n) => all.find((c) => c.field === n)).filter((c) => c && used.has(c.field));
    const toolbar = byId("layers-tools");
    const choice = make(
      "select",
      { id: "layers-columns" },
      ...["overview", ...Object.keys(sections), "all columns"].map((v) => make("option", { value: v }, v)),
    );
    toolbar.append(make("label", {}, "Columns ", choice));
    const by = used.has("relative_change") ? "relative_change" : "fro_norm";
    const grid = deltaw.table(element, choose(overview), rows, { open, file: "layers.csv", toolbar, saved, by });
    vectors(grid, toolbar);
    choice.addEventListener("change", () => {
      const head = ["name", "kind", "layer"];
      const named = { overview, "all columns": columns }[choice.value] ?? [
        ...head,
        ...sections[choice.value].filter((c) => !head.includes(c)),
      ];
      grid.showColumns(choose(named));
    });
  }

  // Norms and biases have no ranks: they are shown when asked for, or where there is nothing else.
  function vectors(grid, toolbar) {
    const count = rows.filter((r) => r.route === "vector").length;
    if (!count || count === rows.length) return;
    const button = make("button", { type: "button", "aria-pressed": "false" }, `Norms and biases (${number(count)})`);
    const matrices = (row) => row.route !== "vector";
    grid.on("tableBuilt", () => grid.setFilter(matrices));
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      if (on) grid.clearFilter();
      else grid.setFilter(matrices);
    });
    toolbar.append(button);
  }

  layers();
  follow();
  document.querySelectorAll("figure[data-live]").forEach((figure) => deltaw.heatmap(figure, open, describe));
  document.querySelectorAll("a[data-open]").forEach((a) =>
    a.addEventListener("click", (event) => {
      event.preventDefault();
      open(Number(a.dataset.open), a);
    }),
  );
  document.documentElement.dataset.ready = "true";
})();
