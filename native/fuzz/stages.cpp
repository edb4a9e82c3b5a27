// The simulation of stages and the choice of the best sequence of them.
#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "blocks.hpp"
#include "stage_dp.hpp"

namespace memfit::fuzz {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 60;
constexpr std::size_t kMostWays = 50'000;

using Table = std::shared_ptr<const BlockTable>;
using Curve = std::vector<std::pair<std::int64_t, std::int64_t>>;

// Reads all that a table holds.
std::vector<std::int64_t> contents(const BlockTable& table) {
  std::vector<std::int64_t> all;
  const auto add = [&all](const PieceCost& p) {
    for (const std::int64_t x : {p.cost, p.cached_bytes, p.forward_bytes, p.standing_bytes, p.pass_bytes,
                                 p.held_bytes, p.before_bytes, p.start_bytes, p.backward_bytes,
                                 std::int64_t{p.asks}, std::int64_t{p.passed}, std::int64_t{p.joins}}) {
      all.push_back(x);
    }
  };
  for (std::size_t v = 0; v < table.variants(); ++v) {
    for (std::size_t a = 0; a + 1 < table.cuts(); ++a) {
      for (std::size_t b = a + 1; b < table.cuts(); ++b) {
        const InnerCost& p = table.inner(a, b, v);
        for (const std::int64_t x : {p.cost, p.cached_bytes, p.forward_bytes, p.backward_bytes}) {
          all.push_back(x);
        }
        check(p.cost <= table.largest_cost() && p.cost >= -1, "a stage costs more than all ops");
      }
      for (const bool passed : {false, true}) add(table.bottom(a, v, passed));
    }
    for (std::size_t b = 0; b < table.cuts(); ++b) {
      const PieceCost* top = table.top(b, v);
      if (top != nullptr) add(*top);
    }
    for (const bool passed : {false, true}) add(table.through(v, passed));
    all.push_back(table.sealed(v) ? 1 : 0);
  }
  return all;
}

struct Simulated {
  Table table;  // null: refused
  bool sound;
};

// A block, perhaps a spoilt one, simulated twice.
Simulated simulate(Random& random, std::size_t most_ops, std::size_t variants, bool may_spoil) {
  RandomBlock block = random_block(random, random_count(random, most_ops), variants);
  bool must_refuse = block.cuts.lower.rows() < 2;
  bool sound = !must_refuse;
  if (may_spoil && random.once_in(2)) {
    sound = false;
    for (std::size_t k = 1 + random.below(4); k > 0 && !must_refuse; --k) {
      must_refuse |= random.once_in(2) ? spoil_lists(random, block.lists)
                                       : spoil_cuts(random, block.cuts, block.lists.value_bytes.size());
    }
  }
  if (may_spoil && !must_refuse && random.once_in(6)) {
    sound = false;
    strain(random, block);
  }
  Table table;
  const auto build = [&](std::size_t threads) {
    return std::make_shared<const BlockTable>(StageProblem(block.lists), block.cuts, threads, Tick{});
  };
  const bool accepted = accepts([&] { table = build(1); });
  check(!accepted || !must_refuse, "an unsound block is not refused");
  check(accepted || !sound, "a sound block is refused");
  if (accepted) {
    check(contents(*table) == contents(*build(random.below(4))), "pieces depend on the number of threads");
  }
  return {table, sound};
}

struct Way {
  std::int64_t cost, cached, need;
  auto operator<=>(const Way&) const = default;
};

struct Problem {
  std::vector<Table> tables;
  Numbers base_bytes;
};

Way go_on(const Way& way, const InnerCost& stage, std::int64_t base) {
  const std::int64_t peak = std::max(stage.forward_bytes, stage.backward_bytes + base);
  return {way.cost + stage.cost, way.cached + stage.cached_bytes, std::max(way.need, way.cached + peak)};
}

// All ways whose stages end in the block where they begin; nothing where there are too many.
std::optional<std::set<Way>> short_ways(const Problem& problem) {
  std::set<Way> ways{{0, 0, std::numeric_limits<std::int64_t>::min()}};
  std::size_t tried = 0;
  for (std::size_t i = 0; i < problem.tables.size(); ++i) {
    const BlockTable& table = *problem.tables[i];
    std::vector<std::set<Way>> at_cut(table.cuts());
    at_cut[0] = std::move(ways);
    for (std::size_t a = 0; a + 1 < table.cuts(); ++a) {
      for (std::size_t b = a + 1; b < table.cuts(); ++b) {
        for (std::size_t v = 0; v < table.variants(); ++v) {
          const InnerCost& stage = table.inner(a, b, v);
          if (stage.cost < 0) continue;
          for (const Way& way : at_cut[a]) {
            if (++tried > kMostWays) return std::nullopt;
            at_cut[b].insert(go_on(way, stage, problem.base_bytes[i]));
          }
        }
      }
    }
    ways = std::move(at_cut.back());
  }
  return ways;
}

Curve curve_of(const std::set<Way>& ways) {
  std::map<std::int64_t, std::int64_t> least;
  for (const Way& way : ways) {
    const auto [place, is_new] = least.emplace(way.cost, way.need);
    if (!is_new) place->second = std::min(place->second, way.need);
  }
  Curve curve;
  for (const auto& [cost, need] : least) {
    if (curve.empty() || need < curve.back().second) curve.emplace_back(cost, need);
  }
  for (auto& point : curve) point.second = std::max<std::int64_t>(0, point.second);
  return curve;
}

void check_short_ways(const Problem& problem, const StageTable& table) {
  const auto ways = short_ways(problem);
  if (!ways || ways->empty()) return;
  const Curve wanted = curve_of(*ways);
  const Curve found = table.curve();
  check(!found.empty(), "a way is missed");
  check(found.back().second <= wanted.back().second, "a smaller budget is missed");
  if (!table.exact()) return;
  if (problem.tables.size() == 1) check(found == wanted, "wrong curve");
  for (const auto& [cost, need] : wanted) {
    check(std::any_of(found.begin(), found.end(),
                      [c = cost, n = need](const auto& p) { return p.first <= c && p.second <= n; }),
          "a cheaper way is missed");
  }
}

// The path must join the first cut to the last one; where no stage leaves its block, it must be what
// the curve says.
void check_path(const Problem& problem, const StageTable& table, std::int64_t budget) {
  const auto path = table.path(budget);
  const Curve curve = table.curve();
  const auto point = std::find_if(curve.begin(), curve.end(),
                                  [budget](const auto& p) { return p.second <= budget; });
  check(path.has_value() == (budget >= 0 && point != curve.end()), "path and curve differ");
  if (!path) return;
  std::int64_t block = 0;
  std::int64_t cut = 0;
  bool is_short = true;
  Way way{0, 0, 0};
  for (const auto& [i, a, j, b, v] : *path) {
    check(i == block && a == cut, "a stage does not begin where the last one ended");
    check(j >= i && (j > i || b > a), "a stage does not lead on");
    const BlockTable& last = *problem.tables.at(static_cast<std::size_t>(j));
    check(b < static_cast<std::int64_t>(last.cuts()), "a stage leads nowhere");
    is_short = is_short && i == j;
    if (is_short) {
      const auto x = static_cast<std::size_t>(i);
      way = go_on(way, last.inner(static_cast<std::size_t>(a), static_cast<std::size_t>(b),
                                  static_cast<std::size_t>(v)),
                  problem.base_bytes[x]);
    }
    const bool whole = b + 1 == static_cast<std::int64_t>(last.cuts());
    block = whole ? j + 1 : j;
    cut = whole ? 0 : b;
  }
  check(block == static_cast<std::int64_t>(problem.tables.size()) && cut == 0, "a path stops early");
  if (!is_short) return;
  check(way.need <= budget, "a path breaks the budget");
  check(way.cost == point->first, "a path does not cost what the curve says");
}

void use(Random& random, const Problem& problem, bool sound) {
  std::int64_t total = 0;
  for (const Table& table : problem.tables) total += std::min(table->largest_cost(), kLimit - total);
  std::size_t slots = random.pick<std::size_t>({1, 2, 7, 64, 4096});
  if (random.once_in(2) && total < 100'000) slots = static_cast<std::size_t>(total) + 1;
  if (random.once_in(3)) total += random.between(0, 1000);
  Numbers base = problem.base_bytes;
  std::vector<Table> tables = problem.tables;
  if (random.once_in(6)) {
    sound = false;
    switch (random.below(4)) {
      case 0: total = wild_number(random); break;
      case 1: slots = 0; break;
      case 2: spoil_numbers(random, base); break;
      default: spoil_length(random, base); break;
    }
  }
  const auto build = [&](std::size_t threads) {
    return StageTable(tables, base, total, slots, threads, {});
  };
  std::optional<StageTable> table;
  const bool accepted = accepts([&] { table.emplace(build(1)); });
  check(accepted || !sound, "sound tables are refused");
  if (!accepted) return;
  check(base.size() == problem.tables.size(), "a wrong number of bases is not refused");
  const Problem used{tables, base};
  const Curve curve = table->curve();
  const StageTable again = build(random.below(4));
  check(curve == again.curve(), "the curve depends on the number of threads");
  for (std::size_t k = 1; k < curve.size(); ++k) {
    check(curve[k - 1].first < curve[k].first && curve[k - 1].second >= curve[k].second, "no trade-off");
  }
  check_short_ways(used, *table);
  const std::int64_t least = table->smallest_budget();
  check(curve.empty() ? least == 0 : least == curve.back().second, "the curve ends elsewhere");
  for (const std::int64_t budget : {least, least - 1, wild_number(random)}) {
    check_path(used, *table, budget);
    check(table->path(budget) == again.path(budget), "a path depends on the number of threads");
  }
  for (std::size_t k = 0; k < 4 && !curve.empty(); ++k) check_path(used, *table, random.pick(curve).second);
}

// One block, any size, often a spoilt one.
void run_block(Random& random) {
  const std::size_t variants = random.once_in(20) ? 0 : 1 + random.below(3);
  const Simulated block = simulate(random, 140, variants, true);
  if (block.table == nullptr) return;
  const std::int64_t base = random.once_in(2) ? 0 : random.between(0, std::int64_t{1} << random.below(60));
  use(random, {{block.table}, {base}}, block.sound && base < (std::int64_t{1} << 58));
}

// Rows of blocks, many of them alike.
void run_blocks(Random& random) {
  const std::size_t variants = random.once_in(20) ? 0 : 1 + random.below(3);
  std::vector<Table> kinds;
  for (std::size_t k = 1 + random.below(3); k > 0; --k) {
    const bool other = random.once_in(20);
    const Simulated block = simulate(random, 12, other ? variants + 1 : variants, random.once_in(4));
    if (block.table != nullptr) kinds.push_back(block.table);
  }
  Problem problem;
  const std::size_t count = kinds.empty() ? 0 : random.pick<std::size_t>({0, 1, 2, 2, 3, 3, 5, 9, 30, 100});
  bool sound = true;  // alike in their variants, and what they hold adds up below the limit
  std::int64_t cost = 0;
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < count; ++i) {
    problem.tables.push_back(random.pick(kinds));
    problem.base_bytes.push_back(random.once_in(2) ? 0 : random.between(0, 1'000'000));
    const BlockTable& table = *problem.tables.back();
    const bool fits = table.largest_cost() < kLimit - cost && table.largest_bytes() < kLimit - bytes;
    sound = sound && fits && table.variants() == problem.tables.front()->variants();
    cost += fits ? table.largest_cost() : 0;
    bytes += fits ? table.largest_bytes() : 0;
  }
  use(random, problem, sound);
}

const Register block("block", &run_block);
const Register blocks("blocks", &run_blocks);

}  // namespace
}  // namespace memfit::fuzz
