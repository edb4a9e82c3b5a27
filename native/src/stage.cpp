#include "stage.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "stage_simulator.hpp"

namespace memfit {
namespace {

// Sums of several totals stay below 2**63.
constexpr std::int64_t kLimit = std::int64_t{1} << 60;

using Numbers = StageLists::Numbers;
using Rows = StageLists::Rows;

void check_total(const std::vector<const Numbers*>& lists, const char* what) {
  std::int64_t total = 0;
  for (const auto* list : lists) {
    for (const std::int64_t x : *list) {
      if (x < 0 || x >= kLimit - total) {
        throw std::invalid_argument(std::string(what) + " must be 0 or more and add up below 2**60");
      }
      total += x;
    }
  }
}

void check_length(std::size_t actual, std::size_t expected, const char* what) {
  if (actual != expected) throw std::invalid_argument(std::string("wrong length of ") + what);
}

void check_values(const std::vector<std::int32_t>& row, std::size_t values) {
  for (const std::int32_t s : row) {
    if (s < 0 || at(s) >= values) throw std::invalid_argument("a value is named that does not exist");
  }
}

void check_values(const Rows& rows, std::size_t values) {
  for (const auto& row : rows) check_values(row, values);
}

// A set of values, as a list: one named twice would be counted twice.
void check_set(const std::vector<std::int32_t>& row, std::size_t values) {
  check_values(row, values);
  std::vector<std::int32_t> sorted(row);
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    throw std::invalid_argument("a value is named twice");
  }
}

std::vector<char> bytes_of(const StageLists::Flags& flags) { return {flags.begin(), flags.end()}; }

Lists invert(const Rows& rows, std::size_t values) {
  Rows inverse(values);
  for (std::size_t op = 0; op < rows.size(); ++op) {
    for (const std::int32_t s : rows[op]) inverse[at(s)].push_back(static_cast<std::int32_t>(op));
  }
  return Lists(inverse);
}

// By variant, the values that cross the lower end and that no open stage keeps.
Lists find_lent(const StageLists& lists) {
  Rows lent;
  for (const auto& cached : lists.cached_below) {
    auto& row = lent.emplace_back();
    for (const std::int32_t s : lists.interface_below) {
      if (std::find(cached.begin(), cached.end(), s) == cached.end()) row.push_back(s);
    }
  }
  return Lists(lent);
}

bool is_stage(const Cuts& cuts, std::size_t a, std::size_t b) {
  const BitMatrix& lower = cuts.lower;
  const BitMatrix& finished = cuts.finished;
  return is_subset(lower.row(a), lower.row(b), lower.words()) &&
         !is_equal(lower.row(a), lower.row(b), lower.words()) &&
         is_subset(finished.row(b), finished.row(a), finished.words());
}

}  // namespace

void check_cuts(const StageProblem& problem, const Cuts& cuts) {
  const std::size_t count = cuts.lower.rows();
  if (count < 2) throw std::invalid_argument("a block has at least two cuts, its ends");
  check_length(cuts.finished.rows(), count, "finished");
  check_length(cuts.boundary.size(), count, "boundary");
  check_length(cuts.needed_below.size(), count, "needed_below");
  check_length(cuts.base_bytes.size(), count, "base_bytes");
  for (const auto& row : cuts.boundary) check_set(row, problem.values());
  for (const auto& row : cuts.needed_below) check_set(row, problem.values());
  check_length(cuts.lower.words(), std::max<std::size_t>(1, words_for(problem.forward_ops())), "lower");
  check_length(cuts.finished.words(), std::max<std::size_t>(1, words_for(problem.backward_ops())),
               "finished");
  for (std::size_t c = 0; c < count; ++c) {
    for (std::size_t w = 0; w < cuts.lower.words(); ++w) {
      for_each_bit(cuts.lower.row(c)[w], w * kWordBits, [&](std::size_t v) {
        if (v >= problem.forward_ops()) throw std::invalid_argument("a cut holds an op that does not exist");
      });
    }
    for (std::size_t w = 0; w < cuts.finished.words(); ++w) {
      for_each_bit(cuts.finished.row(c)[w], w * kWordBits, [&](std::size_t b) {
        if (b >= problem.backward_ops()) throw std::invalid_argument("a cut has finished an op that does not exist");
      });
    }
    if (cuts.base_bytes[c] <= -kLimit || cuts.base_bytes[c] >= kLimit) {
      throw std::invalid_argument("base_bytes must be between -2**60 and 2**60");
    }
  }
}

