// Dynamic programming over the stages of canonical strategies; Kusumoto et al. 2019, section 4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "canonical.hpp"
#include "front.hpp"
#include "team.hpp"

namespace memfit {

// The whole trade-off of a family of lower sets, found in one pass from V back to the empty set;
// plans for any budget are read off it. Paths are lists of states, the first one (the empty set)
// left out. Bytes are those of the paper's formulas.
class CanonicalTable {
 public:
  CanonicalTable(CanonicalStages stages, std::size_t threads, const Tick& tick);

  [[nodiscard]] std::size_t states() const { return stages_.states(); }

  // (cost, budget): each cost that some budget calls for, ascending, with the least such budget.
  [[nodiscard]] std::vector<std::pair<std::int64_t, std::int64_t>> curve() const;

  // The smallest budget that some path fits; 0 for an empty graph.
  [[nodiscard]] std::int64_t smallest_budget() const;

  // The path with the least cost within the budget, then the least bytes cached at V; with
  // `longest` the one with the least bytes cached at V, then the least cost: the largest cost of the
  // Pareto front at V (memory-centric). Of equal paths, the one found backwards from V by taking the
  // smallest state each time. Nothing if no path fits.
  [[nodiscard]] std::optional<std::vector<std::int64_t>> shortest(std::int64_t budget_bytes,
                                                                  bool longest,
                                                                  const Tick& tick) const;

 private:
  CanonicalStages stages_;
  std::vector<Front> fronts_;

  class Search;
};

}  // namespace memfit
