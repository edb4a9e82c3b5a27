#include "canonical.hpp"

#include <bit>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

namespace memfit {
namespace {

constexpr std::int64_t kLimit = std::int64_t{1} << 60;
constexpr std::size_t kSetsPerTick = 256;

void check_sum(const std::vector<std::int64_t>& numbers, const char* what) {
  std::int64_t total = 0;
  for (const std::int64_t x : numbers) {
    if (x < 0 || x >= kLimit - total) {
      throw std::invalid_argument(std::string(what) + " must be 0 or more and add up below 2**60");
    }
    total += x;
  }
}

std::size_t count_bits(const Word* set, std::size_t words) {
  std::size_t count = 0;
  for (std::size_t w = 0; w < words; ++w) count += static_cast<std::size_t>(std::popcount(set[w]));
  return count;
}

std::int64_t weigh(const Word* set, std::size_t words, const std::vector<std::int64_t>& of) {
  std::int64_t total = 0;
  for (std::size_t w = 0; w < words; ++w) {
    for_each_bit(set[w], w * kWordBits, [&](std::size_t v) { total += of[v]; });
  }
  return total;
}

// The words from the first that is not `common` to the last that is not 0.
CanonicalStages::Span span_between(const Word* set, std::size_t words, Word common) {
  std::size_t begin = 0;
  while (begin < words && set[begin] == common) ++begin;
  std::size_t end = words;
  while (end > 0 && set[end - 1] == 0) --end;
  return {begin, end};
}

struct SetHash {
  std::size_t words;
  std::size_t operator()(const Word* set) const {
    Word hash = 0;
    for (std::size_t w = 0; w < words; ++w) {
      hash = (hash ^ set[w]) * 0x9e3779b97f4a7c15U;
      hash ^= hash >> 29U;
    }
    return hash;
  }
};

struct SetEqual {
  std::size_t words;
  bool operator()(const Word* a, const Word* b) const { return is_equal(a, b, words); }
};

}  // namespace

CanonicalStages::CanonicalStages(const Lists& predecessors,
                                 const std::vector<std::int64_t>& node_bytes,
                                 const std::vector<std::int64_t>& node_cost, BitMatrix lower_sets,
                                 Stages which, const Tick& tick)
    : node_bytes_(node_bytes), node_cost_(node_cost), sets_(std::move(lower_sets)), which_(which) {
  const std::size_t nodes = predecessors.size();
  const std::size_t words = sets_.words();
  const std::size_t count = sets_.rows();
  if (node_bytes.size() != nodes || node_cost.size() != nodes) {
    throw std::invalid_argument("node_bytes and node_cost must have one number for each node");
  }
  check_sum(node_bytes, "sizes in bytes");
  check_sum(node_cost, "costs");
  if (count == 0 || words != std::max<std::size_t>(1, words_for(nodes))) {
    throw std::invalid_argument("there must be lower sets, as wide as the graph has nodes");
  }

  BitMatrix before(nodes, words * kWordBits);
  BitMatrix after(nodes, words * kWordBits);
  std::vector<std::vector<std::int32_t>> successors(nodes);
  for (std::size_t v = 0; v < nodes; ++v) {
    predecessors_.emplace_back(predecessors[v].begin(), predecessors[v].end());
    for (const std::int32_t p : predecessors[v]) {
      if (p < 0 || static_cast<std::size_t>(p) >= v) {
        throw std::invalid_argument("a predecessor does not come before its node");
      }
      set_bit(before.row(v), static_cast<std::size_t>(p));
      set_bit(after.row(static_cast<std::size_t>(p)), v);
      successors[static_cast<std::size_t>(p)].push_back(static_cast<std::int32_t>(v));
    }
  }

  std::int64_t unread_cost = 0;
  for (std::size_t v = 0; v < nodes; ++v) unread_cost += successors[v].empty() ? node_cost_[v] : 0;
  boundary_ = BitMatrix(count, words * kWordBits);
  std::vector<Word> reached(words);
  std::vector<Word> feeding(words);
  const auto holds_all = [](const Word* set, const std::vector<std::int32_t>& nodes_of) {
    return std::all_of(nodes_of.begin(), nodes_of.end(),
                       [&](std::int32_t v) { return test_bit(set, static_cast<std::size_t>(v)); });
  };
  for (std::size_t i = 0; i < count; ++i) {
    if (tick && i % kSetsPerTick == 0) tick(0.0);
    const Word* set = sets_.row(i);
    nodes_in_.push_back(count_bits(set, words));
    least_cost_.push_back(unread_cost);
    if (i > 0 && nodes_in_[i] < nodes_in_[i - 1]) {
      throw std::invalid_argument("lower sets must be sorted by size");
    }
    std::fill(reached.begin(), reached.end(), 0);
    std::fill(feeding.begin(), feeding.end(), 0);
    for (std::size_t w = 0; w < words; ++w) {
      for_each_bit(set[w], w * kWordBits, [&](std::size_t v) {
        if (v >= nodes || !holds_all(set, predecessors_[v])) {
          throw std::invalid_argument("a set of nodes is no lower set");
        }
        if (successors[v].empty()) least_cost_[i] -= node_cost_[v];
        if (holds_all(set, successors[v])) return;
        set_bit(boundary_.row(i), v);
        for (std::size_t x = 0; x < words; ++x) reached[x] |= after.row(v)[x] & ~set[x];
      });
    }
    for (std::size_t w = 0; w < words; ++w) {
      for_each_bit(reached[w], w * kWordBits, [&](std::size_t v) {
        for (std::size_t x = 0; x < words; ++x) feeding[x] |= before.row(v)[x] & ~set[x];
      });
    }
    boundary_span_.push_back(span_between(boundary_.row(i), words, 0));
    set_span_.push_back(span_between(set, words, ~Word{0}));
    total_bytes_.push_back(weigh(set, words, node_bytes_));
    total_cost_.push_back(weigh(set, words, node_cost_));
    boundary_bytes_.push_back(weigh(boundary_.row(i), words, node_bytes_));
    boundary_cost_.push_back(weigh(boundary_.row(i), words, node_cost_));
    frontier_bytes_.push_back(weigh(reached.data(), words, node_bytes_) +
                              weigh(feeding.data(), words, node_bytes_));
  }
  if (nodes_in_.front() != 0 || nodes_in_.back() != nodes) {
    throw std::invalid_argument("the lower sets must begin with the empty set and end with all nodes");
  }
  if (which_ == Stages::kConnected) list_growths(before, after, tick);
}

void CanonicalStages::list_growths(const BitMatrix& before, const BitMatrix& after, const Tick& tick) {
  const std::size_t words = sets_.words();
  const std::size_t nodes = predecessors_.size();
  BitMatrix needed(nodes, words * kWordBits);  // each node with all its ancestors
  for (std::size_t v = 0; v < nodes; ++v) {
    set_bit(needed.row(v), v);
    for (const std::int32_t p : predecessors_[v]) {
      const Word* more = needed.row(static_cast<std::size_t>(p));
      for (std::size_t w = 0; w < words; ++w) needed.row(v)[w] |= more[w];
    }
  }
  std::unordered_map<const Word*, std::int32_t, SetHash, SetEqual> number(
      2 * states(), SetHash{words}, SetEqual{words});
  for (std::size_t i = 0; i < states(); ++i) {
    if (!number.emplace(sets_.row(i), static_cast<std::int32_t>(i)).second) {
      throw std::invalid_argument("a lower set occurs twice");
    }
  }
  std::vector<Word> sources(words);
  for (std::size_t v = 0; v < nodes; ++v) {
    if (predecessors_[v].empty()) set_bit(sources.data(), v);
  }
  std::vector<Word> next(words);
  std::vector<Word> larger(words);
  growth_start_.push_back(0);
  for (std::size_t i = 0; i < states(); ++i) {
    if (tick && i % kSetsPerTick == 0) tick(0.0);
    const Word* set = sets_.row(i);
    for (std::size_t w = 0; w < words; ++w) next[w] = sources[w] & ~set[w];
    for (std::size_t w = 0; w < words; ++w) {
      for_each_bit(boundary_.row(i)[w], w * kWordBits, [&](std::size_t v) {
        for (std::size_t x = 0; x < words; ++x) next[x] |= after.row(v)[x] & ~set[x];
      });
    }
    for (std::size_t w = 0; w < words; ++w) {
      for_each_bit(next[w], w * kWordBits, [&](std::size_t v) {
        for (std::size_t x = 0; x < words; ++x) larger[x] = set[x] | needed.row(v)[x];
        const auto found = number.find(larger.data());
        if (found == number.end()) {
          throw std::invalid_argument("connected stages need the family of all lower sets");
        }
        growth_.push_back({static_cast<std::int32_t>(v), found->second,
                           is_subset(before.row(v), set, words)});
      });
    }
    growth_start_.push_back(growth_.size());
  }
}

}  // namespace memfit
