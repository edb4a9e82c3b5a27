#include "blocks.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace memfit::fuzz {
namespace {

using Row = std::vector<std::int32_t>;

std::vector<bool> flags(Random& random, std::size_t count, std::size_t once_in) {
  std::vector<bool> result(count);
  for (std::size_t i = 0; i < count; ++i) result[i] = random.once_in(once_in);
  return result;
}

bool holds(const Row& row, std::int32_t s) { return std::find(row.begin(), row.end(), s) != row.end(); }

struct Generator {
  Random& random;
  StageLists lists;
  Row from_below;
  Row backward_of;  // for each backward op, the forward op that it belongs to
  Rows reads_from;  // for each forward op, the ops of the block that it reads from
  std::int32_t values = 0;

  void forward(std::size_t ops) {
    reads_from = random_graph(random, ops);
    lists.forward_inputs.resize(ops);
    lists.forward_outputs.resize(ops);
    for (std::size_t v = 0; v < ops; ++v) {
      Row& inputs = lists.forward_inputs[v];
      for (const std::int32_t p : reads_from[v]) {
        const std::int32_t s = random.pick(lists.forward_outputs[at(p)]);
        if (!holds(inputs, s)) inputs.push_back(s);
      }
      for (const std::int32_t s : from_below) {
        if (random.once_in(6)) inputs.push_back(s);
      }
      std::sort(inputs.begin(), inputs.end());
      const std::size_t outputs = random.once_in(4) ? 2 + random.below(2) : 1;
      for (std::size_t k = 0; k < outputs; ++k) lists.forward_outputs[v].push_back(values++);
    }
  }

  void backward() {
    Row gradient(at(values), -1);
    for (std::size_t v = lists.forward_inputs.size(); v-- > 0;) {
      for (std::size_t again = random.once_in(3) ? 2 : 1; again > 0; --again) {
        Row reads, writes;
        for (const auto* list : {&lists.forward_inputs[v], &lists.forward_outputs[v]}) {
          for (const std::int32_t s : *list) {
            if (random.once_in(2)) reads.push_back(s);
          }
        }
        for (const std::int32_t s : lists.forward_outputs[v]) {
          std::int32_t& g = gradient[at(s)];
          if (g < 0 && random.once_in(6)) g = values++;  // written above the block
          if (g >= 0) reads.push_back(g);
        }
        for (const std::int32_t s : lists.forward_inputs[v]) {
          if (random.once_in(5)) continue;
          std::int32_t& g = gradient[at(s)];
          if (g < 0) g = values++;
          writes.push_back(g);
        }
        if (random.once_in(3)) writes.push_back(values++);
        lists.backward_inputs.push_back(reads);
        lists.backward_outputs.push_back(writes);
        backward_of.push_back(static_cast<std::int32_t>(v));
      }
    }
  }

  void numbers(std::size_t variants) {
    const std::size_t count = at(values);
    const std::size_t ops = lists.forward_inputs.size();
    lists.value_bytes = random_numbers(random, count);
    lists.forward_cost = random_numbers(random, ops);
    lists.forward_workspace = random_numbers(random, ops);
    lists.backward_workspace = random_numbers(random, lists.backward_inputs.size());
    lists.outlives = flags(random, count, 20);
    lists.forward_recomputable = flags(random, ops, 10);
    lists.forward_recomputable.flip();
    lists.keep_flags = {std::vector<bool>(count, false), flags(random, count, 2),
                        std::vector<bool>(count, true)};
    lists.keep_flags.resize(variants, flags(random, count, 3));
    lists.always_keep_bytes = random.pick<std::int64_t>({0, 1024});
    lists.auxiliary_share = random.pick<std::int64_t>({0, 128, 1024});
  }

