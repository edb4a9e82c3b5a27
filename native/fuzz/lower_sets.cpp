// The enumeration of lower sets, against trying every subset.
#include "lower_sets.hpp"

#include "inputs.hpp"

namespace memfit::fuzz {
namespace {

void check_order(const BitMatrix& sets) {
  const BitMatrix sorted = sorted_sets(sets);
  check(sorted.rows() == sets.rows(), "a lower set occurs twice");
  for (std::size_t i = 0; i < sets.rows(); ++i) {
    check(is_equal(sets.row(i), sorted.row(i), sets.words()), "lower sets are not in order");
  }
}

void run(Random& random) {
  Rows predecessors = random_graph(random, random_count(random, 400));
  const bool spoilt = random.once_in(4) && spoil_graph(random, predecessors);
  const std::size_t limit = random.once_in(4) ? static_cast<std::size_t>(random.next() >> random.below(64))
                                              : 3000;
  // Limits without end are for graphs of few lower sets.
  const std::size_t bounded = predecessors.size() <= 10 ? limit : std::min<std::size_t>(limit, 3000);
  std::optional<BitMatrix> found;
  const bool accepted =
      accepts([&] { found = enumerate_lower_sets(Lists(predecessors), bounded); });
  // Where the limit is met before the bad node is, either answer is right.
  if (spoilt) {
    check(!found, "a graph with a cycle is not refused");
    return;
  }
  check(accepted, "a sound graph is refused");
  if (found) {
    check(found->rows() <= bounded, "more lower sets than the limit");
    check_order(*found);
  }
  if (predecessors.size() > 10) return;
  const std::vector<Mask> wanted = all_lower_sets(predecessors);
  check(found.has_value() == (wanted.size() <= bounded), "the limit is not kept");
  if (!found) return;
  check(found->rows() == wanted.size(), "wrong number of lower sets");
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    check(found->row(i)[0] == wanted[i], "wrong lower set");
  }
}

const Register registered("lower_sets", &run);

}  // namespace
}  // namespace memfit::fuzz
