#include "nested.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <stdexcept>
#include <tuple>

#include "stage_simulator.hpp"
#include "sweeps.hpp"

namespace memfit {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 60;
constexpr int kMostMantissa = 16;

std::size_t slot_of(std::int64_t cost, int mantissa) {
  const auto length = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(cost)));
  const int shift = std::max(0, length - mantissa);
  return (static_cast<std::size_t>(shift) << mantissa) + static_cast<std::size_t>(cost >> shift);
}

CostFront front_of(const std::vector<NestedLabel>& labels) {
  CostFront front;
  for (const NestedLabel& label : labels) {
    front.costs.push_back(label.cost);
    front.needs.push_back(label.need);
  }
  return front;
}

// The cuts, and each once more without a boundary to keep.
Cuts with_bare(const Cuts& cuts) {
  const std::size_t count = cuts.lower.rows();
  Cuts both{BitMatrix(0, 0), BitMatrix(0, 0), {}, {}, {}};
  const auto twice = [count](const BitMatrix& from) {
    BitMatrix to(2 * count, from.words() * kWordBits);
    for (std::size_t c = 0; c < 2 * count; ++c) {
      std::copy_n(from.row(c % count), from.words(), to.row(c));
    }
    return to;
  };
  both.lower = twice(cuts.lower);
  both.finished = twice(cuts.finished);
  both.boundary = cuts.boundary;
  both.boundary.resize(2 * count);
  both.needed_below = cuts.needed_below;
  both.needed_below.insert(both.needed_below.end(), cuts.needed_below.begin(), cuts.needed_below.end());
  both.base_bytes = cuts.base_bytes;
  both.base_bytes.insert(both.base_bytes.end(), cuts.base_bytes.begin(), cuts.base_bytes.end());
  return both;
}

StageProblem without_variants(const StageProblem& problem) {
  StageProblem plain = problem;
  plain.keep_flags.assign(1, std::vector<char>(problem.values(), 0));
  plain.auxiliary_share = 0;
  plain.lent_below = Lists(StageLists::Rows(1));
  return plain;
}

std::int64_t dead_bytes(const StageProblem& p, const Cuts& cuts, std::size_t a, std::size_t b) {
  const Word* upper = cuts.lower.row(b);
  std::int64_t total = 0;
  for (const std::int32_t s : cuts.boundary[b]) {
    const std::int32_t producer = p.producer[at(s)];
    if (p.from_below[at(s)] == 0 && (producer < 0 || !test_bit(cuts.lower.row(a), at(producer)))) continue;
    if (p.outlives[at(s)] != 0 || p.used_below[at(s)] != 0) continue;
    if (any_inside(p.forward_readers[s], upper)) continue;
    if (any_outside(p.backward_readers[s], cuts.finished.row(b))) continue;
    total += p.size[at(s)];
  }
  return total;
}

// What a stage of a variant keeps; see piece_keep in memfit/_core/problem.py.
void find_kept(const StageProblem& p, const std::vector<std::int32_t>& ops, const std::vector<char>& edge,
               const std::vector<char>& flags, std::vector<std::int32_t>& keep) {
  keep.clear();
  for (const std::int32_t v : ops) {
    const bool fixed = p.recomputable[at(v)] == 0;
    const auto must = [&](std::int32_t s) {
      return edge[at(s)] != 0 || p.outlives[at(s)] != 0 || p.always_keep[at(s)] != 0 ||
             (fixed && (!p.backward_readers[s].empty() || !p.forward_readers[s].empty() ||
                        p.read_above[at(s)] != 0));
    };
    std::int64_t bytes = 0;
    for (const std::int32_t s : p.forward_out[v]) {
      if (must(s)) bytes += p.size[at(s)];
    }
    const std::int64_t small =
        std::max(p.always_keep_bytes, bytes / kShareUnit * p.auxiliary_share +
                                          bytes % kShareUnit * p.auxiliary_share / kShareUnit);
    for (const std::int32_t s : p.forward_out[v]) {
      const bool read_back = !p.backward_readers[s].empty();
      if (must(s) || (read_back && (flags[at(s)] != 0 || p.size[at(s)] <= small))) keep.push_back(s);
    }
  }
}

}  // namespace

// Collects the labels of one state; of those of a slot the one with the least need.
class NestedTable::Builder {
 public:
  explicit Builder(int mantissa)
      : mantissa_(mantissa), best_(std::size_t{64} << mantissa), used_(best_.size(), 0) {}

