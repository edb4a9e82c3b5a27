// The best sequence of stages over the blocks of a graph.
//
// Gives the same answers as memfit/_core/reference/stage_dp.py, which explains the model.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "slots.hpp"
#include "stage.hpp"
#include "stack.hpp"
#include "team.hpp"

namespace memfit {

// The whole trade-off of a graph cut into blocks; plans for any budget are read off it.
class StageTable {
 public:
  // A stage: block and cut where it begins, block and cut where it ends, variant.
  using Stage = std::array<std::int64_t, 5>;

  // One table for each block in forward order; blocks that are alike may share one. Throws
  // std::invalid_argument where the tables do not fit together.
  StageTable(std::vector<std::shared_ptr<const BlockTable>> tables,
             std::vector<std::int64_t> base_bytes, std::int64_t total_cost, std::size_t slots,
             std::size_t threads, const Tick& tick);

  // Whether every cost has a slot of its own.
  [[nodiscard]] bool exact() const { return shift_ == 0; }
  // (cost, budget): each cost that some budget calls for, ascending, with the least such budget.
  [[nodiscard]] std::vector<std::pair<std::int64_t, std::int64_t>> curve() const;
  [[nodiscard]] std::int64_t smallest_budget() const;
  // The stages of least cost within a budget; nothing if none fit.
  [[nodiscard]] std::optional<std::vector<Stage>> path(std::int64_t budget_bytes) const;

 private:
  class Stacks;

  std::vector<std::shared_ptr<const BlockTable>> tables_;
  std::vector<std::int64_t> base_bytes_;
  std::size_t variants_ = 0;
  int shift_ = 0;
  std::vector<std::vector<SlotFront>> fronts_;  // by block and cut; one more for V

  [[nodiscard]] const SlotFront& front(std::size_t j, std::size_t b) const {
    return b + 1 == tables_[j]->cuts() ? fronts_[j + 1][0] : fronts_[j][b];
  }
  [[nodiscard]] bool beaten(std::size_t i, std::size_t a, std::int64_t cost, std::int64_t need) const;
  // Calls visit(step, stage) for the stages that begin at a cut and end in its block, or later.
  template <class Visit>
  void inner_stages(std::size_t i, std::size_t a, Visit&& visit) const;
  template <class Visit>
  void longer_stages(std::size_t i, std::size_t a, const Stacks& stacks, Visit&& visit) const;
};

}  // namespace memfit
