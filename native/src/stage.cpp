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

#include "stage_simulator.hpp"

namespace memfit {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 62;

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
