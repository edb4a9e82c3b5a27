// Pareto fronts of (cost still to come, bytes still needed) with bounded size.
//
// Gives the same answers as memfit/_core/slots.py, which explains them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "front.hpp"

namespace memfit {

// Costs ascend, needs descend, both strictly.
struct SlotFront {
  std::vector<std::int64_t> costs, needs;

  // The least need at cost `cost` or less; kNever if there is none.
  [[nodiscard]] std::int64_t need_at(std::int64_t cost) const {
    const auto after = std::upper_bound(costs.begin(), costs.end(), cost) - costs.begin();
    return after == 0 ? kNever : needs[static_cast<std::size_t>(after) - 1];
  }
};

// Collects the front of a state from the fronts of those after it: of the labels whose costs agree
// but for the last `shift` bits, the one with the least need, then the cheapest.
class SlotBuilder {
 public:
  SlotBuilder(int shift, std::int64_t total_cost)
      : shift_(shift),
        best_(static_cast<std::size_t>(total_cost >> shift) + 1),
        fallen_(best_.size(), kNever) {}

  void add(const Step& step, const SlotFront& after) {
    if (after.costs.empty()) return;
    const std::int64_t first = step.cost + after.costs.front();
    if (beaten(slot(first), step.peak_bytes)) return;
    for (std::size_t k = 0; k < after.costs.size(); ++k) {
      const std::int64_t on = step.cached_bytes + after.needs[k];
      const std::int64_t need = std::max(step.peak_bytes, on);
      const std::int64_t cost = step.cost + after.costs[k];
      const std::size_t s = slot(cost);
      Label& best = best_[s];
      if (need < best.need || (need == best.need && cost < best.cost)) {
        best = {need, cost};
        low_ = std::min(low_, s);
        high_ = std::max(high_, s + 1);
      }
      if (on <= step.peak_bytes) break;
    }
    if (++adds_ % kAddsToSettle == 0) settle();
  }

  [[nodiscard]] SlotFront take() {
    SlotFront front;
    for (std::size_t s = low_; s < high_; ++s) {
      if (best_[s].need < kNever && (front.needs.empty() || best_[s].need < front.needs.back())) {
        front.costs.push_back(best_[s].cost);
        front.needs.push_back(best_[s].need);
      }
      best_[s] = {};
      fallen_[s] = kNever;
    }
    low_ = best_.size();
    high_ = settled_ = adds_ = 0;
    return front;
  }

 private:
  struct Label {
    std::int64_t need = kNever;
    std::int64_t cost = kNever;
  };
  static constexpr std::size_t kAddsToSettle = 32;

  int shift_;
  std::vector<Label> best_;
  // fallen_[s], below settled_: an upper bound on the least need in slots up to s.
  std::vector<std::int64_t> fallen_;
  std::size_t low_ = best_.size(), high_ = 0, settled_ = 0, adds_ = 0;

  [[nodiscard]] std::size_t slot(std::int64_t cost) const {
    return static_cast<std::size_t>(cost >> shift_);
  }

  // Whether a slot before `s` is known to hold a label that needs no more than `need`.
  [[nodiscard]] bool beaten(std::size_t s, std::int64_t need) const {
    return s > 0 && settled_ > 0 && fallen_[std::min(s, settled_) - 1] <= need;
  }

  void settle() {
    std::int64_t least = kNever;
    for (std::size_t s = low_; s < high_; ++s) {
      least = std::min(least, best_[s].need);
      fallen_[s] = least;
    }
    settled_ = high_;
  }
};

}  // namespace memfit
