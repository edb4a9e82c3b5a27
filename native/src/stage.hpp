// Blocks of a training graph and the simulation of pieces of stages in them.
//
// Gives the same answers as memfit/_core/reference/stage.py, which explains the model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bits.hpp"
#include "front.hpp"
#include "team.hpp"

namespace memfit {

[[nodiscard]] inline std::size_t at(std::int32_t i) { return static_cast<std::size_t>(i); }

// One block, as lists; see StageProblem in memfit/_core/problem.py.
struct StageLists {
  using Rows = std::vector<std::vector<std::int32_t>>;
  using Flags = std::vector<bool>;
  using Numbers = std::vector<std::int64_t>;

  Numbers value_bytes;
  Flags outlives;
  Rows forward_inputs, forward_outputs;
  Numbers forward_cost, forward_workspace;
  Flags forward_recomputable;
  Rows backward_inputs, backward_outputs;
  Numbers backward_workspace;
  std::vector<Flags> keep_flags;
  std::int64_t always_keep_bytes = 0, auxiliary_share = 0;
  Flags from_below, read_above, used_below, begun_above, always_keep;
  std::vector<std::int32_t> interface_below, interface_above;
  Rows cached_below;
};

// The same, checked and laid out for the simulator. Throws std::invalid_argument where lists do not
// fit together or numbers are negative or too large.
struct StageProblem {
  explicit StageProblem(const StageLists& lists);

  [[nodiscard]] std::size_t values() const { return size.size(); }
  [[nodiscard]] std::size_t forward_ops() const { return forward_in.size(); }
  [[nodiscard]] std::size_t backward_ops() const { return backward_in.size(); }
  [[nodiscard]] std::size_t variants() const { return keep_flags.size(); }

  std::vector<std::int64_t> size;
  std::vector<char> outlives;
  Lists forward_in, forward_out;
  std::vector<std::int64_t> forward_cost, forward_workspace;
  std::vector<char> recomputable;
  Lists backward_in, backward_out;
  std::vector<std::int64_t> backward_workspace;
  std::vector<std::vector<char>> keep_flags;  // by variant and value
  std::int64_t always_keep_bytes, auxiliary_share;
  std::vector<char> from_below, read_above, used_below, begun_above, always_keep;
  std::vector<char> in_interface_above;
  std::vector<std::int32_t> interface_above;
  Lists lent_below;  // by variant: values that an open lower end finds computed again
  std::vector<std::int32_t> producer;  // -1: no forward op of the block
  std::vector<std::int64_t> forward_out_bytes;
  Lists forward_readers, backward_readers, backward_writers;
};

// Lower sets of a block, with what the way back leaves at each; see Cut in memfit/_core/problem.py.
struct Cuts {
  BitMatrix lower;     // by forward op
  BitMatrix finished;  // by backward op
  StageLists::Rows boundary;
  StageLists::Rows needed_below;
  std::vector<std::int64_t> base_bytes;
};

// Throws std::invalid_argument where cuts are none of the problem's.
void check_cuts(const StageProblem& problem, const Cuts& cuts);

// What a piece of a stage costs; see PieceCost in memfit/_core/problem.py.
struct PieceCost {
  std::int64_t cost = 0;
  std::int64_t cached_bytes = 0;
  std::int64_t forward_bytes = 0;
  std::int64_t standing_bytes = 0;
  std::int64_t pass_bytes = 0;
  std::int64_t held_bytes = 0;
  std::int64_t before_bytes = kNothing;
  std::int64_t start_bytes = 0;
  std::int64_t backward_bytes = 0;
  bool asks = false;
  bool passed = false;
  bool joins = false;
};

// A stage within a block.
struct InnerCost {
  std::int64_t cost = -1;  // -1: the pair of cuts is no stage
  std::int64_t cached_bytes = 0;
  std::int64_t forward_bytes = 0;
  std::int64_t backward_bytes = 0;
};

// All pieces of one block, simulated; see BlockTable in reference/stage_dp.py. `cuts` begin with the
// block's lower end and end with its upper one. `threads` workers (0: as many as there are cores)
// share the work; the result does not depend on their number.
class BlockTable {
 public:
  BlockTable(const StageProblem& problem, const Cuts& cuts, std::size_t threads, const Tick& tick);

  [[nodiscard]] std::size_t cuts() const { return cuts_; }
  [[nodiscard]] std::size_t variants() const { return variants_; }
  [[nodiscard]] const InnerCost& inner(std::size_t a, std::size_t b, std::size_t v) const {
    return inner_[row_[a] + (b - a - 1) * variants_ + v];
  }
  // Null where the upper cut keeps some of the interface below.
  [[nodiscard]] const PieceCost* top(std::size_t b, std::size_t v) const {
    const std::size_t k = b * variants_ + v;
    return has_top_[k] != 0 ? &top_[k] : nullptr;
  }
  [[nodiscard]] const PieceCost& bottom(std::size_t a, std::size_t v, bool passed) const {
    return bottom_[(a * variants_ + v) * 2 + (passed ? 1 : 0)];
  }
  [[nodiscard]] const PieceCost& through(std::size_t v, bool passed) const {
    return through_[v * 2 + (passed ? 1 : 0)];
  }
  [[nodiscard]] bool sealed(std::size_t v) const { return sealed_[v] != 0; }
  // No stage within the block costs, or has alive, more than this.
  [[nodiscard]] std::int64_t largest_cost() const { return largest_cost_; }
  [[nodiscard]] std::int64_t largest_bytes() const { return largest_bytes_; }

 private:
  std::size_t cuts_, variants_;
  std::int64_t largest_cost_ = 0, largest_bytes_ = 0;
  std::vector<std::size_t> row_;  // where the stages from each cut begin in inner_
  std::vector<InnerCost> inner_;
  std::vector<char> has_top_, sealed_;
  std::vector<PieceCost> top_, bottom_, through_;
};

}  // namespace memfit
