#include "chain.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace memfit {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 60;
constexpr std::size_t kMostCells = std::size_t{1} << 28;
// Chains up to this length try every split, longer ones those around the best of a chain one step
// shorter.
constexpr std::size_t kEverySplit = 48;
constexpr std::size_t kBack = 2, kAhead = 3;

// The label of least cost within each level.
std::vector<std::size_t> labels_of(const CostFront& front, const std::vector<std::int64_t>& levels) {
  std::vector<std::size_t> found;
  for (const std::int64_t m : levels) {
    const auto place = std::partition_point(front.needs.begin(), front.needs.end(),
                                            [m](std::int64_t need) { return need > m; });
    found.push_back(static_cast<std::size_t>(place - front.needs.begin()));
  }
  return found;
}

void check(const CostFront& front) {
  if (front.costs.empty() || front.costs.size() != front.needs.size()) {
    throw std::invalid_argument("a front must have a label");
  }
  for (std::size_t k = 0; k < front.costs.size(); ++k) {
    if (front.costs[k] < 0 || front.costs[k] >= kLimit || front.needs[k] >= kLimit ||
        front.needs[k] < kNothing) {
      throw std::invalid_argument("costs and needs of a front must be below 2**60");
    }
  }
}

std::pair<std::size_t, std::size_t> window(std::size_t count, std::size_t last, std::int32_t known) {
  if (count <= kEverySplit || known <= 0) return {1, last};
  const auto k = static_cast<std::size_t>(known);
  return {std::max<std::size_t>(1, k - std::min(k, kBack)), std::min(last, k + kAhead)};
}

}  // namespace

ChainTable::ChainTable(const ChainUnit& unit, std::size_t steps, std::optional<CostFront> after,
                       std::size_t most_levels, std::int64_t parts)
    : steps_(steps), sweep_cost_(unit.sweep_cost) {
  check(unit.leaf);
  if (after) check(*after);
  if (steps < 1 || most_levels < 1 || most_levels > kMostCells / (steps + 1)) {
    throw std::invalid_argument("steps times levels must be between 1 and 2**28");
  }
  if (parts < 1 || unit.held_bytes < parts || unit.held_bytes >= kLimit / static_cast<std::int64_t>(most_levels)) {
    throw std::invalid_argument("a checkpoint of " + std::to_string(unit.held_bytes) + " bytes has no " +
                                std::to_string(parts) + " parts");
  }
  const auto ordinary = [](std::int64_t x) { return x >= -kLimit && x < kLimit; };
  // Revolve's costs are below steps squared.
  const std::int64_t most_cost = (kLimit / static_cast<std::int64_t>(steps)) / static_cast<std::int64_t>(steps);
  if (unit.sweep_cost < 0 || unit.sweep_cost >= most_cost || unit.leaf.costs.back() >= most_cost) {
    throw std::invalid_argument("costs of the steps must add up below 2**60");
  }
  held_ = static_cast<std::size_t>(parts);
  const std::int64_t grain = (unit.held_bytes + parts - 1) / parts;
  std::int64_t least = unit.leaf.needs.back();
  if (after) least += std::max<std::int64_t>(0, after->needs.back() - least) % grain;
  for (std::size_t s = 0; s < most_levels; ++s) levels_.push_back(least + static_cast<std::int64_t>(s) * grain);
  const auto staged = [&](std::int64_t cost, std::int64_t cached, std::int64_t floor) {
    if (cost < 0 || cost >= most_cost || !ordinary(cached) || !ordinary(floor)) {
      throw std::invalid_argument("a stage's cost or bytes are out of range");
    }
    const std::int64_t taken = cached > 0 ? (cached + grain - 1) / grain : -(-cached / grain);
    return Staged{level_of(floor), cost, static_cast<std::size_t>(std::max<std::int64_t>(0, taken))};
  };
  for (const auto& [cost, cached, back, sweep] : unit.staged) {
    staged_.push_back(staged(cost, cached, std::max(back, sweep)));
  }
  for (const auto& [cost, cached, forward, back] : unit.top) {
    top_staged_.push_back(staged(cost, cached, std::max(back, forward)));
  }
  sweep_level_ = level_of(unit.sweep_bytes);
  long_sweep_level_ = level_of(std::max(unit.sweep_bytes, unit.lent_bytes));
  first_level_ = level_of(unit.first_bytes);
  leaf_label_ = labels_of(unit.leaf, levels_);

  const auto make = [&](Table& table) {
    table.cost.assign((steps + 1) * most_levels, kNever);
    table.k.assign((steps + 1) * most_levels, 0);
    table.option.assign((steps + 1) * most_levels, 0);
  };
  const auto put = [&](Table& table, std::size_t at, const Best& best) {
    table.cost[at] = best.cost;
    table.k[at] = best.k;
    table.option[at] = static_cast<std::int16_t>(best.option);
  };
  make(reversal_);
  for (std::size_t s = 0; s < most_levels; ++s) {
    reversal_.cost[cell(0, s)] = 0;
    put(reversal_, cell(1, s), {unit.leaf.costs[leaf_label_[s]], 1, -1});
  }
  for (std::size_t count = 2; count <= steps; ++count) {
    for (std::size_t s = 0; s < most_levels; ++s) put(reversal_, cell(count, s), find_reversal(count, s));
  }
  if (!after) return;
  make(top_);
  after_label_ = labels_of(*after, levels_);
  for (std::size_t s = 0; s < most_levels; ++s) {
    const std::size_t label = after_label_[s];
    if (label < after->costs.size()) top_.cost[cell(0, s)] = after->costs[label];
  }
  for (std::size_t count = 1; count <= steps; ++count) {
    for (std::size_t s = 0; s < most_levels; ++s) put(top_, cell(count, s), find_first(count, s));
  }
}