  void add(const NestedLabel& label) {
    const std::size_t slot = slot_of(label.cost, mantissa_);
    if (used_[slot] == 0) {
      used_[slot] = 1;
      slots_.push_back(slot);
      best_[slot] = label;
      return;
    }
    NestedLabel& known = best_[slot];
    if (label.need < known.need || (label.need == known.need && label.cost < known.cost)) known = label;
  }

  void add_one(std::int64_t floor, std::int64_t cost, std::int64_t shift, const CostFront& after,
               std::size_t k, std::size_t option) {
    for (std::size_t at = 0; at < after.costs.size(); ++at) {
      const std::int64_t need = after.needs[at] + shift;
      add({std::max(floor, need), cost + after.costs[at], static_cast<std::int32_t>(k),
           static_cast<std::int32_t>(option), 0, static_cast<std::int32_t>(at)});
      if (need <= floor) break;
    }
  }

  void add_both(std::int64_t floor, std::int64_t cost, const CostFront& below, std::int64_t below_shift,
                const CostFront& after, std::int64_t after_shift, std::size_t k) {
    for (std::size_t a = 0, b = 0; a < below.costs.size() && b < after.costs.size();) {
      const std::int64_t here = below.needs[a] + below_shift;
      const std::int64_t there = after.needs[b] + after_shift;
      const std::int64_t need = std::max({floor, here, there});
      add({need, cost + below.costs[a] + after.costs[b], static_cast<std::int32_t>(k), -1,
           static_cast<std::int32_t>(a), static_cast<std::int32_t>(b)});
      if (need == floor) break;
      if (here == need) ++a;
      if (there == need) ++b;
    }
  }

  std::vector<NestedLabel> take() {
    std::sort(slots_.begin(), slots_.end());
    std::vector<NestedLabel> result;
    for (const std::size_t slot : slots_) {
      used_[slot] = 0;
      if (result.empty() || best_[slot].need < result.back().need) result.push_back(best_[slot]);
    }
    slots_.clear();
    return result;
  }

 private:
  int mantissa_;
  std::vector<NestedLabel> best_;
  std::vector<char> used_;
  std::vector<std::size_t> slots_;
};

NestedTable::NestedTable(const StageProblem& problem, const Cuts& cuts, std::int64_t base_bytes,
                         CostFront after, int mantissa_bits, std::size_t threads, const Tick& tick)
    : last_(cuts.lower.rows() - 1) {
  check_cuts(problem, cuts);
  for (std::size_t c = 0; c < last_; ++c) {
    if (!is_subset(cuts.lower.row(c), cuts.lower.row(c + 1), cuts.lower.words()) ||
        !is_subset(cuts.finished.row(c + 1), cuts.finished.row(c), cuts.finished.words()) ||
        !cuts.needed_below[c].empty()) {
      throw std::invalid_argument("the cuts must increase, and nothing made above one be needed below");
    }
  }
  // A strategy has fewer splits than cuts, and each computes no op more than three times.
  std::int64_t total = 0;
  for (const std::int64_t x : problem.forward_cost) total += x;
  if (total >= kLimit / static_cast<std::int64_t>(3 * (last_ + 1))) {
    throw std::invalid_argument("costs of nested strategies must add up below 2**60");
  }
  if (mantissa_bits < 1 || mantissa_bits > kMostMantissa || base_bytes < 0 || base_bytes >= kLimit) {
    throw std::invalid_argument("mantissa_bits must be 1 to 16 and base_bytes between 0 and 2**60");
  }
  if (after.costs.empty() || after.costs.size() != after.needs.size()) {
    throw std::invalid_argument("the front of what comes after must have a label");
  }
  for (std::size_t k = 0; k < after.costs.size(); ++k) {
    if (after.costs[k] < 0 || after.costs[k] >= kLimit || after.needs[k] >= kLimit ||
        after.needs[k] < kNothing) {
      throw std::invalid_argument("costs and needs of what comes after must be below 2**60");
    }
  }
  Team team(thread_count(threads));
  double done = 0.0;
  const auto between = [&] {
    if (tick) tick(done);
  };
  const std::size_t count = last_ + 1;
  stretches_.resize(count * count);
  labels_.resize(count * count);
  fronts_.resize(count * count);
  simulate(problem, cuts, team, between);
  done = 0.5;
  std::vector<Builder> builders(team.threads(), Builder(mantissa_bits));
  // Reversals of stretches of equal length do not need each other.
  for (std::size_t length = 1; length <= last_; ++length) {
    team.run(
        count - length,
        [&](std::size_t i, std::size_t worker) {
          reverse(i, i + length, cuts.base_bytes[i + length], builders[worker]);
        },
        between);
    done = 0.5 + 0.5 * static_cast<double>(length) / static_cast<double>(last_);
  }
  top_.resize(count);
  top_fronts_.resize(count);
  top_fronts_[last_] = std::move(after);
  for (std::size_t i = last_; i-- > 0;) first_pass(i, base_bytes, builders[0]);
}

