// Memory over one step: plain and planned, stacked by category, with budget and peak.

// From the bottom up: what is there all the time first, what a planner decides about last.
const STACK = [
  "parameters", "buffers", "inputs", "optimizer_state", "parameter_gradients", "outputs",
  "kept_activations", "transient_activations", "recomputed", "activation_gradients", "workspace",
];
const partAt = (parts, category, i) => {
  const found = parts[category];
  return found === undefined ? 0 : typeof found === "number" ? found : found[i];
};
const totalAt = (line, i) => STACK.reduce((sum, c) => sum + partAt(line.parts, c, i), 0);

const views = () => [data.plain, shown.view];
const ownScale = () => byId("own-scale").checked;
function scales(which) {
  const last = (view) => view.timeline.edges[view.timeline.edges.length - 1];
  const time = Math.max(...views().map(last)) || 1;
  const drawn = which === "plan" && ownScale() ? [shown.view] : views();
  const most = Math.max(...drawn.map((view) => view.peakBytes), shown.view.budgetBytes) || 1;
  return { time, most: most * 1.12, plainTime: last(data.plain) || 1 };
}

function memoryChart(box, read, which, label) {
  let at = null;
  let cursor = null;
  let geometry = null;
  const view = () => (which === "plain" ? data.plain : shown.view);

  function describe(i) {
    const line = view().timeline;
    const parts = STACK.filter((c) => partAt(line.parts, c, i) > 0);
    return {
      title: `${bytes(totalAt(line, i))} at ${runs(line.op[i], line.copy[i])}`,
      source: sourceOf(line.op[i]),
      time: percent(line.edges[i] / scales().plainTime),
      parts: parts.map((c) => [c, partAt(line.parts, c, i)]),
    };
  }
  function move(i, event) {
    const line = view().timeline;
    at = Math.max(0, Math.min(line.op.length - 1, i));
    const { x } = geometry;
    const middle = x((line.edges[at] + line.edges[at + 1]) / 2);
    cursor.setAttribute("x1", middle);
    cursor.setAttribute("x2", middle);
    cursor.setAttribute("visibility", "visible");
    const found = describe(at);
    const root = box.firstChild;
    const spoken = [found.title, found.source, ...found.parts.map(([c, b]) => `${words(c)} ${bytes(b)}`)];
    root.setAttribute("aria-valuenow", at);
    root.setAttribute("aria-valuetext", spoken.filter(Boolean).join("; "));
    read.textContent = `${found.title}${found.source ? `, ${found.source}` : ""}, at ${found.time} of the plain step's time`;
    if (event) {
      const lines = [found.source, ...found.parts.reverse().map(([c, b]) => `${words(c)}: ${bytes(b)}`)];
      showTip(found.title, lines.filter(Boolean), event.clientX, event.clientY);
    }
  }
  function column(event) {
    const line = view().timeline;
    const rect = box.firstChild.getBoundingClientRect();
    const time = geometry.back(event.clientX - rect.left);
    let low = 0;
    let high = line.op.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (line.edges[middle] <= time) low = middle; else high = middle - 1;
    }
    return low;
  }
  function key(event) {
    const count = view().timeline.op.length;
    const now = at === null ? -1 : at;
    const next = {
      ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1, Home: 0,
      End: count - 1, PageUp: now + Math.ceil(count / 20), PageDown: now - Math.ceil(count / 20),
      p: view().timeline.peak, P: view().timeline.peak,
    }[event.key];
    if (next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move(next);
  }

  function draw(width) {
    const height = width < 480 ? 240 : 300;
    const pad = { left: 66, right: 8, top: 10, bottom: 36 };
    const { time, most, plainTime } = scales(which);
    const line = view().timeline;
    const inner = width - pad.left - pad.right;
    const x = (t) => pad.left + (t / time) * inner;
    const y = (b) => pad.top + (1 - b / most) * (height - pad.top - pad.bottom);
    geometry = { x, back: (px) => ((px - pad.left) / inner) * time };
    at = null;
    read.textContent = "";
    const root = svg("svg", {
      viewBox: `0 0 ${width} ${height}`, height, role: "slider", tabindex: "0", "aria-label": label,
      "aria-valuemin": 0, "aria-valuemax": line.op.length - 1, "aria-valuenow": line.peak,
      "aria-valuetext": `peak ${bytes(view().peakBytes)}`, "aria-orientation": "horizontal",
      onkeydown: key, onpointermove: (e) => move(column(e), e), onpointerdown: (e) => move(column(e), e),
      onpointerleave: hideTip, onblur: hideTip,
    });
    ticks(most, true, 5).forEach((b) => {
      root.append(svg("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(b), y2: y(b) }));
      root.append(svg("text", { class: "tick", x: pad.left - 6, y: y(b) + 4, "text-anchor": "end" }, tickBytes(b)));
    });
    ticks((100 * time) / plainTime, false, width < 480 ? 3 : 5).forEach((p) => {
      const at100 = x((p / 100) * plainTime);
      if (at100 > width - pad.right - 10) return;
      root.append(svg("text", { class: "tick", x: at100, y: height - pad.bottom + 16, "text-anchor": "middle" }, `${p}%`));
    });
    root.append(svg("text", { class: "tick", x: pad.left + inner / 2, y: height - 4, "text-anchor": "middle" }, "share of the plain step's time"));
    const floor = new Array(line.op.length).fill(0);
    STACK.filter((c) => line.parts[c] !== undefined).forEach((category) => {
      const up = [];
      const down = [];
      for (let i = 0; i < floor.length; i++) {
        const [a, b] = [x(line.edges[i]).toFixed(1), x(line.edges[i + 1]).toFixed(1)];
        const [low, high] = [floor[i], floor[i] + partAt(line.parts, category, i)];
        up.push(`${a},${y(high).toFixed(1)} ${b},${y(high).toFixed(1)}`);
        down.push(`${b},${y(low).toFixed(1)} ${a},${y(low).toFixed(1)}`);
        floor[i] = high;
      }
      root.append(svg("path", { style: `fill:${colour(category)}`, d: `M${up.join(" L")} L${down.reverse().join(" L")}Z` }));
    });
    const pass = x(line.backward);
    root.append(svg("line", { class: "pass", x1: pass, x2: pass, y1: pad.top, y2: height - pad.bottom }));
    root.append(svg("text", { class: "halo", x: pass + 5, y: height - pad.bottom - 6 }, "backward"));
    const budget = y(shown.view.budgetBytes);
    root.append(svg("line", { class: "budget", x1: pad.left, x2: width - pad.right, y1: budget, y2: budget }));
    const top = totalAt(line, line.peak);
    const [px, py] = [x((line.edges[line.peak] + line.edges[line.peak + 1]) / 2), y(top)];
    root.append(svg("circle", { class: "peak", cx: px, cy: py, r: 5 }));
    const left = px > pad.left + inner * 0.55;
    // Keep the words clear of the budget line, and in narrow charts of its own words.
    const over = budget - (width < 480 ? 22 : 8);
    const near = py > budget && py - 9 - budget < 9;
    const above = near ? (over > 11 ? over : py + 20) : Math.max(py - 9, 11);
    root.append(svg("text", { class: "halo", x: px + (left ? -8 : 8), y: above, "text-anchor": left ? "end" : "start" }, `peak ${bytes(top)}`));
    root.append(svg("text", { class: "halo budget-text", x: left ? pad.left + 6 : width - pad.right - 4, y: budget - 5, "text-anchor": left ? "start" : "end" }, `budget ${bytes(shown.view.budgetBytes)}`));
    cursor = svg("line", { class: "cursor", y1: pad.top, y2: height - pad.bottom, x1: 0, x2: 0, visibility: "hidden" });
    root.append(cursor);
    const focused = box.firstChild === document.activeElement;
    box.replaceChildren(root);
    if (focused) root.focus();
  }
  return onWidth(box, draw);
}

function memoryTable() {
  const used = STACK.filter((c) => views().some((v) => v.timeline.parts[c] !== undefined));
  const most = (line, c) => Math.max(...line.op.map((_, i) => partAt(line.parts, c, i)));
  const atPeak = (view, c) => view.peakParts[c] || 0;
  const rows = used.map((c) => [
    el("span", {}, swatch(c), words(c)), ...views().flatMap((v) => [bytes(atPeak(v, c)), bytes(most(v.timeline, c))]),
  ]);
  const whole = ["whole step", ...views().flatMap((v) => [bytes(v.peakBytes), ""])];
  const moments = [];
  const { plainTime, time } = scales();
  const at = (line, t) => {
    if (t >= line.edges[line.edges.length - 1]) return "over";
    let i = 0;
    while (i + 1 < line.op.length && line.edges[i + 1] <= t) i++;
    return `${bytes(totalAt(line, i))}, ${runs(line.op[i], line.copy[i])}`;
  };
  for (let i = 0; i < 20; i++) {
    const t = (time * i) / 20;
    moments.push([percent(t / plainTime), ...views().map((v) => at(v.timeline, t))]);
  }
  byId("memory-table").replaceChildren(
    table("Bytes by category", [["category"], ["plain, at its peak", 1], ["plain, at most", 1], ["planned, at its peak", 1], ["planned, at most", 1]], rows, whole),
    table("Bytes at twenty moments", [["time"], ["plain"], ["planned"]], moments));
}

const peak = { which: "plan", all: false };
function peakTable() {
  const view = peak.which === "plain" ? data.plain : shown.view;
  const op = view.peakOp;
  const source = sourceOf(op);
  const parts = STACK.filter((c) => view.peakParts[c]).map((c) => `${words(c)} ${bytes(view.peakParts[c])}`);
  byId("peak-text").textContent =
    `${bytes(view.peakBytes)} while ${runs(op, view.peakCopy)} runs${source ? `, ${source}` : ""}: ${parts.join(", ")}. ` +
    `The table leaves out what is alive all through the step (${bytes(data.residentBytes)}).`;
  const columns = [["value"], ["size", 1], ["what for"], ["made by"], ["source line"]];
  const all = view.live.rows;
  const rows = (peak.all ? all : all.slice(0, 12)).map(([name, size, category, producer]) => [
    name, bytes(size), el("span", {}, swatch(category), words(category)),
    producer < 0 ? "" : ops.name[producer], sourceOf(producer),
  ]);
  const rest = view.live.more ? ["and more", bytes(view.live.moreBytes), plural(view.live.more, "value"), "", ""] : null;
  const total = all.length + view.live.more;
  const found = table(`${plural(total, "value")}, largest first`, columns, rows, peak.all ? rest : null);
  byId("peak-table").replaceChildren(found);
  if (all.length > 12) {
    byId("peak-table").append(el("div", { class: "bar", style: "padding:0 0.7rem" }, el("button", {
      type: "button", onclick: () => { peak.all = !peak.all; peakTable(); },
    }, peak.all ? "Show fewer" : `Show ${all.length}`)));
  }
  for (const name of ["plan", "plain"]) byId(`peak-${name}`).setAttribute("aria-pressed", peak.which === name);
}

function setUpMemory() {
  const draws = [
    memoryChart(byId("plain-chart"), byId("plain-read"), "plain", "Memory over the plain step; arrow keys move through it"),
    memoryChart(byId("plan-chart"), byId("plan-read"), "plan", "Memory over the planned step; arrow keys move through it"),
  ];
  for (const name of ["plan", "plain"]) {
    byId(`peak-${name}`).addEventListener("click", () => { peak.which = name; peak.all = false; peakTable(); });
  }
  const refresh = () => {
    const used = STACK.filter((c) => views().some((v) => v.timeline.parts[c] !== undefined)).reverse();
    byId("legend").replaceChildren(
      ...used.map((c) => el("li", {}, swatch(c), words(c))),
      el("li", {}, el("span", { class: "swatch line", "aria-hidden": "true" }), "budget"));
    draws.forEach((draw) => draw());
    memoryTable();
    peakTable();
  };
  // Of a fifth of the plain step's memory nothing could be seen at its scale.
  byId("own-scale").checked = data.plan.peakBytes * 5 < data.plain.peakBytes;
  byId("own-scale").addEventListener("change", () => draws[1]());
  listeners.push(refresh);
  refresh();
}
