"use strict";
/* The explorer. Everything it shows is in DATA: one entry per run, made from the records. No network, no library. */
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);
const percent = (value) => (100 * value).toFixed(2);
const signed = (value) => (value < 0 ? "−" : "+") + percent(Math.abs(value));
const mean = (values) => !values.length ? NaN : values.reduce((sum, value) => sum + value, 0) / values.length;
const deviation = (values) => {
  if (values.length < 2) return NaN;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
};
const choice = { study: DATA.first, state: "pruned", methods: new Set() };
const order = { column: "target", down: true };

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

/* ---- what is shown ---- */
const study = () => DATA.studies.find((entry) => entry.name === choice.study);
const runs = () => DATA.runs.filter((run) =>
  run.study === choice.study && choice.methods.has(run.method) && choice.state in run.top1);

function groups() {
  const found = new Map();
  for (const run of runs()) {
    const key = run.method + "@" + run.target;
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(run);
  }
  return [...found.values()].map((group) => {
    const first = group[0];
    const row = { method: first.method, title: first.title, target: first.target, n: group.length, runs: group };
    row.macs = mean(group.map((run) => run.macs));
    row.kept = mean(group.map((run) => run.macs / run.dense_macs));
    row.params = mean(group.map((run) => run.params));
    for (const state of DATA.states) {
      const values = group.map((run) => run.top1[state]).filter((value) => value !== undefined);
      row[state] = mean(values);
      row[state + "_sd"] = deviation(values);
    }
    row.change = mean(group.map((run) => run.top1.finetuned - run.top1.dense));
    return row;
  });
}

/* ---- plot ---- */
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) found.push(value);
  return found;
}

function plot() {
  const svg = $("plot");
  const width = Math.max(340, svg.parentElement.clientWidth), height = width < 600 ? 320 : 420;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const rows = groups();
  if (!rows.length) {
    draw("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "no runs chosen");
    return;
  }
  const all = rows.flatMap((row) => row.runs);
  const dense = 100 * mean(all.map((run) => run.top1.dense));
  const values = all.map((run) => 100 * run.top1[choice.state]).concat(dense);
  const shares = all.map((run) => (100 * run.macs) / run.dense_macs);
  const pad = (low, high, share) => [low - share * (high - low || 1), high + share * (high - low || 1)];
  const [low, high] = pad(Math.min(...values), Math.max(...values), 0.06);
  const [left, right] = pad(Math.min(...shares), Math.max(...shares), 0.08);
  const box = { l: 52, r: width - 14, t: 14, b: height - 44 };
  const x = (share) => box.l + ((right - share) / (right - left)) * (box.r - box.l);
  const y = (value) => box.b - ((value - low) / (high - low)) * (box.b - box.t);
  for (const value of ticks(low, high, 6)) {
    draw("line", { class: "grid", x1: box.l, x2: box.r, y1: y(value), y2: y(value) }, svg);
    draw("text", { x: box.l - 6, y: y(value) + 4, "text-anchor": "end" }, svg, String(+value.toFixed(3)));
  }
  for (const value of ticks(left, right, width < 600 ? 4 : 8))
    draw("text", { x: x(value), y: box.b + 18, "text-anchor": "middle" }, svg, String(+value.toFixed(2)));
  draw("text", { x: (box.l + box.r) / 2, y: height - 8, "text-anchor": "middle" }, svg, "MACs kept (%)");
  draw("text", { x: 14, y: (box.t + box.b) / 2, transform: `rotate(-90 14 ${(box.t + box.b) / 2})`,
    "text-anchor": "middle" }, svg, "test top-1 (%)");
  draw("line", { class: "dense", x1: box.l, x2: box.r, y1: y(dense), y2: y(dense) }, svg);
  draw("text", { x: box.r, y: y(dense) - 5, "text-anchor": "end" }, svg, "dense");
  for (const method of [...choice.methods]) {
    const mine = rows.filter((row) => row.method === method).sort((a, b) => b.kept - a.kept);
    if (!mine.length) continue;
    const look = DATA.looks[method];
    const points = mine.map((row) => `${x(100 * row.kept)},${y(100 * row[choice.state])}`).join(" ");
    draw("polyline", { points, fill: "none", stroke: look, "stroke-width": 2 }, svg);
    for (const run of mine.flatMap((row) => row.runs)) dot(svg, run, x, y, look);
  }
}

function dot(svg, run, x, y, colour) {
  const link = draw("a", { href: run.link, "data-run": run.run }, svg);
  const value = run.top1[choice.state], state = $("state");
  const circle = draw("circle", { cx: x((100 * run.macs) / run.dense_macs), cy: y(100 * value), r: 4.5, fill: colour,
    "fill-opacity": 0.7, stroke: colour }, link);
  const text = `${run.title}, seed ${run.seed}: ${percent(value)} % ${state.options[state.selectedIndex].text}, ` +
    `${(run.macs / 1e6).toFixed(2)} M MACs, ${run.run}`;
  link.setAttribute("aria-label", text);
  const show = (event) => {
    const tip = $("tip");
    tip.textContent = text;
    tip.hidden = false;
    const place = circle.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(place.x + 14, innerWidth - 330)) + "px";
    tip.style.top = Math.max(6, place.y - 46) + "px";
    return event;
  };
  for (const name of ["mouseenter", "focus"]) link.addEventListener(name, show);
  for (const name of ["mouseleave", "blur"]) link.addEventListener(name, () => { $("tip").hidden = true; });
}