void NestedTable::simulate(const StageProblem& problem, const Cuts& cuts, Team& team,
                           const std::function<void()>& between) {
  const std::size_t variants = problem.variants();
  const std::size_t count = last_ + 1;
  const StageProblem plain = without_variants(problem);
  const Cuts both = with_bare(cuts);
  const CutFacts facts(problem, cuts);
  const CutFacts bare_facts(plain, both);
  const std::vector<char> always = always_kept(problem);
  const std::vector<std::size_t> interval = intervals(problem, cuts);
  find_idle(problem, cuts, always, interval);
  struct Worker {
    Simulator staged, leaf;
    Sweeper sweeper;
    std::vector<char> edge;
    std::vector<std::int32_t> ops, keep, held, first;
  };
  std::vector<Worker> workers;
  for (std::size_t w = 0; w < team.threads(); ++w) {
    workers.push_back({Simulator(problem, cuts, facts), Simulator(plain, both, bare_facts),
                       Sweeper(problem, always, interval), std::vector<char>(problem.values(), 0),
                       {}, {}, {}, {}});
  }
  const auto from_cut = [&](std::size_t a, std::size_t number) {
    Worker& w = workers[number];
    w.ops.clear();
    std::int64_t always_bytes = 0;
    for (std::size_t b = a + 1; b < count; ++b) {
      for_each_difference(cuts.lower.row(b), cuts.lower.row(b - 1), cuts.lower.words(),
                          [&](std::size_t v) { w.ops.push_back(static_cast<std::int32_t>(v)); });
      std::sort(w.ops.begin(), w.ops.end());
      for (const std::int32_t s : cuts.boundary[b]) w.edge[at(s)] = 1;
      Stretch& stretch = stretches_[place(a, b)];
      always_bytes = 0;
      w.held.clear();
      w.first.clear();
      for (const std::int32_t v : w.ops) {
        for (const std::int32_t s : problem.forward_out[v]) {
          if (always[at(s)] != 0) {
            always_bytes += problem.size[at(s)];
            w.first.push_back(s);
          } else if (w.edge[at(s)] != 0) {
            stretch.held_bytes += problem.size[at(s)];
            w.held.push_back(s);
            w.first.push_back(s);
          }
        }
      }
      stretch.always_bytes = always_bytes;
      stretch.dead_bytes = dead_bytes(problem, cuts, a, b);
      stretch.first_bytes = w.sweeper.first_pass(w.ops, w.first);
      std::tie(stretch.sweep_cost, stretch.sweep_bytes) = w.sweeper.run(a, b, w.held, false);
      stretch.lent_bytes = w.sweeper.run(a, b, w.held, true).second;
      w.leaf.select(a, count + b, false, false);
      const PieceCost leaf = w.leaf.run(0, false);
      stretch.leaf_cost = leaf.cost;
      stretch.leaf_bytes = leaf.backward_bytes - stretch.dead_bytes;
      w.staged.select(a, b, false, false);
      for (std::size_t v = 0; v < variants; ++v) {
        const PieceCost piece = w.staged.run(v, false);
        find_kept(problem, w.ops, w.edge, problem.keep_flags[v], w.keep);
        const auto [cost, peak] = w.sweeper.run(a, b, w.keep, false);
        stretch.staged.push_back(
            {piece.cost, piece.cached_bytes, piece.forward_bytes, piece.backward_bytes, cost, peak});
      }
      for (const std::int32_t s : cuts.boundary[b]) w.edge[at(s)] = 0;
    }
  };
  team.run(last_, from_cut, between);
}

