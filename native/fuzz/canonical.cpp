// Canonical strategies under the paper's formulas, against every sequence of lower sets.
#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "canonical.hpp"
#include "canonical_dp.hpp"
#include "inputs.hpp"

namespace memfit::fuzz {
namespace {

constexpr std::size_t kMostNodesTried = 6;
constexpr std::size_t kMostWays = 20'000;

struct Problem {
  Rows predecessors;
  Numbers node_bytes, node_cost;
};

struct Stop {};

// A way from the empty set to a state. `need` is the least budget that it fits.
struct Way {
  std::int64_t cost, cached, need;
  auto operator<=>(const Way&) const = default;
};

std::int64_t weigh(Mask set, const Numbers& of) {
  std::int64_t total = 0;
  for (std::size_t v = 0; v < of.size(); ++v) total += (set >> v & 1U) != 0 ? of[v] : 0;
  return total;
}

// Equations of Kusumoto et al. 2019, section 3, set by set.
class Formulas {
 public:
  explicit Formulas(const Problem& problem) : p_(problem) {}

  [[nodiscard]] Mask successors(Mask set) const {
    Mask result = 0;
    for (std::size_t v = 0; v < p_.predecessors.size(); ++v) {
      if ((set & before(v)) != 0) result |= Mask{1} << v;
    }
    return result;
  }
  [[nodiscard]] Mask needed_by(Mask set) const {
    Mask result = 0;
    for (std::size_t v = 0; v < p_.predecessors.size(); ++v) {
      if ((set >> v & 1U) != 0) result |= before(v);
    }
    return result;
  }
  [[nodiscard]] Mask boundary(Mask lower) const {
    Mask result = 0;
    for (std::size_t v = 0; v < p_.predecessors.size(); ++v) {
      const Mask one = Mask{1} << v;
      if ((lower & one) != 0 && (successors(one) & ~lower) != 0) result |= one;
    }
    return result;
  }
  [[nodiscard]] Way go_on(const Way& way, Mask lower, Mask upper) const {
    const Mask inside = upper & ~lower;
    const Mask reached = successors(upper) & ~upper;
    const Mask feeding = needed_by(reached) & ~upper;
    const std::int64_t peak =
        2 * weigh(inside, p_.node_bytes) + weigh(reached, p_.node_bytes) + weigh(feeding, p_.node_bytes);
    return {way.cost + weigh(inside & ~boundary(upper), p_.node_cost),
            way.cached + weigh(boundary(upper) & ~lower, p_.node_bytes),
            std::max(way.need, way.cached + peak)};
  }

 private:
  const Problem& p_;

