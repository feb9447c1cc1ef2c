"use strict";
// The report of a comparison: the tables of contrasts and of runs.
(() => {
  const { data, byId } = deltaw;
  const text = new Set(["metric", "group_a", "group_b", "interval_covers"]);
  const overview = new Set([
    "metric",
    "group_a",
    "group_b",
    "median_a",
    "median_b",
    "median_ratio",
    "ratio_low",
    "ratio_high",
    "median_difference",
    "cliffs_delta",
    "p_seeds",
    "p_adjusted",
    "interval_covers",
  ]);
  const runs = byId("runs-table");
  if (runs) {
    const { columns, numeric, rows } = data.runs;
    const width = { run: 190, group: 150, method: 100 };
    const known = columns.map((field) => ({
      field,
      title: field.replace(/^hp_/, ""),
      numeric: numeric.includes(field),
      frozen: field === "run" && innerWidth > 900,
      width: width[field],
    }));
    const records = rows.map((values, i) => Object.fromEntries([["_i", i], ...columns.map((c, j) => [c, values[j]])]));
    deltaw.table(runs, known, records, { file: "runs.csv", toolbar: byId("runs-tools") });
  }
  const element = byId("contrasts-table");
  if (element && data.rows.length) {
    const rows = data.rows.map((values, i) =>
      Object.fromEntries([["_i", i], ...data.columns.map((c, j) => [c, values[j]])]),
    );
    const width = { metric: 190, group_a: 150, group_b: 150, interval_covers: 170 };
    const columns = data.columns.map((field) => ({
      field,
      title: field,
      numeric: !text.has(field),
      visible: overview.has(field),
      frozen: field === "metric" && innerWidth > 900,
      width: width[field],
    }));
    deltaw.table(element, columns, rows, { file: "contrasts.csv", toolbar: byId("contrasts-tools") });
  }
  document.documentElement.dataset.ready = "true";
})();
