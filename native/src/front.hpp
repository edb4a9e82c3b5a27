// Pareto fronts of (cost still to come, bytes still needed), for a dynamic program that runs from
// the last state back to the first.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

// On x86 Linux the inner loop is compiled for several instruction sets, chosen at run time.
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(MEMFIT_NO_CLONES)
#define MEMFIT_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MEMFIT_CLONES
#endif

namespace memfit {

inline constexpr std::int64_t kNever = std::int64_t{1} << 62;  // no way leads there
inline constexpr std::int64_t kNothing = -kNever;              // needs nothing more

// A way on: it costs `cost`, adds `cached_bytes` to the cache, and peaks at `peak_bytes` beyond it.
struct Step {
  std::int64_t cost;
  std::int64_t cached_bytes;
  std::int64_t peak_bytes;
};

// least[k] = min(least[k], max(peak, cached + need[k])).
void relax_dense(std::int64_t* least, const std::int64_t* need, std::size_t count,
                 std::int64_t cached, std::int64_t peak);

// The front of one state: which cost still to come buys which need. From the state, with m bytes in
// the cache, the end can be reached at cost c within a budget B exactly where m + need(c) <= B. It
// holds for every budget at once.
//
// Dense: need_[k] is the least need at cost first_cost_ + k or less. Sparse: costs_ ascend, needs
// descend, both strictly.
class Front {
 public:
  [[nodiscard]] bool empty() const { return need_.empty(); }
  [[nodiscard]] std::size_t size() const { return need_.size(); }
  [[nodiscard]] std::int64_t cost(std::size_t k) const {
    return costs_.empty() ? first_cost_ + static_cast<std::int64_t>(k) : costs_[k];
  }
  [[nodiscard]] std::int64_t need(std::size_t k) const { return need_[k]; }
  [[nodiscard]] std::int64_t least_cost() const { return empty() ? kNever : cost(0); }
  [[nodiscard]] std::int64_t least_need() const { return empty() ? kNever : need_.back(); }

  // The least need at cost `cost` or less; kNever if there is none.
  [[nodiscard]] std::int64_t need_at(std::int64_t cost) const {
    if (empty() || cost < least_cost()) return kNever;
    if (costs_.empty()) {
      const auto k = static_cast<std::size_t>(cost - first_cost_);
      return need_[std::min(k, need_.size() - 1)];
    }
    const auto after = std::upper_bound(costs_.begin(), costs_.end(), cost);
    return need_[static_cast<std::size_t>(after - costs_.begin()) - 1];
  }

  // The least cost whose need is at most `need`; kNever if there is none.
  [[nodiscard]] std::int64_t cost_within(std::int64_t need) const {
    const auto k = useful_after(need);
    return k == need_.size() ? kNever : cost(k);
  }

  // The points (cost, need) where the need falls.
  [[nodiscard]] std::vector<std::pair<std::int64_t, std::int64_t>> points() const {
    std::vector<std::pair<std::int64_t, std::int64_t>> result;
    for (std::size_t k = 0; k < size(); ++k) {
      if (k == 0 || need_[k] < need_[k - 1]) result.emplace_back(cost(k), need_[k]);
    }
    return result;
  }

 private:
  friend class FrontBuilder;
  std::int64_t first_cost_ = 0;
  std::vector<std::int64_t> costs_;
  std::vector<std::int64_t> need_;

  // The index of the first entry with a need of at most `need`.
  [[nodiscard]] std::size_t useful_after(std::int64_t need) const {
    const auto at = std::partition_point(need_.begin(), need_.end(),
                                         [need](std::int64_t n) { return n > need; });
    return static_cast<std::size_t>(at - need_.begin());
  }
};

// Collects the front of a state from the fronts of those after it. One builder serves many states,
// one after the other.
class FrontBuilder {
 public:
  // Dense fronts where no way costs `dense_costs` or more, sparse ones otherwise (0).
  explicit FrontBuilder(std::size_t dense_costs) : dense_(dense_costs > 0), least_(dense_costs, kNever) {}

  // The front of the last state.
  [[nodiscard]] Front last() const {
    Front front;
    front.need_.push_back(kNothing);
    if (!dense_) front.costs_.push_back(0);
    return front;
  }

  void add(const Step& step, const Front& after) {
    if (after.empty()) return;
    // From the first entry whose need no longer counts beside the peak on, the later ones only cost.
    const std::size_t end =
        std::min(after.size(), after.useful_after(step.peak_bytes - step.cached_bytes) + 1);
    if (dense_) {
      const auto from = static_cast<std::size_t>(step.cost + after.first_cost_);
      relax_dense(least_.data() + from, after.need_.data(), end, step.cached_bytes, step.peak_bytes);
      low_ = std::min(low_, from);
      high_ = std::max(high_, from + end);
      if (++adds_ % kAddsToSettle == 0) settle();
    } else {
      for (std::size_t k = 0; k < end; ++k) {
        found_.emplace_back(step.cost + after.costs_[k],
                            std::max(step.peak_bytes, step.cached_bytes + after.need_[k]));
      }
      if (found_.size() >= tidy_at_) {
        tidy();
        tidy_at_ = std::max(kTidyAt, 2 * found_.size());
      }
    }
  }

  // Whether what has been added is known to need no more than `need` at cost `cost` or less.
  [[nodiscard]] bool beats(std::int64_t cost, std::int64_t need) const {
    const auto c = static_cast<std::size_t>(cost);
    return dense_ && low_ <= c && least_[std::min(c, high_ - 1)] <= need;
  }

  [[nodiscard]] Front take() { return dense_ ? take_dense() : take_sparse(); }

 private:
  static constexpr std::size_t kTidyAt = 1 << 16;
  static constexpr std::size_t kAddsToSettle = 64;
  static constexpr std::size_t kNoCost = std::numeric_limits<std::size_t>::max();

  bool dense_;
  std::vector<std::int64_t> least_;
  std::size_t low_ = kNoCost, high_ = 0, adds_ = 0;
  std::vector<std::pair<std::int64_t, std::int64_t>> found_;
  std::size_t tidy_at_ = kTidyAt;

  // Makes least_ fall with the cost.
  void settle() {
    for (std::size_t c = low_ + 1; c < high_; ++c) least_[c] = std::min(least_[c], least_[c - 1]);
  }

  Front take_dense() {
    Front front;
    if (low_ == kNoCost) return front;
    settle();
    const std::int64_t least = least_[high_ - 1];
    std::size_t last = low_;
    while (least_[last] > least) ++last;
    const auto begin = least_.begin() + static_cast<std::ptrdiff_t>(low_);
    front.first_cost_ = static_cast<std::int64_t>(low_);
    front.need_.assign(begin, least_.begin() + static_cast<std::ptrdiff_t>(last) + 1);
    std::fill(begin, least_.begin() + static_cast<std::ptrdiff_t>(high_), kNever);
    low_ = kNoCost;
    high_ = adds_ = 0;
    return front;
  }

  // Leaves in found_ what nothing else in it beats.
  void tidy() {
    std::sort(found_.begin(), found_.end());
    std::size_t kept = 0;
    for (const auto& point : found_) {
      if (kept == 0 || point.second < found_[kept - 1].second) found_[kept++] = point;
    }
    found_.resize(kept);
  }

  Front take_sparse() {
    tidy();
    Front front;
    for (const auto& [cost, need] : found_) {
      front.costs_.push_back(cost);
      front.need_.push_back(need);
    }
    found_.clear();
    tidy_at_ = kTidyAt;
    return front;
  }
};

}  // namespace memfit