void NestedTable::find_idle(const StageProblem& p, const Cuts& cuts, const std::vector<char>& always,
                            const std::vector<std::size_t>& interval) {
  std::vector<std::size_t> backward(p.backward_ops(), 0);
  for (std::size_t c = 0; c < last_; ++c) {
    for_each_difference(cuts.finished.row(c), cuts.finished.row(c + 1), cuts.finished.words(),
                        [&](std::size_t b) { backward[b] = c; });
  }
  idle_.resize(last_ + 1);
  for (std::size_t c = 0; c <= last_; ++c) {
    std::vector<std::int32_t> boundary(cuts.boundary[c]);
    std::sort(boundary.begin(), boundary.end());
    for (const std::int32_t s : boundary) {
      const std::int32_t producer = p.producer[at(s)];
      if (producer < 0 || always[at(s)] != 0) continue;
      bool used = p.used_below[at(s)] != 0;
      std::size_t next = last_;
      const auto look = [&](std::size_t place) {
        if (place < c) {
          used = true;
        } else {
          next = std::min(next, place);
        }
      };
      for (const std::int32_t r : p.forward_readers[s]) look(interval[at(r)]);
      for (const std::int32_t r : p.backward_readers[s]) look(backward[at(r)]);
      if (used && next > c && next < last_) idle_[c].push_back({interval[at(producer)], next, p.size[at(s)]});
    }
  }
}

std::int64_t NestedTable::idle_bytes(std::size_t i, std::size_t k, std::size_t j) const {
  std::int64_t bytes = 0;
  for (const Idle& idle : idle_[k]) {
    if (idle.made >= i && idle.reader >= j) bytes += idle.bytes;
  }
  return bytes;
}

void NestedTable::reverse(std::size_t i, std::size_t j, std::int64_t upper_bytes, Builder& builder) {
  const Stretch& whole = stretches_[place(i, j)];
  builder.add({whole.leaf_bytes, whole.leaf_cost, static_cast<std::int32_t>(j), -1, 0, 0});
  const std::int64_t start = upper_bytes + whole.always_bytes - whole.dead_bytes;
  for (std::size_t k = i + 1; k < j; ++k) {
    const Stretch& part = stretches_[place(i, k)];
    const CostFront& after = fronts_[place(k, j)];
    builder.add_both(start + part.sweep_bytes, part.sweep_cost, fronts_[place(i, k)], 0, after,
                     part.always_bytes + part.held_bytes - idle_bytes(i, k, j), k);
    for (std::size_t v = 0; v < part.staged.size(); ++v) {
      const StagedCost& staged = part.staged[v];
      builder.add_one(std::max(start + staged.sweep_bytes, staged.backward_bytes),
                      staged.sweep_cost + staged.cost, staged.cached_bytes, after, k, v);
    }
  }
  labels_[place(i, j)] = builder.take();
  fronts_[place(i, j)] = front_of(labels_[place(i, j)]);
}

void NestedTable::first_pass(std::size_t i, std::int64_t base, Builder& builder) {
  for (std::size_t k = i + 1; k <= last_; ++k) {
    const Stretch& part = stretches_[place(i, k)];
    const CostFront& after = top_fronts_[k];
    for (std::size_t v = 0; v < part.staged.size(); ++v) {
      const StagedCost& staged = part.staged[v];
      builder.add_one(std::max(staged.forward_bytes, staged.backward_bytes + base), staged.cost,
                      staged.cached_bytes, after, k, v);
    }
    builder.add_both(part.first_bytes, 0, fronts_[place(i, k)], base, after,
                     part.always_bytes + part.held_bytes, k);
  }
  top_[i] = builder.take();
  top_fronts_[i] = front_of(top_[i]);
}

std::pair<std::vector<NestedTable::TopStage>, std::int32_t> NestedTable::path(std::size_t label) const {
  std::vector<TopStage> stages;
  std::size_t i = 0;
  while (i < last_) {
    const NestedLabel& found = top_[i].at(label);
    const auto k = static_cast<std::size_t>(found.k);
    TopStage stage{static_cast<std::int32_t>(i), found.k, found.option, {}};
    if (found.option < 0) add_tree(i, k, static_cast<std::size_t>(found.below), stage.tree);
    stages.push_back(std::move(stage));
    label = static_cast<std::size_t>(found.after);
    i = k;
  }
  return {std::move(stages), static_cast<std::int32_t>(label)};
}

NestedTable::Tree NestedTable::tree(std::size_t label) const {
  Tree found;
  add_tree(0, last_, label, found);
  return found;
}

void NestedTable::add_tree(std::size_t i, std::size_t j, std::size_t label, Tree& tree) const {
  const NestedLabel& found = labels_[place(i, j)].at(label);
  const auto k = static_cast<std::size_t>(found.k);
  const std::int32_t option = k == j ? -2 : found.option;
  for (const std::size_t x : {i, k, j}) tree.push_back(static_cast<std::int32_t>(x));
  tree.push_back(option);
  if (k == j) return;
  add_tree(k, j, static_cast<std::size_t>(found.after), tree);
  if (option < 0) add_tree(i, k, static_cast<std::size_t>(found.below), tree);
}

}  // namespace memfit
