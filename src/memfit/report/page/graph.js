// The graph: boxes coloured by stage, kept values outlined, recomputed ones hatched.

const STAGE_COLOURS = 8;
const stageColour = (stage) => `var(--s${stage % STAGE_COLOURS})`;

// What a group or an op amounts to under the plan that is shown.
function sums(node) {
  const found = detailsOf(shown.view);
  const out = { bytes: 0, kept: 0, time: 0, added: 0, again: 0, keptOps: 0, stages: [] };
  const stages = new Map();
  for (const op of node.ops) {
    out.bytes += opBytes[op];
    out.kept += found.kept[op];
    out.keptOps += found.kept[op] > 0;
    out.time += ops.cost[op];
    out.added += found.again[op] * ops.cost[op];
    out.again += found.again[op] > 0;
    stages.set(found.stage[op], (stages.get(found.stage[op]) || 0) + 1);
  }
  out.stages = [...stages].sort((a, b) => a[0] - b[0]);
  return out;
}
function stageText(stages) {
  const [first, last] = [stages[0][0] + 1, stages[stages.length - 1][0] + 1];
  return first === last ? `stage ${first}` : `stages ${first} to ${last}`;
}
function factsOf(node) {
  if (!node.children) return [["op", text(ops.target[node.op])], ...opFacts(node.op)];
  const s = sums(node);
  const facts = [["ops", `${node.ops.length}${node.repeats > 1 ? `, in ${node.repeats} equal blocks` : ""}`]];
  facts.push(["writes", bytes(s.bytes)], ["kept", s.kept ? `${bytes(s.kept)}, of ${plural(s.keptOps, "op")}` : "nothing"]);
  facts.push(["time", cost(s.time)], ["recomputed", s.again ? `${plural(s.again, "op")}, ${cost(s.added)}` : "nothing"]);
  if (shown.view.stages > 1) facts.push(["stage", stageText(s.stages)]);
  return facts;
}
const short = (name, most) => (name.length <= most ? name : `…${name.slice(1 - most)}`);

