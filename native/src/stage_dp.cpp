#include "stage_dp.hpp"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace memfit {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 60;
// After this many blocks in a row where no stage ends to any advantage, none further off is tried.
constexpr int kMostDull = 16;
// Stages over more blocks than this begin and end where blocks do, every so many blocks, and must be
// better by a 1024th of their peak.
constexpr std::size_t kLong = 64;
constexpr std::size_t kGrid = 8;
constexpr int kSlackShift = 10;
constexpr std::size_t kMostSlots = std::size_t{1} << 24;

int slot_shift(std::int64_t total_cost, std::size_t slots) {
  int shift = 0;
  while (static_cast<std::uint64_t>(total_cost >> shift) >= slots) ++shift;
  return shift;
}

}  // namespace

// For each later block, variant and asking, the pieces between it and the block at hand.
class StageTable::Stacks {
 public:
  // For stages that begin in block `begin` or later and end before block `end`.
  Stacks(const StageTable& table, std::size_t begin, std::size_t end)
      : table_(table),
        begin_(begin),
        stacks_((end - begin) * table.variants_ * 2),
        end_(table.variants_, 0) {}

  // Ends the stages that would go on from block i + 1 to block i to no purpose.
  void seal(std::size_t i) {
    if (i + 1 >= table_.tables_.size()) return;
    for (std::size_t v = 0; v < table_.variants_; ++v) {
      if (table_.tables_[i + 1]->sealed(v)) end_[v] = i + 1;
    }
  }

  void extend(std::size_t i) {
    for (std::size_t v = 0; v < table_.variants_; ++v) {
      for (const bool asks : {false, true}) {
        for (std::size_t j = i + 1; j < end_[v]; ++j) {
          Stack& stack = at(j, v, asks);
          stack = stack.below(table_.tables_[i]->through(v, stack.asks), table_.base_bytes_[i]);
        }
        Stack& fresh = at(i, v, asks);
        fresh = Stack{};
        fresh.asks = asks;
      }
      end_[v] = std::max(end_[v], i + 1);
    }
  }

  [[nodiscard]] const Stack* find(std::size_t j, std::size_t v, bool asks) const {
    return j < end_[v] ? &stacks_[place(j, v, asks)] : nullptr;
  }

 private:
  const StageTable& table_;
  std::size_t begin_;
  std::vector<Stack> stacks_;
  std::vector<std::size_t> end_;  // by variant, the block from which on no stage may end

  [[nodiscard]] std::size_t place(std::size_t j, std::size_t v, bool asks) const {
    return ((j - begin_) * table_.variants_ + v) * 2 + (asks ? 1 : 0);
  }
  Stack& at(std::size_t j, std::size_t v, bool asks) { return stacks_[place(j, v, asks)]; }
};

template <class Visit>
void StageTable::inner_stages(std::size_t i, std::size_t a, Visit&& visit) const {
  const BlockTable& table = *tables_[i];
  for (std::size_t b = a + 1; b < table.cuts(); ++b) {
    for (std::size_t v = 0; v < variants_; ++v) {
      const InnerCost& piece = table.inner(a, b, v);
      if (piece.cost < 0) continue;
      visit(Step{piece.cost, piece.cached_bytes,
                 std::max(piece.forward_bytes, piece.backward_bytes + base_bytes_[i])},
            i, b, v);
    }
  }
}

