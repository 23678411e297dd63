"use strict";
// The other parts of the page: the overview, the data alone, and how it was made.

function tableOf(heads, rows, press = null) {
  const cell = (value, i) => h("td", { class: heads[i].number ? "number" : "", dir: heads[i].number ? null : "auto" }, value instanceof Node ? value : value === null || value === undefined ? "" : String(value));
  return h("div", { class: "scroll" }, h("table", { class: "plain" },
    h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col", class: head.number ? "number" : "" }, head.name)))),
    h("tbody", {}, ...rows.map((row, i) => h("tr", press ? pressed(() => press(i)) : {}, ...row.map(cell))))));
}

/** Of a line of a table that does something: by mouse and by keyboard. */
const pressed = (act) => ({ class: "press", tabindex: 0, onclick: act, onkeydown: (event) => { if (event.key === "Enter") act(); } });

const heads = (...names) => names.map((name) => (name.startsWith("#") ? { name: name.slice(1), number: true } : { name }));
const card = (title, ...content) => h("section", { class: "card" }, h("h2", {}, title), ...content);
const quiet = (text) => h("p", { class: "quiet" }, text);
const unit = (value) => (value === null || value === undefined ? "" : value.toFixed(2)); // of 0..1
const capital = (text) => text.replace(/^./, (letter) => letter.toUpperCase());
const figure = (value, name) => h("div", { class: "figure" }, h("b", {}, value), h("span", {}, name));

function shareBar(share, colour = "var(--accent)") {
  const bar = h("span", { class: "share" }, h("i"));
  bar.firstChild.style.width = `${100 * Math.min(1, share ?? 0)}%`;
  bar.firstChild.style.background = colour;
  return h("span", { class: "shared" }, bar, percent(share));
}

/** The three categories as one bar. */
function categoryBar(shares) {
  const bar = h("span", { class: "stack", title: Object.entries(shares).map(([name, share]) => `${name} ${percent(share)}`).join(", ") });
  for (const [name, share] of Object.entries(shares)) {
    const piece = h("i");
    piece.style.width = `${100 * (share ?? 0)}%`;
    piece.style.background = page.data.category_colors[name];
    bar.append(piece);
  }
  return bar;
}

const levelOf = (key, name) => page.columns.get(key)?.levels.indexOf(name) ?? -1;
function filterLevel(key, name) {
  const level = levelOf(key, name);
  if (level >= 0) addFilter({ key, level });
}
const categoryShares = (row) => ({ easy: row.easy_share, ambiguous: row.ambiguous_share, hard: row.hard_share });

function groupTable(title, rows, press) {
  const rules = rows.some((row) => row.error_rate !== undefined);
  return tableOf(heads(title, "#n", "#confidence", "easy, ambiguous, hard", "#suspicion", ...(rules ? ["#break three rules or more"] : [])),
    rows.map((row) => [row.name, count(row.n), unit(row.confidence_mean), row.easy_share === undefined ? "" : categoryBar(categoryShares(row)),
      unit(row.suspicion_mean), ...(rules ? [percent(row.error_rate)] : [])]), (i) => press(rows[i]));
}

function drawOverview() {
  const facts = page.data.overview, parts = [];
  const figures = [figure(count(facts.examples), "examples")];
  for (const each of facts.categories ?? []) figures.push(figure(`${percent(each.n / facts.mapped)}`, `${each.name} (${count(each.n)})`));
  if (facts.clusters) figures.push(figure(count(facts.clusters.filter((row) => row.name !== "noise").length), `clusters (${count(facts.noise)} in none)`));
  const errors = facts.rules?.find((rule) => rule.key === "is_dataset_error");
  if (errors) figures.push(figure(count(errors.n), "break three rules or more"));
  figures.push(figure(count(facts.suspects), `with a suspicion from ${facts.suspect_from}`));
  parts.push(h("div", { class: "figures" }, ...figures));
  if (page.data.joint) parts.push(card("Stability over runs", stability(page.data.joint)));
  if (facts.learning) parts.push(card("Learning curves", learningCurves(facts.learning)));
  parts.push(card("Most suspicious", mostSuspicious(), quiet(`Suspicion is made of ${page.data.made_of}.`)));
  const by = facts.groups.by;
  if (by !== "task") parts.push(card(`By ${by.replaceAll("_", " ")}`, groupTable(by.replaceAll("_", " "), facts.groups.rows, (row) => filterLevel(by, row.name))));
  if (facts.rules) parts.push(card("Error rules", ruleTable(facts.rules)));
  if (facts.regions) parts.push(card("High-overlap regions", facts.regions.length ? regionTable(facts.regions)
    : quiet("No category of a cluster has at least 10 examples of which 30% break three rules.")));
  if (facts.clusters) parts.push(card("Clusters", clusterTable(facts.clusters)));
  byId("part-overview").replaceChildren(...parts);
}

