#include "edge_table.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace memfit {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 62;
constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kNothing = std::numeric_limits<std::int64_t>::min();
constexpr std::int64_t kDenseRange = std::int64_t{1} << 16;
constexpr std::size_t kStatesPerTick = 16;
constexpr std::int64_t kCoarseSteps = 256;
constexpr std::int64_t kRefinement = 16;

// One way to reach a state that no other way beats in both cost and cached bytes.
struct Label {
  std::int64_t cost;
  std::int64_t cached_bytes;
  std::int64_t edge;
  std::int64_t previous;  // label at the edge's source
};

// Costs ascend, cached bytes descend, both strictly.
using Front = std::vector<Label>;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0 ? 1 : 0); }

// An incoming edge with the labels of its source from which it may be taken: [first, end).
struct Arrival {
  std::int64_t edge;
  std::int64_t cost;
  std::int64_t cached_bytes;
  const Front* source;
  std::size_t first;
  std::size_t end;
};

Label arrive(const Arrival& arrival, std::size_t label) {
  const Label& from = (*arrival.source)[label];
  return {from.cost + arrival.cost, from.cached_bytes + arrival.cached_bytes, arrival.edge,
          static_cast<std::int64_t>(label)};
}

// Collects a state's front by cost, in arrays; for narrow ranges of costs.
class DenseFront {
 public:
  Front collect(const std::vector<Arrival>& arrivals, std::int64_t low, std::int64_t high) {
    const auto range = static_cast<std::size_t>(high - low + 1);
    least_.assign(range, kNever);
    origin_.resize(range);
    for (const Arrival& arrival : arrivals) {
      const Front& source = *arrival.source;
      for (std::size_t i = arrival.first; i < arrival.end; ++i) {
        const std::int64_t cached = source[i].cached_bytes + arrival.cached_bytes;
        const auto slot = static_cast<std::size_t>(source[i].cost + arrival.cost - low);
        if (cached >= least_[slot]) continue;
        least_[slot] = cached;
        origin_[slot] = {arrival.edge, static_cast<std::int64_t>(i)};
      }
    }
    Front front;
    std::int64_t least = kNever;
    for (std::size_t slot = 0; slot < range; ++slot) {
      if (least_[slot] >= least) continue;
      least = least_[slot];
      front.push_back({low + static_cast<std::int64_t>(slot), least, origin_[slot].edge,
                       origin_[slot].label});
    }
    return front;
  }

 private:
  struct Origin {
    std::int64_t edge;
    std::int64_t label;
  };
  std::vector<std::int64_t> least_;
  std::vector<Origin> origin_;
};

// Collects a state's front by merging; for any range of costs.
Front merge_arrivals(const std::vector<Arrival>& arrivals) {
  Front front;
  Front merged;
  for (const Arrival& arrival : arrivals) {
    merged.clear();
    std::size_t a = 0;
    std::size_t b = arrival.first;
    std::int64_t least = kNever;
    while (a < front.size() || b < arrival.end) {
      Label next{};
      if (b == arrival.end) {
        next = front[a++];
      } else {
        const Label other = arrive(arrival, b);
        const bool old_first = a < front.size() &&
                               (front[a].cost < other.cost ||
                                (front[a].cost == other.cost &&
                                 front[a].cached_bytes <= other.cached_bytes));
        if (old_first) {
          next = front[a++];
        } else {
          next = other;
          ++b;
        }
      }
      if (next.cached_bytes >= least) continue;
      least = next.cached_bytes;
      merged.push_back(next);
    }
    front.swap(merged);
  }
  return front;
}

}  // namespace

EdgeTable::EdgeTable(std::size_t states, std::vector<Edge> edges)
    : row_start_(states + 1, 0), edges_(std::move(edges)) {
  if (states == 0) throw std::invalid_argument("an edge table has at least one state");
  std::vector<std::int64_t> longest_cost(states, 0);
  std::vector<std::int64_t> longest_cached(states, 0);
  std::int32_t last_source = 0;
  for (const Edge& e : edges_) {
    if (e.source < last_source || e.target <= e.source ||
        static_cast<std::size_t>(e.target) >= states) {
      throw std::invalid_argument("edge " + std::to_string(e.source) + " -> " +
                                  std::to_string(e.target) +
                                  " does not lead from a state to a later one");
    }
    last_source = e.source;
    if (e.variant < 0 || e.cost < 0 || e.cached_bytes < 0 || e.peak_bytes < 0 || e.peak_bytes >= kLimit) {
      throw std::invalid_argument("variant, cost and bytes of an edge must be between 0 and 2**62");
    }
    ++row_start_[static_cast<std::size_t>(e.source) + 1];
    // Sums along any path stay below 2**62, so that no later sum overflows.
    const auto extend = [&e](std::vector<std::int64_t>& longest, std::int64_t step) {
      const std::int64_t before = longest[static_cast<std::size_t>(e.source)];
      if (step >= kLimit - before) {
        throw std::invalid_argument("costs or bytes along a path add up to 2**62 or more");
      }
      auto& after = longest[static_cast<std::size_t>(e.target)];
      after = std::max(after, before + step);
    };
    extend(longest_cost, e.cost);
    extend(longest_cached, e.cached_bytes);
  }
  longest_cost_ = *std::max_element(longest_cost.begin(), longest_cost.end());
  for (std::size_t i = 0; i < states; ++i) row_start_[i + 1] += row_start_[i];
}

