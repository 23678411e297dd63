"use strict";
// The list: what search, filters and the maps leave, sorted and in pages.

const PER_PAGE = 25;
const DECIDED = { key: "decision", label: "decision" };
let lowered = null;

/** Rows whose texts, id, gold, prediction or reasons hold `wanted`, case aside; null for all. */
function searched(wanted) {
  const sought = wanted.trim().toLowerCase();
  if (!sought) return null;
  lowered ??= page.data.texts.map((text) => text.toLowerCase());
  const hits = Uint8Array.from(lowered, (text) => (text.includes(sought) ? 1 : 0));
  const places = [...page.data.text.columns.map((column) => column.texts), ...Object.values(page.data.said),
    ...[...page.columns.values()].filter((column) => column.kind === "text").map((column) => column.texts)];
  return (row) => page.data.ids[row].toLowerCase().includes(sought) || places.some((column) => hits[column[row]] === 1);
}

function passes(filter) {
  if (filter.key === DECIDED.key) return (row) => (page.decisions.get(row)?.word ?? "none") === filter.word;
  const column = page.columns.get(filter.key);
  if (column.kind === "factor") return (row) => column.codes[row] === filter.level;
  const values = column.key === "suspicion" ? page.suspicion : column.values;
  return (row) => values[row] >= filter.low && values[row] <= filter.high;
}

/** In which order: by what is still to be decided, or by a column. */
function order(a, b) {
  const { key, down } = page.sort;
  if (key === "review") {
    const decided = page.ranked; // what was decided at the last ranking, so that rows stay where they are
    return decided.has(a) - decided.has(b) || page.suspicion[b] - page.suspicion[a] || a - b;
  }
  const sign = down ? -1 : 1;
  if (key === DECIDED.key) {
    const [one, two] = [a, b].map((row) => page.decisions.get(row)?.word ?? "");
    return sign * one.localeCompare(two) || a - b;
  }
  const column = page.columns.get(key);
  if (column.kind === "text") return sign * shownValue(column, a).localeCompare(shownValue(column, b)) || a - b;
  const values = key === "suspicion" ? page.suspicion : column.kind === "factor" ? column.codes : column.values;
  const [one, two] = [values[a], values[b]];
  if (Number.isNaN(one) || Number.isNaN(two)) return Number.isNaN(one) - Number.isNaN(two) || a - b; // unknown last
  return sign * (one - two) || a - b;
}

/** Work out anew what is listed, and show it in table and maps. */
function refresh(keepPage = false) {
  const tests = [searched(page.search), page.drawn && ((row) => page.drawn.has(row)), ...page.filters.map(passes)]
    .filter(Boolean);
  page.view = [...Array(page.n).keys()].filter((row) => tests.every((test) => test(row))).sort(order);
  if (!keepPage) page.first = 0;
  page.first = Math.min(page.first, Math.max(0, Math.floor((page.view.length - 1) / PER_PAGE) * PER_PAGE));
  drawState();
  drawTable();
  paintMaps();
}

function drawState() {
  const { total } = page.data;
  byId("count").replaceChildren(h("b", {}, count(page.view.length)), ` of ${count(page.n)}`,
    total > page.n ? ` on this page (of ${count(total)} examples)` : "");
  const chip = (text, drop) => h("button", { type: "button", class: "chip", title: "Take this filter off", onclick: drop },
    h("bdi", {}, text), h("span", { "aria-hidden": "true" }, " ×"));
  const chips = page.filters.map((filter) => {
    const column = page.columns.get(filter.key) ?? DECIDED;
    const value = filter.word ?? (column.kind === "factor" ? shorten(column.levels[filter.level], 40)
      : `${decimal(filter.low)} to ${decimal(filter.high)}`);
    return chip(`${column.label}: ${value}`, () => { page.filters = page.filters.filter((each) => each !== filter); refresh(); });
  });
  if (page.drawn) {
    chips.unshift(chip(`drawn in the map: ${count(page.drawn.size)}`, () => select(null)));
  }
  byId("chips").replaceChildren(...chips);
}

function addFilter(filter) {
  page.filters = [...page.filters.filter((each) => each.key !== filter.key), filter];
  location.hash = "#explore";
  refresh();
}

// --- the table ---

const HEADS = [["suspicion", "Suspicion"], [null, "Example"], ["gold", "Gold"], ["predicted", "Predicted"],
  ["category", "Category"], ["cluster", "Cluster"], ["decision", "Decision"]];
const shownHeads = () => HEADS.filter(([key]) => key === null || ["gold", "predicted", "decision"].includes(key)
  || page.columns.has(key));

function drawTable() {
  const { key: by, down } = page.sort;
  const head = ([key, label]) => {
    const sortable = key === "decision" || page.columns.has(key);
    const sorted = by === key ? (down ? "descending" : "ascending") : null;
    return h("th", { scope: "col", "aria-sort": sorted, class: key }, sortable
      ? h("button", { type: "button", onclick: () => sortBy(key, by === key ? !down : true) }, label,
        h("span", { "aria-hidden": "true" }, sorted ? (down ? " ↓" : " ↑") : "")) : label);
  };
  const table = byId("table");
  table.tHead.replaceChildren(h("tr", {}, ...shownHeads().map(head)));
  const rows = page.view.slice(page.first, page.first + PER_PAGE);
  table.tBodies[0].replaceChildren(...rows.map(tableRow));
  if (!rows.length) table.tBodies[0].append(h("tr", {}, h("td", { colspan: HEADS.length, class: "quiet" }, "nothing is left; take a filter off")));
  drawPager();
}