StageProblem::StageProblem(const StageLists& lists)
    : size(lists.value_bytes),
      outlives(bytes_of(lists.outlives)),
      forward_in(lists.forward_inputs),
      forward_out(lists.forward_outputs),
      forward_cost(lists.forward_cost),
      forward_workspace(lists.forward_workspace),
      recomputable(bytes_of(lists.forward_recomputable)),
      backward_in(lists.backward_inputs),
      backward_out(lists.backward_outputs),
      backward_workspace(lists.backward_workspace),
      always_keep_bytes(lists.always_keep_bytes),
      auxiliary_share(lists.auxiliary_share),
      from_below(bytes_of(lists.from_below)),
      read_above(bytes_of(lists.read_above)),
      used_below(bytes_of(lists.used_below)),
      begun_above(bytes_of(lists.begun_above)),
      always_keep(bytes_of(lists.always_keep)),
      in_interface_above(size.size(), 0),
      interface_above(lists.interface_above),
      producer(size.size(), -1) {
  for (const auto* flags : {&outlives, &from_below, &read_above, &used_below, &begun_above, &always_keep}) {
    check_length(flags->size(), values(), "a list by value");
  }
  for (const std::size_t length : {forward_out.size(), forward_cost.size(), forward_workspace.size(),
                                   recomputable.size()}) {
    check_length(length, forward_ops(), "a list by forward op");
  }
  check_length(backward_out.size(), backward_ops(), "backward_outputs");
  check_length(backward_workspace.size(), backward_ops(), "backward_workspace");
  check_total({&size, &forward_workspace, &backward_workspace}, "sizes in bytes");
  check_total({&forward_cost}, "costs");
  if (auxiliary_share < 0 || auxiliary_share > kShareUnit) {
    throw std::invalid_argument("auxiliary_share must be between 0 and 1024");
  }
  for (const Rows* rows : {&lists.forward_inputs, &lists.forward_outputs, &lists.backward_inputs,
                           &lists.backward_outputs, &lists.cached_below}) {
    check_values(*rows, values());
  }
  check_set(lists.interface_below, values());
  check_set(interface_above, values());
  for (std::size_t op = 0; op < forward_ops(); ++op) {
    std::int64_t bytes = 0;
    for (const std::int32_t s : lists.forward_outputs[op]) {
      if (producer[at(s)] >= 0 || from_below[at(s)] != 0) {
        throw std::invalid_argument("a forward value has two producers");
      }
      producer[at(s)] = static_cast<std::int32_t>(op);
      bytes += size[at(s)];
    }
    forward_out_bytes.push_back(bytes);
    for (const std::int32_t s : lists.forward_inputs[op]) {
      const bool before = producer[at(s)] >= 0 && at(producer[at(s)]) < op;
      if (!before && from_below[at(s)] == 0) {
        throw std::invalid_argument("a forward op reads a value that no op before it makes");
      }
    }
  }
  for (const auto& outputs : lists.backward_outputs) {
    for (const std::int32_t s : outputs) {
      if (producer[at(s)] >= 0 || from_below[at(s)] != 0) {
        throw std::invalid_argument("a backward op writes a forward value");
      }
    }
  }
  forward_readers = invert(lists.forward_inputs, values());
  backward_readers = invert(lists.backward_inputs, values());
  backward_writers = invert(lists.backward_outputs, values());
  for (const auto& variant : lists.keep_flags) {
    check_length(variant.size(), values(), "keep_flags");
    keep_flags.push_back(bytes_of(variant));
  }
  check_length(lists.cached_below.size(), variants(), "cached_below");
  lent_below = find_lent(lists);
  for (const std::int32_t s : interface_above) in_interface_above[at(s)] = 1;
}

