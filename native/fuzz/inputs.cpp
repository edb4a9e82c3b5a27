#include "inputs.hpp"

#include <algorithm>
#include <bit>
#include <iterator>
#include <limits>
#include <string>

namespace memfit::fuzz {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();

std::int32_t node(std::size_t v) { return static_cast<std::int32_t>(v); }

BitMatrix chosen_rows(const BitMatrix& sets, const std::vector<std::size_t>& rows) {
  BitMatrix result(rows.size(), sets.words() * kWordBits);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(sets.row(rows[i]), sets.words(), result.row(i));
  }
  return result;
}

}  // namespace

std::size_t random_count(Random& random, std::size_t most) {
  std::size_t count = 0;
  switch (random.below(8)) {
    case 0: count = random.below(3); break;
    case 1: count = random.pick<std::size_t>({63, 64, 65, 127, 128, 129}); break;
    case 2: count = random.below(400); break;
    case 3: count = random.below(80); break;
    default: count = random.below(12); break;
  }
  return std::min(count, most);
}

Rows random_graph(Random& random, std::size_t nodes) {
  Rows predecessors(nodes);
  const std::size_t kind = random.below(8);
  const std::size_t lanes = 1 + random.below(4);
  const std::size_t parts = 1 + random.below(4);
  for (std::size_t v = 0; v < nodes; ++v) {
    auto& row = predecessors[v];
    switch (kind) {
      case 0: break;
      case 1:  // chains side by side, joined at the end
        if (v >= lanes) row.push_back(node(v - lanes));
        if (v + 1 == nodes) {
          for (std::size_t back = 1; back < lanes && back <= v; ++back) row.push_back(node(v - back));
        }
        break;
      case 2:  // a chain with shortcuts
        if (v > 0) row.push_back(node(v - 1));
        if (v > 1 && random.once_in(3)) row.push_back(node(random.below(v - 1)));
        break;
      case 3:  // diamonds in a row
        if (v > 0) row.push_back(node(v % 3 == 0 ? v - 1 : v - v % 3));
        if (v > 1 && v % 3 == 0) row.push_back(node(v - 2));
        break;
      case 4:  // parts that have nothing to do with one another
        if (v >= parts && !random.once_in(4)) {
          row.push_back(node(v % parts + parts * random.below(v / parts)));
        }
        break;
      case 5:  // dense
        for (std::size_t p = v < 40 ? 0 : v - 40; p < v; ++p) {
          if (random.once_in(2)) row.push_back(node(p));
        }
        break;
      default:  // up to three, near ones or any, some twice
        for (std::size_t k = random.below(4); k > 0 && v > 0; --k) {
          const std::size_t reach = kind == 6 ? std::min<std::size_t>(v, 4) : v;
          row.push_back(node(v - 1 - random.below(reach)));
          if (random.once_in(10)) row.push_back(row.back());
        }
    }
  }
  return predecessors;
}

bool spoil_graph(Random& random, Rows& predecessors) {
  const std::size_t nodes = predecessors.size();
  if (nodes == 0) return false;
  const std::size_t v = random.below(nodes);
  const std::int32_t bad = random.pick<std::int32_t>(
      {node(v), node(v + random.below(nodes)), node(nodes), node(nodes + 64), -1, -node(nodes) - 1,
       std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max()});
  auto& row = predecessors[v];
  row.insert(row.begin() + static_cast<std::ptrdiff_t>(random.below(row.size() + 1)), bad);
  return true;
}

Numbers random_numbers(Random& random, std::size_t count) {
  Numbers numbers(count);
  const std::size_t kind = random.below(6);
  const std::int64_t share = (std::int64_t{1} << 58) / static_cast<std::int64_t>(count + 1);
  for (std::int64_t& x : numbers) {
    switch (kind) {
      case 0: x = 0; break;
      case 1: x = 7; break;
      case 2: x = random.between(0, 10); break;
      case 3: x = random.between(0, std::min(share, std::int64_t{1'000'000'000'000})); break;
      case 4: x = random.between(0, share) >> random.below(60); break;
      default: x = 0; break;
    }
  }
  if (kind == 5 && count > 0) numbers[random.below(count)] = random.between(0, std::int64_t{1} << 57);
  return numbers;
}

