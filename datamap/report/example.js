"use strict";
// One example opened whole, and the decision on it.

/** Open an example beside the table; from: whether the page scrolls to its list entry. */
function open(row) {
  page.at = row;
  page.fixing = false;
  turnTo(row);
  paintRing();
  hideTip();
  document.body.classList.add("opened");
  drawExample();
  byId("example").scrollTop = 0;
}

/** Scroll a long text to its answer, and nothing else. */
function showSpan(panel) {
  const span = panel.querySelector(".whole mark.gold") ?? panel.querySelector(".whole mark.predicted"), text = span?.closest(".whole");
  if (text) text.scrollTop += span.getBoundingClientRect().top - text.getBoundingClientRect().top - text.clientHeight / 3;
}

function close() {
  document.body.classList.remove("opened");
}

/** The next or an earlier one of the list; undecided: passing over those that are decided. */
function step(by, undecided = false) {
  let place = page.view.indexOf(page.at) + by;
  if (page.at === null) place = 0;
  while (undecided && page.decisions.has(page.view[place])) place += by;
  if (page.view[place] !== undefined) open(page.view[place]);
}

function drawExample() {
  const row = page.at, panel = byId("example");
  if (row === null) {
    panel.replaceChildren(h("p", { class: "quiet" }, "Choose an example in the table or in a map."));
    return;
  }
  const texts = wholeTexts(row);
  const told = answersQuestions() ? [...texts[0], answers(row), ...texts.slice(1).flat()] : [...texts.flat(), answers(row)];
  panel.replaceChildren(exampleHead(row), decisionButtons(row), page.fixing ? correction(row) : "",
    reasonList(row), ...told, ...section("Probability of the gold annotation per epoch", curve(row)),
    ...section("Nearest neighbours", neighbours(row)), ...section("Columns of the data", ownColumns(row)),
    everything(row));
  showSpan(panel);
}

const section = (title, content) => (content ? [h("h3", {}, title), content] : []);

function exampleHead(row) {
  const place = page.view.indexOf(row);
  const turn = (text, name, press) => h("button", { type: "button", "aria-label": name, title: name, onclick: press }, text);
  const facts = ["category", "cluster"].map((key) => page.columns.get(key)).filter(Boolean)
    .map((column) => (column.key === "cluster" ? `cluster ${shownValue(column, row)}` : shownValue(column, row)));
  return h("div", { class: "head" },
    h("h2", {}, h("bdi", {}, page.data.ids[row])),
    h("div", { class: "turn" }, turn("↑", "Earlier example (arrow up)", () => step(-1)),
      h("span", {}, place >= 0 ? `${count(place + 1)} of ${count(page.view.length)}` : "not listed"),
      turn("↓", "Next example (arrow down)", () => step(1)), turn("×", "Close", close)),
    h("p", { class: "quiet" }, [`suspicion ${page.suspicion[row].toFixed(2)}`, ...facts].join(" · ")));
}

// --- deciding ---

function decisionButtons(row) {
  const now = page.fixing ? "fix" : page.decisions.get(row)?.word;
  const button = (word, key) => h("button", { type: "button", class: word, "aria-pressed": now === word ? "true" : "false",
    title: `${word} (key ${key})`, onclick: () => decide(word) }, word, h("kbd", {}, key));
  return h("div", { class: "decide", role: "group", "aria-label": "Decision" }, button("keep", "k"), button("drop", "d"), button("fix", "f"));
}

/** Take a decision on the open example; the same again takes it back. fix asks for the correction first. */
function decide(word) {
  const row = page.at;
  if (row === null) return;
  if (page.decisions.get(row)?.word === word && !page.fixing) {
    if (word === "fix") return startFix();
    page.decisions.delete(row);
    return decisionsChanged(row);
  }
  if (word === "fix") return startFix();
  settle(row, { word, corrected: "" });
}

/** Note a decision and go on to what is to be decided next, of a new order from its beginning. */
function settle(row, decision) {
  page.decisions.set(row, decision);
  page.fixing = false;
  if (decisionsChanged(row)) page.at = null;
  step(1, true);
}

function startFix() {
  page.fixing = true;
  drawExample();
  byId("example").querySelector(".correction input, .correction select")?.focus();
}

function confirmFix(text) {
  const row = page.at, problem = notPossible(row, text);
  if (problem) {
    byId("example").querySelector(".problem").textContent = problem;
    return;
  }
  document.activeElement?.blur();
  settle(row, { word: "fix", corrected: text.trim() });
}

