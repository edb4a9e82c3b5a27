// The trade-off: budgets against overheads; a selected point's plan is shown by the whole page.

function setUpCurve() {
  const curve = data.curve;
  if (!curve || !curve.points.length) {
    byId("curve").hidden = true;
    byId("curve-link").hidden = true;
    return;
  }
  const points = curve.points;
  const planned = Object.keys(curve.plans).map(Number).sort((a, b) => a - b);
  const plainPeak = data.plain.peakBytes;
  const share = (overhead) => (data.totalCost ? overhead / data.totalCost : 0);
  let selected = null;
  const box = byId("curve-chart");
  byId("curve-help").textContent =
    `Each point is the smallest budget that can be met at its overhead (planner ${curve.planner}, family ${curve.family}, ` +
    `${curve.status === "OPTIMAL_IN_FAMILY" ? "optimal in it" : "feasible, not shown to be optimal"}). ` +
    `Select a point with a click, or focus the chart and use the arrow keys; Enter shows the plan of a full point on the whole page. ` +
    `${planned.length} of ${plural(points.length, "point")} ${planned.length === 1 ? "has its" : "have their"} plan in this file (full), the others their figures (hollow).`;

  const describe = (i) => `budget ${bytes(points[i][0])}, ${percent(points[i][0] / plainPeak)} of the plain peak; overhead ${percent(share(points[i][1]))} of a step`;
  function detail() {
    const card = byId("curve-detail");
    if (selected === null) { card.replaceChildren(); return; }
    const [budget, overhead] = points[selected];
    const view = curve.plans[selected];
    const facts = [
      ["budget", `${bytes(budget)} (${budget.toLocaleString("en")} bytes), ${percent(budget / plainPeak)} of the plain step's peak`],
      ["overhead", `${cost(overhead)}, ${percent(share(overhead))} of a plain step`],
    ];
    if (view) {
      // The final schedule may leave out recomputations that the search has counted.
      if (view.overhead !== overhead) facts.push(["overhead of its plan", `${cost(view.overhead)}, ${percent(share(view.overhead))}`]);
      facts.push(
        ["peak", `${bytes(view.peakBytes)}, at ${runs(view.peakOp, view.peakCopy)}${sourceOf(view.peakOp) ? ` (${sourceOf(view.peakOp)})` : ""}`],
        ["kept", bytes(view.keptBytes)],
        ["recomputed", `${plural(view.recomputedOps, "op")} of ${FORWARD.toLocaleString("en")}${view.mostRecomputations > 1 ? `, one up to ${view.mostRecomputations} times` : ""}`],
        ["stages", view.stages || "none"],
        ["planner", `${view.planner}, ${view.family}`],
      );
    }
    const here = shown.point === selected;
    card.replaceChildren(
      el("h3", {}, `Point ${selected + 1} of ${points.length}`),
      el("dl", {}, ...facts.flatMap(([a, b]) => [el("dt", {}, a), el("dd", {}, b)])),
      view
        ? el("button", { type: "button", id: "show-point", onclick: () => (here ? show(data.plan, null) : show(view, selected)) },
          here ? "Back to the plan of the file" : "Show this plan on the whole page")
        : el("p", { class: "quiet" }, "Its plan is not in this file; ask for more with --curve-points."));
  }
  function choose(i) {
    selected = Math.max(0, Math.min(points.length - 1, i));
    redraw();
    detail();
  }
  function key(event) {
    const now = selected === null ? -1 : selected;
    const next = { ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1, Home: 0, End: points.length - 1 }[event.key];
    if (next !== undefined) choose(next);
    else if ((event.key === "Enter" || event.key === " ") && curve.plans[selected]) show(curve.plans[selected], selected);
    else return;
    event.preventDefault();
  }
  function draw(width) {
    const height = width < 480 ? 260 : 320;
    const pad = { left: 56, right: 16, top: 16, bottom: 40 };
    const mostBytes = Math.max(plainPeak, ...points.map((p) => p[0])) * 1.04;
    const mostShare = Math.max(...points.map((p) => share(p[1])), 0.01) * 1.08;
    const x = (b) => pad.left + (b / mostBytes) * (width - pad.left - pad.right);
    const y = (s) => pad.top + (1 - s / mostShare) * (height - pad.top - pad.bottom);
    const nearest = (event) => {
      const rect = box.firstChild.getBoundingClientRect();
      const [mx, my] = [event.clientX - rect.left, event.clientY - rect.top];
      const away = (i) => Math.hypot(x(points[i][0]) - mx, y(share(points[i][1])) - my);
      let best = 0;
      for (let i = 1; i < points.length; i++) if (away(i) < away(best)) best = i;
      const full = planned.filter((i) => away(i) < 12);
      return full.length ? full.reduce((a, b) => (away(b) < away(a) ? b : a)) : best;
    };
    const root = svg("svg", {
      viewBox: `0 0 ${width} ${height}`, height, tabindex: "0", role: "slider",
      "aria-label": "Trade-off between budget and overhead; arrow keys select a point",
      "aria-valuemin": 1, "aria-valuemax": points.length, "aria-valuenow": selected === null ? 1 : selected + 1,
      "aria-valuetext": selected === null ? plural(points.length, "point") : describe(selected),
      onkeydown: key, onclick: (e) => choose(nearest(e)),
      onpointermove: (e) => { const i = nearest(e); showTip(`Point ${i + 1}`, describe(i).split("; "), e.clientX, e.clientY); },
      onpointerleave: hideTip,
    });
    ticks(mostShare * 100, false, 5).forEach((p) => {
      root.append(svg("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(p / 100), y2: y(p / 100) }));
      root.append(svg("text", { class: "tick", x: pad.left - 6, y: y(p / 100) + 4, "text-anchor": "end" }, `${Number(p.toFixed(2))}%`));
    });
    ticks(mostBytes, true, width < 480 ? 3 : 6).forEach((b) => {
      root.append(svg("text", { class: "tick", x: x(b), y: height - pad.bottom + 16, "text-anchor": "middle" }, tickBytes(b)));
    });
    root.append(svg("text", { class: "tick", x: pad.left + (width - pad.left - pad.right) / 2, y: height - 4, "text-anchor": "middle" }, width < 480 ? "budget; upwards: overhead" : "budget (peak of the whole step); upwards: overhead, share of a plain step"));
    const budget = x(shown.view.budgetBytes);
    root.append(svg("line", { class: "budget", x1: budget, x2: budget, y1: pad.top, y2: height - pad.bottom }));
    const steps = points.map(([b, o], i) => (i ? `H${x(b).toFixed(1)}V${y(share(o)).toFixed(1)}` : `M${x(b).toFixed(1)},${y(share(o)).toFixed(1)}`));
    root.append(svg("path", { class: "curve", d: `${steps.join("")}H${width - pad.right}` }));
    points.forEach(([b, o], i) => {
      const full = curve.plans[i] !== undefined;
      // Thousands of hollow points would hide the line.
      if (!full && points.length > 60 && i !== selected) return;
      root.append(svg("circle", { class: `point${full ? "" : " bare"}${i === selected ? " on" : ""}`, "data-point": i, cx: x(b), cy: y(share(o)), r: i === selected ? 7 : full ? 5 : 3 }));
    });
    const near = budget > width * 0.6;
    root.append(svg("circle", { class: "mine", cx: budget, cy: y(shown.view.overhead ? share(shown.view.overhead) : 0), r: 9 }));
    root.append(svg("text", { class: "halo budget-text", x: budget + (near ? -6 : 6), y: pad.top + 10, "text-anchor": near ? "end" : "start" }, `shown plan: budget ${bytes(shown.view.budgetBytes)}`));
    const focused = box.firstChild === document.activeElement;
    box.replaceChildren(root);
    if (focused) root.focus();
  }
  const redraw = onWidth(box, draw);
  const rows = points.map(([b, o], i) => [
    el("button", { type: "button", onclick: () => choose(i) }, `Point ${i + 1}`), bytes(b), percent(b / plainPeak), cost(o), percent(share(o)), curve.plans[i] ? "yes" : "no",
  ]);
  let tabled = false;
  byId("curve-table").parentElement.addEventListener("toggle", () => {
    if (tabled) return;
    tabled = true;
    byId("curve-table").append(table("All points of the trade-off", [["point"], ["budget", 1], ["of the plain peak", 1], ["overhead", 1], ["of a step", 1], ["plan in this file"]], rows, null, false));
  });
  if (curve.notes.length) byId("curve-help").append(` Note: ${curve.notes.join("; ")}.`);
  listeners.push(() => { redraw(); detail(); });
  redraw();
}
