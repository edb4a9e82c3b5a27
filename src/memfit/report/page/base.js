// What every part of the page uses: data, elements, texts, tooltip, theme, the plan that is shown.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
// The namespace is read from the page, so that no address stands in the file.
const SVG = byId("defs").namespaceURI;

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

const BINARY = [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]];
function bytes(size) {
  for (const [scale, unit] of BINARY) {
    if (Math.abs(size) >= scale) return `${(size / scale).toFixed(2)} ${unit}`;
  }
  return `${size} B`;
}
const TIMES = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]];
function cost(amount) {
  if (data.unit !== "ns") return `${Math.round(amount).toLocaleString("en")} ${data.unit}s`;
  for (const [scale, unit] of TIMES) {
    if (Math.abs(amount) >= scale) return `${(amount / scale).toPrecision(3)} ${unit}`;
  }
  return `${Math.round(amount)} ns`;
}
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const WORDS = {
  parameters: "parameters", buffers: "buffers", inputs: "inputs", optimizer_state: "optimizer state",
  outputs: "outputs", kept_activations: "kept activations",
  transient_activations: "activations in use", recomputed: "recomputed activations",
  parameter_gradients: "parameter gradients", activation_gradients: "gradients of activations",
  workspace: "workspace",
};
const words = (category) => WORDS[category] || category.replaceAll("_", " ");
const colour = (category) => `var(--${category})`;
const swatch = (category) =>
  el("span", { class: "swatch", style: `background:${colour(category)}`, "aria-hidden": "true" });

function unpack(pairs) {
  const out = [];
  for (let i = 0; i < pairs.length; i += 2) {
    for (let n = 0; n < pairs[i + 1]; n++) out.push(pairs[i]);
  }
  return out;
}
const bit = (digits, i) => (parseInt(digits[i >> 2], 16) >> (3 - (i & 3))) & 1;
const text = (number) => (number < 0 || number === undefined ? "" : data.texts[number]);

const ops = data.ops;
const FORWARD = ops.forward;
const sourceOf = (op) => {
  if (op < 0) return "";
  const own = text(ops.source[op]);
  if (own || op < FORWARD) return own;
  const of = ops.of[op - FORWARD];
  return of >= 0 ? text(ops.source[of]) : "";
};
const opBytes = new Array(FORWARD).fill(0);
data.activations.op.forEach((op, i) => { if (op >= 0) opBytes[op] += data.activations.bytes[i]; });

// Kept bytes and repeats of each forward op, worked out once for each view.
const expanded = new Map();
function detailsOf(view) {
  if (!expanded.has(view)) {
    const kept = new Array(FORWARD).fill(0);
    data.activations.op.forEach((op, i) => {
      if (op >= 0 && bit(view.kept, i)) kept[op] += data.activations.bytes[i];
    });
    const stage = view.stageOf ? unpack(view.stageOf) : new Array(FORWARD).fill(0);
    expanded.set(view, { kept, again: unpack(view.again), stage });
  }
  return expanded.get(view);
}

// The plan that the whole page shows: that of the file, or of a point of the curve.
const shown = { view: data.plan, point: null };
const listeners = [];
function show(view, point) {
  shown.view = view;
  shown.point = point;
  listeners.forEach((listener) => listener());
}

function opFacts(op, copy) {
  const facts = [];
  if (op < FORWARD) {
    const found = detailsOf(shown.view);
    const shape = text(ops.shape[op]);
    if (shape) facts.push(["shape", shape]);
    facts.push(["writes", bytes(opBytes[op])]);
    if (ops.workspace[op]) facts.push(["workspace", bytes(ops.workspace[op])]);
    facts.push(["time", cost(ops.cost[op])]);
    facts.push(["kept", found.kept[op] ? bytes(found.kept[op]) : "no"]);
    const again = found.again[op];
    if (copy === undefined) {
      facts.push(["recomputed", again ? `${again === 1 ? "once" : `${again} times`}, ${cost(again * ops.cost[op])}` : "no"]);
    }
    if (shown.view.stages > 1) facts.push(["stage", `${found.stage[op] + 1} of ${shown.view.stages}`]);
  } else {
    facts.push(["time", cost(ops.cost[op])]);
    if (ops.workspace[op]) facts.push(["workspace", bytes(ops.workspace[op])]);
    const of = ops.of[op - FORWARD];
    if (of >= 0) facts.push(["backward of", ops.name[of]]);
  }
  const source = sourceOf(op);
  if (source) facts.push(["source", source]);
  return facts;
}
function runs(op, copy) {
  if (op >= FORWARD) return `backward op ${ops.name[op]}`;
  return copy ? `recomputation of ${ops.name[op]}` : `forward op ${ops.name[op]}`;
}

