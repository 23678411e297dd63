"use strict";
// The page as a whole: what it begins with, decisions and where they are kept, ranking anew, downloads, keys.

const WIDE = matchMedia("(min-width: 1100px)"); // as in report.css: the example stands beside the list
const WRONG = { keep: 0, drop: 1, fix: 1 };

async function begin() {
  page.data = await unpacked();
  const { data } = page;
  page.n = data.ids.length;
  for (const column of data.columns) {
    if (column.kind === "number") column.values = numbers(column.values, column.wide ? "f8" : "f4");
    page.columns.set(column.key, column);
  }
  if (data.epochs.count) {
    data.epochs.confidence = numbers(data.epochs.confidence);
    data.epochs.correct = numbers(data.epochs.correct, "u1");
  }
  if (data.neighbours) data.neighbours.rows = numbers(data.neighbours.rows, "i4");
  data.review.values = numbers(data.review.values);
  data.review.offset = numbers(data.review.offset, "f8");
  page.colour = page.columns.has("category") ? "category" : "suspicion";
  byId("title").textContent = document.title = data.title;
  byId("subtitle").textContent = [plural(data.total, "example"), page.n < data.total ? `${count(page.n)} on this page` : null,
    { qa: "question answering", nli: "natural language inference" }[data.task] ?? data.task,
    data.epochs.count ? plural(data.epochs.count, "epoch") : null, data.joint ? plural(data.joint.runs.length, "run") : null].filter(Boolean).join(" · ");
  if (data.overview.warning) { byId("notice").textContent = data.overview.warning; byId("notice").hidden = false; }
  page.rows = new Map(data.ids.map((id, row) => [id, row]));
  recall();
  fillControls();
  await drawMaps();
  drawLegend();
  refresh();
  drawProgress();
  drawExample();
  drawData();
  drawMade();
  listen();
  showTab();
  openFirst();
  document.body.dataset.ready = "true";
}

// --- decisions ---

const storeKey = () => `data map review ${page.data.fingerprint}`;
const rankedKey = () => `${storeKey()} ranked`; // what the ranking knew, so that a reload changes nothing
const noStore = (error) => notify(`Decisions cannot be kept in this browser (${error.name}); download them before you leave.`);

/** What was decided, and how it was ranked: what the page was made with, then what this browser keeps. Of the same
 * dataset it may keep more than is on this page (another sample of it): that stays as it is. */
function recall() {
  const { data } = page;
  let kept = [], ranked = null, idle = 0;
  try {
    kept = JSON.parse(localStorage.getItem(storeKey()) ?? "[]");
    ranked = JSON.parse(localStorage.getItem(rankedKey()));
  } catch (error) {
    noStore(error);
  }
  for (const [id, word, corrected] of [...data.decisions, ...kept]) {
    const row = page.rows.get(id);
    if (row === undefined) { page.elsewhere.set(id, [id, word, corrected]); continue; }
    if (word === "") page.decisions.delete(row);
    else if (word === "fix" && changesNothing(row, corrected)) { page.decisions.set(row, { word: "keep", corrected: "" }); idle++; }
    else if (word in WRONG) page.decisions.set(row, { word, corrected });
  }
  if (idle) notify(`${plural(idle, "fix", "fixes")} to what is annotated already: counted as keep.`);
  const known = ranked ? ranked.decided.filter(([id]) => page.rows.has(id)).map(([id, word]) => [page.rows.get(id), word])
    : [...page.decisions].map(([row, { word }]) => [row, word]);
  rankBy(new Map(known), ranked ? ranked.taught : page.decisions.size >= data.every);
}

function keep() {
  const ids = page.data.ids, given = new Set(page.data.decisions.map(([id]) => id));
  const list = [...page.elsewhere.values(), ...[...page.decisions].map(([row, { word, corrected }]) => [ids[row], word, corrected])];
  for (const id of given) if (!page.decisions.has(page.rows.get(id))) list.push([id, "", ""]); // taken back
  try {
    localStorage.setItem(storeKey(), JSON.stringify(list));
    localStorage.setItem(rankedKey(), JSON.stringify({ taught: page.rankedAfter > 0,
      decided: [...page.ranked].map(([row, word]) => [ids[row], word]) }));
  } catch (error) {
    noStore(error);
  }
}

/** What the same page in another tab has decided: each tab writes all decisions, so it has to know those of the others. */
function takeOver() {
  page.decisions.clear();
  page.elsewhere.clear();
  recall();
  refresh(true);
  if (!page.fixing) drawExample();
  drawProgress();
}

function notify(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = false;
}

/** After a decision: keep it, show it, and after every ten rank the rest anew; whether it did. */
function decisionsChanged(row) {
  keep();
  redrawRow(row);
  drawExample();
  const n = page.decisions.size, due = n > 0 && n % page.data.every === 0 && n !== page.rankedAfter;
  if (due) rankAnew();
  drawProgress();
  return due;
}

/** Suspicion as decisions (row -> word) make it (learn.js); as it was given where these are not to teach, or none. */
function rankBy(ranked, teach) {
  page.ranked = ranked;
  page.rankedAfter = teach ? ranked.size : 0;
  const decided = new Float64Array(page.n).fill(NaN);
  for (const [row, word] of ranked) decided[row] = WRONG[word];
  page.suspicion = page.rankedAfter ? review(page.data.review, decided) : Float64Array.from(page.columns.get("suspicion").values);
}