function tableRow(row) {
  const decision = page.decisions.get(row), predicted = said("predicted", row);
  const bar = h("span", { class: "meter", "aria-hidden": "true" }, h("i"));
  bar.firstChild.style.width = `${100 * page.suspicion[row]}%`;
  const few = (text) => (text ? h("div", { class: "few", dir: "auto" }, shorten(text, 80)) : null); // lines
  const cell = (key) => {
    if (key === "suspicion") return h("td", { class: key, "data-label": "suspicion" }, page.suspicion[row].toFixed(2), bar);
    if (key === null) return h("td", { class: "text" }, ...brief(row, 45));
    if (key === "gold") return h("td", { class: key, "data-label": "gold" }, few(said("gold", row)));
    if (key === "predicted") {
      return h("td", { class: predicted !== said("gold", row) ? "predicted differs" : "predicted",
        "data-label": "predicted" }, few(predicted));
    }
    if (key === "decision") return h("td", { class: `decision ${decision?.word ?? ""}`, "data-label": "decision" }, decision?.word ?? "");
    return h("td", { class: key, "data-label": key }, shownValue(page.columns.get(key), row));
  };
  return h("tr", { "data-row": row, "aria-selected": row === page.at ? "true" : "false", onclick: () => open(row) },
    ...shownHeads().map(([key]) => cell(key)));
}

/** The row of the table again, after a decision. */
function redrawRow(row) {
  document.querySelector(`#table tr[data-row="${row}"]`)?.replaceWith(tableRow(row));
}

function sortBy(key, down) {
  page.sort = { key, down };
  byId("sort").value = [...byId("sort").options].some((option) => option.value === key) ? key : "review";
  refresh();
}

function drawPager() {
  const last = page.view.length, to = Math.min(page.first + PER_PAGE, last);
  const turn = (text, first, name) => h("button", { type: "button", "aria-label": name, disabled: first < 0 || first >= last,
    onclick: () => { page.first = first; drawTable(); } }, text);
  byId("pager").replaceChildren(turn("←", page.first - PER_PAGE, "earlier"),
    h("span", {}, last ? `${count(page.first + 1)}–${count(to)} of ${count(last)}` : "0"),
    turn("→", page.first + PER_PAGE, "later"));
}

/** Turn to the page of the table on which the open example is. */
function turnTo(row) {
  const place = page.view.indexOf(row);
  if (place >= 0 && (place < page.first || place >= page.first + PER_PAGE)) {
    page.first = Math.floor(place / PER_PAGE) * PER_PAGE;
    drawTable();
  }
  for (const line of document.querySelectorAll("#table tbody tr")) {
    line.setAttribute("aria-selected", line.dataset.row === String(row) ? "true" : "false");
  }
}

// --- the controls above it ---

const GROUPS = { suspicion: "Suspicion", map: "Data map", clusters: "Clusters", text: "Texts", rules: "Rules",
  "out of fold": "Models that did not see it", data: "Columns of the data" };

function choices(kinds, more = []) {
  const groups = new Map();
  for (const column of page.columns.values()) {
    if (!kinds.includes(column.kind)) continue;
    if (!groups.has(column.group)) groups.set(column.group, []);
    groups.get(column.group).push(h("option", { value: column.key }, shorten(column.label, 40)));
  }
  return [...more.map(([value, label]) => h("option", { value }, label)),
    ...[...groups].map(([name, options]) => h("optgroup", { label: GROUPS[name] ?? name }, ...options))];
}

function fillControls() {
  byId("colour").replaceChildren(...choices(["factor", "number"]));
  byId("colour").value = page.colour;
  byId("filter-column").replaceChildren(...choices(["factor", "number"], [["", "a column"], ["decision", "decision"]]));
  byId("sort").replaceChildren(...choices(["number", "factor"], [["review", "what to review next"], ["decision", "decision"]]));
  byId("colour").addEventListener("change", (event) => { page.colour = event.target.value; paintColours(); });
  byId("sort").addEventListener("change", (event) => sortBy(event.target.value, true));
  byId("filter-column").addEventListener("change", (event) => drawFilterValue(event.target.value));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  let waiting = 0;
  byId("search").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { page.search = event.target.value; refresh(); }, 200);
  });
}

function drawFilterValue(key) {
  const place = byId("filter-value"), column = page.columns.get(key);
  const done = () => { place.replaceChildren(); byId("filter-column").value = ""; };
  if (!key) return place.replaceChildren();
  if (column?.kind === "number") {
    const [low, high] = finite(key === "suspicion" ? page.suspicion : column.values);
    const field = (name, value) => h("input", { type: "number", step: "any", "aria-label": name, value: decimal(value).replaceAll(",", "") });
    const fields = [field("from", low), field("to", high)];
    return place.replaceChildren(fields[0], "to", fields[1], h("button", { type: "button", onclick: () => {
      const [from, to] = fields.map((each) => Number(each.value));
      // What was shown rounded and left as it is means the end itself.
      addFilter({ key, low: fields[0].value === fields[0].defaultValue ? low : from, high: fields[1].value === fields[1].defaultValue ? high : to });
      done();
    } }, "Filter"));
  }
  const options = column ? column.levels.map((level, i) => [String(i), shorten(level, 40)])
    : ["none", "keep", "drop", "fix"].map((word) => [word, word]);
  const list = h("select", { "aria-label": "value", onchange: (event) => {
    addFilter(column ? { key, level: Number(event.target.value) } : { key, word: event.target.value });
    done();
  } }, h("option", { value: "" }, "choose"), ...options.map(([value, text]) => h("option", { value }, text)));
  place.replaceChildren(list);
  return list.focus();
}
