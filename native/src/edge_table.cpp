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
      for (std::size_t i = arrival.first; i < source.size(); ++i) {
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
    while (a < front.size() || b < arrival.source->size()) {
      Label next{};
      if (b == arrival.source->size()) {
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
    if (e.cost < 0 || e.cached_bytes < 0 || e.peak_bytes < 0 || e.peak_bytes >= kLimit) {
      throw std::invalid_argument("costs and bytes of an edge must be between 0 and 2**62");
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

std::optional<std::vector<std::int64_t>> EdgeTable::shortest(std::int64_t budget_bytes,
                                                             bool longest, std::int64_t quantum,
                                                             const Tick& tick) const {
  if (quantum < 1) throw std::invalid_argument("quantum must be 1 or more");
  const std::size_t last = states() - 1;
  const std::vector<std::int64_t> needed = needed_bytes();
  if (needed[0] == kNever || needed[0] > budget_bytes) return std::nullopt;

  // Incoming edges by target, in the order of the table.
  std::vector<std::size_t> start(states() + 1, 0);
  for (const Edge& e : edges_) ++start[static_cast<std::size_t>(e.target) + 1];
  for (std::size_t i = 0; i < states(); ++i) start[i + 1] += start[i];
  std::vector<std::int64_t> incoming(edges_.size());
  {
    std::vector<std::size_t> fill(start.begin(), start.end() - 1);
    for (std::size_t e = 0; e < edges_.size(); ++e) {
      incoming[fill[static_cast<std::size_t>(edges_[e].target)]++] = static_cast<std::int64_t>(e);
    }
  }

  std::vector<Front> fronts(states());
  fronts[0].push_back({0, 0, -1, -1});
  DenseFront dense;
  std::vector<Arrival> arrivals;
  for (std::size_t state = 1; state <= last; ++state) {
    if (tick && state % kStatesPerTick == 0) {
      tick(static_cast<double>(state) / static_cast<double>(states()));
    }
    if (needed[state] == kNever) continue;
    // Labels that cannot reach the last state within the budget are left out.
    const std::int64_t most_cached =
        state == last ? kNever : budget_bytes - std::min(budget_bytes, needed[state]);
    if (state != last && needed[state] > budget_bytes) continue;
    arrivals.clear();
    std::int64_t low = kNever;
    std::int64_t high = 0;
    for (std::size_t k = start[state]; k < start[state + 1]; ++k) {
      const Edge& e = edges_[static_cast<std::size_t>(incoming[k])];
      const Front& source = fronts[static_cast<std::size_t>(e.source)];
      const std::int64_t cap =
          std::min(budget_bytes - e.peak_bytes,
                   most_cached == kNever ? kNever : most_cached - e.cached_bytes);
      const auto first = std::partition_point(
          source.begin(), source.end(), [cap](const Label& x) { return x.cached_bytes > cap; });
      if (first == source.end()) continue;
      const std::int64_t cost = divide_up(e.cost, quantum);
      low = std::min(low, first->cost + cost);
      high = std::max(high, source.back().cost + cost);
      arrivals.push_back({incoming[k], cost, e.cached_bytes, &source,
                          static_cast<std::size_t>(first - source.begin())});
    }
    if (arrivals.empty()) continue;
    fronts[state] = high - low < kDenseRange ? dense.collect(arrivals, low, high)
                                             : merge_arrivals(arrivals);
  }

  const Front& final_front = fronts[last];
  if (final_front.empty()) return std::nullopt;
  std::vector<std::int64_t> path;
  std::size_t label = longest ? final_front.size() - 1 : 0;
  for (std::size_t state = last; state != 0;) {
    const Label& at = fronts[state][label];
    path.push_back(at.edge);
    label = static_cast<std::size_t>(at.previous);
    state = static_cast<std::size_t>(edges_[static_cast<std::size_t>(at.edge)].source);
  }
  std::reverse(path.begin(), path.end());
  return path;
}

std::optional<std::pair<std::int64_t, std::vector<std::int64_t>>> EdgeTable::smallest_budget()
    const {
  const std::vector<std::int64_t> needed = needed_bytes();
  if (needed[0] == kNever) return std::nullopt;
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
  return std::pair{budget, path};
}

}  // namespace memfit
