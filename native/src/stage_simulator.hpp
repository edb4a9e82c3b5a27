// One piece after the other, simulated with buffers that are made once. Used by stage.cpp only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "stage.hpp"

namespace memfit {

inline constexpr std::int64_t kShareUnit = 1024;

inline bool any_outside(Lists::View ops, const Word* set) {
  return std::any_of(ops.begin(), ops.end(), [set](std::int32_t op) { return !test_bit(set, at(op)); });
}

inline bool any_inside(Lists::View ops, const Word* set) {
  return std::any_of(ops.begin(), ops.end(), [set](std::int32_t op) { return test_bit(set, at(op)); });
}

// What a piece needs to know of each of its two cuts, worked out once for each cut.
struct CutFacts {
  BitMatrix boundary;            // values in the boundary
  BitMatrix pinned;              // as the lower cut: values that the piece must not free
  BitMatrix begun_above;         // as the upper cut: gradients that are written before the piece
  StageLists::Rows idle;         // as the upper cut: values of the boundary that nothing below needs

  CutFacts(const StageProblem& problem, const Cuts& cuts)
      : boundary(cuts.lower.rows(), problem.values()),
        pinned(cuts.lower.rows(), problem.values()),
        begun_above(cuts.lower.rows(), problem.values()),
        idle(cuts.lower.rows()) {
    for (std::size_t c = 0; c < cuts.lower.rows(); ++c) {
      for (const std::int32_t s : cuts.boundary[c]) set_bit(boundary.row(c), at(s));
      for (std::size_t s = 0; s < problem.values(); ++s) {
        if (is_pinned(problem, cuts, c, s)) set_bit(pinned.row(c), s);
        if (problem.begun_above[s] != 0 ||
            any_inside(problem.backward_writers[s], cuts.finished.row(c))) {
          set_bit(begun_above.row(c), s);
        }
      }
      for (const std::int32_t s : cuts.boundary[c]) {
        if (!test_bit(pinned.row(c), at(s))) idle[c].push_back(s);
      }
      for (const std::int32_t s : cuts.needed_below[c]) set_bit(pinned.row(c), at(s));
    }
  }

 private:
  [[nodiscard]] bool is_pinned(const StageProblem& problem, const Cuts& cuts, std::size_t c,
                               std::size_t s) const {
    const Word* lower = cuts.lower.row(c);
    const Word* finished = cuts.finished.row(c);
    if (problem.outlives[s] != 0 || problem.used_below[s] != 0) return true;
    const std::int32_t producer = problem.producer[s];
    const bool below = problem.from_below[s] != 0;
    if (producer < 0 && !below) {
      return any_outside(problem.backward_readers[s], finished) ||
             any_outside(problem.backward_writers[s], finished);
    }
    if (!below && !test_bit(lower, at(producer))) return false;
    return !test_bit(boundary.row(c), s) || any_inside(problem.forward_readers[s], lower) ||
           any_outside(problem.backward_readers[s], finished);
  }
};

// What a simulation knows of a value. The first group is set for each pair of cuts, the second for
// each run.
struct ValueState {
  std::uint32_t pair = 0;          // the pair that it was set for; stale otherwise
  std::int32_t backward_uses = 0;  // by the backward ops of the piece
  bool inside = false;             // made by a forward op of the piece
  bool pinned = false;             // not to be freed
  bool alive_before = false;       // if used at all, alive when the way back reaches the piece

  std::int32_t uses = 0;
  bool used = false;
  bool keep = false;
  bool live = false;
  bool lent = false;  // provided by the pieces below
};

// Simulates pieces one after the other, with buffers that are made once.
class Simulator {
 public:
  Simulator(const StageProblem& problem, const Cuts& cuts, const CutFacts& facts)
      : p_(problem),
        cuts_(cuts),
        facts_(facts),
        values_(problem.values()),
        again_mark_(problem.forward_ops(), 0),
        todo_mark_(problem.forward_ops(), 0) {}

  // Chooses the cuts and the open ends for the following calls of `run`.
  void select(std::size_t lower, std::size_t upper, bool open_below, bool open_above) {
    lower_ = lower;
    upper_ = upper;
    open_below_ = open_below;
    open_above_ = open_above;
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
    for (const std::int32_t s : facts_.idle[upper]) touch(s);
    if (open_below) {
      for (std::size_t v = 0; v < p_.variants(); ++v) {
        for (const std::int32_t s : p_.lent_below[v]) touch(s);
      }
    }
    plan_forward();
  }

