// One stage after the other, simulated with buffers that are made once. Used by stage.cpp only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "stage.hpp"

namespace memfit {

inline constexpr std::int64_t kShareUnit = 1024;

[[nodiscard]] inline std::size_t at(std::int32_t i) { return static_cast<std::size_t>(i); }

inline bool any_outside(Lists::View ops, const Word* set) {
  return std::any_of(ops.begin(), ops.end(), [set](std::int32_t op) { return !test_bit(set, at(op)); });
}

inline bool any_inside(Lists::View ops, const Word* set) {
  return std::any_of(ops.begin(), ops.end(), [set](std::int32_t op) { return test_bit(set, at(op)); });
}

// What a stage needs to know of each of its two cuts, worked out once for each cut.
struct CutFacts {
  BitMatrix boundary;      // values in the boundary
  BitMatrix pinned;        // as the stage's lower cut: values that the stage must not free
  BitMatrix begun_above;   // as its upper cut: gradients that have been written before the stage

  CutFacts(const StageProblem& problem, const Cuts& cuts)
      : boundary(cuts.lower.rows(), problem.values()),
        pinned(cuts.lower.rows(), problem.values()),
        begun_above(cuts.lower.rows(), problem.values()) {
    for (std::size_t c = 0; c < cuts.lower.rows(); ++c) {
      for (const std::int32_t s : cuts.boundary[c]) set_bit(boundary.row(c), at(s));
      for (const std::int32_t s : cuts.needed_below[c]) set_bit(pinned.row(c), at(s));
      for (std::size_t s = 0; s < problem.values(); ++s) {
        if (is_pinned(problem, cuts, c, s)) set_bit(pinned.row(c), s);
        if (any_inside(problem.backward_writers[s], cuts.finished.row(c))) {
          set_bit(begun_above.row(c), s);
        }
      }
    }
  }

 private:
  [[nodiscard]] bool is_pinned(const StageProblem& problem, const Cuts& cuts, std::size_t c,
                               std::size_t s) const {
    const Word* lower = cuts.lower.row(c);
    const Word* finished = cuts.finished.row(c);
    if (problem.outlives[s] != 0) return true;
    const std::int32_t producer = problem.producer[s];
    if (producer < 0) {
      return any_outside(problem.backward_readers[s], finished) ||
             any_outside(problem.backward_writers[s], finished);
    }
    if (!test_bit(lower, at(producer))) return false;
    return !test_bit(boundary.row(c), s) || any_inside(problem.forward_readers[s], lower) ||
           any_outside(problem.backward_readers[s], finished);
  }
};

// What a simulation knows of a value. The first group is set for each pair of cuts, the second for
// each variant.
struct ValueState {
  std::uint32_t pair = 0;         // the pair that it was set for; stale otherwise
  std::int32_t backward_uses = 0;  // by the backward ops of the stage
  bool inside = false;             // made by a forward op of the stage
  bool pinned = false;             // not to be freed
  bool alive_before = false;       // if used at all, alive when the way back reaches the stage

  std::int32_t uses = 0;
  bool used = false;
  bool keep = false;
  bool live = false;
};

struct StageCost {
  std::int64_t cost;
  std::int64_t cached_bytes;
  std::int64_t peak_bytes;
};

// Simulates stages one after the other, with buffers that are made once.
class Simulator {
 public:
  Simulator(const StageProblem& problem, const Cuts& cuts, const CutFacts& facts)
      : p_(problem),
        cuts_(cuts),
        facts_(facts),
        values_(problem.values()),
        again_mark_(problem.forward_ops(), 0),
        todo_mark_(problem.forward_ops(), 0) {}

  // Chooses the pair of cuts for the following calls of `run`.
  void select(std::size_t lower, std::size_t upper) {
    lower_ = lower;
    upper_ = upper;
    if (++pair_ == 0) {
      std::fill(values_.begin(), values_.end(), ValueState{});
      pair_ = 1;
    }
    forward_.clear();
    backward_.clear();
    touched_.clear();
    kept_.clear();
    have_result_ = false;
    for_each_difference(cuts_.lower.row(upper), cuts_.lower.row(lower), cuts_.lower.words(),
                        [this](std::size_t v) { forward_.push_back(static_cast<std::int32_t>(v)); });
    for_each_difference(cuts_.finished.row(lower), cuts_.finished.row(upper), cuts_.finished.words(),
                        [this](std::size_t b) { backward_.push_back(static_cast<std::int32_t>(b)); });
    for (const std::int32_t v : forward_) {
      for (const std::int32_t s : p_.forward_out[v]) touch(s).inside = true;
      for (const std::int32_t s : p_.forward_in[v]) touch(s);
    }
    for (const std::int32_t b : backward_) {
      for (const std::int32_t s : p_.backward_in[b]) ++touch(s).backward_uses;
      for (const std::int32_t s : p_.backward_out[b]) ++touch(s).backward_uses;
    }
    for (const std::int32_t s : cuts_.needed_below[lower]) touch(s);
    for (const std::int32_t s : cuts_.needed_below[upper]) touch(s);
    plan_forward();
  }

