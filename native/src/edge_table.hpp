// Stages between states as the edges of an acyclic graph, and shortest paths within a budget.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "team.hpp"

namespace memfit {

struct Edge {
  std::int32_t source;
  std::int32_t target;
  std::int32_t variant;
  std::int64_t cost;
  std::int64_t cached_bytes;
  std::int64_t peak_bytes;
};

// Edges sorted by source; the edges of one source keep the order in which they came.
class EdgeTable {
 public:
  // Takes edges whose sources ascend. Throws std::invalid_argument on an edge that does not lead
  // from a state to a later one, and on a negative or too large number.
  EdgeTable(std::size_t states, std::vector<Edge> edges);

  [[nodiscard]] std::size_t states() const { return row_start_.size() - 1; }
  [[nodiscard]] std::size_t size() const { return edges_.size(); }
  [[nodiscard]] const Edge& edge(std::size_t index) const { return edges_.at(index); }

  // The edges of a path from the first state to the last with the least cost, or, if `longest`,
  // with the largest cost in the Pareto front of (cost, cached bytes) at the last state. An edge
  // may be taken where cached bytes + its peak <= budget. Costs are divided by `quantum`, rounded
  // up. Among equal costs the least cached bytes win, then, backwards from the last state, the
  // smallest edge index.
  [[nodiscard]] std::optional<std::vector<std::int64_t>> shortest(std::int64_t budget_bytes,
                                                                  bool longest,
                                                                  std::int64_t quantum,
                                                                  const Tick& tick) const;

  // The smallest budget for which `shortest` finds a path, and such a path: the one found from the
  // first state on by taking the smallest edge index that still leads to the last state. Throws
  // std::invalid_argument if no path joins the first state to the last.
  [[nodiscard]] std::pair<std::int64_t, std::vector<std::int64_t>> smallest_budget() const;

 private:
  std::vector<std::size_t> row_start_;
  std::vector<Edge> edges_;
  std::int64_t longest_cost_ = 0;  // an upper bound on the cost of any path

  class Search;
  [[nodiscard]] std::vector<std::int64_t> needed_bytes() const;
};

}  // namespace memfit
