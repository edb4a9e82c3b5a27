#include "stage.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace memfit {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 62;
constexpr std::int64_t kShareUnit = 1024;

std::size_t at(std::int32_t i) { return static_cast<std::size_t>(i); }

void check_total(const std::vector<std::vector<std::int64_t>*>& lists, const char* what) {
  std::int64_t total = 0;
  for (const auto* list : lists) {
    for (const std::int64_t x : *list) {
      if (x < 0 || x >= kLimit - total) {
        throw std::invalid_argument(std::string(what) + " must be 0 or more and add up below 2**62");
      }
      total += x;
    }
  }
}

void check_length(std::size_t actual, std::size_t expected, const char* what) {
  if (actual != expected) throw std::invalid_argument(std::string("wrong length of ") + what);
}

void check_values(const StageProblem::Rows& rows, std::size_t values) {
  for (const auto& row : rows) {
    for (const std::int32_t s : row) {
      if (s < 0 || at(s) >= values) throw std::invalid_argument("an op names a value out of range");
    }
  }
}

Lists invert(const StageProblem::Rows& rows, std::size_t values) {
  StageProblem::Rows inverse(values);
  for (std::size_t op = 0; op < rows.size(); ++op) {
    for (const std::int32_t s : rows[op]) inverse[at(s)].push_back(static_cast<std::int32_t>(op));
  }
  return Lists(inverse);
}

bool any_outside(Lists::View ops, const Word* set) {
  return std::any_of(ops.begin(), ops.end(), [set](std::int32_t op) { return !test_bit(set, at(op)); });
}