std::int64_t wild_number(Random& random) {
  switch (random.below(6)) {
    case 0: return random.pick<std::int64_t>({0, 1, -1, 2});
    case 1: return random.pick<std::int64_t>({kMost, kMost - 1, kLeast, kLeast + 1});
    case 2: {
      const std::int64_t power = std::int64_t{1} << random.below(63);
      return random.pick<std::int64_t>({power, power - 1, -power, -power + 1});
    }
    case 3: return static_cast<std::int64_t>(random.next());
    case 4: return static_cast<std::int64_t>(random.next() >> random.below(64));
    default: return random.between(-1000, 1000);
  }
}

void spoil_numbers(Random& random, Numbers& numbers) {
  if (numbers.empty()) return;
  std::int64_t& one = numbers[random.below(numbers.size())];
  switch (random.below(4)) {
    case 0: one = random.between(kLeast, -1); break;
    case 1: one = random.between(std::int64_t{1} << 62, kMost); break;
    case 2:  // each may pass for itself, even the sum of two, but not all of them together
      for (std::size_t i = 1 + random.below(numbers.size()); i > 0; --i) {
        numbers[random.below(numbers.size())] = std::int64_t{1} << (58 + random.below(5));
      }
      break;
    default: strain_numbers(random, numbers);
  }
}

void strain_numbers(Random& random, Numbers& numbers) {
  if (numbers.empty()) return;
  for (std::int64_t& x : numbers) x = random.between(0, 3);
  std::int64_t& one = numbers[random.below(numbers.size())];
  one = (std::int64_t{1} << (60 + random.below(3))) - random.between(0, 1);
  for (const std::int64_t& x : numbers) one -= &x == &one ? 0 : x;
}

bool is_lower_set(const Rows& predecessors, Mask set) {
  for (std::size_t v = 0; v < predecessors.size(); ++v) {
    if ((set >> v & 1U) == 0) continue;
    for (const std::int32_t p : predecessors[v]) {
      if ((set >> p & 1U) == 0) return false;
    }
  }
  return true;
}

std::vector<Mask> all_lower_sets(const Rows& predecessors) {
  std::vector<Mask> found;
  for (Mask set = 0; set < Mask{1} << predecessors.size(); ++set) {
    if (is_lower_set(predecessors, set)) found.push_back(set);
  }
  std::stable_sort(found.begin(), found.end(),
                   [](Mask a, Mask b) { return std::popcount(a) < std::popcount(b); });
  return found;
}

bool is_family(const Rows& predecessors, const BitMatrix& sets) {
  const std::size_t nodes = predecessors.size();
  if (sets.rows() == 0 || sets.words() != std::max<std::size_t>(1, words_for(nodes))) return false;
  std::size_t before = 0;
  for (std::size_t i = 0; i < sets.rows(); ++i) {
    std::vector<std::size_t> members;
    for (std::size_t v = 0; v < sets.words() * kWordBits; ++v) {
      if (test_bit(sets.row(i), v)) members.push_back(v);
    }
    for (const std::size_t v : members) {
      if (v >= nodes) return false;
      for (const std::int32_t p : predecessors[v]) {
        if (!test_bit(sets.row(i), static_cast<std::size_t>(p))) return false;
      }
    }
    const std::size_t size = members.size();
    if (size < before || (i == 0 && size != 0) || (i + 1 == sets.rows() && size != nodes)) return false;
    before = size;
  }
  return true;
}

BitMatrix rows_of(const std::vector<Mask>& sets, std::size_t nodes) {
  BitMatrix result(sets.size(), std::max<std::size_t>(1, nodes));
  for (std::size_t i = 0; i < sets.size(); ++i) result.row(i)[0] = sets[i];
  return result;
}

