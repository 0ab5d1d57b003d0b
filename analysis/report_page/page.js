"use strict";
// Filters, sorting and colours of the report. Everything is in the page already: without this, tables are only not sorted.
(() => {
  const all = (selector, place = document) => Array.from(place.querySelectorAll(selector));
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const views = new Map();

  // Filters: what is checked is shown, in figures and tables alike.

  const form = document.getElementById("filters");
  const inputs = all("input[type=checkbox]", form);
  const search = new Map();

  function chosen(name) {
    const boxes = inputs.filter((input) => input.name === name);
    return { all: boxes.length, values: new Set(boxes.filter((box) => box.checked).map((box) => box.value)) };
  }

  function apply() {
    const labels = chosen("label");
    const pairs = chosen("pair");
    const known = new Set(inputs.filter((input) => input.name === "label").map((input) => input.value));
    const passes = (item) =>
      (item.dataset.label === undefined || !known.has(item.dataset.label) || labels.values.has(item.dataset.label)) &&
      (item.dataset.pair === undefined || !pairs.all || pairs.values.has(item.dataset.pair));
    for (const item of all("figure, .statements > li, .legend > li")) item.hidden = !passes(item);
    for (const table of all(".table")) {
      const words = (search.get(table) || "").toLowerCase().split(/\s+/).filter(Boolean);
      const rows = Array.from(table.querySelector("tbody").rows);
      let shown = 0;
      for (const row of rows) {
        const text = words.length ? row.textContent.toLowerCase() : "";
        row.hidden = !passes(row) || !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      const count = table.querySelector(".count");
      if (count) count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
    }
    for (const view of views.values()) draw(view, labels.values);
    const parts = [`${labels.values.size} of ${labels.all} methods`];
    if (pairs.all) parts.push(`${pairs.values.size} of ${pairs.all} pairs`);
    document.getElementById("shown").textContent = `${parts.join(", ")} shown`;
  }

  function draw(view, labels) {
    if (!view.labels) return;
    view.vega.signal("shown", view.labels.filter((label) => labels.has(label))).run();
  }

  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-set]");
    if (!button) return;
    for (const input of all("input", button.closest("fieldset"))) input.checked = button.dataset.set === "all";
    apply();
  });
  for (const field of all("input[type=search]")) {
    const table = field.closest(".table");
    let waiting = 0;
    field.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        search.set(table, field.value);
        apply();
      }, 120);
    });
  }

  // Sorting: numbers as numbers, what is empty last, and once more the other way round.

  const compareTexts = new Intl.Collator("en", { numeric: true }).compare;

  function sortBy(header) {
    const place = header.cellIndex;
    const numeric = header.classList.contains("number");
    const descending = header.getAttribute("aria-sort") === "ascending";
    const body = header.closest("table").tBodies[0];
    const keyed = Array.from(body.rows, (row) => {
      const cell = row.cells[place];
      const key = numeric ? cell.dataset.key : cell.textContent;
      return { row, empty: key === undefined || key === "", key: numeric ? Number(key) : key };
    });
    keyed.sort((one, other) => {
      if (one.empty || other.empty) return one.empty - other.empty;
      const order = numeric ? one.key - other.key : compareTexts(one.key, other.key);
      return descending ? -order : order;
    });
    for (const other of header.parentElement.cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...keyed.map((item) => item.row));
  }

  document.addEventListener("click", (event) => {
    const header = event.target.closest("th[aria-sort]");
    if (header && event.target.closest("button")) sortBy(header);
  });

  // Colours: the page's own, unless the reader asks for others. A browser may keep nothing for a file.

  const root = document.documentElement;
  function setScheme(scheme) {
    if (scheme === "auto") delete root.dataset.scheme;
    else root.dataset.scheme = scheme;
    for (const input of all("input[name=scheme]")) input.checked = input.value === scheme;
  }
  try {
    const kept = localStorage.getItem("ckd-report-scheme");
    if (kept === "light" || kept === "dark") setScheme(kept);
  } catch {}
  for (const input of all("input[name=scheme]")) {
    input.addEventListener("change", () => {
      setScheme(input.value);
      try {
        localStorage.setItem("ckd-report-scheme", input.value);
      } catch {}
    });
  }

  // A phone shows the results first.
  if (matchMedia("(max-width: 64rem)").matches) document.querySelector(".menu").open = false;

  const drawn = all(".plot").map(async (place) => {
    const chart = charts[place.dataset.chart];
    // The interpreter of expressions needs no eval, which the page forbids.
    const result = await vegaEmbed(place, chart, {
      mode: "vega-lite",
      ast: true,
      actions: false,
      renderer: "svg",
      tooltip: { disableDefaultStyle: true, theme: "report" },
    });
    const shown = (chart.params || []).find((param) => param.name === "shown");
    const view = { vega: result.view, labels: shown && shown.value };
    views.set(place, view);
    // The browser may have kept what was unchecked before it came back to the page.
    draw(view, chosen("label").values);
  });
  Promise.all(drawn).then(() => {
    root.dataset.ready = "yes";
  });
  apply();
})();
