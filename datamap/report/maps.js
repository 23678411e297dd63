"use strict";
// The two maps: variability against confidence, and the clusters. One trace each, so that a point is its row.

const MAPS = [];
const MANY = ["#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#44AA99", "#AA4499", "#999933", "#882255"]; // Tol
const CIVIDIS = ["#00224e", "#2b446e", "#575d6d", "#7d7c78", "#a59c74", "#d2c060", "#fee838"];
const GREY = "#9a9a9a";
const PAPER = 330; // pixels of a map in print, two side by side on upright A4
const NO_LEVEL = new Set(["noise", "no"]); // drawn in grey

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
/** Pixels that are as much here as so many are to letters of 15 pixels: on a wide screen letters are larger. */
const scaled = (pixels) => (pixels * parseFloat(style("font-size"))) / 15;
const finite = (values) => values.reduce(([low, high], value) =>
  (Number.isFinite(value) ? [Math.min(low, value), Math.max(high, value)] : [low, high]), [Infinity, -Infinity]);

/** Of each level its colour: one of its own for as many as can be told apart, grey for the others. */
function levelColours(column) {
  const coloured = column.levels.filter((level) => !NO_LEVEL.has(level));
  const palette = column.key === "category" ? column.levels.map((level) => page.data.category_colors[level])
    : coloured.length > page.data.colors.length ? MANY : page.data.colors;
  return column.levels.map((level) => {
    const place = coloured.indexOf(level);
    return place >= 0 && place < palette.length ? palette[place] : GREY;
  });
}

/** Of low to high numbers, without what can hardly be told from the ground; what is suspicious stands out from it. */
function shades(key) {
  if (matchMedia("(prefers-color-scheme: dark)").matches) return CIVIDIS.slice(2);
  const colours = CIVIDIS.slice(0, -1);
  return key === "suspicion" ? colours.reverse() : colours;
}

/** Numbers for Plotly's marker.color, with their scale, by the column that is chosen. */
function colouring() {
  const column = page.columns.get(page.colour);
  if (column.kind === "number") {
    const values = column.key === "suspicion" ? page.suspicion : column.values;
    const [least, high] = ["confidence", "correctness"].includes(column.key) ? [0, 1] : finite(values);
    const low = column.key === "suspicion" ? 0 : least, colours = shades(column.key);
    const steps = colours.map((colour, i) => [i / (colours.length - 1), colour]);
    return { color: Array.from(values), colorscale: steps, cmin: low, cmax: high > low ? high : low + 1 };
  }
  const colours = [GREY, ...levelColours(column)]; // the first of rows without a level
  const last = colours.length;
  const steps = colours.flatMap((colour, i) => [[i / last, colour], [(i + 1) / last, colour]]);
  return { color: column.codes.map((code) => code + 1), colorscale: steps, cmin: -0.5, cmax: last - 0.5 };
}

function drawLegend() {
  const column = page.columns.get(page.colour), legend = byId("legend");
  if (column.kind === "number") {
    const { cmin, cmax } = colouring();
    const bar = h("span", { class: "scale", "aria-hidden": "true" });
    bar.style.background = `linear-gradient(90deg, ${shades(column.key).join(", ")})`;
    legend.replaceChildren(h("span", {}, column.label), h("span", {}, decimal(cmin)), bar, h("span", {}, decimal(cmax)));
    return;
  }
  const colours = levelColours(column), counts = new Array(column.levels.length).fill(0);
  for (const code of column.codes) if (code >= 0) counts[code]++;
  const own = column.levels.map((level, i) => i).filter((i) => colours[i] !== GREY || NO_LEVEL.has(column.levels[i]));
  const others = column.levels.length - own.length, none = column.codes.filter((code) => code < 0).length;
  const entry = (colour, text, press) => {
    const dot = h("span", { class: "dot", "aria-hidden": "true" });
    dot.style.background = colour;
    return press ? h("button", { type: "button", title: "Show only these", onclick: press }, dot, h("bdi", {}, text))
      : h("span", {}, dot, text);
  };
  legend.replaceChildren(h("span", {}, column.label),
    ...own.map((i) => entry(colours[i], `${shorten(column.levels[i], 30)} (${count(counts[i])})`,
      () => addFilter({ key: column.key, level: i }))),
    ...(others ? [entry(GREY, `${count(others)} others`)] : []), ...(none ? [entry(GREY, `none (${count(none)})`)] : []));
}

