// Simulation of stages on joint forward-and-backward graphs.
//
// Gives the same answers as memfit/_core/python_stage.py, which explains the model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bits.hpp"
#include "edge_table.hpp"

namespace memfit {

// A training graph, flattened; see StageProblem in python_stage.py.
struct StageProblem {
  using Rows = std::vector<std::vector<std::int32_t>>;

  StageProblem(std::vector<std::int64_t> value_bytes, const std::vector<bool>& outlives,
               const Rows& forward_inputs, const Rows& forward_outputs,
               std::vector<std::int64_t> forward_cost, std::vector<std::int64_t> forward_workspace,
               const std::vector<bool>& forward_recomputable, const Rows& backward_inputs,
               const Rows& backward_outputs, std::vector<std::int64_t> backward_workspace,
               const std::vector<std::vector<bool>>& keep_flags, std::int64_t always_keep_bytes,
               std::int64_t auxiliary_share);

  [[nodiscard]] std::size_t values() const { return size.size(); }
  [[nodiscard]] std::size_t forward_ops() const { return forward_in.size(); }
  [[nodiscard]] std::size_t backward_ops() const { return backward_in.size(); }

  std::vector<std::int64_t> size;
  std::vector<char> outlives;
  Lists forward_in, forward_out;
  std::vector<std::int64_t> forward_cost, forward_workspace;
  std::vector<char> recomputable;
  Lists backward_in, backward_out;
  std::vector<std::int64_t> backward_workspace;
  std::vector<std::vector<char>> keep_flags;  // by variant and value, with "a backward op reads it"
  std::int64_t always_keep_bytes, auxiliary_share;
  std::vector<std::int32_t> producer;  // -1: no forward op
  std::vector<std::int64_t> forward_out_bytes;
  Lists forward_readers, backward_readers, backward_writers;
};

// Lower sets, with what the way back leaves at each; see Cut in python_stage.py.
struct Cuts {
  BitMatrix lower;     // by forward op
  BitMatrix finished;  // by backward op
  StageProblem::Rows boundary;
  StageProblem::Rows needed_below;
  std::vector<std::int64_t> base_bytes;
};

// All stages between nested cuts, one edge for each variant, in the order of (source, target,
// variant). `threads` workers (0: as many as there are cores) share the sources; the result does
// not depend on their number. `tick` is called from the calling thread.
[[nodiscard]] EdgeTable stage_edges(const StageProblem& problem, const Cuts& cuts,
                                    std::size_t threads, const Tick& tick);

}  // namespace memfit
