"use strict";
// What both reports share: the data, how numbers are written, the theme, tips, live heatmaps, tables and charts.
const deltaw = (() => {
  document.documentElement.classList.add("js");
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  // An element with properties and children; text is always set as text.
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.includes("-") || name === "role" || name === "popovertarget") element.setAttribute(name, value);
      else if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((c) => c !== null && c !== undefined));
    return element;
  }

  function number(value, digits = 3) {
    if (value === null || value === undefined || value === "") return "–";
    if (typeof value === "string") return value;
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e12)
      return value.toLocaleString("en").replaceAll(",", "\u202f").replace("-", "−");
    if (size >= 1e-4 && size < 1e6) {
      const text = Number(value.toPrecision(digits)).toString();
      return text.replace("-", "−");
    }
    const [mantissa, power] = value.toExponential(digits - 1).split("e");
    const raised = [...String(Number(power))].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
    return (Number(mantissa) === 1 ? `10${raised}` : `${Number(mantissa)}\u202f·\u202f10${raised}`).replace("-", "−");
  }

  // A value of a column: a share as a percentage, as in the sentences.
  const shares = new Set(data.shares ?? []);
  function written(name, given, digits = 3) {
    const known = given !== null && given !== undefined && given !== "";
    return known && shares.has(name) ? `${number(100 * given, digits)}\u202f%` : number(given, digits);
  }

  // A metric's name that explains itself.
  function term(name, label = name) {
    const metric = data.metrics[name] ? name : name.replace(/_(low|high)$/, "");
    if (!data.metrics[metric]) return make("span", {}, label);
    return make("button", { type: "button", className: "term", popovertarget: `p-${metric}` }, label);
  }

  function theme() {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    byId("theme").addEventListener("click", () => {
      const now = document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
      document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    });
  }

  function placeTip(tip, box) {
    const width = tip.offsetWidth,
      height = tip.offsetHeight;
    const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), innerWidth - width - 8);
    const top = box.top - height - 8 > 8 ? box.top - height - 8 : box.bottom + 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${top}px`;
  }

  // A heatmap whose cells are links: a tip on hover and focus, arrow keys between cells, `open(matrix)` on click.
  function heatmap(figure, open, describe) {
    const tip = byId("tip");
    const cells = [...figure.querySelectorAll("a[data-m]")];
    if (!cells.length) return;
    const at = new Map(cells.map((cell) => [`${cell.dataset.r},${cell.dataset.c}`, cell]));
    let shown = null;
    const hide = () => {
      tip.hidden = true;
      shown = null;
    };
    const show = (cell) => {
      shown = cell;
      tip.replaceChildren(...describe(cell));
      tip.hidden = false;
      placeTip(tip, cell.getBoundingClientRect());
    };
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    cells.forEach((cell, i) => {
      cell.setAttribute("tabindex", i ? "-1" : "0"); // one stop for the tab key, arrows inside
      cell.querySelector("title")?.remove();
      cell.addEventListener("pointerenter", () => show(cell));
      cell.addEventListener("pointerleave", hide);
      cell.addEventListener("focus", () => show(cell));
      cell.addEventListener("blur", hide);
      cell.addEventListener("click", (event) => {
        event.preventDefault();
        hide();
        open(Number(cell.dataset.m), cell);
      });
      cell.addEventListener("keydown", (event) => {
        if (event.key === " ") {
          event.preventDefault();
          hide();
          open(Number(cell.dataset.m), cell);
        }
        if (event.key === "Escape") hide();
        if (!step[event.key]) return;
        event.preventDefault();
        const [dr, dc] = step[event.key];
        for (let r = +cell.dataset.r + dr, c = +cell.dataset.c + dc, n = 0; n < 400; r += dr, c += dc, n++) {
          const next = at.get(`${r},${c}`);
          if (!next) continue;
          cells.forEach((other) => other.setAttribute("tabindex", "-1"));
          next.setAttribute("tabindex", "0");
          next.focus();
          return;
        }
        // Nothing further in this row: on to the next cell as it is read.
        const beside = dc ? cells[i + dc] : null;
        if (!beside) return;
        cells.forEach((other) => other.setAttribute("tabindex", "-1"));
        beside.setAttribute("tabindex", "0");
        beside.focus();
      });
    });
    addEventListener("scroll", () => shown && placeTip(tip, shown.getBoundingClientRect()), {
      passive: true,
      capture: true,
    });
  }

  // A name that may break after its dots and underscores.
  function breaking(name) {
    return name.split(/(?<=[._])/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
  }

  // A table that sorts, filters and pages. columns: {field, title, numeric, frozen, width}; rows: objects; saved: the
  // columns of the CSV. `showColumns` of what is returned exchanges the columns.
  // Tabulator draws it; its roles are put right where a grid may only hold rows.
  function table(
    element,
    columns,
    rows,
    { open = null, file = "table.csv", size = 20, toolbar = null, saved = columns, by = null } = {},
  ) {
    const format = (cell) => {
      return make("span", {}, ...breaking(written(cell.getField(), cell.getValue())));
    };
    const head = (cell) => make("span", {}, ...breaking(cell.getValue()));
    const define = (some) =>
      some.map((c) => ({
        field: c.field,
        title: c.title,
        titleFormatter: head,
        visible: c.visible !== false,
        frozen: Boolean(c.frozen),
        width: c.width,
        variableHeight: !c.numeric, // a long name wraps: its end tells it from its neighbours
        minWidth: c.width ?? (c.numeric ? 84 : 100),
        hozAlign: c.numeric ? "right" : "left",
        headerHozAlign: c.numeric ? "right" : "left",
        sorter: c.numeric ? "number" : "alphanum",
        sorterParams: { alignEmptyValues: "bottom" },
        headerSortStartingDir: c.numeric ? "desc" : "asc",
        headerFilter: "input",
        headerFilterPlaceholder: c.numeric ? "e.g. > 10" : "contains",
        headerFilterFunc: c.numeric ? compare : "like",
        headerTooltip: data.metrics[c.field]?.description || c.title,
        formatter: format,
        accessorDownload: (value) => value ?? "",
      }));
    const pages = make("div", { className: "tabulator-footer pages" });
    element.after(pages);
    const grid = new Tabulator(element, {
      paginationElement: pages,
      data: rows,
      columns: define(columns),
      layout: "fitDataFill",
      pagination: true,
      paginationSize: size,
      paginationSizeSelector: [20, 50, 100, 500],
      paginationCounter: "rows",
      initialSort: by ? [{ column: by, dir: "desc" }] : [],
      movableColumns: false,
      placeholder: "No row matches the filters.",
      columnDefaults: { resizable: "header" },
      index: "_i",
      autoResize: false, // its observers draw the rows anew when they scroll into view, under a click or the focus
    });
    grid.on("rowClick", (_, row) => open && open(row.getData()._i, row.getElement()));
    grid.on("tableBuilt", () => {
      nameTheRegion(element);
      addEventListener("resize", () => grid.redraw());
    });
    // Other columns of the same rows: what was sorted and filtered stays so, where the column stays.
    grid.showColumns = (some) => {
      const sorters = grid.getSorters().map(({ field, dir }) => ({ column: field, dir }));
      const filters = grid.getHeaderFilters();
      const kept = new Set(some.map((c) => c.field));
      grid.setColumns(define(some));
      filters.filter((f) => kept.has(f.field)).forEach((f) => grid.setHeaderFilterValue(f.field, f.value));
      grid.setSort(sorters.filter((s) => kept.has(s.column)));
      nameTheRegion(element);
    };
    grid.on("renderComplete", () => {
      element.querySelectorAll(".tabulator-row").forEach((row) => {
        if (open && !row.hasAttribute("tabindex")) row.setAttribute("tabindex", "0");
      });
    });
    element.addEventListener("keydown", (event) => {
      const row = event.target.closest?.(".tabulator-row");
      if (open && row && event.target === row && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        row.click();
      }
      const header = event.target.classList?.contains("tabulator-col") && event.target;
      if (header && event.key === " ") event.preventDefault();
    });
    if (toolbar) {
      toolbar.append(
        make("button", { type: "button", onclick: () => grid.clearHeaderFilter() }, "Clear filters"),
        make("button", { type: "button", onclick: () => csv(file, saved, grid.getData("active")) }, "Download CSV"),
      );
    }
    return grid;
  }

  function nameTheRegion(element) {
    const holder = element.querySelector(".tabulator-tableholder");
    element.removeAttribute("aria-owns");
    element.setAttribute("aria-label", "Table");
    holder.setAttribute("role", "rowgroup");
    holder.setAttribute("aria-label", "Rows");
    holder.querySelector(".tabulator-table").removeAttribute("role");
    element.querySelectorAll(".tabulator-header-filter input").forEach((input) => {
      const title = input.closest(".tabulator-col").querySelector(".tabulator-col-title").textContent;
      input.setAttribute("aria-label", `Filter ${title}`);
    });
    element.parentElement
      .querySelectorAll(".tabulator-page-size")
      .forEach((s) => s.setAttribute("aria-label", "Rows per page"));
  }

  // A numeric filter: `> 10`, `<= 0.5`, `3..8`, `16`.
  function compare(query, value) {
    const text = String(query).trim();
    if (!text) return true;
    if (value === null || value === undefined || value === "") return false;
    const range = text.match(/^(\S+?)\s*\.\.\s*(\S+)$/);
    if (range) return value >= Number(range[1]) && value <= Number(range[2]);
    const [, operator, operand] = text.match(/^(<=|>=|<|>|=)?\s*(.*)$/);
    const limit = Number(operand);
    if (operand === "" || Number.isNaN(limit)) return true;
    return (
      { "<": value < limit, ">": value > limit, "<=": value <= limit, ">=": value >= limit }[operator] ??
      Math.abs(value - limit) <= Math.abs(limit) * 5e-4
    );
  }

  // The rows as a file, in the table's order, with full numbers. A cell that a spreadsheet would run as a formula is quoted.
  function csv(file, columns, rows) {
    const cell = (value) => {
      let text = value === null || value === undefined ? "" : String(value);
      if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const lines = [columns.map((c) => cell(c.field)), ...rows.map((row) => columns.map((c) => cell(row[c.field])))];
    const blob = new Blob([lines.map((l) => l.join(",")).join("\r\n") + "\r\n"], { type: "text/csv" });
    const link = make("a", { href: URL.createObjectURL(blob), download: file });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // A chart of Observable Plot in the page's look; the class is the one that the policy knows the style of.
  function chart(options) {
    const svg = Plot.plot({
      className: data.chart_class,
      marginLeft: 58,
      marginBottom: 40,
      marginTop: 26,
      marginRight: 14,
      height: 300,
      ...options,
      style: {
        background: "transparent",
        color: "inherit",
        fontSize: "12px",
        fontFamily: "inherit",
        overflow: "visible",
      },
    });
    svg.setAttribute("role", "img"); // one picture with one name; its parts have none
    svg.querySelectorAll("[aria-label]").forEach((part) => part.removeAttribute("aria-label"));
    return svg;
  }

  // A button that puts a text on the clipboard, and says so.
  function copyButton(label, text) {
    const button = make("button", { type: "button", className: "chip" }, label);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text());
        button.textContent = "Copied";
      } catch {
        button.textContent = "No permission to copy";
      }
      setTimeout(() => {
        button.textContent = label;
      }, 2000);
    });
    return button;
  }

  function copyButtons() {
    document.querySelectorAll("button[data-copy]").forEach((button) => {
      button.addEventListener("click", async () => {
        const source = byId(button.dataset.copy);
        try {
          await navigator.clipboard.writeText(source.textContent);
          button.textContent = "Copied";
        } catch {
          getSelection().selectAllChildren(source); // no permission: leave it selected
          button.textContent = "Selected: press Ctrl-C";
        }
        setTimeout(() => {
          button.textContent = "Copy";
        }, 2000);
      });
    });
  }

  // A choice among blocks that are all there without JavaScript.
  function choices() {
    document.querySelectorAll("[data-choices]").forEach((group) => {
      const blocks = [...group.querySelectorAll("[data-choice]")];
      const select = (value) =>
        blocks.forEach((b) => {
          b.hidden = b.dataset.choice !== value;
        });
      const buttons = blocks.map((b, i) =>
        make(
          "button",
          {
            type: "button",
            "aria-pressed": String(i === 0),
            onclick: (event) => {
              buttons.forEach((o) => o.setAttribute("aria-pressed", String(o === event.target)));
              select(b.dataset.choice);
            },
          },
          b.dataset.choice,
        ),
      );
      group.prepend(
        make("div", { className: "switch", role: "group", "aria-label": group.dataset.choices }, ...buttons),
      );
      select(blocks[0]?.dataset.choice);
    });
  }

  // What is folded away on the screen is there on paper.
  function printing() {
    let opened = [];
    addEventListener("beforeprint", () => {
      opened = [...document.querySelectorAll("details.how:not([open]), details.print:not([open])")];
      opened.forEach((d) => {
        d.open = true;
      });
    });
    addEventListener("afterprint", () =>
      opened.forEach((d) => {
        d.open = false;
      }),
    );
  }

  theme();
  copyButtons();
  choices();
  printing();
  if (innerWidth < 1100) document.querySelector(".toc details").open = false;
  return { data, byId, make, number, written, copyButton, placeTip, term, heatmap, table, chart, csv, compare };
})();