// For each state, the least budget beyond its cached bytes with which the last state can be
// reached: min over edges of max(peak, cached + needed at the target). Exact, since a path's peak is
// the maximum over its edges of the bytes cached before plus the edge's peak.
std::vector<std::int64_t> EdgeTable::needed_bytes() const {
  std::vector<std::int64_t> needed(states(), kNever);
  needed.back() = kNothing;
  for (std::size_t i = states() - 1; i-- > 0;) {
    for (std::size_t e = row_start_[i]; e < row_start_[i + 1]; ++e) {
      const std::int64_t after = needed[static_cast<std::size_t>(edges_[e].target)];
      if (after == kNever) continue;
      const std::int64_t later = after == kNothing ? kNothing : edges_[e].cached_bytes + after;
      needed[i] = std::min(needed[i], std::max(edges_[e].peak_bytes, later));
    }
  }
  return needed;
}

// One search: the fronts of all states, in topological order.
class EdgeTable::Search {
 public:
  Search(const EdgeTable& table, std::int64_t budget_bytes, bool longest, const Tick& tick)
      : table_(table),
        budget_(budget_bytes),
        longest_(longest),
        tick_(tick),
        needed_(table.needed_bytes()),
        start_(table.states() + 1, 0),
        incoming_(table.size()),
        fronts_(table.states()) {
    for (const Edge& e : table.edges_) ++start_[static_cast<std::size_t>(e.target) + 1];
    for (std::size_t i = 0; i < table.states(); ++i) start_[i + 1] += start_[i];
    std::vector<std::size_t> fill(start_.begin(), start_.end() - 1);
    for (std::size_t e = 0; e < table.size(); ++e) {
      incoming_[fill[static_cast<std::size_t>(table.edges_[e].target)]++] = static_cast<std::int64_t>(e);
    }
  }

  [[nodiscard]] bool feasible() const { return needed_[0] != kNever && needed_[0] <= budget_; }

  // The best path when costs are divided by `quantum`, rounded up. `known` is a path within the
  // budget, or empty; labels that cannot lead to one as cheap as it are left out.
  std::vector<std::int64_t> run(std::int64_t quantum, const std::vector<std::int64_t>& known) {
    costs_.resize(table_.size());
    for (std::size_t e = 0; e < costs_.size(); ++e) {
      costs_[e] = divide_up(table_.edges_[e].cost, quantum);
    }
    set_spare(known);
    for (Front& front : fronts_) front.clear();
    fronts_[0].push_back({0, 0, -1, -1});
    for (std::size_t state = 1; state < table_.states(); ++state) {
      if (tick_ && state % kStatesPerTick == 0) {
        tick_(static_cast<double>(state) / static_cast<double>(table_.states()));
      }
      collect(state);
    }
    return trace();
  }

 private:
  const EdgeTable& table_;
  const std::int64_t budget_;
  const bool longest_;
  const Tick& tick_;
  const std::vector<std::int64_t> needed_;
  std::vector<std::size_t> start_;  // incoming edges by target, in the order of the table
  std::vector<std::int64_t> incoming_;
  std::vector<std::int64_t> costs_;
  std::vector<std::int64_t> spare_;  // for each state, the largest cost of a label that may matter
  std::vector<Front> fronts_;
  std::vector<Arrival> arrivals_;
  DenseFront dense_;