/* ---- tables ---- */
const spread = (row, state) => (isNaN(row[state]) ? "–" : percent(row[state])) +
  (isNaN(row[state + "_sd"]) ? "" : " ± " + percent(row[state + "_sd"]));
const COLUMNS = [
  ["title", "Method", (row) => row.title],
  ["target", "Target", (row) => (100 * row.target).toFixed(1) + " %"],
  ["n", "n", (row) => String(row.n)],
  ["macs", "MACs (M)", (row) => (row.macs / 1e6).toFixed(2)],
  ["params", "Params (M)", (row) => (row.params / 1e6).toFixed(3)],
  ["dense", "Dense", (row) => spread(row, "dense")],
  ["regularized", "Regularised", (row) => spread(row, "regularized")],
  ["pruned", "Pruned", (row) => spread(row, "pruned")],
  ["recalibrated", "Recalibrated", (row) => spread(row, "recalibrated")],
  ["finetuned", "Fine-tuned", (row) => spread(row, "finetuned")],
  ["change", "Change", (row) => signed(row.change)],
].filter(([key]) => key !== "recalibrated" || DATA.states.includes(key));

const alphabetical = (first, second) => {
  const [a, b] = [first.toLowerCase(), second.toLowerCase()];
  return a < b ? -1 : a > b ? 1 : 0;
};
const methodOrder = (row) => study().methods.indexOf(row.method);

function table() {
  const sign = order.down ? -1 : 1;
  const rows = groups().sort((a, b) => {
    const [first, second] = [a[order.column], b[order.column]];
    const compared = typeof first === "string" ? alphabetical(first, second) : first - second;
    return sign * compared || methodOrder(a) - methodOrder(b) || b.target - a.target;
  });
  const head = make("tr", {});
  for (const [key, name] of COLUMNS) {
    const arrow = key === order.column ? (order.down ? " ▾" : " ▴") : "";
    const button = make("button", { "data-sort": key }, name + arrow);
    button.addEventListener("click", () => sort(key));
    const sorted = key === order.column ? (order.down ? "descending" : "ascending") : "none";
    head.append(make("th", { scope: "col", "aria-sort": sorted }, button));
  }
  head.append(make("th", { scope: "col" }, "Records"));
  $("head").replaceChildren(head);
  $("rows").replaceChildren(...rows.map((row) => {
    const line = make("tr", { "data-method": row.method });
    for (const [, , cell] of COLUMNS) line.append(make("td", {}, cell(row)));
    const links = make("td", { class: "records" });
    for (const run of row.runs) links.append(make("a", { href: run.link }, String(run.seed)), " ");
    line.append(links);
    return line;
  }));
  if (!rows.length) $("rows").append(make("tr", {}, make("td", { colspan: String(COLUMNS.length + 1) }, "no runs chosen")));
}

function sort(key) {
  order.down = key === order.column ? !order.down : key !== "title";
  order.column = key;
  table();
}

/* ---- controls ---- */
function methods() {
  const there = study() ? study().methods : [];
  choice.methods = new Set(there.filter((name) => DATA.main.includes(name)));
  if (!choice.methods.size) choice.methods = new Set(there);
  $("methods").replaceChildren(...there.map((name) => {
    const box = make("input", { type: "checkbox", value: name });
    box.checked = choice.methods.has(name);
    box.addEventListener("change", () => {
      if (box.checked) choice.methods.add(name); else choice.methods.delete(name);
      show();
    });
    const swatch = make("span", { class: "swatch" });
    swatch.style.background = DATA.looks[name];
    return make("label", {}, box, swatch, DATA.titles[name]);
  }));
}

function show() {
  const current = study();
  $("warning").textContent = current ? current.warning : "";
  $("warning").hidden = !(current && current.warning);
  $("level").textContent = current ? `Setup level ${current.level}; ${current.about}` : "";
  plot();
  table();
}

function set(all) {
  for (const box of document.querySelectorAll("#methods input")) {
    box.checked = all;
    if (all) choice.methods.add(box.value); else choice.methods.delete(box.value);
  }
  show();
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
}

$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
for (const entry of DATA.studies) $("study").append(make("option", { value: entry.name }, entry.label));
$("study").value = choice.study;
$("study").addEventListener("change", (event) => { choice.study = event.target.value; methods(); show(); });
$("state").addEventListener("change", (event) => { choice.state = event.target.value; show(); });
$("all").addEventListener("click", () => set(true));
$("none").addEventListener("click", () => set(false));
addEventListener("resize", plot);
theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
methods();
show();