const tip = byId("tip");
function showTip(title, lines, x, y) {
  tip.replaceChildren(el("b", {}, title), ...lines.map((line) => el("span", {}, line)));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 16 + box.width > window.innerWidth ? x - 16 - box.width : x + 16;
  const top = y + 16 + box.height > window.innerHeight ? y - 16 - box.height : y + 16;
  tip.style.left = `${Math.max(4, Math.min(left, window.innerWidth - box.width - 4))}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}
const hideTip = () => { tip.hidden = true; };
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
document.addEventListener("scroll", hideTip, true);

// Long names may break after their dots, not anywhere.
const breakable = (value) => (typeof value !== "string" ? [value]
  : value.split(/(?<=[._/])/).flatMap((part, i) => (i ? [el("wbr"), part] : [part])));

// A table; columns are [title, is a number], cells texts or elements. Its caption is seen or only read out.
function table(caption, columns, rows, foot, captionSeen = true) {
  const cell = (value, i, tag) =>
    el(i === 0 && tag === "td" ? "th" : tag, {
      class: columns[i][1] ? "n" : "w", scope: i === 0 && tag === "td" ? "row" : null,
    }, ...(columns[i][1] ? [value] : breakable(value)));
  const line = (row) => el("tr", {}, ...row.map((value, i) => cell(value, i, "td")));
  return el("table", {},
    el("caption", { class: captionSeen ? null : "hidden" }, caption),
    el("thead", {}, el("tr", {}, ...columns.map(([title, number]) =>
      el("th", { scope: "col", class: number ? "n" : null }, title)))),
    el("tbody", {}, ...rows.map(line)),
    foot ? el("tfoot", {}, line(foot)) : null);
}

// Round steps for an axis from 0 to `most`, in a binary unit for bytes.
function ticks(most, binary, wanted) {
  const unit = binary ? (BINARY.find(([scale]) => most >= scale) || [1])[0] : 1;
  const raw = most / unit / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= raw) * power;
  const out = [];
  for (let i = 0; i * step * unit <= most * 1.0001; i++) out.push(i * step * unit);
  return out;
}
function tickBytes(size) {
  for (const [scale, unit] of BINARY) {
    if (size >= scale) return `${Number((size / scale).toFixed(2))} ${unit}`;
  }
  return size ? `${Number(size.toFixed(1))} B` : "0";
}

// Draw again whenever the element's width changes.
function onWidth(node, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (node.clientWidth && node.clientWidth !== width) {
      width = node.clientWidth;
      draw(width);
    }
  }).observe(node);
  return () => draw(width || node.clientWidth || 600);
}

function setUpTheme() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const order = ["system", "light", "dark"];
  let chosen = "system";
  try { chosen = localStorage.getItem("memfit-theme") || "system"; } catch { /* no storage there */ }
  if (!order.includes(chosen)) chosen = "system";
  const apply = () => {
    const isDark = chosen === "dark" || (chosen === "system" && dark.matches);
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    byId("theme").textContent = `Theme: ${chosen}`;
  };
  byId("theme").addEventListener("click", () => {
    chosen = order[(order.indexOf(chosen) + 1) % order.length];
    try { localStorage.setItem("memfit-theme", chosen); } catch { /* chosen for now only */ }
    apply();
  });
  dark.addEventListener("change", apply);
  apply();
}
