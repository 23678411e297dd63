"use strict";
// What the page holds: unpacked from the file, columns by key, and small helpers to build the document. Text of the
// data only ever becomes text nodes.

const page = {
  n: 0, columns: new Map(), decisions: new Map(), elsewhere: new Map(), suspicion: null, view: [], filters: [], search: "", drawn: null,
  sort: { key: "review", down: true }, at: null, first: 0, colour: "",
};

async function unpacked() {
  const text = document.getElementById("data").textContent;
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const KINDS = { f4: Float32Array, f8: Float64Array, i4: Int32Array, u1: Uint8Array };
function numbers(packed, kind = "f4") {
  const binary = atob(packed), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new KINDS[kind](bytes.buffer);
}

/** An element with attributes, listeners (`on...`) and children; strings become text. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const byId = (id) => document.getElementById(id);
const count = (value) => value.toLocaleString("en-US");
const percent = (share) => (share === null || Number.isNaN(share) ? "" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`);
const shorten = (text, most) => (text.length > most ? `${text.slice(0, most - 1).trimEnd()}…` : text);
const plural = (n, noun, nouns = `${noun}s`) => `${count(n)} ${n === 1 ? noun : nouns}`;
function decimal(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (Number.isInteger(value)) return count(value);
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

// --- examples ---

const textOf = (place) => (place < 0 ? null : page.data.texts[place]);
const said = (what, row) => textOf(page.data.said[what][row]);
const textsOf = (row) => page.data.text.columns.map((column) => textOf(column.texts[row]));
const answersQuestions = () => page.data.kind === "qa";
const labelsOf = (column, row) => (column.codes[row] < 0 ? null : column.levels[column.codes[row]]);

/** What a column says of an example, for people. */
function shownValue(column, row) {
  if (column.key === "suspicion") return page.suspicion[row].toFixed(2);
  if (column.kind === "number") return decimal(column.values[row]);
  return (column.kind === "factor" ? labelsOf(column, row) : textOf(column.texts[row])) ?? "";
}

/** Start and end of the gold answer in its context, in UTF-16; null where there is none. */
function goldSpan(row) {
  const spans = page.data.text.spans;
  return spans && spans.start[row] >= 0 ? [spans.start[row], spans.start[row] + spans.length[row]] : null;
}

const RUNS_ON = /^(?:(?!\p{Lo})[\p{L}\p{N}]){2}/u; // scripts of \p{Lo} have no blanks between words
const inWord = (context, place) => RUNS_ON.test(context.slice(place - 1, place + 1));

/** Where `text` stands in `context`, nearest to `near`, whole: where it cuts no word; null where it does not. */
function placeOf(context, text, near, whole = false) {
  let best = null;
  for (let at = text ? context.indexOf(text) : -1; at >= 0; at = context.indexOf(text, at + 1)) {
    if (whole && (inWord(context, at) || inWord(context, at + text.length))) continue;
    if (best === null || Math.abs(at - near) < Math.abs(best - near)) best = at;
  }
  return best === null ? null : [best, best + text.length];
}

/** `text` from `first` to `last` as nodes; spans: [start, end, class] that may overlap. */
function marked(text, spans, first = 0, last = text.length) {
  const cuts = new Set([first, last]);
  for (const [start, end] of spans) {
    for (const cut of [start, end]) if (cut > first && cut < last) cuts.add(cut);
  }
  const places = [...cuts].sort((a, b) => a - b);
  return places.slice(0, -1).map((start, i) => {
    const piece = text.slice(start, places[i + 1]);
    const names = spans.filter(([from, to]) => from <= start && start < to).map(([, , name]) => name);
    return names.length ? h("mark", { class: names.join(" ") }, piece) : piece;
  });
}

/** The beginning of a word at or behind a place, and the end of one at or before it. */
function wordFrom(text, place) {
  if (place <= 0) return 0;
  const blank = text.slice(place, place + 30).search(/\s/);
  return blank < 0 ? place : place + blank + 1;
}

function wordTo(text, place) {
  if (place >= text.length) return text.length;
  const blank = text.slice(Math.max(0, place - 30), place).search(/\s\S*$/);
  return blank < 0 ? place : Math.max(0, place - 30) + blank;
}

/** A text of an example, in short: around its answer where that stands in it. */
function brief(row, around) {
  const [, ...rest] = textsOf(row);
  if (!answersQuestions()) return textsOf(row).map((text) => h("p", { dir: "auto" }, shorten(text, 3 * around)));
  const context = rest[0], span = goldSpan(row);
  const first = span ? wordFrom(context, span[0] - around) : 0;
  const last = wordTo(context, (span ? Math.min(span[1], span[0] + 3 * around) : around) + around);
  return [
    h("p", { dir: "auto", class: "asked" }, shorten(textsOf(row)[0], 3 * around)),
    h("p", { dir: "auto" }, first > 0 ? "…\u00a0" : "", ...marked(context, span ? [[...span, "gold"]] : [], first, last),
      last < context.length ? "\u00a0…" : ""),
  ];
}
