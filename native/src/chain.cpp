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

void check(const ChainUnit& unit, std::int64_t most_cost) {
  check(unit.leaf);
  const auto ordinary = [](std::int64_t x) { return x >= -kLimit && x < kLimit; };
  const auto cheap = [most_cost](std::int64_t x) { return x >= 0 && x < most_cost; };
  if (!cheap(unit.sweep_cost) || !cheap(unit.leaf.costs.back())) {
    throw std::invalid_argument("costs of the steps must add up below 2**60");
  }
  for (const std::int64_t x : {unit.held_bytes, unit.sweep_bytes, unit.lent_bytes, unit.first_bytes}) {
    if (!ordinary(x)) throw std::invalid_argument("a step's bytes are out of range");
  }
  for (const auto* stages : {&unit.staged, &unit.top}) {
    for (const auto& [cost, cached, one, other] : *stages) {
      if (!cheap(cost) || !ordinary(cached) || !ordinary(one) || !ordinary(other)) {
        throw std::invalid_argument("a stage's cost or bytes are out of range");
      }
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
                       std::size_t most_levels, std::int64_t parts,
                       const std::optional<ChainUnit>& first)
    : steps_(steps), other_bottom_(first.has_value()) {
  if (steps < 1 || most_levels < 1 || most_levels > kMostCells / (steps + 1)) {
    throw std::invalid_argument("steps times levels must be between 1 and 2**28");
  }
  // Revolve's costs are below steps squared.
  const auto length = static_cast<std::int64_t>(steps);
  const std::int64_t most_cost = kLimit / length / length;
  check(unit, most_cost);
  if (first) check(*first, most_cost);
  if (after) check(*after);
  if (parts < 1 || unit.held_bytes < parts ||
      unit.held_bytes >= kLimit / static_cast<std::int64_t>(most_levels)) {
    throw std::invalid_argument("a checkpoint of " + std::to_string(unit.held_bytes) + " bytes has no " +
                                std::to_string(parts) + " parts");
  }
  const std::int64_t grain = (unit.held_bytes + parts - 1) / parts;
  std::int64_t least = unit.leaf.needs.back();
  if (after) {
    const std::int64_t half = static_cast<std::int64_t>(most_levels / 2) * grain;
    const std::int64_t beyond = std::max(after->needs.back(), least - half) - least;
    least += beyond > 0 ? beyond % grain : -(-beyond / grain * grain);
  }
  for (std::size_t s = 0; s < most_levels; ++s) levels_.push_back(least + static_cast<std::int64_t>(s) * grain);
  unit_ = levelled(unit, grain);
  bottom_ = first ? levelled(*first, grain) : unit_;
  fill(reversals_, false);
  if (other_bottom_) fill(bottoms_, true);
  if (!after) return;
  after_label_ = labels_of(*after, levels_);
  tops_.resize((steps + 1) * most_levels);
  for (std::size_t s = 0; s < most_levels; ++s) {
    const std::size_t label = after_label_[s];
    if (label < after->costs.size()) tops_.cost[cell(0, s)] = after->costs[label];
  }
  for (std::size_t count = 1; count <= steps; ++count) {
    for (std::size_t s = 0; s < most_levels; ++s) tops_.put(cell(count, s), find_first(count, s));
  }
}

std::size_t ChainTable::level_of(std::int64_t needed) const {
  return static_cast<std::size_t>(std::lower_bound(levels_.begin(), levels_.end(), needed) - levels_.begin());
}

ChainTable::Levelled ChainTable::levelled(const ChainUnit& unit, std::int64_t grain) const {
  const auto taken = [grain](std::int64_t bytes) {
    return static_cast<std::size_t>(bytes > 0 ? (bytes + grain - 1) / grain : 0);
  };
  Levelled result{taken(unit.held_bytes),      level_of(unit.sweep_bytes), level_of(unit.lent_bytes),
                  level_of(unit.first_bytes), unit.sweep_cost,            labels_of(unit.leaf, levels_),
                  {},                         {},                         {}};
  for (const std::size_t label : result.leaf_label) {
    result.leaf.push_back(label < unit.leaf.costs.size() ? unit.leaf.costs[label] : kNever);
  }
  for (const auto& [cost, cached, back, sweep] : unit.staged) {
    result.staged.push_back({level_of(std::max(back, sweep)), cost, taken(cached)});
  }
  for (const auto& [cost, cached, forward, back] : unit.top) {
    result.top.push_back({level_of(std::max(back, forward)), cost, taken(cached)});
  }
  return result;
}

std::size_t ChainTable::Levelled::long_level(const Levelled& rest) const {
  return std::max({sweep_level, rest.sweep_level, rest.lent_level});
}

void ChainTable::fill(Cells& cells, bool bottom) {
  const std::size_t width = levels_.size();
  cells.resize((steps_ + 1) * width);
  const Levelled& lowest = bottom ? bottom_ : unit_;
  for (std::size_t s = 0; s < width; ++s) {
    cells.cost[cell(0, s)] = 0;
    cells.put(cell(1, s), {lowest.leaf[s], 1, -1, 0});
  }
  for (std::size_t count = 2; count <= steps_; ++count) {
    for (std::size_t s = 0; s < width; ++s) cells.put(cell(count, s), find_reversal(count, s, bottom));
  }
}

ChainTable::Best ChainTable::find_reversal(std::size_t count, std::size_t s, bool bottom) const {
  const Levelled& lowest = bottom ? bottom_ : unit_;
  const Cells& under = below(bottom);
  const std::vector<std::int64_t>& cost = reversals_.cost;
  const std::size_t long_level = lowest.long_level(unit_);
  Best best;
  const std::int32_t known = under.look[cell(count - 1, s)];
  const auto [first, last] = window(count, count - 1, known);
  for (std::size_t k = first; k <= last; ++k) {
    const std::size_t held = k == 1 ? lowest.held : unit_.held;
    if (s < held || s < (k == 1 ? lowest.sweep_level : long_level)) continue;
    const std::int64_t after = cost[cell(count - k, s - held)];
    const std::int64_t low = under.cost[cell(k, s)];
    if (after >= kNever || low >= kNever) continue;
    const std::int64_t found =
        lowest.sweep_cost + static_cast<std::int64_t>(k - 1) * unit_.sweep_cost + after + low;
    if (found < best.cost) best = {found, static_cast<std::int32_t>(k), -1, static_cast<std::int32_t>(k)};
  }
  for (std::size_t v = 0; v < lowest.staged.size(); ++v) {
    const Staged& stage = lowest.staged[v];
    if (s < stage.floor || s < stage.taken) continue;
    const std::int64_t after = cost[cell(count - 1, s - stage.taken)];
    if (after < kNever && stage.cost + after < best.cost) {
      best = {stage.cost + after, 1, static_cast<std::int32_t>(v), best.look};
    }
  }
  return best;
}

ChainTable::Best ChainTable::find_first(std::size_t count, std::size_t s) const {
  const bool bottom = count == steps_;
  const Levelled& lowest = bottom ? bottom_ : unit_;
  const Cells& under = below(bottom);
  Best best;
  const std::int32_t known =
      bottom && other_bottom_ ? 0 : tops_.look[cell(count - 1, s)];
  const auto [first, last] = window(count, count, known);
  for (std::size_t k = first; k <= last; ++k) {
    const std::size_t held = k == 1 ? lowest.held : unit_.held;
    if (s < held || s < std::max(lowest.first_level, k > 1 ? unit_.first_level : 0)) continue;
    const std::int64_t after = tops_.cost[cell(count - k, s - held)];
    const std::int64_t low = under.cost[cell(k, s)];
    if (after < kNever && low < kNever && after + low < best.cost) {
      best = {after + low, static_cast<std::int32_t>(k), -1, static_cast<std::int32_t>(k)};
    }
  }
  for (std::size_t v = 0; v < lowest.top.size(); ++v) {
    const Staged& stage = lowest.top[v];
    if (s < stage.floor || s < stage.taken) continue;
    const std::int64_t after = tops_.cost[cell(count - 1, s - stage.taken)];
    if (after < kNever && stage.cost + after < best.cost) {
      best = {stage.cost + after, 1, static_cast<std::int32_t>(v), best.look};
    }
  }
  return best;
}

std::int64_t ChainTable::reversal_cost(std::size_t count, std::size_t level, bool bottom) const {
  if (count > steps_ || level >= levels_.size()) throw std::out_of_range("no such chain");
  return below(bottom).cost[cell(count, level)];
}

std::pair<std::int64_t, std::int64_t> ChainTable::split(std::size_t count, std::size_t level,
                                                        bool bottom) const {
  if (count < 1 || reversal_cost(count, level, bottom) >= kNever) throw std::out_of_range("no such reversal");
  if (count == 1) return {static_cast<std::int64_t>((bottom ? bottom_ : unit_).leaf_label[level]), -1};
  const Cells& cells = below(bottom);
  return {cells.k[cell(count, level)], cells.option[cell(count, level)]};
}

std::int64_t ChainTable::levels_of(std::int64_t k, std::int64_t option, bool bottom, bool top) const {
  const Levelled& lowest = bottom ? bottom_ : unit_;
  if (option < 0) return static_cast<std::int64_t>(k == 1 ? lowest.held : unit_.held);
  const auto& stages = top ? lowest.top : lowest.staged;
  return static_cast<std::int64_t>(stages.at(static_cast<std::size_t>(option)).taken);
}

ChainTable::Front ChainTable::front() const {
  Front front;
  if (tops_.cost.empty()) return front;
  std::int64_t best = kNever;
  for (std::size_t s = 0; s < levels_.size(); ++s) {
    const std::int64_t cost = tops_.cost[cell(steps_, s)];
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
  if (tops_.cost.empty() || level >= levels_.size() || tops_.cost[cell(steps_, level)] >= kNever) {
    throw std::out_of_range("no such first pass");
  }
  std::vector<std::array<std::int64_t, 3>> stages;
  std::size_t count = steps_;
  while (count > 0) {
    const std::int64_t k = tops_.k[cell(count, level)];
    const std::int64_t option = tops_.option[cell(count, level)];
    stages.push_back({k, option, static_cast<std::int64_t>(level)});
    level -= static_cast<std::size_t>(levels_of(k, option, count == steps_, true));
    count -= static_cast<std::size_t>(k);
  }
  return {std::move(stages), static_cast<std::int64_t>(after_label_[level])};
}

}  // namespace memfit
