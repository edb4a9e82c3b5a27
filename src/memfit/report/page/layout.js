// The graph as nested groups, which of them are unfolded, and where what is drawn stands.

const NODE = { width: 168, height: 40, gapX: 22, gapY: 30 };
const MOST_DRAWN = 1200;

// Groups and ops as objects; `open` groups are replaced by what is in them.
function makeTree(item, parent) {
  if (typeof item === "number") return { op: item, parent, ops: [item], first: item };
  const group = { name: item[0], repeats: item[1], parent, open: parent === null, ops: [] };
  group.children = item[2].map((child) => makeTree(child, group));
  for (const child of group.children) for (const op of child.ops) group.ops.push(op);
  group.first = group.ops.reduce((a, b) => Math.min(a, b), Infinity);
  return group;
}
const tree = makeTree(data.tree, null);

function visible(node, out) {
  if (node.children && node.open) node.children.forEach((child) => visible(child, out));
  else out.push(node);
  return out;
}
function closeAll(node) {
  if (!node.children) return;
  node.open = node === tree;
  node.children.forEach(closeAll);
}
// Unfold all of a small graph, and of a large one level by level what stays few enough to be taken
// in, but not what repeats.
function openFirst(limit) {
  closeAll(tree);
  if (FORWARD <= limit) { openAll(tree); return; }
  for (let grown = true; grown;) {
    grown = false;
    const drawn = visible(tree, []);
    const groups = drawn.filter((n) => n.children && n.repeats === 1);
    const more = groups.reduce((sum, n) => sum + n.children.length - 1, 0);
    if (groups.length && drawn.length + more <= limit) {
      groups.forEach((n) => { n.open = true; });
      grown = true;
    }
  }
}
function openAll(node) {
  if (!node.children) return;
  node.open = true;
  node.children.forEach(openAll);
}
const nameOf = (node) => (node.children ? node.name || "ops" : ops.name[node.op]);

// Layers by longest path, along edges that go forward in program order, and places within them.
function layout() {
  const nodes = visible(tree, []).sort((a, b) => a.first - b.first);
  const owner = new Int32Array(FORWARD);
  nodes.forEach((node, i) => {
    node.index = i;
    node.before = new Set();
    node.after = new Set();
    node.layer = 0;
    node.ops.forEach((op) => { owner[op] = i; });
  });
  data.edges.forEach((before, op) => before.forEach((p) => {
    if (owner[p] !== owner[op]) {
      nodes[owner[op]].before.add(owner[p]);
      nodes[owner[p]].after.add(owner[op]);
    }
  }));
  for (const node of nodes) {
    for (const p of node.before) if (p < node.index) node.layer = Math.max(node.layer, nodes[p].layer + 1);
  }
  // What reads nothing stands just above its first reader: constants would crowd the first layer.
  for (let i = nodes.length - 1; i >= 0; i--) {
    const node = nodes[i];
    if (node.before.size || !node.after.size) continue;
    node.layer = Math.max(0, Math.min(...[...node.after].map((n) => nodes[n].layer)) - 1);
  }
  const layers = [];
  nodes.forEach((node) => { (layers[node.layer] ||= []).push(node); });
  const filled = layers.filter(Boolean);
  const step = NODE.width + NODE.gapX;
  filled.forEach((layer, depth) => {
    const middle = (node) => {
      const from = [...node.before].map((p) => nodes[p].x).filter((v) => v !== undefined);
      return from.length ? from.reduce((a, b) => a + b, 0) / from.length : 0;
    };
    layer.forEach((node) => { node.wanted = middle(node); node.depth = depth; });
    layer.sort((a, b) => a.wanted - b.wanted || a.first - b.first);
    const centre = layer.reduce((sum, n) => sum + n.wanted, 0) / layer.length;
    layer.forEach((node, i) => {
      node.x = Math.max(-2.5 * step, Math.min(2.5 * step, centre)) + (i - (layer.length - 1) / 2) * step;
      node.y = depth * (NODE.height + NODE.gapY);
    });
  });
  const xs = nodes.map((n) => n.x);
  const left = xs.reduce((a, b) => Math.min(a, b), 0) - NODE.width / 2;
  const right = xs.reduce((a, b) => Math.max(a, b), 0) + NODE.width / 2;
  return { nodes, layers: filled, left, width: right - left, height: filled.length * (NODE.height + NODE.gapY) };
}