template <class Visit>
void StageTable::longer_stages(std::size_t i, std::size_t a, const Stacks& stacks,
                               Visit&& visit) const {
  const BlockTable& table = *tables_[i];
  // By variant and asking, how many blocks in a row have had nothing to offer.
  std::vector<int> dull(variants_ * 2, 0);
  std::size_t left = dull.size();
  for (std::size_t j = i + 1; j < tables_.size() && left > 0; ++j) {
    const BlockTable& last = *tables_[j];
    const bool is_long = j > i + kLong;
    if (is_long && (a > 0 || i % kGrid != 0)) break;
    if (is_long && (j + 1) % kGrid != 0) continue;
    for (std::size_t v = 0; v < variants_; ++v) {
      for (const bool asks : {false, true}) {
        int& in_a_row = dull[v * 2 + (asks ? 1 : 0)];
        if (in_a_row == kMostDull) continue;
        const Stack* stack = stacks.find(j, v, asks);
        if (stack == nullptr) {
          in_a_row = kMostDull;
          --left;
          continue;
        }
        const Stack whole = stack->below(table.bottom(a, v, stack->asks), base_bytes_[i]);
        bool useful = false;
        for (std::size_t b = is_long ? last.cuts() - 1 : 1; b < last.cuts(); ++b) {
          const PieceCost* top = last.top(b, v);
          if (top == nullptr || top->asks != asks) continue;
          const Step step = whole.stage(*top, base_bytes_[j]);
          const std::int64_t slack = is_long ? step.peak_bytes >> kSlackShift : 0;
          if (beaten(i, a, step.cost + front(j, b).costs.front(), step.peak_bytes + slack)) continue;
          useful = true;
          visit(step, j, b, v);
        }
        in_a_row = useful ? 0 : in_a_row + 1;
        if (in_a_row == kMostDull) --left;
      }
    }
  }
}

// Whether ending at the end of block i costs and needs no more.
bool StageTable::beaten(std::size_t i, std::size_t a, std::int64_t cost, std::int64_t need) const {
  const BlockTable& table = *tables_[i];
  const SlotFront& after = fronts_[i + 1][0];
  for (std::size_t v = 0; v < variants_; ++v) {
    const InnerCost& piece = table.inner(a, table.cuts() - 1, v);
    if (piece.cost < 0) continue;
    const std::int64_t peak = std::max(piece.forward_bytes, piece.backward_bytes + base_bytes_[i]);
    if (peak > need) continue;
    const std::int64_t later = after.need_at(cost - piece.cost);
    if (later != kNever && piece.cached_bytes + later <= need) return true;
  }
  return false;
}

StageTable::StageTable(std::vector<std::shared_ptr<const BlockTable>> tables,
                       std::vector<std::int64_t> base_bytes, std::int64_t total_cost,
                       std::size_t slots, std::size_t threads, const Tick& tick)
    : tables_(std::move(tables)), base_bytes_(std::move(base_bytes)), fronts_(tables_.size() + 1) {
  if (base_bytes_.size() != tables_.size()) throw std::invalid_argument("wrong length of base_bytes");
  if (total_cost < 0 || total_cost >= kLimit || slots < 1 || slots > kMostSlots) {
    throw std::invalid_argument("total_cost must be between 0 and 2**60, slots between 1 and 2**24");
  }
  std::int64_t cost = 0;
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < tables_.size(); ++i) {
    const BlockTable& table = *tables_[i];
    if (i == 0) variants_ = table.variants();
    if (table.variants() != variants_) throw std::invalid_argument("tables differ in their variants");
    if (base_bytes_[i] < 0 || base_bytes_[i] >= kLimit) {
      throw std::invalid_argument("base_bytes must be between 0 and 2**60");
    }
    if (table.largest_cost() >= kLimit - cost || table.largest_bytes() >= kLimit - bytes) {
      throw std::invalid_argument("costs or bytes of all blocks must add up below 2**60");
    }
    cost += table.largest_cost();
    bytes += table.largest_bytes();
  }
  if (cost > total_cost) throw std::invalid_argument("total_cost is less than a way may cost");
  shift_ = slot_shift(total_cost, slots);

  const std::size_t count = tables_.size();
  fronts_[count].push_back({{0}, {kNothing}});
  Team team(thread_count(threads));
  std::vector<SlotBuilder> builders(team.threads(), SlotBuilder(shift_, total_cost));
  Stacks stacks(*this, 0, count);
  for (std::size_t i = count; i-- > 0;) {
    const BlockTable& table = *tables_[i];
    stacks.seal(i);
    fronts_[i].resize(table.cuts() - 1);
    const auto between = [&] {
      if (tick) tick(1.0 - static_cast<double>(i + 1) / static_cast<double>(count));
    };
    // Longer stages lead to later blocks, whose fronts are known; those of the block's own cuts
    // are found one after the other.
    team.run(
        table.cuts() - 1,
        [&](std::size_t a, std::size_t worker) {
          SlotBuilder& builder = builders[worker];
          longer_stages(i, a, stacks, [&](const Step& step, std::size_t j, std::size_t b, std::size_t) {
            builder.add(step, front(j, b));
          });
          fronts_[i][a] = builder.take();
        },
        between);
    for (std::size_t a = table.cuts() - 1; a-- > 0;) {
      SlotBuilder& builder = builders[0];
      builder.add({0, 0, kNothing}, fronts_[i][a]);
      inner_stages(i, a, [&](const Step& step, std::size_t j, std::size_t b, std::size_t) {
        builder.add(step, front(j, b));
      });
      fronts_[i][a] = builder.take();
      team.pause(between);
    }
    stacks.extend(i);
  }
}

