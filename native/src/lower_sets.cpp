#include "lower_sets.hpp"

#include <algorithm>
#include <stdexcept>
#include <vector>

namespace memfit {

std::optional<BitMatrix> enumerate_lower_sets(const Lists& predecessors, std::size_t limit) {
  const std::size_t count = predecessors.size();
  const std::size_t words = std::max<std::size_t>(1, words_for(count));

  // A lower set of the first k nodes is one of the whole graph too, so the sets are built node by
  // node, their number only grows, and the limit is met early.
  std::vector<Word> sets(words, 0);
  std::size_t found = 1;
  std::vector<Word> needed(words);
  for (std::size_t node = 0; node < count; ++node) {
    needed.assign(words, 0);
    for (const std::int32_t p : predecessors[node]) {
      if (p < 0 || static_cast<std::size_t>(p) >= node) {
        throw std::invalid_argument("a predecessor does not come before its node");
      }
      set_bit(needed.data(), static_cast<std::size_t>(p));
    }
    const std::size_t before = found;
    for (std::size_t i = 0; i < before; ++i) {
      if (!is_subset(needed.data(), sets.data() + i * words, words)) continue;
      if (++found > limit) return std::nullopt;
      sets.resize(found * words);
      Word* larger = sets.data() + (found - 1) * words;
      std::copy_n(sets.data() + i * words, words, larger);
      set_bit(larger, node);
    }
  }
  if (found > limit) return std::nullopt;

  struct Key {
    std::size_t size;
    const Word* set;
  };
  std::vector<Key> order;
  order.reserve(found);
  for (std::size_t i = 0; i < found; ++i) {
    const Word* set = sets.data() + i * words;
    std::size_t size = 0;
    for (std::size_t w = 0; w < words; ++w) size += static_cast<std::size_t>(std::popcount(set[w]));
    order.push_back({size, set});
  }
  std::sort(order.begin(), order.end(), [words](const Key& a, const Key& b) {
    if (a.size != b.size) return a.size < b.size;
    for (std::size_t w = words; w-- > 0;) {
      if (a.set[w] != b.set[w]) return a.set[w] < b.set[w];
    }
    return false;
  });

  BitMatrix result(found, words * kWordBits);
  for (std::size_t i = 0; i < found; ++i) std::copy_n(order[i].set, words, result.row(i));
  return result;
}

}  // namespace memfit