  StageCost run(std::size_t variant) {
    choose_kept(p_.keep_flags[variant]);
    // Two variants that keep the same values are the same stage.
    if (have_result_ && chosen_ == kept_) return result_;
    kept_.swap(chosen_);
    for (const std::int32_t s : touched_) {
      ValueState& state = values_[at(s)];
      state.uses = state.backward_uses;
      state.used = state.uses > 0;
      state.keep = state.live = false;
    }
    std::int64_t cached = 0;
    for (const std::int32_t s : kept_) {
      values_[at(s)].keep = true;
      cached += p_.size[at(s)];
    }
    next_variant();
    const std::int64_t cost = find_recomputed();
    result_ = {cost, cached, std::max(run_forward(), run_backward())};
    have_result_ = true;
    return result_;
  }

 private:
  const StageProblem& p_;
  const Cuts& cuts_;
  const CutFacts& facts_;
  std::size_t lower_ = 0, upper_ = 0;
  std::uint32_t pair_ = 0, variant_ = 0;
  std::vector<ValueState> values_;
  std::vector<std::uint32_t> again_mark_, todo_mark_;
  std::vector<std::int32_t> forward_, backward_, touched_, kept_, chosen_, again_, stack_, todo_;
  std::vector<std::int32_t> dying_, dying_end_;  // values whose last use is each op of forward_
  std::int64_t current_ = 0, peak_ = 0;
  bool have_result_ = false;
  StageCost result_{};

  ValueState& touch(std::int32_t s) {
    ValueState& state = values_[at(s)];
    if (state.pair == pair_) return state;
    state = ValueState{};
    state.pair = pair_;
    state.pinned = test_bit(facts_.pinned.row(lower_), at(s));
    const std::int32_t producer = p_.producer[at(s)];
    state.alive_before = producer >= 0 ? test_bit(cuts_.lower.row(lower_), at(producer))
                                       : test_bit(facts_.begun_above.row(upper_), at(s));
    touched_.push_back(s);
    return state;
  }

  void next_variant() {
    if (++variant_ == 0) {
      std::fill(again_mark_.begin(), again_mark_.end(), 0);
      std::fill(todo_mark_.begin(), todo_mark_.end(), 0);
      variant_ = 1;
    }
    again_.clear();
  }

  // Lists, for each op of the stage's forward part, the values made in it that nothing later in it
  // reads; the variant decides which of them go.
  void plan_forward() {
    dying_.clear();
    dying_end_.clear();
    for (const std::int32_t v : forward_) {
      for (const std::int32_t s : p_.forward_in[v]) ++values_[at(s)].uses;
    }
    for (const std::int32_t v : forward_) {
      for (const std::int32_t s : p_.forward_in[v]) {
        ValueState& state = values_[at(s)];
        state.used = true;
        if (--state.uses == 0 && state.inside) dying_.push_back(s);
      }
      for (const std::int32_t s : p_.forward_out[v]) {
        const ValueState& state = values_[at(s)];
        if (state.uses == 0 && !state.used) dying_.push_back(s);
      }
      dying_end_.push_back(static_cast<std::int32_t>(dying_.size()));
    }
  }

  // Collects in chosen_ the values that the stage keeps.
  void choose_kept(const std::vector<char>& flags) {
    const Word* boundary = facts_.boundary.row(upper_);
    chosen_.clear();
    for (const std::int32_t v : forward_) {
      const bool fixed = p_.recomputable[at(v)] == 0;
      const auto must_keep = [&](std::int32_t s) {
        return test_bit(boundary, at(s)) || p_.outlives[at(s)] != 0 ||
               (fixed && (!p_.backward_readers[s].empty() || !p_.forward_readers[s].empty()));
      };
      std::int64_t boundary_bytes = 0;
      for (const std::int32_t s : p_.forward_out[v]) {
        if (must_keep(s)) boundary_bytes += p_.size[at(s)];
      }
      // floor(share * boundary / 1024) without the product, which could overflow.
      const std::int64_t small = std::max(
          p_.always_keep_bytes, boundary_bytes / kShareUnit * p_.auxiliary_share +
                                    boundary_bytes % kShareUnit * p_.auxiliary_share / kShareUnit);
      for (const std::int32_t s : p_.forward_out[v]) {
        if (must_keep(s) || (!p_.backward_readers[s].empty() &&
                             (flags[at(s)] != 0 || p_.size[at(s)] <= small))) {
          chosen_.push_back(s);
        }
      }
    }
  }