  PieceCost run(std::size_t variant, bool passed) {
    choose_kept(p_.keep_flags[variant]);
    // Two variants that keep the same values are the same stage.
    if (have_result_ && !open_below_ && !open_above_ && chosen_ == kept_) return result_;
    kept_.swap(chosen_);
    for (const std::int32_t s : touched_) {
      ValueState& state = values_[at(s)];
      state.uses = state.backward_uses;
      state.used = state.uses > 0;
      state.keep = state.live = state.lent = false;
    }
    std::int64_t cached = 0;
    for (const std::int32_t s : kept_) {
      values_[at(s)].keep = true;
      cached += p_.size[at(s)];
    }
    lent_bytes_ = 0;
    if (open_below_) {
      for (const std::int32_t s : p_.lent_below[variant]) {
        values_[at(s)].lent = true;
        lent_bytes_ += p_.size[at(s)];
      }
    }
    asked_.clear();
    if (open_above_ && passed) {
      for (const std::int32_t s : p_.interface_above) {
        const ValueState& state = values_[at(s)];
        if (state.pair == pair_ && state.inside && !state.keep) asked_.push_back(s);
      }
    }
    next_run();
    result_ = PieceCost{};
    result_.cached_bytes = cached;
    result_.passed = !asked_.empty();
    result_.cost = find_recomputed();
    result_.forward_bytes = run_forward();
    run_backward(variant);
    have_result_ = true;
    return result_;
  }

 private:
  const StageProblem& p_;
  const Cuts& cuts_;
  const CutFacts& facts_;
  std::size_t lower_ = 0, upper_ = 0;
  bool open_below_ = false, open_above_ = false;
  std::uint32_t pair_ = 0, run_ = 0;
  std::vector<ValueState> values_;
  std::vector<std::uint32_t> again_mark_, todo_mark_;
  std::vector<std::int32_t> forward_, backward_, touched_, kept_, chosen_, again_, stack_, todo_, asked_;
  std::vector<std::int32_t> dying_, dying_end_;  // values whose last use is each op of forward_
  std::int64_t current_ = 0, peak_ = 0, lent_bytes_ = 0, waiting_bytes_ = 0, lent_above_ = 0;
  bool have_result_ = false, waiting_ = false, passing_ = false;
  PieceCost result_{};

  [[nodiscard]] bool made_below(std::int32_t s) const {
    const std::int32_t producer = p_.producer[at(s)];
    return p_.from_below[at(s)] != 0 ||
           (producer >= 0 && test_bit(cuts_.lower.row(lower_), at(producer)));
  }

  ValueState& touch(std::int32_t s) {
    ValueState& state = values_[at(s)];
    if (state.pair == pair_) return state;
    state = ValueState{};
    state.pair = pair_;
    state.pinned = test_bit(facts_.pinned.row(lower_), at(s));
    state.alive_before = made_below(s) || (p_.producer[at(s)] < 0 &&
                                           test_bit(facts_.begun_above.row(upper_), at(s)));
    touched_.push_back(s);
    return state;
  }

  void next_run() {
    if (++run_ == 0) {
      std::fill(again_mark_.begin(), again_mark_.end(), 0);
      std::fill(todo_mark_.begin(), todo_mark_.end(), 0);
      run_ = 1;
    }
    again_.clear();
  }

