"use strict";
// The map of a survey: every adapter as a point on a canvas, which zooms, colours by any column, and opens what is clicked.
deltaw.atlas = (() => {
  const { data, byId, make, number } = deltaw;
  const GROUPS = ["#0072b2", "#d55e00", "#00865f", "#b4568c", "#9a7500", "#3a8fbf", "#7a52a3"];
  const AXES = [
    [0, 1],
    [0, 2],
    [1, 2],
    [2, 3],
  ];
  const LOG = new Set(["relative_change", "fro_norm", "factor_balance", "parameters"]);
  const NEAR = 12; // pixels within which a point is meant

  // The page's own colours, which follow its theme.
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const group = (i) => colour(`--c${GROUPS[i].slice(1)}`) || GROUPS[i];

  // Colours by a column: the most frequent words have one each, numbers a ramp.
  function colouring(rows, column, numeric) {
    const rest = colour("--c6e7781") || "#6e7781";
    if (numeric) {
      const known = rows.map((r) => r[column]).filter((v) => v !== null && (!LOG.has(column) || v > 0));
      const [low, high] = d3.extent(known);
      const scale = (LOG.has(column) ? d3.scaleSequentialLog : d3.scaleSequential)(
        [low, high === low ? low * 1.01 + 1e-9 : high],
        (t) => d3.interpolateViridis(0.08 + 0.87 * t),
      );
      const swatches = [0, 0.25, 0.5, 0.75, 1].map((q) => d3.quantile(known, q)).filter((v) => v !== undefined);
      return {
        of: (row) => (row[column] === null || (LOG.has(column) && !(row[column] > 0)) ? rest : scale(row[column])),
        legend: [...new Set(swatches)].map((v) => [scale(v), number(v)]),
      };
    }
    const counts = d3.rollup(
      rows.filter((r) => r[column] !== null && r[column] !== ""),
      (v) => v.length,
      (r) => r[column],
    );
    const common = [...counts].sort((a, b) => b[1] - a[1]).filter(([, n]) => n > 1 || counts.size <= GROUPS.length);
    const shown = new Map(common.slice(0, GROUPS.length).map(([value], i) => [value, group(i)]));
    const without = column === "cluster" ? "in no cluster" : "none";
    const grey = shown.size === counts.size ? without : shown.size ? "others" : "all different";
    return {
      of: (row) => shown.get(row[column]) ?? rest,
      legend: [
        ...[...shown].map(([value, c]) => [c, `${value} (${counts.get(value)})`]),
        ...(shown.size < counts.size || rows.some((r) => !r[column]) ? [[rest, grey]] : []),
      ],
    };
  }

  function draw(rows, { open, describe, marked }) {
    const place = byId("map-canvas");
    const points = rows.filter((row) => data.at[row._i]);
    if (points.length < 3) {
      place.append(make("p", { className: "absent" }, "No map: three adapters that can be compared are needed."));
      return { redraw() {} };
    }
    const canvas = make("canvas", {
      tabIndex: 0,
      role: "img",
      "aria-label": `A map of ${points.length} adapters; the table of all adapters has the same`,
    });
    place.append(canvas);
    const pen = canvas.getContext("2d");
    const tip = byId("tip");
    let [x, y] = [0, 1];
    let by = "cluster";
    let paint = null;
    let view = d3.zoomIdentity;
    let tree = null;
    let scales = null;
    let hovered = null;

    const at = (row) => [scales[0](data.at[row._i][x]), scales[1](data.at[row._i][y])];

    function layout() {
      const width = Math.max(280, place.clientWidth);
      const height = Math.min(560, Math.round(0.68 * width));
      const ratio = devicePixelRatio || 1;
      Object.assign(canvas, { width: width * ratio, height: height * ratio });
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      const [xs, ys] = [x, y].map((axis) => d3.extent(points, (row) => data.at[row._i][axis]));
      const unit = Math.max((xs[1] - xs[0]) / (width - 48), (ys[1] - ys[0]) / (height - 48), 1e-9); // one for both axes
      const around = (ends, size) => {
        const half = (unit * size) / 2;
        const middle = (ends[0] + ends[1]) / 2;
        return [middle - half, middle + half];
      };
      scales = [d3.scaleLinear(around(xs, width), [0, width]), d3.scaleLinear(around(ys, height), [height, 0])];
      tree = d3.quadtree(
        points,
        (row) => at(row)[0],
        (row) => at(row)[1],
      );
      return [width, height];
    }

    let [width, height] = layout();

    function redraw() {
      pen.clearRect(0, 0, width, height);
      const size = points.length > 1500 ? 2.6 : 4;
      const ring = (row, stroke, radius, line) => {
        const [px, py] = view.apply(at(row));
        pen.beginPath();
        pen.arc(px, py, radius, 0, 2 * Math.PI);
        pen.lineWidth = line;
        pen.strokeStyle = stroke;
        pen.stroke();
      };
      pen.globalAlpha = 0.8;
      for (const row of points) {
        const [px, py] = view.apply(at(row));
        if (px < -9 || py < -9 || px > width + 9 || py > height + 9) continue;
        pen.beginPath();
        pen.arc(px, py, size, 0, 2 * Math.PI);
        pen.fillStyle = paint.of(row);
        pen.fill();
      }
      pen.globalAlpha = 1;
      const mine = rows[marked()];
      if (mine && data.at[mine._i]) ring(mine, colour("--ink"), 9, 2.5);
      if (hovered) ring(hovered, colour("--accent"), 7, 2);
    }

    function recolour() {
      paint = colouring(points, by, data.numeric.includes(by) && by !== "cluster");
      byId("map-legend").replaceChildren(
        ...paint.legend.map(([fill, text]) => {
          const swatch = make("span", { className: "swatch", "aria-hidden": "true" });
          swatch.style.background = fill;
          return make("span", {}, swatch, make("bdi", {}, text));
        }),
      );
      redraw();
    }

    function found(event) {
      const [px, py] = d3.pointer(event, canvas);
      const [ux, uy] = view.invert([px, py]);
      return tree.find(ux, uy, NEAR / view.k);
    }

    canvas.addEventListener("pointermove", (event) => {
      const row = found(event);
      canvas.style.cursor = row ? "pointer" : "";
      if (row === hovered) return;
      hovered = row ?? null;
      tip.hidden = !row;
      if (row) {
        tip.replaceChildren(...describe(row));
        const box = canvas.getBoundingClientRect();
        const [px, py] = view.apply(at(row));
        deltaw.placeTip(tip, new DOMRect(box.left + px - 4, box.top + py - 4, 8, 8));
      }
      redraw();
    });
    canvas.addEventListener("pointerleave", () => {
      hovered = null;
      tip.hidden = true;
      redraw();
    });
    canvas.addEventListener("click", (event) => {
      const row = found(event);
      if (row) {
        tip.hidden = true;
        open(row._i, canvas);
      }
    });

    // The wheel scrolls the page until the map has the focus: nobody is caught in it.
    const zoom = d3
      .zoom()
      .scaleExtent([0.8, 400])
      .filter((event) => event.type !== "wheel" || event.ctrlKey || document.activeElement === canvas)
      .on("zoom", (event) => {
        view = event.transform;
        redraw();
      });
    const surface = d3.select(canvas).call(zoom);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[event.key];
      if (step) surface.call(zoom.translateBy, step[0] / view.k, step[1] / view.k);
      else if (event.key === "+" || event.key === "=") surface.call(zoom.scaleBy, 1.5);
      else if (event.key === "-") surface.call(zoom.scaleBy, 1 / 1.5);
      else return;
      event.preventDefault();
    });

    const columns = data.columns.filter((c) => !["name", "nearest", "why", "source"].includes(c));
    const chooser = make("select", { id: "map-colour", onchange: (event) => ((by = event.target.value), recolour()) });
    chooser.append(...columns.map((c) => make("option", { value: c, selected: c === by }, c.replaceAll("_", " "))));
    const axes = make("select", {
      id: "map-axes",
      onchange: (event) => {
        [x, y] = AXES[event.target.value];
        [width, height] = layout();
        redraw();
      },
    });
    const share = (a, b) => (data.axes.length ? ` (${number(100 * (data.axes[a] + data.axes[b]), 2)} %)` : "");
    axes.append(
      ...AXES.map(([a, b], i) => make("option", { value: String(i) }, `${a + 1} and ${b + 1}${share(a, b)}`)),
    );
    byId("map-tools").append(
      make("label", {}, "Colour ", chooser),
      make("label", {}, "Axes ", axes),
      make("button", { type: "button", onclick: () => surface.call(zoom.scaleBy, 1.5), "aria-label": "Zoom in" }, "+"),
      make(
        "button",
        { type: "button", onclick: () => surface.call(zoom.scaleBy, 1 / 1.5), "aria-label": "Zoom out" },
        "−",
      ),
      make("button", { type: "button", onclick: () => surface.call(zoom.transform, d3.zoomIdentity) }, "All"),
    );
    addEventListener("resize", () => {
      [width, height] = layout();
      redraw();
    });
    new MutationObserver(recolour).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    recolour();
    return { redraw, at: (i) => view.apply(at(rows[i])), colour: (i) => paint.of(rows[i]) };
  }

  return { draw };
})();
