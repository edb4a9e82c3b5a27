// The head of the page, and everything set up.

function setUpSummary() {
  byId("title").textContent = `${data.name}: memory of a training step`;
  byId("origin").textContent = data.made;
  document.querySelectorAll("nav a").forEach((link) => link.addEventListener("click", hideTip));
  const refresh = () => {
    const view = shown.view;
    const plain = data.plain.peakBytes;
    const figure = (name, value, more) => el("div", {}, el("dt", {}, name), el("dd", {}, value, more ? el("small", {}, more) : null));
    byId("figures").replaceChildren(
      figure("plain peak", bytes(plain), `${plural(ops.name.length, "op")}, ${bytes(data.residentBytes)} all through`),
      figure("budget", bytes(view.budgetBytes), percent(view.budgetBytes / plain) + " of the plain peak"),
      figure("planned peak", bytes(view.peakBytes), percent(view.peakBytes / plain) + " of the plain peak"),
      figure("time added", `${view.overheadPercent.toFixed(1)}%`, `${cost(view.overhead)} a step`),
      figure("kept", bytes(view.keptBytes), `${bytes(data.plain.keptBytes)} in the plain step`),
      figure("smallest budget", bytes(view.smallestBytes), percent(view.smallestBytes / plain) + " of the plain peak"));
    byId("sentence").textContent =
      `The step fits into ${bytes(view.budgetBytes)} when ${plural(view.recomputedOps, "op")} of ${FORWARD.toLocaleString("en")} run${view.recomputedOps === 1 ? "s" : ""} again in the backward pass` +
      `${view.mostRecomputations > 1 ? ` (one of them ${view.mostRecomputations} times)` : ""}, in ${plural(view.stages, "stage")}; planner ${view.planner}, family ${view.family}, ` +
      `${view.status === "OPTIMAL_IN_FAMILY" ? "optimal in that family" : "feasible, not shown to be optimal"}.`;
    byId("notes").replaceChildren(...view.notes.map((note) => el("li", {}, note)));
    const which = byId("which");
    which.hidden = shown.point === null;
    document.documentElement.style.scrollPaddingTop = which.hidden ? "" : "7rem";
    which.replaceChildren(...(shown.point === null ? [] : [
      `This page shows the plan of point ${shown.point + 1} of the trade-off, budget ${bytes(view.budgetBytes)}. `,
      el("button", { type: "button", onclick: () => show(data.plan, null) }, "Back to the plan of the file"),
    ]));
  };
  listeners.push(refresh);
  refresh();
}

setUpTheme();
setUpSummary();
setUpMemory();
setUpCurve();
setUpGraph();
setUpModules();
document.documentElement.dataset.ready = "yes";
