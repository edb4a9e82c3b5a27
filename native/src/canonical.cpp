#include "canonical.hpp"

#include <stdexcept>

namespace memfit {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 61;

void check_sum(const std::vector<std::int64_t>& numbers, const char* message) {
  std::int64_t total = 0;
  for (const std::int64_t x : numbers) {
    if (x < 0 || x >= kLimit - total) throw std::invalid_argument(message);
    total += x;
  }
}

std::int64_t sum(const Word* set, std::size_t words, const std::vector<std::int64_t>& of) {
  std::int64_t total = 0;
  for (std::size_t w = 0; w < words; ++w) {
    for_each_bit(set[w], w * kWordBits, [&](std::size_t v) { total += of[v]; });
  }
  return total;
}

}  // namespace

EdgeTable canonical_edges(const Lists& predecessors, const std::vector<std::int64_t>& node_bytes,
                          const std::vector<std::int64_t>& node_cost, const BitMatrix& lower_sets,
                          bool zero_last, const Tick& tick) {
  const std::size_t nodes = predecessors.size();
  const std::size_t words = lower_sets.words();
  const std::size_t count = lower_sets.rows();
  if (node_bytes.size() != nodes || node_cost.size() != nodes) {
    throw std::invalid_argument("node_bytes and node_cost must have one number for each node");
  }
  check_sum(node_bytes, "sizes in bytes must be 0 or more and add up below 2**61");
  check_sum(node_cost, "costs must be 0 or more and add up below 2**61");

  BitMatrix after(nodes, words * kWordBits);
  BitMatrix before(nodes, words * kWordBits);
  for (std::size_t v = 0; v < nodes; ++v) {
    for (const std::int32_t p : predecessors[v]) {
      if (p < 0 || static_cast<std::size_t>(p) >= nodes) {
        throw std::invalid_argument("a predecessor is not a node of the graph");
      }
      set_bit(before.row(v), static_cast<std::size_t>(p));
      set_bit(after.row(static_cast<std::size_t>(p)), v);
    }
  }

  BitMatrix boundary(count, words * kWordBits);
  std::vector<std::int64_t> total_bytes(count);
  std::vector<std::int64_t> total_cost(count);
  std::vector<std::int64_t> frontier_bytes(count);  // the terms of the peak that depend on L' alone
  std::vector<Word> reached(words);
  std::vector<Word> feeding(words);
  for (std::size_t i = 0; i < count; ++i) {
    const Word* set = lower_sets.row(i);
    total_bytes[i] = sum(set, words, node_bytes);
    total_cost[i] = sum(set, words, node_cost);
    reached.assign(words, 0);
    for (std::size_t w = 0; w < words; ++w) {
      for_each_bit(set[w], w * kWordBits, [&](std::size_t v) {
        if (!is_subset(after.row(v), set, words)) set_bit(boundary.row(i), v);
        for (std::size_t x = 0; x < words; ++x) reached[x] |= after.row(v)[x] & ~set[x];
      });
    }
    feeding.assign(words, 0);
    for (std::size_t w = 0; w < words; ++w) {
      for_each_bit(reached[w], w * kWordBits, [&](std::size_t v) {
        for (std::size_t x = 0; x < words; ++x) feeding[x] |= before.row(v)[x] & ~set[x];
      });
    }
    frontier_bytes[i] = sum(reached.data(), words, node_bytes) + sum(feeding.data(), words, node_bytes);
  }

  std::vector<Edge> edges;
  for (std::size_t i = 0; i < count; ++i) {
    if (tick && i % 64 == 0) tick(static_cast<double>(i) / static_cast<double>(count));
    const Word* lower = lower_sets.row(i);
    for (std::size_t j = i + 1; j < count; ++j) {
      const Word* upper = lower_sets.row(j);
      if (!is_subset(lower, upper, words)) continue;
      std::int64_t cost = total_cost[j] - total_cost[i];
      std::int64_t cached = 0;
      for_each_difference(boundary.row(j), lower, words, [&](std::size_t v) {
        cost -= node_cost[v];
        cached += node_bytes[v];
      });
      if (zero_last && j + 1 == count) cost = 0;
      edges.push_back({static_cast<std::int32_t>(i), static_cast<std::int32_t>(j), 0, cost, cached,
                       2 * (total_bytes[j] - total_bytes[i]) + frontier_bytes[j]});
    }
  }
  return EdgeTable(count, std::move(edges));
}

}  // namespace memfit
