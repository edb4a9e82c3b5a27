// Sweeps: forward ops that run once more to hold values at a cut. Included by nested.cpp only.
//
// Gives the same answers as memfit/_core/reference/sweeps.py.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "stage.hpp"
#include "stage_simulator.hpp"

namespace memfit {

// For each value, whether every strategy keeps it from its first computation on.
inline std::vector<char> always_kept(const StageProblem& p) {
  std::vector<char> result(p.values(), 0);
  for (std::size_t s = 0; s < p.values(); ++s) {
    const std::int32_t producer = p.producer[s];
    if (producer < 0) continue;
    const bool read_back = !p.backward_readers[s].empty();
    const bool fixed = p.recomputable[at(producer)] == 0;
    const bool later = read_back || !p.forward_readers[s].empty() || p.read_above[s] != 0;
    result[s] = p.outlives[s] != 0 || p.always_keep[s] != 0 || (fixed && later) ||
                (read_back && p.size[s] <= p.always_keep_bytes);
  }
  return result;
}

// The cut interval of each forward op: it lies between cuts i and i + 1.
inline std::vector<std::size_t> intervals(const StageProblem& p, const Cuts& cuts) {
  std::vector<std::size_t> result(p.forward_ops(), 0);
  for (std::size_t v = 0; v < result.size(); ++v) {
    while (result[v] + 2 < cuts.lower.rows() && !test_bit(cuts.lower.row(result[v] + 1), v)) ++result[v];
  }
  return result;
}

class Sweeper {
 public:
  Sweeper(const StageProblem& problem, const std::vector<char>& always,
          const std::vector<std::size_t>& interval)
      : p_(problem),
        always_(always),
        interval_(interval),
        op_mark_(problem.forward_ops(), 0),
        value_mark_(problem.values(), 0),
        uses_(problem.values(), 0),
        flags_(problem.values(), 0) {}

  // (cost, peak bytes) of computing `targets` again between cuts a and b; see `sweep`.
  std::pair<std::int64_t, std::int64_t> run(std::size_t a, std::size_t b,
                                            const std::vector<std::int32_t>& targets, bool lend) {
    ++mark_;
    order_.clear();
    stack_.clear();
    for (const std::int32_t s : targets) {
      if (always_[at(s)] != 0) continue;
      value(s) |= kWanted;
      stack_.push_back(s);
    }
    while (!stack_.empty()) {
      const std::int32_t s = stack_.back();
      stack_.pop_back();
      if (!made_here(s, a, b)) continue;
      const std::int32_t v = p_.producer[at(s)];
      if (op_mark_[at(v)] == mark_) continue;
      op_mark_[at(v)] = mark_;
      order_.push_back(v);
      for (const std::int32_t r : p_.forward_in[v]) stack_.push_back(r);
    }
    std::sort(order_.begin(), order_.end());
    std::int64_t cost = 0;
    std::int64_t current = 0;
    for (const std::int32_t v : order_) {
      cost += p_.forward_cost[at(v)];
      for (const std::int32_t s : p_.forward_in[v]) {
        char& flags = value(s);
        ++uses_[at(s)];
        flags |= kUsed;
        if (lend && p_.from_below[at(s)] != 0 && p_.always_keep[at(s)] == 0 && (flags & kLent) == 0) {
          flags |= kLent;
          current += p_.size[at(s)];
        }
      }
    }
    std::int64_t peak = current;
    for (const std::int32_t v : order_) {
      std::int64_t twice = 0;
      for (const std::int32_t s : p_.forward_out[v]) (always_[at(s)] != 0 ? twice : current) += p_.size[at(s)];
      peak = std::max(peak, current + twice + p_.forward_workspace[at(v)]);
      for (const std::int32_t s : p_.forward_in[v]) {
        const char flags = value(s);
        if (--uses_[at(s)] == 0 &&
            ((made_here(s, a, b) && (flags & kWanted) == 0) || (flags & kLent) != 0)) {
          current -= p_.size[at(s)];
        }
      }
      for (const std::int32_t s : p_.forward_out[v]) {
        if (always_[at(s)] == 0 && (value(s) & (kUsed | kWanted)) == 0) current -= p_.size[at(s)];
      }
    }
    return {cost, peak};
  }

  // Peak of the first pass over the ops between two cuts where `keep` stays.
  std::int64_t first_pass(const std::vector<std::int32_t>& ops, const std::vector<std::int32_t>& keep) {
    ++mark_;
    for (const std::int32_t s : keep) value(s) |= kWanted;
    for (const std::int32_t v : ops) {
      for (const std::int32_t s : p_.forward_in[v]) {
        value(s) |= kUsed;
        ++uses_[at(s)];
      }
      for (const std::int32_t s : p_.forward_out[v]) value(s) |= kInside;
    }
    std::int64_t current = 0;
    std::int64_t peak = 0;
    const auto goes = [this](std::int32_t s) {
      return (value(s) & (kInside | kWanted)) == kInside && p_.read_above[at(s)] == 0;
    };
    for (const std::int32_t v : ops) {
      current += p_.forward_out_bytes[at(v)];
      peak = std::max(peak, current + p_.forward_workspace[at(v)]);
      for (const std::int32_t s : p_.forward_in[v]) {
        if (--uses_[at(s)] == 0 && goes(s)) current -= p_.size[at(s)];
      }
      for (const std::int32_t s : p_.forward_out[v]) {
        if ((value(s) & kUsed) == 0 && goes(s)) current -= p_.size[at(s)];
      }
    }
    return peak;
  }

 private:
  static constexpr char kWanted = 1, kUsed = 2, kLent = 4, kInside = 8;

  const StageProblem& p_;
  const std::vector<char>& always_;
  const std::vector<std::size_t>& interval_;
  std::uint64_t mark_ = 0;
  std::vector<std::uint64_t> op_mark_, value_mark_;
  std::vector<std::int32_t> uses_;
  std::vector<char> flags_;
  std::vector<std::int32_t> order_, stack_;

  char& value(std::int32_t s) {
    if (value_mark_[at(s)] != mark_) {
      value_mark_[at(s)] = mark_;
      uses_[at(s)] = 0;
      flags_[at(s)] = 0;
    }
    return flags_[at(s)];
  }

  [[nodiscard]] bool made_here(std::int32_t s, std::size_t a, std::size_t b) const {
    const std::int32_t v = p_.producer[at(s)];
    return v >= 0 && always_[at(s)] == 0 && interval_[at(v)] >= a && interval_[at(v)] < b;
  }
};

}  // namespace memfit