function setUpGraph() {
  const box = byId("graph-box");
  let drawn = null;
  let chosen = null;
  let focusIndex = 0;
  const shapes = new Map();

  function box_of(node) {
    const s = sums(node);
    const { width, height } = NODE;
    const [left, top] = [node.x - width / 2, node.y];
    const stages = s.stages.length > 12 ? s.stages.filter((_, i) => i % Math.ceil(s.stages.length / 12) === 0) : s.stages;
    const each = width / stages.length;
    const label = `${node.children ? (node.repeats > 1 ? `${node.repeats} equal blocks` : "group") : "op"} ${nameOf(node)}; ` +
      factsOf(node).map(([a, b]) => `${a} ${b}`).join("; ");
    const found = svg("g", {
      class: `node${s.kept ? " kept" : ""}`, tabindex: node.index === focusIndex ? "0" : "-1", role: "button",
      "aria-label": label, "aria-expanded": node.children ? "false" : null, "data-index": node.index,
      transform: `translate(${left.toFixed(1)},${top.toFixed(1)})`,
    });
    if (node.children) {
      if (node.repeats > 1) found.append(svg("rect", { class: "back", x: 8, y: 8, width, height, rx: 6 }));
      found.append(svg("rect", { class: "back", x: 4, y: 4, width, height, rx: 6 }));
    }
    found.append(svg("rect", { class: "box", width, height, rx: 6, style: `fill:${stageColour(stages[0][0])}` }));
    stages.slice(1).forEach(([stage], i) => {
      found.append(svg("rect", { x: each * (i + 1), y: 2, width: each - (i === stages.length - 2 ? 2 : 0), height: height - 4, style: `fill:${stageColour(stage)}` }));
    });
    if (s.again) found.append(svg("rect", { class: "shade", width: (width * s.again) / node.ops.length, height, rx: 6 }));
    const title = node.children ? node.name : ops.name[node.op];
    const sub = node.children
      ? `${node.repeats > 1 ? `${node.repeats} × ` : ""}${plural(node.repeats > 1 ? Math.round(node.ops.length / node.repeats) : node.ops.length, "op")}${s.kept ? `, ${bytes(s.kept)} kept` : ""}`
      : `${bytes(opBytes[node.op])}${shown.view.stages > 1 ? `, stage ${s.stages[0][0] + 1}` : ""}`;
    const halo = stages.length === 1 ? `stroke:${stageColour(stages[0][0])}` : "stroke:var(--page)";
    found.append(svg("text", { class: "name", x: 8, y: 17, style: halo }, short(title, 20)));
    found.append(svg("text", { class: "sub", x: 8, y: 32, style: halo }, short(sub, 28)));
    if (node.children) found.append(svg("text", { class: "name", x: width - 15, y: 17, style: halo, "aria-hidden": "true" }, "+"));
    found.append(svg("rect", { class: "ring", x: -4, y: -4, width: width + 8, height: height + 8, rx: 9 }));
    return found;
  }

  function link(from, to) {
    const [x1, y1, x2, y2] = [from.x, from.y + NODE.height, to.x, to.y];
    const far = to.depth - from.depth;
    const classes = `link${far > 1 || far < 1 ? " skip-link" : ""}`;
    let path;
    if (far === 1) path = `M${x1},${y1}C${x1},${y1 + 16} ${x2},${y2 - 16} ${x2},${y2}`;
    else {
      // Around the boxes between, on the right; longer ones further out.
      const reach = Math.max(x1, x2) + NODE.width / 2 + 14 + Math.min(60, 5 * Math.abs(far));
      const [a, b] = [x1 + NODE.width / 2, x2 + NODE.width / 2];
      path = `M${a},${y1 - 12}C${reach},${y1 - 12} ${reach},${y1} ${reach},${y1 + 18}L${reach},${y2 - 18}C${reach},${y2} ${reach},${y2 + 12} ${b},${y2 + 12}`;
    }
    return svg("path", { class: classes, d: path, "data-from": from.index, "data-to": to.index });
  }

  function draw(keep) {
    drawn = layout();
    const { nodes, left, width, height } = drawn;
    if (focusIndex >= nodes.length) focusIndex = 0;
    if (keep) focusIndex = Math.max(0, nodes.indexOf(keep));
    const margin = 24;
    const right = 90;
    const root = svg("svg", {
      width: width + margin + right, height: height + 2 * margin, role: "group", "aria-label": `Graph: ${nodes.length} groups and ops`,
      viewBox: `${left - margin} ${-margin} ${width + margin + right} ${height + 2 * margin}`,
    });
    shapes.clear();
    const links = svg("g", { "aria-hidden": "true" });
    nodes.forEach((node) => node.before.forEach((p) => links.append(link(nodes[p], node))));
    root.append(links);
    nodes.forEach((node) => { const shape = box_of(node); shapes.set(node.index, shape); root.append(shape); });
    box.replaceChildren(root);
    byId("graph-status").textContent = `${plural(nodes.length, "box").replace("boxs", "boxes")} for ${plural(FORWARD, "forward op")}`;
    if (byId("graph-list").parentElement.open) list();
    if (chosen && nodes.includes(chosen)) mark(chosen);
  }
  function mark(node) {
    box.querySelectorAll(".on").forEach((n) => n.classList.remove("on"));
    shapes.get(node.index).classList.add("on");
    box.querySelectorAll(`[data-from="${node.index}"], [data-to="${node.index}"]`).forEach((n) => n.classList.add("on"));
  }
  function reveal(node) {
    const place = shapes.get(node.index).getBoundingClientRect();
    const frame = box.getBoundingClientRect();
    if (place.top < frame.top || place.bottom > frame.bottom) box.scrollTop += place.top - frame.top - frame.height / 2 + place.height / 2;
    if (place.left < frame.left || place.right > frame.right) box.scrollLeft += place.left - frame.left - frame.width / 2 + place.width / 2;
  }
  function focus(node) {
    const old = shapes.get(focusIndex);
    if (old) old.setAttribute("tabindex", "-1");
    focusIndex = node.index;
    const shape = shapes.get(focusIndex);
    shape.setAttribute("tabindex", "0");
    shape.focus({ preventScroll: true });
    reveal(node);
  }
  function detail(node) {
    chosen = node;
    const parents = [];
    for (let p = node.parent; p && p !== tree; p = p.parent) parents.unshift(p);
    byId("graph-detail").replaceChildren(
      el("h3", {}, nameOf(node)),
      el("dl", {}, ...factsOf(node).flatMap(([a, b]) => [el("dt", {}, a), el("dd", {}, b)])),
      el("div", { class: "bar" },
        node.children ? el("button", { type: "button", onclick: () => unfold(node) }, "Unfold") : null,
        ...parents.slice(-3).map((p) => el("button", { type: "button", onclick: () => foldTo(p) }, `Fold ${short(p.name, 26)}`))));
    mark(node);
  }
  function unfold(node) {
    if (visible(tree, []).length + node.children.length > MOST_DRAWN) {
      byId("graph-status").textContent = `more than ${MOST_DRAWN} boxes are not drawn; fold something first`;
      return;
    }
    hideTip();
    node.open = true;
    const first = visible(node, [])[0];
    draw(first);
    focus(first);
    detail(first);
  }
  function foldTo(group) {
    closeUnder(group);
    draw(group);
    focus(group);
    detail(group);
  }
  function closeUnder(group) {
    if (!group.children) return;
    group.open = false;
    group.children.forEach(closeUnder);
  }
  const nodeAt = (event) => {
    const shape = event.target.closest(".node");
    return shape ? drawn.nodes[Number(shape.dataset.index)] : null;
  };
  box.addEventListener("click", (event) => {
    const node = nodeAt(event);
    if (!node) return;
    if (node.children) unfold(node);
    else { focus(node); detail(node); }
  });
  box.addEventListener("pointermove", (event) => {
    const node = nodeAt(event);
    if (!node) { hideTip(); return; }
    showTip(nameOf(node), factsOf(node).map(([a, b]) => `${a}: ${b}`), event.clientX, event.clientY);
  });
  box.addEventListener("pointerleave", hideTip);
  box.addEventListener("focusin", (event) => { const node = nodeAt(event); if (node) detail(node); });
  box.addEventListener("keydown", (event) => {
    const node = nodeAt(event);
    if (!node) return;
    const layer = drawn.layers[node.depth];
    const at = layer.indexOf(node);
    const closest = (row) => row && row.reduce((a, b) => (Math.abs(b.x - node.x) < Math.abs(a.x - node.x) ? b : a));
    const go = {
      ArrowDown: () => closest(drawn.layers[node.depth + 1]), ArrowUp: () => closest(drawn.layers[node.depth - 1]),
      ArrowRight: () => layer[at + 1], ArrowLeft: () => layer[at - 1],
      Home: () => drawn.layers[0][0], End: () => drawn.layers[drawn.layers.length - 1][0],
    }[event.key];
    if (go) { const next = go(); if (next) focus(next); }
    else if (event.key === "Enter" || event.key === " ") { if (node.children) unfold(node); else detail(node); }
    else if (event.key === "Backspace") { if (node.parent && node.parent !== tree) foldTo(node.parent); }
    else return;
    event.preventDefault();
  });

  function list() {
    const rows = drawn.nodes.map((node) => {
      const s = sums(node);
      return [
        node.children ? el("button", { type: "button", onclick: () => unfold(node) }, `Unfold ${nameOf(node)}`) : nameOf(node),
        node.ops.length, bytes(s.bytes), bytes(s.kept), s.again, cost(s.time), cost(s.added),
        shown.view.stages > 1 ? stageText(s.stages) : "", node.children ? "" : sourceOf(node.op),
      ];
    });
    byId("graph-list").replaceChildren(table("Drawn groups and ops", [["group or op"], ["ops", 1], ["writes", 1], ["kept", 1], ["ops recomputed", 1], ["time", 1], ["time added", 1], ["stage"], ["source line"]], rows, null, false));
  }
  byId("graph-list").parentElement.addEventListener("toggle", (event) => { if (event.target.open) list(); });
  byId("fold-all").addEventListener("click", () => { closeAll(tree); chosen = null; byId("graph-detail").replaceChildren(); draw(); centre(); });
  byId("unfold-level").addEventListener("click", () => {
    const groups = visible(tree, []).filter((n) => n.children);
    const all = visible(tree, []).length + groups.reduce((sum, n) => sum + n.children.length - 1, 0);
    if (!groups.length || all > MOST_DRAWN) {
      byId("graph-status").textContent = groups.length ? `that would be ${all} boxes; ${MOST_DRAWN} are drawn at most, so unfold single groups` : "all is unfolded";
      return;
    }
    groups.forEach((n) => { n.open = true; });
    draw();
  });
  let from = 0;
  const find = () => {
    const wanted = byId("find-op").value.trim().toLowerCase();
    if (!wanted) return;
    const match = (op) => ops.name[op].toLowerCase().includes(wanted) || sourceOf(op).toLowerCase().includes(wanted) || text(ops.module[op]).toLowerCase().includes(wanted);
    for (let i = 0; i < FORWARD; i++) {
      const op = (from + i) % FORWARD;
      if (!match(op)) continue;
      from = op + 1;
      let node = tree;
      while (node.children) {
        node.open = true;
        node = node.children.find((child) => child.ops.includes(op));
      }
      draw(node);
      focus(node);
      detail(node);
      byId("graph-status").textContent = `found ${ops.name[op]}; Find again for the next`;
      return;
    }
    byId("graph-status").textContent = `no op, module or line holds “${wanted}”`;
  };
  byId("find-next").addEventListener("click", find);
  byId("find-op").addEventListener("keydown", (event) => { if (event.key === "Enter") find(); });
  byId("find-op").addEventListener("input", () => { from = 0; });

  const several = () => shown.view.stages > 1;
  const legend = () => byId("graph-legend").replaceChildren(
    el("li", {}, el("span", { class: "swatch box kept", "aria-hidden": "true" }), "outlined: kept for the backward pass"),
    el("li", {}, el("span", { class: "swatch box again", "aria-hidden": "true" }), "hatched: recomputed (of a group, that share of its ops)"),
    several() ? el("li", {}, ...[0, 1, 2, 3].map((s) => el("span", { class: "swatch", style: `background:${stageColour(s)}`, "aria-hidden": "true" })), `fill: stage, 1 to ${shown.view.stages}, colours repeat after ${STAGE_COLOURS}`) : null);
  listeners.push(() => { legend(); draw(); if (chosen && drawn.nodes.includes(chosen)) detail(chosen); });
  const centre = () => { box.scrollLeft = (box.scrollWidth - box.clientWidth) / 2; };
  byId("graph-detail").append(el("p", { class: "quiet" }, "Point at a box for what it is; click it, or move to it with the keyboard, to keep that here."));
  openFirst(60);
  legend();
  draw();
  centre();
}
