// Modules, or stages where no module is known: memory kept before and after, time added.

function setUpModules() {
  const paths = ops.module.map((number) => text(number));
  const byModule = paths.filter(Boolean).length * 2 >= FORWARD;
  const NO_MODULE = "(outside any module)";
  let sort = { column: 5, down: true };
  const depthOf = (path) => (path ? path.split(".").length : 1);
  const deepest = byModule ? paths.reduce((most, path) => Math.max(most, depthOf(path)), 1) : 1;
  byId("modules-title").textContent = byModule ? "Modules" : "Stages";
  byId("modules-help").textContent =
    `Bytes of ${byModule ? "a module's" : "a stage's"} values that are kept from the forward to the backward pass, in the plain and in the planned step, and the time that recomputing its ops adds. Click a heading to sort.`;
  const depth = byId("depth");
  for (let d = 1; d <= deepest; d++) depth.append(el("option", { value: d, selected: d === deepest }, d === deepest ? "all" : d));
  depth.parentElement.hidden = deepest < 2;

  const COLUMNS = [
    [byModule ? "module" : "stage", false, null], ["ops", true, (n) => n.toLocaleString("en")], ["kept before", true, bytes],
    ["kept after", true, bytes], ["saved", true, bytes], ["time added", true, cost], ["of its forward time", true, percent],
  ];
  function rows() {
    const levels = Number(depth.value) || 1;
    const before = detailsOf(data.plain).kept;
    const after = detailsOf(shown.view);
    const groups = new Map();
    for (let op = 0; op < FORWARD; op++) {
      const key = byModule ? paths[op].split(".").slice(0, levels).join(".") || NO_MODULE : `stage ${after.stage[op] + 1}`;
      if (!groups.has(key)) groups.set(key, [key, 0, 0, 0, 0, 0, 0, 0]);
      const row = groups.get(key);
      row[1] += 1;
      row[2] += before[op];
      row[3] += after.kept[op];
      row[5] += after.again[op] * ops.cost[op];
      row[7] += ops.cost[op];
    }
    return [...groups.values()].map((row) => {
      row[4] = row[2] - row[3];
      row[6] = row[7] ? row[5] / row[7] : 0;
      return row;
    });
  }
  let all = false;
  function draw() {
    const wanted = byId("search").value.trim().toLowerCase();
    const every = rows();
    const found = every.filter((row) => row[0].toLowerCase().includes(wanted));
    const { column, down } = sort;
    const compare = (a, b) => (column ? a[column] - b[column] : a[0].localeCompare(b[0], "en", { numeric: true }));
    found.sort((a, b) => (down ? -1 : 1) * compare(a, b) || a[0].localeCompare(b[0], "en", { numeric: true }));
    const visibleRows = all ? found : found.slice(0, 200);
    const sum = (i) => found.reduce((total, row) => total + row[i], 0);
    const cells = (row) => COLUMNS.map(([, , format], i) => (format ? format(row[i]) : row[i]));
    const made = table(byModule ? "Modules" : "Stages", COLUMNS, visibleRows.map(cells),
      cells(["sum", sum(1), sum(2), sum(3), sum(4), sum(5), sum(7) ? sum(5) / sum(7) : 0]), false);
    made.querySelectorAll("thead th").forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      head.replaceChildren(el("button", {
        type: "button", "data-column": i,
        onclick: () => { sort = { column: i, down: column === i ? !down : i > 0 }; draw(); byId("modules-table").querySelector(`[data-column="${i}"]`).focus(); },
      }, COLUMNS[i][0]));
    });
    byId("modules-table").replaceChildren(made);
    if (found.length > visibleRows.length) {
      byId("modules-table").append(el("div", { class: "bar", style: "padding:0 0.7rem" }, el("button", { type: "button", onclick: () => { all = true; draw(); } }, `Show all ${found.length}`)));
    }
    byId("modules-status").textContent = `${found.length.toLocaleString("en")} of ${plural(every.length, byModule ? "module" : "stage")}`;
  }
  byId("search").addEventListener("input", draw);
  depth.addEventListener("change", draw);
  listeners.push(draw);
  draw();
}