BlockTable::BlockTable(const StageProblem& problem, const Cuts& cuts, std::size_t threads,
                       const Tick& tick)
    : cuts_(cuts.lower.rows()), variants_(problem.variants()) {
  check_cuts(problem, cuts);
  for (const std::int64_t x : problem.forward_cost) largest_cost_ += x;
  for (const auto* list : {&problem.size, &problem.forward_workspace, &problem.backward_workspace}) {
    for (const std::int64_t x : *list) largest_bytes_ += x;
  }
  const std::size_t last = cuts_ - 1;
  const CutFacts facts(problem, cuts);
  row_.push_back(0);
  for (std::size_t a = 0; a < last; ++a) row_.push_back(row_.back() + (last - a) * variants_);
  inner_.resize(row_.back());
  has_top_.assign(cuts_ * variants_, 0);
  top_.resize(cuts_ * variants_);
  bottom_.resize(cuts_ * variants_ * 2);
  through_.resize(variants_ * 2);
  for (std::size_t v = 0; v < variants_; ++v) sealed_.push_back(problem.lent_below[v].empty() ? 1 : 0);

  Team team(std::min(thread_count(threads), cuts_));
  std::vector<Simulator> simulators;
  for (std::size_t w = 0; w < team.threads(); ++w) simulators.emplace_back(problem, cuts, facts);

  const auto from_cut = [&](Simulator& simulator, std::size_t a) {
    for (std::size_t b = a + 1; b <= last; ++b) {
      if (!is_stage(cuts, a, b)) continue;
      simulator.select(a, b, false, false);
      for (std::size_t v = 0; v < variants_; ++v) {
        const PieceCost piece = simulator.run(v, false);
        inner_[row_[a] + (b - a - 1) * variants_ + v] = {piece.cost, piece.cached_bytes,
                                                         piece.forward_bytes, piece.backward_bytes};
      }
    }
    simulator.select(a, last, false, true);
    for (std::size_t v = 0; v < variants_; ++v) {
      for (const bool passed : {false, true}) {
        bottom_[(a * variants_ + v) * 2 + (passed ? 1 : 0)] = simulator.run(v, passed);
      }
    }
  };
  const auto from_below = [&](Simulator& simulator) {
    for (std::size_t b = 1; b <= last; ++b) {
      simulator.select(0, b, true, false);
      for (std::size_t v = 0; v < variants_; ++v) {
        const auto lent = problem.lent_below[v];
        const Word* boundary = facts.boundary.row(b);
        if (std::any_of(lent.begin(), lent.end(), [&](std::int32_t s) { return test_bit(boundary, at(s)); })) {
          continue;
        }
        has_top_[b * variants_ + v] = 1;
        top_[b * variants_ + v] = simulator.run(v, false);
      }
    }
    simulator.select(0, last, true, true);
    for (std::size_t v = 0; v < variants_; ++v) {
      for (const bool passed : {false, true}) {
        through_[v * 2 + (passed ? 1 : 0)] = simulator.run(v, passed);
      }
    }
  };
  std::size_t begun = 0;
  team.run(
      cuts_,
      [&](std::size_t item, std::size_t worker) {
        if (worker == 0) begun = item;
        if (item < last) {
          from_cut(simulators[worker], item);
        } else {
          from_below(simulators[worker]);
        }
      },
      [&] {
        if (tick) tick(static_cast<double>(begun) / static_cast<double>(cuts_));
      });
}

}  // namespace memfit