  [[nodiscard]] Mask before(std::size_t v) const {
    Mask result = 0;
    for (const std::int32_t p : p_.predecessors[v]) result |= Mask{1} << p;
    return result;
  }
};

// All ways to V; empty where there are too many to try.
std::set<Way> all_ways(const Problem& problem, const std::vector<Mask>& sets) {
  const Formulas formulas(problem);
  std::vector<std::set<Way>> ways(sets.size());
  ways[0].insert({0, 0, 0});
  std::size_t tried = 0;
  for (std::size_t i = 0; i < sets.size(); ++i) {
    for (std::size_t j = i + 1; j < sets.size(); ++j) {
      if ((sets[i] & ~sets[j]) != 0 || sets[i] == sets[j]) continue;
      for (const Way& way : ways[i]) {
        if (++tried > kMostWays) return {};
        ways[j].insert(formulas.go_on(way, sets[i], sets[j]));
      }
    }
  }
  return ways.back();
}

std::vector<std::pair<std::int64_t, std::int64_t>> curve_of(const std::set<Way>& ways) {
  std::map<std::int64_t, std::int64_t> least;
  for (const Way& way : ways) {
    const auto [at, is_new] = least.emplace(way.cost, way.need);
    if (!is_new) at->second = std::min(at->second, way.need);
  }
  std::vector<std::pair<std::int64_t, std::int64_t>> curve;
  for (const auto& [cost, need] : least) {
    if (curve.empty() || need < curve.back().second) curve.emplace_back(cost, need);
  }
  return curve;
}

std::optional<Numbers> shortest(const CanonicalTable& table, std::int64_t budget, bool longest) {
  return table.shortest(budget, longest, {});
}

void check_budget(const CanonicalTable& table, const Problem& problem, const std::vector<Mask>& sets,
                  const std::set<Way>& ways, std::int64_t budget, bool longest) {
  const auto key = [longest](const Way& way) {
    return longest ? std::tuple(way.cached, way.cost) : std::tuple(way.cost, way.cached);
  };
  const Way* best = nullptr;
  for (const Way& way : ways) {
    if (way.need <= budget && (best == nullptr || key(way) < key(*best))) best = &way;
  }
  const auto path = shortest(table, budget, longest);
  check(path.has_value() == (best != nullptr), "a path within the budget is missed or made up");
  if (!path) return;
  const Formulas formulas(problem);
  Way way{0, 0, 0};
  Mask lower = 0;
  for (const std::int64_t state : *path) {
    const Mask upper = sets.at(static_cast<std::size_t>(state));
    check((lower & ~upper) == 0 && lower != upper, "a path does not grow");
    way = formulas.go_on(way, lower, upper);
    lower = upper;
  }
  check(lower == sets.back(), "a path does not lead to V");
  check(way.need <= budget, "a path breaks the budget");
  check(key(way) == key(*best), "a path is not the best");
}

// Small graphs: every answer against all sequences of lower sets.
void run_exhaustive(Random& random) {
  Problem problem;
  const std::size_t nodes = 1 + random.below(kMostNodesTried);
  problem.predecessors = random_graph(random, nodes);
  problem.node_bytes = random_numbers(random, nodes);
  problem.node_cost = random_numbers(random, nodes);
  std::vector<Mask> sets = all_lower_sets(problem.predecessors);
  const bool all = random.once_in(2);
  if (!all) {
    std::vector<Mask> some;
    for (const Mask set : sets) {
      if (set == sets.front() || set == sets.back() || random.once_in(2)) some.push_back(set);
    }
    sets = some;
  }
  const std::set<Way> ways = all_ways(problem, sets);
  if (ways.empty()) return;
  const auto which = all && random.once_in(2) ? Stages::kConnected : Stages::kNested;
  const CanonicalTable table({Lists(problem.predecessors), problem.node_bytes, problem.node_cost,
                              rows_of(sets, nodes), which, {}},
                             1 + random.below(3), {});
  check(table.states() == sets.size(), "wrong number of states");
  const auto curve = curve_of(ways);
  check(table.curve() == curve, "wrong curve");
  check(table.smallest_budget() == curve.back().second, "wrong smallest budget");
  for (const auto& point : curve) {
    for (const std::int64_t budget : {point.second - 1, point.second}) {
      check_budget(table, problem, sets, ways, budget, random.once_in(2));
    }
  }
  check_budget(table, problem, sets, ways, std::numeric_limits<std::int64_t>::max(), false);
  check_budget(table, problem, sets, ways, wild_number(random), random.once_in(2));
}

// Calls everything once with whatever there is; answers must not depend on the number of threads.
void use(Random& random, const CanonicalStages& stages) {
  const CanonicalTable table(stages, random.below(4), {});
  const CanonicalTable again(stages, 1, {});
  const auto curve = table.curve();
  check(curve == again.curve(), "the curve depends on the number of threads");
  const std::int64_t least = table.smallest_budget();
  check(least == curve.back().second, "the curve does not end at the smallest budget");
  for (const bool longest : {false, true}) {
    check(table.states() == 1 || !shortest(table, least - 1, longest), "a budget below the smallest is enough");
    check(shortest(table, least, longest).has_value(), "the smallest budget is not enough");
    const std::int64_t budget = random.once_in(2) ? wild_number(random) : random.pick(curve).second;
    check(shortest(table, budget, longest) == shortest(again, budget, longest),
          "a path depends on the number of threads");
  }
  bool stopped = false;
  try {
    (void)table.shortest(least, random.once_in(2), [](double) { throw Stop{}; });
  } catch (const Stop&) {
    stopped = true;
  }
  check(stopped || table.states() == 1, "an exception of the tick is lost");
}

void run_any(Random& random) {
  const std::size_t nodes = random_count(random, 400);
  Problem problem;
  problem.predecessors = random_graph(random, nodes);
  problem.node_bytes = random_numbers(random, nodes);
  problem.node_cost = random_numbers(random, nodes);
  // Where every way has a cost of its own, there can be as many as there are subsets of states.
  const bool wide = std::accumulate(problem.node_cost.begin(), problem.node_cost.end(),
                                    std::int64_t{0}) > 1'000'000;
  BitMatrix sets = some_lower_sets(random, problem.predecessors, wide ? 5 : 24);
  auto which = Stages::kNested;
  if (random.once_in(3)) {
    which = Stages::kConnected;
    if (nodes <= 8) sets = rows_of(all_lower_sets(problem.predecessors), nodes);
  }
  bool must_refuse = false;
  bool may_refuse = which == Stages::kConnected && nodes > 8;
  if (random.once_in(2)) {
    may_refuse = true;
    switch (random.below(6)) {
      case 0: must_refuse = spoil_graph(random, problem.predecessors); break;
      case 1: spoil_numbers(random, problem.node_bytes); break;
      case 2: spoil_numbers(random, problem.node_cost); break;
      case 3:
        spoil_length(random, random.once_in(2) ? problem.node_bytes : problem.node_cost);
        must_refuse = true;
        break;
      case 4:
        spoil_length(random, problem.predecessors);
        must_refuse = true;
        break;
      default:
        spoil_sets(random, sets);
        must_refuse = !is_family(problem.predecessors, sets);
        may_refuse = must_refuse || which == Stages::kConnected;
        break;
    }
  }
  std::optional<CanonicalStages> stages;
  const bool accepted = accepts([&] {
    stages.emplace(Lists(problem.predecessors), problem.node_bytes, problem.node_cost, sets, which,
                   Tick{});
  });
  check(!accepted || !must_refuse, "unsound input is not refused");
  check(accepted || may_refuse, "sound input is refused");
  if (accepted) use(random, *stages);
}

const Register exhaustive("canonical_exhaustive", &run_exhaustive);
const Register any("canonical", &run_any);

}  // namespace
}  // namespace memfit::fuzz