  [[nodiscard]] std::int64_t run_forward() const {
    std::int64_t current = 0;
    std::int64_t peak = 0;
    std::size_t d = 0;
    for (std::size_t i = 0; i < forward_.size(); ++i) {
      const auto v = at(forward_[i]);
      current += p_.forward_out_bytes[v];
      peak = std::max(peak, current + p_.forward_workspace[v]);
      for (; d < at(dying_end_[i]); ++d) {
        if (!values_[at(dying_[d])].keep) current -= p_.size[at(dying_[d])];
      }
    }
    return peak;
  }

  // Finds the ops that run again and counts what they read; returns their cost.
  std::int64_t find_recomputed() {
    std::int64_t cost = 0;
    const auto want = [&](std::int32_t s) {
      const ValueState& state = values_[at(s)];
      if (!state.inside || state.keep) return;
      const std::int32_t v = p_.producer[at(s)];
      if (again_mark_[at(v)] == variant_) return;
      again_mark_[at(v)] = variant_;
      again_.push_back(v);
      cost += p_.forward_cost[at(v)];
    };
    // Of the values made inside, all that have uses so far are read or written by backward ops, and
    // those do not write forward values.
    for (const std::int32_t s : touched_) {
      if (values_[at(s)].backward_uses > 0) want(s);
    }
    for (const std::int32_t s : cuts_.needed_below[lower_]) want(s);
    for (std::size_t i = 0; i < again_.size(); ++i) {
      for (const std::int32_t s : p_.forward_in[again_[i]]) {
        want(s);
        ValueState& state = values_[at(s)];
        ++state.uses;
        state.used = true;
      }
    }
    return cost;
  }

  std::int64_t run_backward() {
    begin_backward();
    peak_ = current_;
    for (const std::int32_t b : backward_) {
      provide(p_.backward_in[b]);
      for (const std::int32_t s : p_.backward_out[b]) {
        ValueState& state = values_[at(s)];
        if (!state.live) {
          current_ += p_.size[at(s)];
          state.live = true;
        }
      }
      peak_ = std::max(peak_, current_ + p_.backward_workspace[at(b)]);
      for (const std::int32_t s : p_.backward_in[b]) release(s);
      for (const std::int32_t s : p_.backward_out[b]) release(s);
    }
    const auto& below = cuts_.needed_below[lower_];
    provide({below.data(), below.data() + below.size()});
    return peak_;
  }

  void begin_backward() {
    current_ = cuts_.base_bytes[upper_];
    for (const std::int32_t s : cuts_.needed_below[upper_]) {
      ValueState& state = values_[at(s)];
      if (state.inside) continue;
      current_ += p_.size[at(s)];
      state.live = true;
    }
    for (const std::int32_t s : kept_) {
      ValueState& state = values_[at(s)];
      if (!state.used && !state.pinned) continue;
      current_ += p_.size[at(s)];
      state.live = true;
    }
    // What the cache holds is counted in m; freeing it here makes current_ fall below its start.
    for (const std::int32_t s : touched_) {
      ValueState& state = values_[at(s)];
      if (state.used && state.alive_before) state.live = true;
    }
  }

  void release(std::int32_t s) {
    ValueState& state = values_[at(s)];
    if (--state.uses == 0 && state.live && !state.pinned) {
      current_ -= p_.size[at(s)];
      state.live = false;
    }
  }

  // Recomputes what is missing of `wanted`, in program order.
  void provide(Lists::View wanted) {
    todo_.clear();
    for (const std::int32_t s : wanted) plan_op(s);
    if (todo_.empty()) return;
    while (!stack_.empty()) {
      const std::int32_t v = stack_.back();
      stack_.pop_back();
      for (const std::int32_t s : p_.forward_in[v]) plan_op(s);
    }
    if (todo_.size() > 1) std::sort(todo_.begin(), todo_.end());
    for (const std::int32_t v : todo_) recompute(v);
  }

  void plan_op(std::int32_t s) {
    const ValueState& state = values_[at(s)];
    if (!state.inside || state.keep) return;
    const std::int32_t v = p_.producer[at(s)];
    if (todo_mark_[at(v)] == variant_) return;  // planned or done: each op runs again once at most
    todo_mark_[at(v)] = variant_;
    todo_.push_back(v);
    stack_.push_back(v);
  }

  void recompute(std::int32_t v) {
    std::int64_t twice = 0;
    for (const std::int32_t s : p_.forward_out[v]) {
      ValueState& state = values_[at(s)];
      if (state.keep) {
        twice += p_.size[at(s)];
      } else {
        current_ += p_.size[at(s)];
        state.live = true;
      }
    }
    peak_ = std::max(peak_, current_ + twice + p_.forward_workspace[at(v)]);
    for (const std::int32_t s : p_.forward_in[v]) release(s);
    for (const std::int32_t s : p_.forward_out[v]) {
      ValueState& state = values_[at(s)];
      if (!state.keep && !state.used && !state.pinned) {
        current_ -= p_.size[at(s)];
        state.live = false;
      }
    }
  }
};

}  // namespace memfit