BitMatrix sorted_sets(const BitMatrix& sets) {
  const std::size_t words = sets.words();
  const auto size = [&](std::size_t r) {
    int count = 0;
    for (std::size_t w = 0; w < words; ++w) count += std::popcount(sets.row(r)[w]);
    return count;
  };
  const auto before = [&](std::size_t a, std::size_t b) {
    if (size(a) != size(b)) return size(a) < size(b);
    return std::lexicographical_compare(std::reverse_iterator(sets.row(a) + words),
                                        std::reverse_iterator(sets.row(a)),
                                        std::reverse_iterator(sets.row(b) + words),
                                        std::reverse_iterator(sets.row(b)));
  };
  std::vector<std::size_t> order(sets.rows());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), before);
  const auto same = [&](std::size_t a, std::size_t b) {
    return is_equal(sets.row(a), sets.row(b), words);
  };
  order.erase(std::unique(order.begin(), order.end(), same), order.end());
  return chosen_rows(sets, order);
}

BitMatrix some_lower_sets(Random& random, const Rows& predecessors, std::size_t most) {
  const std::size_t nodes = predecessors.size();
  BitMatrix needed(nodes, std::max<std::size_t>(1, nodes));
  const std::size_t words = needed.words();
  for (std::size_t v = 0; v < nodes; ++v) {
    set_bit(needed.row(v), v);
    for (const std::int32_t p : predecessors[v]) {
      for (std::size_t w = 0; w < words; ++w) {
        needed.row(v)[w] |= needed.row(static_cast<std::size_t>(p))[w];
      }
    }
  }
  const std::size_t each = nodes == 0 ? 0 : std::min<std::size_t>(nodes, 1 + random.below(most));
  BitMatrix sets(2 + 3 * each, words * kWordBits);
  for (std::size_t v = 0; v < nodes; ++v) set_bit(sets.row(1), v);
  for (std::size_t k = 0; k < each; ++k) {
    const std::size_t v = random.below(nodes);
    const std::size_t u = random.below(nodes);
    for (std::size_t p = 0; p < v; ++p) set_bit(sets.row(2 + 3 * k), p);
    for (std::size_t w = 0; w < words; ++w) {
      sets.row(3 + 3 * k)[w] = needed.row(v)[w];
      sets.row(4 + 3 * k)[w] = needed.row(v)[w] | needed.row(u)[w];
    }
  }
  return sorted_sets(sets);
}

void spoil_sets(Random& random, BitMatrix& sets) {
  const std::size_t rows = sets.rows();
  const std::size_t bits = sets.words() * kWordBits;
  std::vector<std::size_t> order(rows);
  for (std::size_t i = 0; i < rows; ++i) order[i] = i;
  switch (random.below(7)) {
    case 0:  // none
      sets = BitMatrix(0, bits);
      return;
    case 1:  // too wide, too narrow, no width at all
      sets = BitMatrix(rows, random.pick<std::size_t>({0, bits + 1, bits + 640, bits / 2}));
      return;
    case 2:  // another order
      if (rows > 0) std::swap(order[random.below(rows)], order[random.below(rows)]);
      break;
    case 3:  // the first or the last one is missing
      if (rows > 0) order.erase(random.once_in(2) ? order.begin() : order.end() - 1);
      break;
    case 4:  // repeated
      if (rows > 0) {
        const std::size_t again = random.below(rows);
        order.insert(order.begin() + static_cast<std::ptrdiff_t>(again), again);
      }
      break;
    case 5:  // one bit changed, perhaps beyond the last node
      if (rows > 0 && bits > 0) {
        const std::size_t bit = random.below(bits);
        sets.row(random.below(rows))[bit / kWordBits] ^= Word{1} << (bit % kWordBits);
      }
      return;
    default:  // noise
      for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t w = 0; w < sets.words(); ++w) {
          if (random.once_in(3)) sets.row(r)[w] = random.next() & random.next();
        }
      }
      if (random.once_in(2)) sets = sorted_sets(sets);
      return;
  }
  sets = chosen_rows(sets, order);
}

}  // namespace memfit::fuzz