function axes(title) {
  const line = style("--line"), muted = style("--muted");
  return { title: { text: title, font: { size: scaled(12) }, standoff: 6 }, gridcolor: line, zeroline: false, linecolor: line,
    color: muted, ticks: "", automargin: true };
}

/** The cuts, and a ring around the open example. */
function shapesOf(map) {
  const cuts = (map.cuts ?? []).map((cut) => ({ type: "line", layer: "above",
    line: { color: style("--muted"), width: 1, dash: "dot" }, ...cut }));
  const x = map.xs[page.at], y = map.ys[page.at];
  return !Number.isFinite(x) || !Number.isFinite(y) ? cuts : [...cuts, { type: "circle", layer: "above",
    xsizemode: "pixel", ysizemode: "pixel", xanchor: x, yanchor: y, x0: -8, x1: 8, y0: -8, y1: 8,
    line: { color: style("--ink"), width: 2 } }];
}

/** Change a map when it is done with what was asked of it before: Plotly cannot do two things at once. */
function change(map, what) {
  map.busy = map.busy.then(() => what(map.id));
  return map.busy;
}

function mapLayout(map) {
  const muted = style("--muted");
  return {
    autosize: true, margin: { l: 48, r: 8, t: 30, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: style("--font"), size: scaled(12), color: muted }, showlegend: false, dragmode: "lasso", hovermode: "closest",
    hoverdistance: 12, xaxis: { ...axes(map.x.title), ...map.x.more }, yaxis: { ...axes(map.y.title), ...map.y.more },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: style("--accent"), orientation: "h" },
    newselection: { line: { color: style("--ink"), width: 1.5, dash: "dot" } },
    shapes: shapesOf(map),
  };
}

function hasWebGL() {
  const probe = document.createElement("canvas").getContext("webgl");
  probe?.getExtension("WEBGL_lose_context")?.loseContext();
  return Boolean(probe);
}

function drawMaps() {
  const values = (key) => page.columns.get(key)?.values;
  const cuts = page.data.overview.cuts;
  if (values("confidence") && values("variability")) {
    const [, widest] = finite(values("variability"));
    MAPS.push({ id: "map-data", xs: values("variability"), ys: values("confidence"),
      x: { title: "variability (SD of p(gold) over epochs)", more: { range: [-0.015, Math.max(0.3, 1.04 * widest)] } },
      y: { title: "confidence (mean p(gold))", more: { range: [-0.035, 1.035] } },
      cuts: cuts ? [{ x0: cuts.variability, x1: cuts.variability, y0: 0, y1: 1, yref: "paper" },
        { x0: 0, x1: cuts.variability, y0: cuts.confidence, y1: cuts.confidence }] : [] });
  }
  if (values("dim1") && values("dim2")) {
    MAPS.push({ id: "map-clusters", xs: values("dim1"), ys: values("dim2"),
      x: { title: "dimension 1 of the embeddings", more: { showgrid: false } },
      y: { title: "dimension 2", more: { showgrid: false } } });
  }
  const compared = page.data.compared;
  if (compared) {
    const xs = values("compared_variability"), ys = values("compared_confidence"), cut = compared.cuts;
    const line = (x0, y0, x1, y1) => ({ x0, y0, x1, y1, line: { color: style("--muted"), width: 1 } });
    MAPS.push({ id: "map-compared", xs, ys,
      x: { title: "variability", more: { range: [-0.015, Math.max(0.3, 1.04 * finite(xs)[1])] } },
      y: { title: "confidence", more: { range: [-0.035, 1.035] } },
      cuts: [{ x0: cut.variability, x1: cut.variability, y0: 0, y1: 1, yref: "paper" },
        { x0: 0, x1: cut.variability, y0: cut.confidence, y1: cut.confidence },
        ...compared.arrows.map((each) => line(each.variability, each.confidence, xs[each.at], ys[each.at]))] });
    byId("name-compared").textContent = `In ${compared.names[1]}, lines from where they are in ${compared.names[0]}`;
    byId("name-compared").title = byId("name-compared").textContent;
  }
  byId("figure-compared").hidden = !compared;
  byId("figure-clusters").hidden = !MAPS.some((map) => map.id === "map-clusters");
  const type = hasWebGL() ? "scattergl" : "scatter"; // without a graphics card slower, and the same
  const size = scaled(Math.max(3, Math.min(7, 260 / Math.sqrt(page.n))));
  const config = { responsive: true, displaylogo: false, displayModeBar: true,
    modeBarButtons: [["lasso2d", "select2d", "zoom2d", "pan2d", "resetScale2d"]] };
  return Promise.all(MAPS.map((map) => {
    const points = { type, mode: "markers", x: map.xs, y: map.ys, hoverinfo: "none",
      marker: { size, opacity: 0.75, line: { width: 0 }, ...colouring() },
      selected: { marker: { opacity: 0.85 } }, unselected: { marker: { opacity: 0.06 } } };
    map.busy = Plotly.newPlot(map.id, [points], mapLayout(map), config).then((plot) => {
      plot.on("plotly_selected", (event) => {
        if (!event?.lassoPoints && !event?.range) return; // not drawn by hand: the line was taken off
        select(event.points.map((each) => each.pointIndex), map);
      });
      plot.on("plotly_deselect", () => select(null, map));
      plot.on("plotly_click", (event) => open(event.points[0].pointIndex));
      plot.on("plotly_hover", (event) => showTip(event.points[0].pointIndex, event.event));
      plot.on("plotly_unhover", hideTip);
    });
    return map.busy;
  }));
}