  // Lists, for each op of the piece's forward part, the values that may go after it: nothing later
  // in the piece or above it reads them. The run decides which of them do.
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
        if (--state.uses == 0 && p_.read_above[at(s)] == 0) dying_.push_back(s);
      }
      for (const std::int32_t s : p_.forward_out[v]) {
        const ValueState& state = values_[at(s)];
        if (state.uses == 0 && !state.used && p_.read_above[at(s)] == 0) dying_.push_back(s);
      }
      dying_end_.push_back(static_cast<std::int32_t>(dying_.size()));
    }
  }

  // Collects in chosen_ the values that the piece keeps.
  void choose_kept(const std::vector<char>& flags) {
    const Word* boundary = facts_.boundary.row(upper_);
    chosen_.clear();
    for (const std::int32_t v : forward_) {
      const bool fixed = p_.recomputable[at(v)] == 0;
      const auto must_keep = [&](std::int32_t s) {
        const bool passes = open_above_ && p_.in_interface_above[at(s)] != 0;
        return (test_bit(boundary, at(s)) && !passes) || p_.outlives[at(s)] != 0 ||
               p_.always_keep[at(s)] != 0 ||
               (fixed && (!p_.backward_readers[s].empty() || !p_.forward_readers[s].empty() ||
                          p_.read_above[at(s)] != 0));
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
    std::int64_t current = lent_bytes_;
    std::int64_t peak = current;
    std::size_t d = 0;
    for (std::size_t i = 0; i < forward_.size(); ++i) {
      const auto v = at(forward_[i]);
      current += p_.forward_out_bytes[v];
      peak = std::max(peak, current + p_.forward_workspace[v]);
      for (; d < at(dying_end_[i]); ++d) {
        const ValueState& state = values_[at(dying_[d])];
        if (state.lent || (state.inside && !state.keep)) current -= p_.size[at(dying_[d])];
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
      if (again_mark_[at(v)] == run_) return;
      again_mark_[at(v)] = run_;
      again_.push_back(v);
      cost += p_.forward_cost[at(v)];
    };
    // Of the values made inside, all that have uses so far are read or written by backward ops, and
    // those do not write forward values.
    for (const std::int32_t s : touched_) {
      if (values_[at(s)].backward_uses > 0) want(s);
    }
    for (const std::int32_t s : cuts_.needed_below[lower_]) want(s);
    for (const std::int32_t s : asked_) want(s);
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

  void run_backward(std::size_t variant) {
    waiting_bytes_ = 0;
    if (open_below_) {
      for (const std::int32_t s : p_.lent_below[variant]) {
        result_.asks = result_.asks || values_[at(s)].used;
        // What the pieces below need later is alive from then on too.
        if (values_[at(s)].used || p_.used_below[at(s)] != 0) waiting_bytes_ += p_.size[at(s)];
      }
    }
    waiting_ = result_.asks;
    passing_ = true;
    stand();
    result_.pass_bytes = result_.held_bytes = result_.standing_bytes;
    if (!asked_.empty()) pass();
    passing_ = false;
    // What lies in the cache for pieces above alone is dead by now.
    std::int64_t dead = 0;
    for (const std::int32_t s : facts_.idle[upper_]) {
      if (made_below(s) && !values_[at(s)].lent) dead += p_.size[at(s)];
    }
    current_ += cuts_.base_bytes[upper_] - dead - lent_above_;
    for (const std::int32_t s : cuts_.needed_below[upper_]) {
      ValueState& state = values_[at(s)];
      if (state.inside) continue;
      current_ += p_.size[at(s)];
      state.live = true;
    }
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
    result_.backward_bytes = peak_;
  }

  // The pieces below provide their interface now.
  void ask() {
    if (passing_) {
      result_.joins = true;
    } else {
      result_.before_bytes = peak_;
      result_.start_bytes = current_;
    }
    current_ += waiting_bytes_;
    waiting_ = false;
    peak_ = current_;
  }

  // Sets current_ to what the piece has kept, and lent_above_ to what of it is for the pieces above
  // alone.
  void stand() {
    current_ = 0;
    lent_above_ = 0;
    for (const std::int32_t s : kept_) {
      ValueState& state = values_[at(s)];
      if (state.used || state.pinned) {
        state.live = true;
      } else if (open_above_ && p_.read_above[at(s)] != 0) {
        lent_above_ += p_.size[at(s)];
      } else {
        continue;
      }
      current_ += p_.size[at(s)];
    }
    result_.standing_bytes = current_;
    // What the cache holds is counted in m; freeing it here makes current_ fall below its start.
    for (const std::int32_t s : touched_) {
      ValueState& state = values_[at(s)];
      if (state.used && state.alive_before) state.live = true;
    }
  }

  // Computes the interface above again, for the pieces above.
  void pass() {
    std::int64_t asked_bytes = 0;
    for (const std::int32_t s : asked_) {
      ValueState& state = values_[at(s)];
      ++state.uses;
      state.used = true;
      asked_bytes += p_.size[at(s)];
    }
    peak_ = current_;
    provide({asked_.data(), asked_.data() + asked_.size()});
    result_.pass_bytes = std::max(result_.standing_bytes, peak_);
    result_.held_bytes = current_ - asked_bytes;
    for (const std::int32_t s : asked_) release(s);
  }

  void release(std::int32_t s) {
    ValueState& state = values_[at(s)];
    if (--state.uses == 0 && state.live && !state.pinned) {
      state.live = false;
      if (passing_ && p_.read_above[at(s)] != 0) {
        lent_above_ += p_.size[at(s)];  // the pieces above are still to read it
      } else {
        current_ -= p_.size[at(s)];
      }
    }
  }

  // Recomputes what is missing of `wanted`, in program order.
  void provide(Lists::View wanted) {
    todo_.clear();
    bool needs_below = false;
    const auto read = [&](std::int32_t s) {
      plan_op(s);
      needs_below = needs_below || (values_[at(s)].lent && values_[at(s)].used);
    };
    for (const std::int32_t s : wanted) read(s);
    while (!stack_.empty()) {
      const std::int32_t v = stack_.back();
      stack_.pop_back();
      for (const std::int32_t s : p_.forward_in[v]) read(s);
    }
    if (waiting_ && needs_below) ask();
    if (todo_.size() > 1) std::sort(todo_.begin(), todo_.end());
    for (const std::int32_t v : todo_) recompute(v);
  }

  void plan_op(std::int32_t s) {
    const ValueState& state = values_[at(s)];
    if (!state.inside || state.keep) return;
    const std::int32_t v = p_.producer[at(s)];
    if (todo_mark_[at(v)] == run_) return;  // planned or done: each op runs again once at most
    todo_mark_[at(v)] = run_;
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