/** Of a joint map: how far its runs agree. */
function stability(joint) {
  const stable = joint.stability, told = (statistic, of, share) => joint.pairs.find((each) => each.statistic === statistic && each.of === of && each.share === share)?.mean;
  const seeds = joint.runs.map((run) => run.seed), row = (what, metric) => {
    const curve = joint.learning_curve[what];
    return [`${metric}: the ${what}`, unit(told("spearman", metric, null)), unit(told("overlap", what, joint.learning_curve.share)),
      curve.needed === null ? curve.reason : `${count(curve.needed)}${curve.low === null ? "" : ` (95% interval from ${count(curve.low)}${curve.high === null ? "" : ` to ${count(curve.high)}`})`}`];
  };
  const differ = joint.differ_in.length ? `, different in ${joint.differ_in.map((name) => name.replaceAll("_", " ")).join(", ")}` : "";
  return h("div", {}, h("p", {}, `The map is the mean of ${plural(joint.runs.length, "run")}${differ}`
      + `${joint.differ_in.length === 1 && joint.differ_in[0] === "seed" ? ` (${seeds.join(", ")})` : ""}. Two of them put ${percent(stable.mean)} of the examples `
      + `into the same category; chance alone would ${percent(stable.by_chance)}. All agree on ${percent(stable.always_the_same)}.`),
  tableOf(heads("two single runs", "#rank correlation", `#same ${percent(joint.learning_curve.share)}`, `runs for ${percent(joint.learning_curve.enough)} the same`),
    [row("hardest", "confidence"), row("most ambiguous", "variability")]));
}

function learningCurves(curves) {
  const colour = (name) => (name === "all" ? "var(--ink)" : page.data.category_colors[name]);
  const chart = (what, title) => h("div", {}, h("h3", {}, title), lineChart(curves.map((each) => ({ values: each[what],
    colour: colour(each.name), dashed: each.name === "all" })), title, 420, 200));
  const key = curves.map((each) => {
    const dot = h("span", { class: "dot" });
    dot.style.background = colour(each.name);
    return h("span", {}, dot, `${each.name} (${count(each.n)})`);
  });
  return h("div", {}, h("div", { class: "pair" }, chart("confidence", "Mean probability of the gold annotation per epoch"), chart("correct", "Share predicted right per epoch")),
    h("div", { class: "legend" }, ...key));
}

function mostSuspicious() {
  const first = [...Array(page.n).keys()].sort((a, b) => page.suspicion[b] - page.suspicion[a] || a - b).slice(0, 10);
  return tableOf(heads("#suspicion", "example", "gold", "predicted", "reasons"), first.map((row) => [page.suspicion[row].toFixed(2),
    h("div", {}, ...brief(row, 40)), shorten(said("gold", row) ?? "", 60), shorten(said("predicted", row) ?? "", 60), shorten(said("reasons", row) ?? "", 160)]),
  (i) => { location.hash = "#explore"; open(first[i]); });
}

function ruleTable(rules) {
  return tableOf(heads("rule", "#examples", "of those it applies to"), rules.map((rule) => [rule.label, count(rule.n), shareBar(rule.rate)]),
    (i) => filterLevel(rules[i].key, "yes"));
}

function regionTable(regions) {
  return tableOf(heads("category", "cluster", "#examples", "break three rules or more"), regions.map((row) => [row.category, row.cluster,
    count(row.total_examples), shareBar(row.error_rate)]), (i) => {
    page.filters = [];
    filterLevel("category", regions[i].category);
    filterLevel("cluster", regions[i].cluster);
  });
}

function clusterTable(rows) {
  const rules = rows.some((row) => row.error_rate !== undefined);
  const typical = (row) => h("ul", { class: "typical" }, ...row.typical.map((at) => h("li", { dir: "auto" }, shorten(textsOf(at)[0], 110))));
  return tableOf(heads("cluster", "#n", "#confidence", "easy, ambiguous, hard", "#suspicion", ...(rules ? ["#break three rules or more"] : []), "typical examples"),
    rows.map((row) => [row.name, count(row.n), unit(row.confidence_mean), row.easy_share === undefined ? "" : categoryBar(categoryShares(row)),
      unit(row.suspicion_mean), ...(rules ? [percent(row.error_rate)] : []), typical(row)]), (i) => filterLevel("cluster", rows[i].name));
}

// --- the data alone ---