/** After the maps were hidden: the window may be another size. */
function fitMaps() {
  for (const map of MAPS) change(map, (id) => byId(id).offsetParent && Plotly.Plots.resize(id));
}

/** As wide as so many pixels, or as their place is (null): paper is narrower than most windows. */
function sizeMaps(width) {
  for (const map of MAPS) change(map, (id) => Plotly.relayout(id, { width, autosize: width === null }));
}

/** Take over what was drawn in one map; the line around it goes from the other. */
function select(rows, from) {
  page.drawn = rows === null ? null : new Set(rows);
  for (const map of MAPS) if (map !== from) change(map, (id) => Plotly.relayout(id, { selections: [] }));
  refresh();
}

/** Show in the maps what the table lists, and which example is open. */
function paintMaps() {
  const shown = page.view.length === page.n ? null : page.view.slice();
  for (const map of MAPS) change(map, (id) => Plotly.restyle(id, { selectedpoints: [shown] }));
}

function paintRing() {
  for (const map of MAPS) change(map, (id) => Plotly.relayout(id, { shapes: shapesOf(map) }));
}

function paintColours() {
  const { color, colorscale, cmin, cmax } = colouring();
  for (const map of MAPS) {
    change(map, (id) => Plotly.restyle(id, { "marker.color": [color], "marker.colorscale": [colorscale],
      "marker.cmin": cmin, "marker.cmax": cmax }));
  }
  drawLegend();
}

function paintTheme() {
  for (const map of MAPS) change(map, (id) => Plotly.relayout(id, mapLayout(map)));
  paintColours();
}

function showTip(row, event) {
  const tip = byId("tip"), category = page.columns.get("category");
  tip.replaceChildren(...brief(row, 90), h("p", { class: "quiet" },
    [`gold ${shorten(said("gold", row) ?? "", 60)}`, category && labelsOf(category, row),
      `suspicion ${page.suspicion[row].toFixed(2)}`].filter(Boolean).join(" · ")));
  tip.hidden = false;
  const { clientWidth: width, clientHeight: height } = tip;
  tip.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${event.clientY + 18 + height > innerHeight ? Math.max(8, event.clientY - height - 12) : event.clientY + 18}px`;
}

function hideTip() { byId("tip").hidden = true; }
