// Nested strategies: over rows of cuts, and over chains of alike steps.
#include "nested.hpp"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "blocks.hpp"
#include "chain.hpp"

namespace memfit::fuzz {
namespace {

CostFront random_front(Random& random, std::int64_t most_cost, std::int64_t most_need) {
  CostFront front;
  const std::size_t labels = 1 + random.below(4);
  std::int64_t cost = random.between(0, most_cost);
  std::int64_t need = most_need + static_cast<std::int64_t>(labels) * 10;
  for (std::size_t k = 0; k < labels; ++k) {
    front.costs.push_back(cost);
    front.needs.push_back(need);
    cost += random.between(1, 9);
    need -= random.between(1, 9);
  }
  return front;
}

bool is_front(const CostFront& front) {
  return front.costs.size() == front.needs.size() && !front.costs.empty() &&
         std::is_sorted(front.costs.begin(), front.costs.end()) &&
         std::is_sorted(front.needs.rbegin(), front.needs.rend());
}

// Of a block's cuts those that make an increasing row.
void keep_row(Cuts& cuts) {
  std::vector<std::size_t> row;
  for (std::size_t c = 0; c < cuts.lower.rows(); ++c) {
    const bool grows = row.empty() ||
                       (is_subset(cuts.lower.row(row.back()), cuts.lower.row(c), cuts.lower.words()) &&
                        is_subset(cuts.finished.row(c), cuts.finished.row(row.back()), cuts.finished.words()));
    if (grows && (cuts.needed_below[c].empty() || c + 1 == cuts.lower.rows())) row.push_back(c);
  }
  Cuts kept{BitMatrix(row.size(), cuts.lower.words() * kWordBits),
            BitMatrix(row.size(), cuts.finished.words() * kWordBits), {}, {}, {}};
  for (std::size_t k = 0; k < row.size(); ++k) {
    std::copy_n(cuts.lower.row(row[k]), cuts.lower.words(), kept.lower.row(k));
    std::copy_n(cuts.finished.row(row[k]), cuts.finished.words(), kept.finished.row(k));
    kept.boundary.push_back(cuts.boundary[row[k]]);
    kept.needed_below.push_back(cuts.needed_below[row[k]]);
    kept.base_bytes.push_back(cuts.base_bytes[row[k]]);
  }
  cuts = std::move(kept);
}

void nested(Random& random) {
  RandomBlock block = random_block(random, 1 + random.below(24), 1 + random.below(3));
  const bool row = block.cuts.lower.rows() >= 2 && !random.once_in(8);
  if (row) keep_row(block.cuts);
  bool must_refuse = block.cuts.lower.rows() < 2;
  if (random.once_in(3) && !must_refuse) {
    must_refuse = random.once_in(2) ? spoil_lists(random, block.lists)
                                    : spoil_cuts(random, block.cuts, block.lists.value_bytes.size());
  }
  if (!must_refuse && random.once_in(6)) strain(random, block);
  const CostFront after = random_front(random, 9, random.between(0, 1000));
  const std::int64_t base = random.once_in(9) ? wild_number(random) : random.between(0, 99);
  const int mantissa = static_cast<int>(random.between(random.once_in(9) ? -1 : 1, 10));
  std::optional<NestedTable> one, two;
  const auto make = [&](std::optional<NestedTable>& table, std::size_t threads) {
    table.emplace(StageProblem(block.lists), block.cuts, base, after, mantissa, threads, Tick{});
  };
  const bool accepted = accepts([&] { make(one, 1); });
  check(!accepted || !must_refuse, "an unsound block is not refused");
  if (!accepted) return;
  make(two, 2);
  check(is_front(one->front()) && is_front(one->reversal_front()), "a front does not fall");
  check(one->front().costs == two->front().costs && one->front().needs == two->front().needs,
        "the answer depends on the number of threads");
  const auto last = static_cast<std::int32_t>(block.cuts.lower.rows() - 1);
  for (std::size_t k = 0; k < one->front().costs.size(); ++k) {
    const auto [stages, rest] = one->path(k);
    std::int32_t place = 0;
    for (const auto& stage : stages) {
      check(stage.i == place && stage.k > place && stage.k <= last, "stages do not follow each other");
      check(stage.tree.empty() == (stage.option >= 0), "a stage has a tree or a variant");
      place = stage.k;
    }
    check(place == last && static_cast<std::size_t>(rest) < after.costs.size(), "a path ends early");
  }
  for (std::size_t k = 0; k < one->reversal_front().costs.size(); ++k) {
    check(one->tree(k) == two->tree(k) && one->tree(k).size() % 4 == 0, "trees differ");
  }
}

ChainUnit random_unit(Random& random, bool wild) {
  const auto bytes = [&] { return wild && random.once_in(6) ? wild_number(random) : random.between(0, 40); };
  ChainUnit unit{random.between(1, 9), random.between(0, 5), bytes(), bytes(), bytes(),
                 random_front(random, 20, random.between(0, 60)), {}, {}};
  for (auto* stages : {&unit.staged, &unit.top}) {
    for (std::size_t k = random.below(3); k > 0; --k) {
      stages->push_back({random.between(0, 9), bytes(), bytes(), bytes()});
    }
  }
  return unit;
}

void chain(Random& random) {
  const bool wild = random.once_in(3);
  const ChainUnit unit = random_unit(random, wild);
  std::optional<ChainUnit> first;
  if (random.once_in(2)) first = random_unit(random, wild);
  std::optional<CostFront> after;
  if (!random.once_in(3)) after = random_front(random, 9, random.between(0, 90));
  if (wild && after && random.once_in(4)) after->needs.clear();
  const std::size_t steps = random.once_in(20) ? 0 : 1 + random.below(90);
  const std::size_t levels = random.once_in(20) ? std::size_t{1} << 40 : 1 + random.below(40);
  std::optional<ChainTable> table;
  const bool made = accepts([&] { table.emplace(unit, steps, after, levels, random.between(1, 3), first); });
  if (!made) return;
  for (std::size_t count = 1; count <= steps; ++count) {
    for (const bool bottom : {false, true}) {
      std::int64_t before = kNever;
      for (std::size_t s = 0; s < levels; ++s) {
        const std::int64_t cost = table->reversal_cost(count, s, bottom);
        check(cost >= 0 && cost <= kNever, "a cost is out of range");
        if (cost >= kNever) continue;
        const auto [k, option] = table->split(count, s, bottom);
        check(k >= 0 && (count == 1 || k < static_cast<std::int64_t>(count)), "a split is out of range");
        check(count == 1 || table->levels_of(k, option, bottom, false) <= static_cast<std::int64_t>(s),
              "a split takes more than there is");
        before = std::min(before, cost);
      }
    }
  }
  const ChainTable::Front front = table->front();
  for (const std::int64_t level : front.levels) {
    std::int64_t count = 0;
    for (const auto& stage : table->first_pass(static_cast<std::size_t>(level)).first) count += stage[0];
    check(count == static_cast<std::int64_t>(steps), "a first pass leaves out steps");
  }
  check(!accepts([&] { (void)table->reversal_cost(steps + 1, 0, false); }), "a chain too long is known");
}

const Register kNested("nested", &nested);
const Register kChain("chain", &chain);

}  // namespace
}  // namespace memfit::fuzz
