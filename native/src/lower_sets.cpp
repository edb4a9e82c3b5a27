#include "lower_sets.hpp"

#include <algorithm>
#include <stdexcept>
#include <unordered_set>
#include <vector>

namespace memfit {
namespace {

using Mask = std::vector<Word>;

struct MaskHash {
  std::size_t operator()(const Mask& mask) const {
    Word hash = 0x9E3779B97F4A7C15ULL;
    for (const Word word : mask) {
      hash ^= word + 0x9E3779B97F4A7C15ULL + (hash << 6U) + (hash >> 2U);
      hash *= 0xBF58476D1CE4E5B9ULL;
    }
    return static_cast<std::size_t>(hash ^ (hash >> 31U));
  }
};

bool less_mask(const Mask& a, const Mask& b) {
  return std::lexicographical_compare(a.rbegin(), a.rend(), b.rbegin(), b.rend());
}

}  // namespace

std::optional<BitMatrix> enumerate_lower_sets(const Lists& predecessors, std::size_t limit) {
  const std::size_t count = predecessors.size();
  const std::size_t words = std::max<std::size_t>(1, words_for(count));
  BitMatrix before(count, std::max<std::size_t>(1, count));
  for (std::size_t v = 0; v < count; ++v) {
    for (const std::int32_t p : predecessors[v]) {
      if (p < 0 || static_cast<std::size_t>(p) >= count) {
        throw std::invalid_argument("a predecessor is not a node of the graph");
      }
      set_bit(before.row(v), static_cast<std::size_t>(p));
    }
  }

  // Lower sets of size k + 1 are those of size k with one node more whose predecessors are in.
  std::vector<Mask> all;
  std::vector<Mask> level{Mask(words, 0)};
  while (!level.empty()) {
    if (all.size() + level.size() > limit) return std::nullopt;
    std::sort(level.begin(), level.end(), less_mask);
    std::unordered_set<Mask, MaskHash> next;
    for (const Mask& mask : level) {
      for (std::size_t v = 0; v < count; ++v) {
        if (test_bit(mask.data(), v) || !is_subset(before.row(v), mask.data(), words)) continue;
        Mask larger = mask;
        set_bit(larger.data(), v);
        next.insert(std::move(larger));
      }
      if (all.size() + level.size() + next.size() > limit) return std::nullopt;
    }
    std::move(level.begin(), level.end(), std::back_inserter(all));
    level.assign(next.begin(), next.end());
  }

  BitMatrix result(all.size(), words * kWordBits);
  for (std::size_t i = 0; i < all.size(); ++i) std::copy(all[i].begin(), all[i].end(), result.row(i));
  return result;
}

}  // namespace memfit
