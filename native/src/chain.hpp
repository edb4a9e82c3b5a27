// Nested strategies over a chain of alike steps.
//
// Gives the same answers as memfit/_core/reference/chain.py, which explains the model.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "nested.hpp"

namespace memfit {

// One step of a chain; see ChainUnit in memfit/_core/problem.py.
struct ChainUnit {
  std::int64_t held_bytes, sweep_cost, sweep_bytes, lent_bytes, first_bytes;
  CostFront leaf;
  std::vector<std::array<std::int64_t, 4>> staged, top;
};

class ChainTable {
 public:
  // Throws std::invalid_argument where the arguments are out of range.
  ChainTable(const ChainUnit& unit, std::size_t steps, std::optional<CostFront> after,
             std::size_t most_levels, std::int64_t parts, const std::optional<ChainUnit>& first);

  [[nodiscard]] const std::vector<std::int64_t>& levels() const { return levels_; }
  // kNever: the level is too little memory. Throws std::out_of_range, as all that follow.
  [[nodiscard]] std::int64_t reversal_cost(std::size_t count, std::size_t level, bool bottom) const;
  [[nodiscard]] std::pair<std::int64_t, std::int64_t> split(std::size_t count, std::size_t level,
                                                            bool bottom) const;
  [[nodiscard]] std::int64_t levels_of(std::int64_t k, std::int64_t option, bool bottom, bool top) const;
  struct Front {
    std::vector<std::int64_t> costs, needs, levels;
  };
  [[nodiscard]] Front front() const;
  // Stages (steps, option, level) of a first pass, and the label of what comes after.
  [[nodiscard]] std::pair<std::vector<std::array<std::int64_t, 3>>, std::int64_t> first_pass(
      std::size_t level) const;

 private:
  // A stage in levels of memory.
  struct Staged {
    std::size_t floor;
    std::int64_t cost;
    std::size_t taken;
  };
  // A step in levels of memory.
  struct Levelled {
    std::size_t held, sweep_level, lent_level, first_level;
    std::int64_t sweep_cost;
    std::vector<std::size_t> leaf_label;
    std::vector<std::int64_t> leaf;
    std::vector<Staged> staged, top;

    [[nodiscard]] std::size_t long_level(const Levelled& rest) const;
  };
  struct Best {
    std::int64_t cost = kNever;
    std::int32_t k = 0;  // 0: none
    std::int32_t option = 0;
    std::int32_t look = 0;  // the best k of a split, whether or not a stage is better; 0: none
  };
  // By number of steps and level.
  struct Cells {
    std::vector<std::int64_t> cost;
    std::vector<std::int32_t> k, look;
    std::vector<std::int16_t> option;

    void resize(std::size_t cells) {
      cost.assign(cells, kNever);
      k.assign(cells, 0);
      look.assign(cells, 0);
      option.assign(cells, 0);
    }
    void put(std::size_t cell, const Best& best) {
      cost[cell] = best.cost;
      k[cell] = best.k;
      look[cell] = best.look;
      option[cell] = static_cast<std::int16_t>(best.option);
    }
  };

  std::size_t steps_;
  std::vector<std::int64_t> levels_;
  Levelled unit_, bottom_;
  bool other_bottom_;
  std::vector<std::size_t> after_label_;
  Cells reversals_, bottoms_, tops_;

  [[nodiscard]] std::size_t level_of(std::int64_t needed) const;
  [[nodiscard]] Levelled levelled(const ChainUnit& unit, std::int64_t grain) const;
  [[nodiscard]] std::size_t cell(std::size_t count, std::size_t s) const { return count * levels_.size() + s; }
  [[nodiscard]] const Cells& below(bool bottom) const { return bottom && other_bottom_ ? bottoms_ : reversals_; }
  void fill(Cells& cells, bool bottom);
  [[nodiscard]] Best find_reversal(std::size_t count, std::size_t s, bool bottom) const;
  [[nodiscard]] Best find_first(std::size_t count, std::size_t s) const;
};

}  // namespace memfit