function drawData() {
  const { data } = page.data, parts = [];
  const total = data.classes.reduce((sum, each) => sum + each.n, 0);
  if (data.by !== "task") {
    parts.push(card(data.by === "label" ? "Classes" : `${capital(data.by.replaceAll("_", " "))}s`,
      tableOf(heads(data.by.replaceAll("_", " "), "#n", "share"), data.classes.map((each) => [each.name, count(each.n),
        shareBar(each.n / total)]), (i) => filterLevel(data.by, data.classes[i].name))));
  }
  parts.push(card(`Lengths in ${data.lengths.unit}`, lengths(data.lengths)));
  parts.push(card("Copies within the split", copyTable(data.duplicates), quiet("duplicates.csv holds every pair.")));
  const between = data.leaks ? [copyTable(data.leaks, true), quiet(`Compared with ${data.compared.join(", ")}; leaks.csv holds every pair.`)]
    : [quiet("There is no other split beside this one to compare with.")];
  parts.push(card("Copies in other splits", ...between, ...data.unread.map(quiet)));
  byId("part-dataset").replaceChildren(...parts);
}

function lengths(facts) {
  const rows = facts.columns.map((each) => [each.name, count(each.n), each.n ? decimal(each.mean) : "", decimal(each.median), decimal(each.p95), decimal(each.max), each.n ? histogram(each) : ""]);
  const notes = [];
  if (facts.of < page.data.total) notes.push(`Counted in a random ${count(facts.of)} of ${count(page.data.total)} examples. `);
  if (facts.cut === 0) notes.push(`No example has more than the ${count(facts.max_length)} tokens that the model read at once.`);
  else if (facts.cut !== null) {
    notes.push(`${plural(facts.cut, "example")} (${percent(facts.cut / facts.of)}) ${facts.cut === 1 ? "has" : "have"} more than the ${count(facts.max_length)} tokens that the model read at once: `
      + (answersQuestions() ? "their contexts were read in several windows." : "they were cut."));
  }
  return h("div", {}, tableOf(heads("text", "#n", "#mean", "#median", "#95th percentile", "#longest", "distribution"), rows), quiet(notes.join("")));
}

function histogram({ counts, edges }) {
  const most = Math.max(...counts), wide = 150, high = 28, step = wide / counts.length;
  return svg("svg", { viewBox: `0 0 ${wide} ${high}`, class: "histogram", role: "img", "aria-label": `from 0 to ${decimal(edges[edges.length - 1])}` },
    ...counts.map((n, i) => svg("rect", { x: i * step, y: high - (high * n) / most, width: Math.max(1, step - 1), height: (high * n) / most })));
}

function copyTable(facts, between = false) {
  const words = facts.counts.map((each) => `${count(each.n)} ${each.kind === "exact" ? "exact" : "near"} ${each.n === 1 ? "copy" : "copies"}`
    + (each.n ? `, ${count(each.other_gold)} annotated differently` : ""));
  if (!facts.pairs.length) return quiet(`${words.join("; ")}.`);
  const shown = facts.pairs.slice(0, 20);
  const text = (id) => (page.rows.has(id) ? h("div", {}, ...textsOf(page.rows.get(id)).map((each) => h("p", { dir: "auto" }, shorten(each, 90)))) : id);
  const gold = (id) => (page.rows.has(id) ? h("bdi", {}, shorten(said("gold", page.rows.get(id)) ?? "", 60)) : "");
  // Of copies the same piece is shown, their beginning: around its answer each would look like another text.
  return h("div", {}, h("p", {}, `${words.join("; ")}.`), tableOf(heads("example", between ? "its copy, by id" : "its copy", "kind", "#overlap of words",
    "annotated", "gold", ...(between ? [] : ["gold of the copy"])),
  shown.map((pair) => [text(pair.id), between ? `${pair.split}: ${pair.other_id}` : text(pair.other_id), pair.kind, pair.overlap.toFixed(2),
    pair.same_gold ? "alike" : "differently", gold(pair.id), ...(between ? [] : [gold(pair.other_id)])]),
  (i) => { if (page.rows.has(shown[i].id)) { location.hash = "#explore"; open(page.rows.get(shown[i].id)); } }));
}

// --- how it was made ---

/** A command that breaks between its flags, not within them. */
const flagged = (command) => command.split(/ (?=--)/).flatMap((piece) => [h("span", {}, piece), " "]);

function drawMade() {
  const one = (each) => card(capital(each.what), h("dl", { class: "made" }, ...[["from", each.path], ["command", each.command && h("code", {}, ...flagged(each.command))],
    ["finished", each.finished?.replace("T", " ").replace("+00:00", " UTC")], ["seed", each.seed], ["commit", each.git_commit && `${each.git_commit.slice(0, 12)}${each.git_dirty ? ", changed since" : ""}`],
    ["settings", each.settings.join(" · ")], ["versions", each.versions.join(" · ")]]
    .filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value instanceof Node ? value : String(value))])));
  const data = card("Dataset", h("dl", { class: "made" }, ...[["name", page.data.title], ["task", page.data.task], ["examples", count(page.data.total)],
    ["on this page", page.n < page.data.total ? `${count(page.n)}: a random sample, and all suspects` : "all"], ["fingerprint", page.data.fingerprint]]
    .flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
  byId("part-made").replaceChildren(data, ...page.data.provenance.map(one));
}