const tight = (text) => text.normalize("NFC").replace(/\s+/g, "");

/** Whether a fix says what is annotated already, as datamap/detection/decisions.py (idle_fixes_kept) has it: an answer
 * at the same place too, and dataset_filters.py takes the nearest of the places that cut no word. */
function changesNothing(row, text) {
  const wanted = text.trim(), gold = said("gold", row), span = goldSpan(row);
  if (!answersQuestions()) return wanted === gold;
  if (wanted.toLowerCase() === page.data.no_answer || gold === page.data.no_answer) return wanted.toLowerCase() === gold;
  if (!span || tight(wanted) !== tight(gold)) return false;
  const context = textsOf(row)[1], whole = placeOf(context, wanted, span[0], true) ?? placeOf(context, wanted, span[0]);
  return whole === null || whole[0] === span[0];
}

/** Why dataset_filters.py could not carry out this correction; "" where it can. */
function notPossible(row, text) {
  const wanted = text.trim();
  if (!wanted) return "say what it is to be";
  if (changesNothing(row, wanted)) return "that is what is annotated already; if it is right, keep it";
  if (!answersQuestions()) return page.data.classes.includes(wanted) ? "" : "that is none of the classes";
  if (wanted.toLowerCase() === page.data.no_answer || page.data.text.cut) return "";
  return tight(textsOf(row)[1]).includes(tight(wanted)) ? "" : "that does not stand in the context; copy it from there";
}

function correction(row) {
  const before = page.decisions.get(row)?.corrected || said("proposed", row) || (answersQuestions() ? "" : said("predicted", row)) || "";
  let field;
  if (answersQuestions()) {
    field = h("input", { type: "text", dir: "auto", value: before, "aria-label": "Corrected answer",
      placeholder: "type it, or select it in the context" });
  } else {
    field = h("select", { "aria-label": "Corrected label" }, ...page.data.classes.map((name) =>
      h("option", { value: name, selected: name === before }, name)));
  }
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); confirmFix(field.value); }
    if (event.key === "Escape") { page.fixing = false; drawExample(); }
  });
  const offers = [...new Set([said("proposed", row), said("predicted", row),
    answersQuestions() ? page.data.no_answer : null])].filter((text) => text && text !== said("gold", row));
  const known = answersQuestions() ? offers.map((text) => h("button", { type: "button", class: "chip",
    onclick: () => { field.value = text; field.focus(); } }, h("bdi", {}, shorten(text, 60)))) : [];
  return h("div", { class: "correction" }, field, h("button", { type: "button", class: "confirm", onclick: () => confirmFix(field.value) }, "Save"),
    h("p", { class: "problem", role: "alert" }), known.length ? h("p", { class: "offers" }, "take over: ", ...known) : "");
}

/** While a fix is asked for, text selected in the context becomes the corrected answer, and keys go there: Enter saves
 * it, and no letter is taken for a decision. */
function takeSelection() {
  const field = byId("example").querySelector(".correction input"), chosen = getSelection();
  const start = chosen.anchorNode, inside = (start instanceof Element ? start : start?.parentElement)?.closest(".whole");
  if (!field || !inside || !chosen.toString().trim()) return;
  field.value = chosen.toString().trim();
  field.focus({ preventScroll: true });
}

// --- what is shown of it ---

function reasonList(row) {
  const reasons = said("reasons", row);
  return reasons ? h("ul", { class: "reasons" }, ...reasons.split("; ").map((text) => h("li", { dir: "auto" }, text))) : "";
}

function wholeTexts(row) {
  const texts = textsOf(row), gold = goldSpan(row);
  return page.data.text.columns.map((column, i) => {
    const spans = [];
    if (answersQuestions() && i === 1) {
      if (gold) spans.push([...gold, "gold"]);
      const place = placeOf(texts[i], said("predicted", row), gold ? gold[0] : 0);
      if (place) spans.push([...place, "predicted"]);
    }
    const most = page.data.text.cut;
    const note = most && texts[i].length >= most ? h("small", {}, ` about ${count(most)} characters of it`) : "";
    return [h("h3", {}, column.label, note), h("div", { class: "whole", dir: "auto", onmouseup: takeSelection }, ...marked(texts[i], spans))];
  });
}

