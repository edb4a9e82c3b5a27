// The stages of canonical strategies under the formulas of Kusumoto et al. 2019, section 3.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bits.hpp"
#include "front.hpp"
#include "team.hpp"

namespace memfit {

// Which pairs L < L' are stages.
enum class Stages {
  kNested,     // all
  kConnected,  // those where L' \ L hangs together; needs the family of all lower sets
};

// The stages between lower sets, worked out when asked for: there may be too many to list. With
// V' = L' \ L, a stage costs T(V' \ boundary(L')), caches M(boundary(L') \ L) and peaks at
// 2 M(V') + M(d+(L') \ L') + M(d-(d+(L')) \ L').
//
// A stage whose V' falls into parts X, Y without an edge between them can be split into two stages
// of the same cost and the same cached bytes, neither of which peaks higher than it: over the family
// of all lower sets, connected stages suffice.
class CanonicalStages {
 public:
  // Words from `begin` to before `end`.
  struct Span {
    std::size_t begin, end;
  };

  // `lower_sets` begin with the empty set, end with V and are sorted by size. Throws
  // std::invalid_argument on anything else, on numbers that are negative or add up to 2**60 or more,
  // and where connected stages are asked for and a lower set is missing.
  CanonicalStages(const Lists& predecessors, const std::vector<std::int64_t>& node_bytes,
                  const std::vector<std::int64_t>& node_cost, BitMatrix lower_sets, Stages which,
                  const Tick& tick);

  [[nodiscard]] std::size_t states() const { return sets_.rows(); }
  // Number of nodes in a lower set.
  [[nodiscard]] std::size_t nodes_in(std::size_t i) const { return nodes_in_[i]; }
  // T(V).
  [[nodiscard]] std::int64_t total_cost() const { return total_cost_.back(); }
  // What any way from state i to V costs at least: nodes that nothing reads are always computed again.
  [[nodiscard]] std::int64_t least_cost(std::size_t i) const { return least_cost_[i]; }
  // No stage from state i to state j or to a superset of it peaks lower.
  [[nodiscard]] std::int64_t floor_bytes(std::size_t i, std::size_t j) const {
    return 2 * (total_bytes_[j] - total_bytes_[i]);
  }

  [[nodiscard]] Step step(std::size_t i, std::size_t j) const {
    std::int64_t shared_bytes = 0;
    std::int64_t shared_cost = 0;
    const Word* boundary = boundary_.row(j);
    const Word* lower = sets_.row(i);
    for (std::size_t w = boundary_span_[j].begin; w < boundary_span_[j].end; ++w) {
      for_each_bit(boundary[w] & lower[w], w * kWordBits, [&](std::size_t v) {
        shared_bytes += node_bytes_[v];
        shared_cost += node_cost_[v];
      });
    }
    return {total_cost_[j] - boundary_cost_[j] - total_cost_[i] + shared_cost,
            boundary_bytes_[j] - shared_bytes,
            2 * (total_bytes_[j] - total_bytes_[i]) + frontier_bytes_[j]};
  }

  // Buffers for `for_each_target`, one for each thread.
  struct Scratch {
    std::vector<std::uint32_t> seen;
    std::uint32_t stamp = 0;
    std::vector<std::int32_t> queue;
  };

  // Calls visit(j) for each stage i -> j, roughly the small ones first. Where it returns false, stages to
  // supersets of j may be left out.
  template <class Visit>
  void for_each_target(std::size_t i, Scratch& scratch, Visit&& visit) const {
    if (which_ == Stages::kNested) {
      for (std::size_t j = i + 1; j < states(); ++j) {
        if (is_nested(i, j)) visit(j);
      }
      return;
    }
    grow(i, scratch, visit);
  }

 private:
  std::vector<std::vector<std::int32_t>> predecessors_;
  std::vector<std::int64_t> node_bytes_, node_cost_;
  BitMatrix sets_, boundary_;
  // Where boundaries have any node, and where sets have some but not all of a word's nodes: what lies
  // before holds everything, what comes after nothing.
  std::vector<Span> boundary_span_, set_span_;
  Stages which_;
  std::vector<std::size_t> nodes_in_;
  std::vector<std::int64_t> total_bytes_, total_cost_, boundary_bytes_, boundary_cost_, least_cost_;
  std::vector<std::int64_t> frontier_bytes_;  // the terms of the peak that depend on L' alone

  // For connected stages: the nodes outside each lower set that read from it or from nothing, and
  // the lower set that each makes together with what it needs.
  struct Growth {
    std::int32_t node;
    std::int32_t to;
    bool ready;  // everything that the node needs is in the lower set
  };
  std::vector<std::size_t> growth_start_;
  std::vector<Growth> growth_;

  // Whether set i lies in set j.
  [[nodiscard]] bool is_nested(std::size_t i, std::size_t j) const {
    const Word* lower = sets_.row(i);
    const Word* upper = sets_.row(j);
    for (std::size_t w = set_span_[j].begin; w < set_span_[i].end; ++w) {
      if ((lower[w] & ~upper[w]) != 0) return false;
    }
    return true;
  }

  void list_growths(const BitMatrix& before, const BitMatrix& after, const Tick& tick);

  template <class Visit>
  void grow(std::size_t i, Scratch& scratch, Visit& visit) const {
    if (scratch.seen.empty() || ++scratch.stamp == 0) {
      scratch.seen.assign(states(), 0);
      scratch.stamp = 1;
    }
    scratch.queue.clear();
    const Word* lower = sets_.row(i);
    const auto reach = [&](std::int32_t j) {
      if (scratch.seen[static_cast<std::size_t>(j)] == scratch.stamp) return;
      scratch.seen[static_cast<std::size_t>(j)] = scratch.stamp;
      if (visit(static_cast<std::size_t>(j))) scratch.queue.push_back(j);
    };
    for (std::size_t g = growth_start_[i]; g < growth_start_[i + 1]; ++g) {
      if (growth_[g].ready) reach(growth_[g].to);
    }
    for (std::size_t head = 0; head < scratch.queue.size(); ++head) {
      const auto x = static_cast<std::size_t>(scratch.queue[head]);
      const Word* whole = sets_.row(x);
      for (std::size_t g = growth_start_[x]; g < growth_start_[x + 1]; ++g) {
        // The node must read from what has been added to state i.
        const auto& before = predecessors_[static_cast<std::size_t>(growth_[g].node)];
        if (std::any_of(before.begin(), before.end(), [&](std::int32_t p) {
              return test_bit(whole, static_cast<std::size_t>(p)) &&
                     !test_bit(lower, static_cast<std::size_t>(p));
            })) {
          reach(growth_[g].to);
        }
      }
    }
  }
};

}  // namespace memfit