/** By all decisions so far, and the list in its order. */
function rankAnew() {
  rankBy(new Map([...page.decisions].map(([row, { word }]) => [row, word])), true);
  keep();
  refresh();
  if (page.colour === "suspicion") paintColours();
  drawOverview();
  drawProgress();
}

function drawProgress() {
  const words = [...page.decisions.values()].map((decision) => decision.word), n = words.length;
  const { every } = page.data, suspects = page.data.overview.suspects;
  const counts = ["keep", "drop", "fix"].map((word) => [word, words.filter((each) => each === word).length]).filter(([, many]) => many);
  byId("progress").replaceChildren(h("b", {}, count(n)), n ? ` decided: ${counts.map(([word, many]) => `${count(many)} ${word}`).join(", ")}` : " decided",
    h("span", { class: "quiet" }, n ? ` · ${page.rankedAfter ? `ranked after ${count(page.rankedAfter)}` : `ranked anew in ${plural(every - (n % every), "decision")}`}` : ` · ${plural(suspects, "suspect")}`));
  byId("progress-bar").style.width = `${Math.min(100, (100 * n) / Math.max(suspects, every))}%`;
}

// --- downloads ---

/** A text as a cell that no spreadsheet runs, as datamap/detection/decisions.py makes it. */
const neutralised = (text) => (/^'*[\s\x00-\x1f\u0085\u200b\ufeff]*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]/.test(text) ? `'${text}` : text);
const cell = (value) => { const text = String(value); return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text; };
const csv = (rows) => rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");

function download(name, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  byId("downloads").open = false;
}

/** Every example on the page, so that dataset_filters.py --drop_above knows the suspicion of the others. */
function decisionsCsv() {
  const rows = [...Array(page.n).keys()].sort(order);
  return `\ufeff${csv([["id", "suspicion", "decision", "corrected"], ...rows.map((row) => {
    const { word = "", corrected = "" } = page.decisions.get(row) ?? {};
    return [neutralised(page.data.ids[row]), page.suspicion[row], word, word === "fix" ? neutralised(corrected) : ""];
  })])}`;
}

const idsCsv = (ids) => csv([["id"], ...ids.map((id) => [id])]);
const trainIdsCsv = () => idsCsv([...page.data.ids.filter((id, row) => page.decisions.get(row)?.word !== "drop"), ...page.data.other_ids]);

// --- keys and parts ---

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && byId("downloads").open) {
    byId("downloads").open = false;
    return;
  }
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape" && event.target.id === "search") event.target.blur();
    return;
  }
  if (byId("part-explore").hidden) return;
  const keys = { ArrowDown: () => step(1), ArrowRight: () => step(1), ArrowUp: () => step(-1), ArrowLeft: () => step(-1),
    k: () => decide("keep"), d: () => decide("drop"), f: () => decide("fix"), "/": () => byId("search").focus(), Escape: close };
  const act = keys[event.key] ?? keys[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
}

/** Where there is room, what is to be decided next stands open from the beginning. */
function openFirst() {
  if (WIDE.matches && page.at === null && page.view.length) open(page.view.find((row) => !page.decisions.has(row)) ?? page.view[0]);
}

function showTab() {
  const parts = ["explore", "overview", "dataset", "made"], wanted = parts.includes(location.hash.slice(1)) ? location.hash.slice(1) : parts[0];
  for (const part of parts) byId(`part-${part}`).hidden = part !== wanted;
  for (const link of byId("tabs").children) link.setAttribute("aria-current", link.hash === `#${wanted}` ? "page" : "false");
  if (wanted === "explore") fitMaps();
  if (wanted === "overview" && !byId("part-overview").childElementCount) drawOverview();
  scrollTo(0, 0);
}

function listen() {
  addEventListener("keydown", onKey);
  addEventListener("hashchange", showTab);
  addEventListener("click", (event) => { if (!event.target.closest("#downloads")) byId("downloads").open = false; });
  byId("tabs").addEventListener("click", (event) => { // in a frame without an address a link would leave the page
    const link = event.target.closest("a");
    if (link) { event.preventDefault(); location.hash = link.hash; }
  });
  addEventListener("scroll", hideTip, { passive: true });
  addEventListener("beforeprint", () => { drawOverview(); sizeMaps(PAPER); });
  addEventListener("afterprint", () => sizeMaps(null));
  addEventListener("storage", (event) => { if ([storeKey(), rankedKey()].includes(event.key)) takeOver(); });
  WIDE.addEventListener("change", openFirst); // there is room for an example now
  for (const look of ["(prefers-color-scheme: dark)", "(min-width: 2400px)", "(min-width: 3400px)"]) {
    matchMedia(look).addEventListener("change", paintTheme); // colours and the size of letters are those of report.css
  }
  byId("download-decisions").addEventListener("click", () => download("decisions.csv", decisionsCsv()));
  byId("download-ids").addEventListener("click", () => download("train_ids.csv", trainIdsCsv()));
  byId("download-shown").addEventListener("click", () => download("shown_ids.csv", idsCsv(page.view.map((row) => page.data.ids[row]))));
  byId("rank").addEventListener("click", () => { rankAnew(); byId("downloads").open = false; });
  byId("forget").addEventListener("click", () => {
    if (!confirm(`Forget ${plural(page.decisions.size, "decision")}?`)) return;
    page.decisions.clear();
    page.elsewhere.clear();
    rankAnew();
    drawExample();
  });
}

begin().catch((error) => {
  notify(`This page could not be drawn: ${error.message}`);
  throw error;
});