  // The known path's cost less the least cost of any way on from the state.
  void set_spare(const std::vector<std::int64_t>& known) {
    spare_.assign(table_.states(), kNever);
    if (longest_ || known.empty()) return;
    std::int64_t bound = 0;
    for (const std::int64_t e : known) bound += costs_[static_cast<std::size_t>(e)];
    std::vector<std::int64_t> onward(table_.states(), kNever);
    onward.back() = 0;
    for (std::size_t e = table_.size(); e-- > 0;) {
      const std::int64_t rest = onward[static_cast<std::size_t>(table_.edges_[e].target)];
      if (rest == kNever) continue;
      auto& least = onward[static_cast<std::size_t>(table_.edges_[e].source)];
      least = std::min(least, costs_[e] + rest);
    }
    for (std::size_t s = 0; s < spare_.size(); ++s) {
      spare_[s] = onward[s] == kNever ? -1 : bound - onward[s];
    }
  }

  void collect(std::size_t state) {
    // Labels from which the last state cannot be reached within the budget are left out.
    const bool last = state + 1 == table_.states();
    if (!last && needed_[state] > budget_) return;
    const std::int64_t room = last ? kNever : budget_ - needed_[state];
    arrivals_.clear();
    std::int64_t low = kNever;
    std::int64_t high = 0;
    for (std::size_t k = start_[state]; k < start_[state + 1]; ++k) {
      const auto index = static_cast<std::size_t>(incoming_[k]);
      const Edge& e = table_.edges_[index];
      const Front& source = fronts_[static_cast<std::size_t>(e.source)];
      const std::int64_t cost = costs_[index];
      const std::int64_t most =
          std::min(budget_ - e.peak_bytes, last ? kNever : room - e.cached_bytes);
      const std::int64_t dearest = spare_[state] == kNever ? kNever : spare_[state] - cost;
      const auto first = std::partition_point(
          source.begin(), source.end(), [most](const Label& x) { return x.cached_bytes > most; });
      const auto end = std::partition_point(
          first, source.end(), [dearest](const Label& x) { return x.cost <= dearest; });
      if (first == end) continue;
      low = std::min(low, first->cost + cost);
      high = std::max(high, (end - 1)->cost + cost);
      arrivals_.push_back({incoming_[k], cost, e.cached_bytes, &source,
                           static_cast<std::size_t>(first - source.begin()),
                           static_cast<std::size_t>(end - source.begin())});
    }
    if (arrivals_.empty()) return;
    fronts_[state] = high - low < kDenseRange ? dense_.collect(arrivals_, low, high)
                                              : merge_arrivals(arrivals_);
  }

  [[nodiscard]] std::vector<std::int64_t> trace() const {
    std::vector<std::int64_t> path;
    std::size_t state = table_.states() - 1;
    std::size_t label = longest_ ? fronts_[state].size() - 1 : 0;
    while (state != 0) {
      const Label& at = fronts_[state].at(label);
      path.push_back(at.edge);
      label = static_cast<std::size_t>(at.previous);
      state = static_cast<std::size_t>(table_.edges_[static_cast<std::size_t>(at.edge)].source);
    }
    std::reverse(path.begin(), path.end());
    return path;
  }
};

std::optional<std::vector<std::int64_t>> EdgeTable::shortest(std::int64_t budget_bytes,
                                                             bool longest, std::int64_t quantum,
                                                             const Tick& tick) const {
  if (quantum < 1) throw std::invalid_argument("quantum must be 1 or more");
  Search search(*this, budget_bytes, longest, tick);
  if (!search.feasible()) return std::nullopt;
  if (longest) return search.run(quantum, {});

  // Coarse costs first: they are quick and their path bounds the search with finer ones.
  std::vector<std::int64_t> path;
  std::int64_t steps = kCoarseSteps;
  for (std::int64_t coarse = 0; (coarse = longest_cost_ / steps) > quantum; steps *= kRefinement) {
    path = search.run(coarse, path);
  }
  return search.run(quantum, path);
}

std::pair<std::int64_t, std::vector<std::int64_t>> EdgeTable::smallest_budget() const {
  const std::vector<std::int64_t> needed = needed_bytes();
  if (needed[0] == kNever) {
    throw std::invalid_argument("no path leads from the first state to the last");
  }
  const std::int64_t budget = std::max<std::int64_t>(0, needed[0]);
  std::vector<std::int64_t> path;
  std::int64_t left = budget;
  for (std::size_t state = 0; state + 1 < states();) {
    for (std::size_t e = row_start_[state]; e < row_start_[state + 1]; ++e) {
      const Edge& edge = edges_[e];
      const std::int64_t after = needed[static_cast<std::size_t>(edge.target)];
      if (after == kNever || edge.peak_bytes > left ||
          (after != kNothing && edge.cached_bytes > left - after)) {
        continue;
      }
      path.push_back(static_cast<std::int64_t>(e));
      left -= edge.cached_bytes;
      state = static_cast<std::size_t>(edge.target);
      break;
    }
  }
  return {budget, path};
}

}  // namespace memfit