std::size_t ChainTable::level_of(std::int64_t needed) const {
  return static_cast<std::size_t>(std::lower_bound(levels_.begin(), levels_.end(), needed) - levels_.begin());
}

ChainTable::Best ChainTable::find_reversal(std::size_t count, std::size_t s) const {
  const auto& cost = reversal_.cost;
  Best best;
  if (s >= held_ && s >= sweep_level_) {
    const std::size_t rest = s - held_;
    const std::size_t before = cell(count - 1, s);
    const std::int32_t known = count > 2 && reversal_.option[before] < 0 ? reversal_.k[before] : 0;
    const auto [first, last] = window(count, count - 1, known);
    for (std::size_t k = first; k <= last; ++k) {
      if (k > 1 && s < long_sweep_level_) break;
      const std::int64_t after = cost[cell(count - k, rest)];
      const std::int64_t below = cost[cell(k, s)];
      if (after >= kNever || below >= kNever) continue;
      const std::int64_t found = static_cast<std::int64_t>(k) * sweep_cost_ + after + below;
      if (found < best.cost) best = {found, static_cast<std::int32_t>(k), -1};
    }
  }
  for (std::size_t v = 0; v < staged_.size(); ++v) {
    const Staged& stage = staged_[v];
    if (s < stage.floor || s < stage.taken) continue;
    const std::int64_t after = cost[cell(count - 1, s - stage.taken)];
    if (after < kNever && stage.cost + after < best.cost) {
      best = {stage.cost + after, 1, static_cast<std::int32_t>(v)};
    }
  }
  return best;
}

ChainTable::Best ChainTable::find_first(std::size_t count, std::size_t s) const {
  Best best;
  if (s >= held_ && s >= first_level_) {
    const std::size_t rest = s - held_;
    const std::size_t before = cell(count - 1, s);
    const std::int32_t known = count > 1 && top_.option[before] < 0 ? top_.k[before] : 0;
    const auto [first, last] = window(count, count, known);
    for (std::size_t k = first; k <= last; ++k) {
      const std::int64_t after = top_.cost[cell(count - k, rest)];
      const std::int64_t below = reversal_.cost[cell(k, s)];
      if (after < kNever && below < kNever && after + below < best.cost) {
        best = {after + below, static_cast<std::int32_t>(k), -1};
      }
    }
  }
  for (std::size_t v = 0; v < top_staged_.size(); ++v) {
    const Staged& stage = top_staged_[v];
    if (s < stage.floor || s < stage.taken) continue;
    const std::int64_t after = top_.cost[cell(count - 1, s - stage.taken)];
    if (after < kNever && stage.cost + after < best.cost) {
      best = {stage.cost + after, 1, static_cast<std::int32_t>(v)};
    }
  }
  return best;
}

std::int64_t ChainTable::reversal_cost(std::size_t count, std::size_t level) const {
  if (count > steps_ || level >= levels_.size()) throw std::out_of_range("no such chain");
  return reversal_.cost[cell(count, level)];
}

std::pair<std::int64_t, std::int64_t> ChainTable::split(std::size_t count, std::size_t level) const {
  if (count < 1 || reversal_cost(count, level) >= kNever) throw std::out_of_range("no such reversal");
  if (count == 1) return {static_cast<std::int64_t>(leaf_label_[level]), -1};
  return {reversal_.k[cell(count, level)], reversal_.option[cell(count, level)]};
}

std::int64_t ChainTable::levels_of(std::int64_t option, bool top) const {
  if (option < 0) return static_cast<std::int64_t>(held_);
  const auto& stages = top ? top_staged_ : staged_;
  return static_cast<std::int64_t>(stages.at(static_cast<std::size_t>(option)).taken);
}

ChainTable::Front ChainTable::front() const {
  Front front;
  if (top_.cost.empty()) return front;
  std::int64_t best = kNever;
  for (std::size_t s = 0; s < levels_.size(); ++s) {
    const std::int64_t cost = top_.cost[cell(steps_, s)];
    if (cost >= best) continue;
    best = cost;
    front.costs.push_back(cost);
    front.needs.push_back(levels_[s]);
    front.levels.push_back(static_cast<std::int64_t>(s));
  }
  std::reverse(front.costs.begin(), front.costs.end());
  std::reverse(front.needs.begin(), front.needs.end());
  std::reverse(front.levels.begin(), front.levels.end());
  return front;
}

std::pair<std::vector<std::array<std::int64_t, 3>>, std::int64_t> ChainTable::first_pass(
    std::size_t level) const {
  if (top_.cost.empty() || level >= levels_.size() || top_.cost[cell(steps_, level)] >= kNever) {
    throw std::out_of_range("no such first pass");
  }
  std::vector<std::array<std::int64_t, 3>> stages;
  std::size_t count = steps_;
  while (count > 0) {
    const std::int32_t k = top_.k[cell(count, level)];
    const std::int64_t option = top_.option[cell(count, level)];
    stages.push_back({k, option, static_cast<std::int64_t>(level)});
    level -= static_cast<std::size_t>(levels_of(option, true));
    count -= static_cast<std::size_t>(k);
  }
  return {std::move(stages), static_cast<std::int64_t>(after_label_[level])};
}

}  // namespace memfit