bool any_inside(Lists::View ops, const Word* set) {
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

// Shares the sources out among threads; the calling thread ticks.
class Pool {
 public:
  Pool(const StageProblem& problem, const Cuts& cuts)
      : problem_(problem), cuts_(cuts), facts_(problem, cuts), found_(cuts.lower.rows()) {}

  std::vector<Edge> run(std::size_t threads, const Tick& tick) {
    std::vector<std::thread> workers;
    running_ = threads;
    try {
      for (std::size_t i = 0; i < threads; ++i) workers.emplace_back([this] { work(); });
      watch(tick);
    } catch (...) {
      stop_ = true;
      for (auto& worker : workers) worker.join();
      throw;
    }
    for (auto& worker : workers) worker.join();
    if (error_) std::rethrow_exception(error_);

    std::size_t total = 0;
    for (const auto& edges : found_) total += edges.size();
    std::vector<Edge> all;
    all.reserve(total);
    for (auto& edges : found_) {
      all.insert(all.end(), edges.begin(), edges.end());
      std::vector<Edge>().swap(edges);
    }
    return all;
  }

 private:
  const StageProblem& problem_;
  const Cuts& cuts_;
  const CutFacts facts_;
  std::vector<std::vector<Edge>> found_;
  std::atomic<std::size_t> next_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable finished_;
  std::size_t running_ = 0;
  std::exception_ptr error_;

  void work() {
    try {
      Simulator simulator(problem_, cuts_, facts_);
      for (std::size_t i = next_++; i < found_.size() && !stop_; i = next_++) {
        edges_of(simulator, i);
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stop_ = true;
    }
    const std::lock_guard lock(mutex_);
    --running_;
    finished_.notify_all();
  }

  void edges_of(Simulator& simulator, std::size_t i) {
    const BitMatrix& lower = cuts_.lower;
    const BitMatrix& finished = cuts_.finished;
    for (std::size_t j = i + 1; j < lower.rows() && !stop_; ++j) {
      if (!is_subset(lower.row(i), lower.row(j), lower.words()) ||
          is_equal(lower.row(i), lower.row(j), lower.words()) ||
          !is_subset(finished.row(j), finished.row(i), finished.words())) {
        continue;
      }
      simulator.select(i, j);
      for (std::size_t variant = 0; variant < problem_.keep_flags.size(); ++variant) {
        const StageCost stage = simulator.run(variant);
        found_[i].push_back({static_cast<std::int32_t>(i), static_cast<std::int32_t>(j),
                             static_cast<std::int32_t>(variant), stage.cost, stage.cached_bytes,
                             stage.peak_bytes});
      }
    }
  }

  void watch(const Tick& tick) {
    std::unique_lock lock(mutex_);
    while (running_ > 0) {
      finished_.wait_for(lock, std::chrono::milliseconds(100));
      if (running_ == 0 || !tick) continue;
      const auto done = std::min(next_.load(), found_.size());
      lock.unlock();
      tick(static_cast<double>(done) / static_cast<double>(found_.size()));
      lock.lock();
    }
  }
};

std::vector<char> bytes_of(const std::vector<bool>& flags) { return {flags.begin(), flags.end()}; }

}  // namespace

StageProblem::StageProblem(std::vector<std::int64_t> value_bytes, const std::vector<bool>& outlives_,
                           const Rows& forward_inputs, const Rows& forward_outputs,
                           std::vector<std::int64_t> forward_cost_,
                           std::vector<std::int64_t> forward_workspace_,
                           const std::vector<bool>& forward_recomputable,
                           const Rows& backward_inputs, const Rows& backward_outputs,
                           std::vector<std::int64_t> backward_workspace_,
                           const std::vector<std::vector<bool>>& flags,
                           std::int64_t always_keep_bytes_, std::int64_t auxiliary_share_)
    : size(std::move(value_bytes)),
      outlives(bytes_of(outlives_)),
      forward_in(forward_inputs),
      forward_out(forward_outputs),
      forward_cost(std::move(forward_cost_)),
      forward_workspace(std::move(forward_workspace_)),
      recomputable(bytes_of(forward_recomputable)),
      backward_in(backward_inputs),
      backward_out(backward_outputs),
      backward_workspace(std::move(backward_workspace_)),
      always_keep_bytes(always_keep_bytes_),
      auxiliary_share(auxiliary_share_),
      producer(size.size(), -1) {
  check_length(outlives.size(), values(), "outlives");
  for (const std::size_t length : {forward_outputs.size(), forward_cost.size(),
                                   forward_workspace.size(), recomputable.size()}) {
    check_length(length, forward_ops(), "a list by forward op");
  }
  check_length(backward_outputs.size(), backward_ops(), "backward_outputs");
  check_length(backward_workspace.size(), backward_ops(), "backward_workspace");
  check_total({&size, &forward_workspace, &backward_workspace}, "sizes in bytes");
  check_total({&forward_cost}, "costs");
  if (auxiliary_share < 0 || auxiliary_share > kShareUnit) {
    throw std::invalid_argument("auxiliary_share must be between 0 and 1024");
  }
  for (const Rows* rows : {&forward_inputs, &forward_outputs, &backward_inputs, &backward_outputs}) {
    check_values(*rows, values());
  }
  for (std::size_t op = 0; op < forward_ops(); ++op) {
    for (const std::int32_t s : forward_outputs[op]) {
      if (producer[at(s)] >= 0) throw std::invalid_argument("a forward value has two producers");
      producer[at(s)] = static_cast<std::int32_t>(op);
    }
  }
  for (const auto& outputs : forward_outputs) {
    std::int64_t bytes = 0;
    for (const std::int32_t s : outputs) bytes += size[at(s)];
    forward_out_bytes.push_back(bytes);
  }
  for (const auto& outputs : backward_outputs) {
    for (const std::int32_t s : outputs) {
      if (producer[at(s)] >= 0) throw std::invalid_argument("a backward op writes a forward value");
    }
  }
  forward_readers = invert(forward_inputs, values());
  backward_readers = invert(backward_inputs, values());
  backward_writers = invert(backward_outputs, values());
  for (const auto& variant : flags) {
    check_length(variant.size(), values(), "keep_flags");
    keep_flags.push_back(bytes_of(variant));
  }
}

EdgeTable stage_edges(const StageProblem& problem, const Cuts& cuts, std::size_t threads,
                      const Tick& tick) {
  const std::size_t count = cuts.lower.rows();
  if (count == 0) throw std::invalid_argument("there must be at least one cut");
  check_length(cuts.finished.rows(), count, "finished");
  check_length(cuts.boundary.size(), count, "boundary");
  check_length(cuts.needed_below.size(), count, "needed_below");
  check_length(cuts.base_bytes.size(), count, "base_bytes");
  check_values(cuts.boundary, problem.values());
  check_values(cuts.needed_below, problem.values());
  if (threads == 0) threads = std::max(1U, std::thread::hardware_concurrency());
  threads = std::min(threads, count);
  return EdgeTable(count, Pool(problem, cuts).run(threads, tick));
}

}  // namespace memfit
