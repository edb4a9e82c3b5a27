// Nested strategies over a row of cuts: reversals of stretches, recursively.
//
// Gives the same answers as memfit/_core/reference/nested.py and sweeps.py, which explain the
// model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "stage.hpp"
#include "team.hpp"

namespace memfit {

// A stage that keeps what a variant says.
struct StagedCost {
  std::int64_t cost = 0;
  std::int64_t cached_bytes = 0;
  std::int64_t forward_bytes = 0;
  std::int64_t backward_bytes = 0;
  std::int64_t sweep_cost = 0;
  std::int64_t sweep_bytes = 0;
};

// What the ops between two cuts cost; see Stretch in memfit/_core/problem.py.
struct Stretch {
  std::int64_t always_bytes = 0;
  std::int64_t held_bytes = 0;
  std::int64_t dead_bytes = 0;
  std::int64_t first_bytes = 0;
  std::int64_t sweep_cost = 0;
  std::int64_t sweep_bytes = 0;
  std::int64_t lent_bytes = 0;
  std::int64_t leaf_cost = 0;
  std::int64_t leaf_bytes = 0;
  std::vector<StagedCost> staged;
};

// Costs, ascending, and needs, descending.
struct CostFront {
  std::vector<std::int64_t> costs, needs;
};

// A label of a state: where it leads, and to which labels there.
struct NestedLabel {
  std::int64_t need, cost;
  std::int32_t k, option, below, after;
};

class NestedTable {
 public:
  // Numbers of a tree, parents first, what comes after k before what (i, k) is reversed by:
  // i, k, j, option (-2: a leaf; -1: (i, k) is reversed by a tree; else a variant).
  using Tree = std::vector<std::int32_t>;

  // `cuts` are increasing; no backward op below one reads what is made above it. Throws
  // std::invalid_argument where the arguments do not fit together.
  NestedTable(const StageProblem& problem, const Cuts& cuts, std::int64_t base_bytes, CostFront after,
              int mantissa_bits, std::size_t threads, const Tick& tick);

  [[nodiscard]] const CostFront& front() const { return top_fronts_[0]; }
  [[nodiscard]] const CostFront& reversal_front() const { return fronts_[place(0, last_)]; }
  [[nodiscard]] const Stretch& stretch() const { return stretches_[place(0, last_)]; }
  // Each stage of a label of front(): i, k, option, its tree (if the option is -1); and the label of
  // what comes after. Throws std::out_of_range.
  struct TopStage {
    std::int32_t i, k, option;
    Tree tree;
  };
  [[nodiscard]] std::pair<std::vector<TopStage>, std::int32_t> path(std::size_t label) const;
  [[nodiscard]] Tree tree(std::size_t label) const;

 private:
  using Labels = std::vector<NestedLabel>;
  class Builder;

  // A boundary value that reversing what lies between the cut and `reader` can do without.
  struct Idle {
    std::size_t made, reader;
    std::int64_t bytes;
  };

  std::size_t last_;
  std::vector<std::vector<Idle>> idle_;  // by cut
  std::vector<Stretch> stretches_;
  std::vector<Labels> labels_;
  std::vector<CostFront> fronts_;
  std::vector<Labels> top_;
  std::vector<CostFront> top_fronts_;

  [[nodiscard]] std::size_t place(std::size_t i, std::size_t j) const { return i * (last_ + 1) + j; }
  void simulate(const StageProblem& problem, const Cuts& cuts, Team& team,
                const std::function<void()>& between);
  void find_idle(const StageProblem& problem, const Cuts& cuts, const std::vector<char>& always,
                 const std::vector<std::size_t>& interval);
  [[nodiscard]] std::int64_t idle_bytes(std::size_t i, std::size_t k, std::size_t j) const;
  void reverse(std::size_t i, std::size_t j, std::int64_t upper_bytes, Builder& builder);
  void first_pass(std::size_t i, std::int64_t base_bytes, Builder& builder);
  void add_tree(std::size_t i, std::size_t j, std::size_t label, Tree& tree) const;
};

}  // namespace memfit