function answers(row) {
  const gold = said("gold", row), predicted = said("predicted", row), proposed = said("proposed", row);
  const fixed = page.decisions.get(row)?.corrected;
  const line = (name, text, kind) => (text ? [h("dt", {}, name), h("dd", { class: "few" }, h("mark", { class: kind, dir: "auto", title: text }, text))] : []);
  return h("dl", { class: "answers" }, ...line("gold", gold, "gold"), ...line("predicted", predicted, "predicted"),
    ...line("proposed", proposed, "plain"), ...line("corrected", fixed, "plain"));
}

/** Lines over epochs as SVG. lines: {values, colour, name, right: whether each was right}; values 0..1. */
function lineChart(lines, label, wide = 360, high = 130) {
  const epochs = lines[0].values.length, left = 30, bottom = 20;
  const x = (i) => left + (epochs > 1 ? 8 + (i * (wide - left - 20)) / (epochs - 1) : (wide - left) / 2);
  const y = (value) => 8 + (1 - value) * (high - bottom - 8);
  const chart = svg("svg", { viewBox: `0 0 ${wide} ${high}`, class: "chart", role: "img", "aria-label": label });
  for (const value of [0, 0.5, 1]) {
    chart.append(svg("line", { x1: left, x2: wide - 6, y1: y(value), y2: y(value), class: "grid" }),
      svg("text", { x: left - 6, y: y(value) + 4, class: "tick", "text-anchor": "end" }, String(value)));
  }
  const every = Math.ceil(epochs / 12);
  for (let i = 0; i < epochs; i += every) {
    chart.append(svg("text", { x: x(i), y: high - 4, class: "tick", "text-anchor": "middle" }, String(i + 1)));
  }
  for (const { values, colour, right, dashed } of lines) {
    const known = [...values.keys()].filter((i) => values[i] !== null && !Number.isNaN(values[i]));
    chart.append(svg("polyline", { points: known.map((i) => `${x(i)},${y(values[i])}`).join(" "), class: dashed ? "line dashed" : "line", stroke: colour }));
    for (const i of known) {
      chart.append(svg("circle", { cx: x(i), cy: y(values[i]), r: 3.5, stroke: colour, class: "point",
        fill: !right || right[i] === 1 ? colour : "var(--panel)" }));
    }
  }
  return chart;
}

function curve(row) {
  const { count: epochs, confidence, correct } = page.data.epochs;
  if (!epochs || Number.isNaN(confidence[row * epochs])) return null;
  const values = [...confidence.slice(row * epochs, (row + 1) * epochs)], right = [...correct.slice(row * epochs, (row + 1) * epochs)];
  return h("div", {}, lineChart([{ values, right, colour: "var(--accent)" }],
    values.map((value, i) => `epoch ${i + 1}: ${value.toFixed(2)}${right[i] === 1 ? ", right" : ""}`).join("; ")),
  h("p", { class: "quiet" }, "filled where the model's prediction was right"));
}

function neighbours(row) {
  const near = page.data.neighbours;
  if (!near) return null;
  const rows = [...near.rows.slice(row * near.count, (row + 1) * near.count)].filter((other) => other >= 0);
  if (!rows.length) return null;
  return h("ol", { class: "near" }, ...rows.map((other) => h("li", {}, h("button", { type: "button", onclick: () => open(other) },
    h("span", { class: "text", dir: "auto" }, shorten(textsOf(other).slice(0, answersQuestions() ? 1 : 2).join(" — "), 140)),
    h("bdi", { class: answersQuestions() || said("gold", other) === said("gold", row) ? "is" : "is differs" }, shorten(said("gold", other) ?? "", 60))))));
}

function listed(columns, row) {
  return columns.map((column) => [column.label, shownValue(column, row)]).filter(([, value]) => value !== "")
    .flatMap(([name, value]) => [h("dt", {}, h("bdi", {}, name)), h("dd", { dir: "auto" }, value)]);
}

/** What the dataset says of it beside its texts, such as a chain of thought. */
function ownColumns(row) {
  const lines = listed([...page.columns.values()].filter((column) => column.group === "data"), row);
  return lines.length ? h("dl", { class: "own" }, ...lines) : null;
}

function everything(row) {
  const lines = listed([...page.columns.values()].filter((column) => column.group !== "data"), row);
  return h("details", { class: "all" }, h("summary", {}, "All that is known of it"), h("dl", {}, ...lines));
}