  void ends(std::size_t variants) {
    const std::size_t count = at(values);
    std::vector<bool> is_forward(count);
    lists.from_below.resize(count);
    for (const std::int32_t s : from_below) lists.from_below[at(s)] = is_forward[at(s)] = true;
    for (const Row& outputs : lists.forward_outputs) {
      for (const std::int32_t s : outputs) is_forward[at(s)] = true;
    }
    lists.read_above = flags(random, count, 6);
    lists.used_below = flags(random, count, 4);
    lists.begun_above = flags(random, count, 4);
    lists.always_keep = flags(random, count, 8);
    for (std::size_t s = 0; s < count; ++s) {
      const bool below = lists.from_below[s];
      lists.read_above[s] = lists.read_above[s] && is_forward[s];
      lists.used_below[s] = lists.used_below[s] && (below || !is_forward[s]);
      lists.begun_above[s] = lists.begun_above[s] && !is_forward[s];
      lists.always_keep[s] = lists.always_keep[s] && (below || lists.read_above[s]);
      if (lists.always_keep[s]) continue;
      if (below) lists.interface_below.push_back(static_cast<std::int32_t>(s));
      if (lists.read_above[s] && !below) lists.interface_above.push_back(static_cast<std::int32_t>(s));
    }
    for (std::size_t v = 0; v < variants; ++v) {
      Row& cached = lists.cached_below.emplace_back();
      const std::size_t once_in = 1 + random.below(4);
      for (const std::int32_t s : lists.interface_below) {
        if (random.once_in(once_in)) cached.push_back(s);
      }
    }
  }

  // As Cut.of in memfit/_core/problem.py.
  Cuts cuts() {
    Cuts result;
    result.lower = some_lower_sets(random, reads_from);
    const std::size_t count = result.lower.rows();
    result.finished = BitMatrix(count, std::max<std::size_t>(1, backward_of.size()));
    for (std::size_t c = 0; c < count; ++c) add_cut(result, c);
    return result;
  }

  void add_cut(Cuts& cuts, std::size_t c) {
    const Word* lower = cuts.lower.row(c);
    const std::size_t count = at(values);
    std::vector<bool> made(count), inside(count), read_outside(count), read_below(count),
        touched_below(count), begun(lists.begun_above);
    for (std::size_t b = 0; b < backward_of.size(); ++b) {
      const bool finished = !test_bit(lower, at(backward_of[b]));
      if (finished) set_bit(cuts.finished.row(c), b);
      for (const std::int32_t s : lists.backward_inputs[b]) {
        if (!finished) read_below[at(s)] = touched_below[at(s)] = true;
      }
      for (const std::int32_t s : lists.backward_outputs[b]) {
        if (finished) begun[at(s)] = true;
        if (!finished) touched_below[at(s)] = true;
      }
    }
    for (std::size_t op = 0; op < lists.forward_inputs.size(); ++op) {
      const bool below = test_bit(lower, op);
      for (const std::int32_t s : lists.forward_inputs[op]) {
        if (!below) read_outside[at(s)] = true;
      }
      for (const std::int32_t s : lists.forward_outputs[op]) {
        made[at(s)] = true;
        inside[at(s)] = below;
      }
    }
    Row& boundary = cuts.boundary.emplace_back();
    Row& needed = cuts.needed_below.emplace_back();
    std::int64_t& base = cuts.base_bytes.emplace_back(0);
    for (std::size_t s = 0; s < count; ++s) {
      if (inside[s] || lists.from_below[s]) {
        if (lists.read_above[s] || read_outside[s]) boundary.push_back(static_cast<std::int32_t>(s));
      } else if (made[s]) {
        if (lists.outlives[s]) {
          base += lists.value_bytes[s];
        } else if (read_below[s]) {
          needed.push_back(static_cast<std::int32_t>(s));
        }
      } else {
        const bool later = lists.outlives[s] || lists.used_below[s] || touched_below[s];
        if (begun[s] && later) base += lists.value_bytes[s];
        if (lists.begun_above[s]) base -= lists.value_bytes[s];
      }
    }
  }
};

Row* any_row(Random& random, Rows& rows) {
  return rows.empty() ? nullptr : &rows[random.below(rows.size())];
}

// Names a value that is not there; false if there is no row to do so.
bool add_wild(Random& random, Row* row, std::size_t values) {
  if (row == nullptr) return false;
  const auto n = static_cast<std::int32_t>(values);
  row->push_back(random.pick<std::int32_t>({n, n + 1, n + 64, -1, -n - 1,
                                            std::numeric_limits<std::int32_t>::max(),
                                            std::numeric_limits<std::int32_t>::min()}));
  return true;
}

void add_any(Random& random, Row* row, std::size_t values) {
  if (row == nullptr || values == 0) return;
  const auto s = static_cast<std::int32_t>(random.below(values));
  row->insert(row->end(), random.once_in(2) ? 1 : random.below(100), s);
}

}  // namespace

RandomBlock random_block(Random& random, std::size_t ops, std::size_t variants) {
  Generator generator{random, {}, {}, {}, {}, 0};
  for (std::size_t k = random.once_in(2) ? 0 : random.below(4); k > 0; --k) {
    generator.from_below.push_back(generator.values++);
  }
  generator.forward(ops);
  generator.backward();
  generator.numbers(variants);
  generator.ends(variants);
  Cuts cuts = generator.cuts();
  return {std::move(generator.lists), std::move(cuts)};
}