std::vector<std::pair<std::int64_t, std::int64_t>> StageTable::curve() const {
  const SlotFront& first = fronts_[0][0];
  std::vector<std::pair<std::int64_t, std::int64_t>> points;
  for (std::size_t k = 0; k < first.costs.size(); ++k) {
    points.emplace_back(first.costs[k], std::max<std::int64_t>(0, first.needs[k]));
  }
  return points;
}

std::int64_t StageTable::smallest_budget() const {
  return fronts_[0][0].needs.empty() ? 0 : std::max<std::int64_t>(0, fronts_[0][0].needs.back());
}

std::optional<std::vector<StageTable::Stage>> StageTable::path(std::int64_t budget_bytes) const {
  const SlotFront& first = fronts_[0][0];
  const auto k = static_cast<std::size_t>(
      std::partition_point(first.needs.begin(), first.needs.end(),
                           [budget_bytes](std::int64_t need) { return need > budget_bytes; }) -
      first.needs.begin());
  if (budget_bytes < 0 || k == first.needs.size()) return std::nullopt;
  std::int64_t cost = first.costs[k];
  std::int64_t need = first.needs[k];
  std::vector<Stage> stages;
  const std::size_t count = tables_.size();
  for (std::size_t i = 0, a = 0; i < count;) {
    std::optional<Stage> found;
    std::int64_t next_cost = 0;
    std::int64_t next_need = 0;
    const auto look = [&](const Step& step, std::size_t j, std::size_t b, std::size_t v) {
      if (found) return;
      const SlotFront& after = front(j, b);
      const std::int64_t rest = cost - step.cost;
      const auto place = std::lower_bound(after.costs.begin(), after.costs.end(), rest);
      if (place == after.costs.end() || *place != rest) return;
      const std::int64_t later = after.needs[static_cast<std::size_t>(place - after.costs.begin())];
      if (std::max(step.peak_bytes, step.cached_bytes + later) != need) return;
      next_cost = rest;
      next_need = later;
      found = Stage{static_cast<std::int64_t>(i), static_cast<std::int64_t>(a),
                    static_cast<std::int64_t>(j), static_cast<std::int64_t>(b),
                    static_cast<std::int64_t>(v)};
    };
    inner_stages(i, a, look);
    // Few stages are long, so the stacks for longer ones are made when they are needed.
    for (std::size_t span = 4; !found; span *= 4) {
      const std::size_t end = std::min(i + span, count);
      Stacks stacks(*this, i, end);
      for (std::size_t k2 = end; k2-- > i + 1;) {
        stacks.seal(k2);
        stacks.extend(k2);
      }
      stacks.seal(i);
      longer_stages(i, a, stacks, look);
      if (!found && end == count) throw std::logic_error("a label without a way on");
    }
    stages.push_back(*found);
    cost = next_cost;
    need = next_need;
    const auto j = static_cast<std::size_t>((*found)[2]);
    const auto b = static_cast<std::size_t>((*found)[3]);
    const bool whole = b + 1 == tables_[j]->cuts();
    i = whole ? j + 1 : j;
    a = whole ? 0 : b;
  }
  return stages;
}

}  // namespace memfit