bool spoil_lists(Random& random, StageLists& t) {
  const std::size_t values = t.value_bytes.size();
  Rows* const rows = random.pick({&t.forward_inputs, &t.forward_outputs, &t.backward_inputs,
                                  &t.backward_outputs, &t.cached_below});
  Row* const row = random.once_in(3)
                       ? random.pick({&t.interface_below, &t.interface_above})
                       : any_row(random, *rows);
  switch (random.below(12)) {
    case 0:
      spoil_length(random, *random.pick({&t.value_bytes, &t.forward_cost, &t.forward_workspace,
                                         &t.backward_workspace}));
      return true;
    case 1:
      spoil_length(random, *random.pick({&t.outlives, &t.forward_recomputable, &t.from_below,
                                         &t.read_above, &t.used_below, &t.begun_above, &t.always_keep}));
      return true;
    case 2: spoil_length(random, *rows); return true;
    case 3:
      if (t.keep_flags.empty()) return false;
      spoil_length(random, t.keep_flags[random.below(t.keep_flags.size())]);
      return true;
    case 4: return add_wild(random, row, values);
    case 5: add_any(random, row, values); return false;  // cycles, two producers, repeated values
    case 6: spoil_numbers(random, random.once_in(2) ? t.value_bytes : t.forward_cost); return false;
    case 7:
      spoil_numbers(random, random.once_in(2) ? t.forward_workspace : t.backward_workspace);
      return false;
    case 8: t.always_keep_bytes = wild_number(random); return false;
    case 9: t.auxiliary_share = wild_number(random); return t.auxiliary_share < 0 || t.auxiliary_share > 1024;
    case 10: {  // a cycle
      if (t.forward_inputs.empty()) return false;
      const std::size_t op = random.below(t.forward_inputs.size());
      const std::size_t later = op + random.below(t.forward_inputs.size() - op);
      if (t.forward_outputs.size() <= later || t.forward_outputs[later].empty()) return false;
      t.forward_inputs[op].push_back(random.pick(t.forward_outputs[later]));
      return true;
    }
    default:  // flags that contradict one another
      *random.pick({&t.from_below, &t.read_above, &t.used_below, &t.begun_above, &t.always_keep}) =
          flags(random, values, 2);
      return false;
  }
}

void strain(Random& random, RandomBlock& block) {
  StageLists& t = block.lists;
  for (Numbers* list : {&t.forward_workspace, &t.backward_workspace}) {
    std::fill(list->begin(), list->end(), 0);
  }
  strain_numbers(random, random.once_in(4) ? t.forward_workspace : t.value_bytes);
  const std::int64_t most = std::int64_t{1} << (60 + random.below(3));
  for (std::int64_t& bytes : block.cuts.base_bytes) bytes = random.pick<std::int64_t>({0, most - 1, 1 - most});
  const std::size_t values = t.value_bytes.size();
  for (Row* row : {&t.interface_below, &t.interface_above, any_row(random, block.cuts.needed_below),
                   any_row(random, block.cuts.boundary), any_row(random, t.backward_inputs)}) {
    if (random.once_in(2)) add_any(random, row, values);
  }
}

bool spoil_cuts(Random& random, Cuts& cuts, std::size_t values) {
  Rows& rows = random.once_in(2) ? cuts.boundary : cuts.needed_below;
  switch (random.below(8)) {
    case 0: spoil_sets(random, cuts.lower); return false;
    case 1: spoil_sets(random, cuts.finished); return false;
    case 2: spoil_length(random, rows); return true;
    case 3: spoil_length(random, cuts.base_bytes); return true;
    case 4: return add_wild(random, any_row(random, rows), values);
    case 5:
      for (std::int64_t& bytes : cuts.base_bytes) {
        if (random.once_in(3)) bytes = wild_number(random);
      }
      return false;
    case 6:
      for (std::int64_t& bytes : cuts.base_bytes) {
        bytes = random.pick({-1, 1}) * ((std::int64_t{1} << (60 + random.below(3))) - random.between(1, 2));
      }
      return false;
    default:
      for (std::size_t k = 1 + random.below(3); k > 0; --k) add_any(random, any_row(random, rows), values);
      return false;
  }
}

}  // namespace memfit::fuzz
