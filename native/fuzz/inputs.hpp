// Random inputs, sound and unsound ones, and slow but plain ways to the same answers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bits.hpp"
#include "fuzz.hpp"

namespace memfit::fuzz {

using Numbers = std::vector<std::int64_t>;
using Rows = std::vector<std::vector<std::int32_t>>;
using Mask = std::uint64_t;

// A number of nodes or rows: mostly few, often at a word's boundary, sometimes hundreds; at most
// `most`.
std::size_t random_count(Random& random, std::size_t most);

// An acyclic graph with its nodes in topological order: chains, parallel chains, no edges at all,
// sparse, dense, with repeated edges, in separate parts.
Rows random_graph(Random& random, std::size_t nodes);

// Makes the graph unsound: loops, cycles, nodes that are not there. False if it has no nodes.
bool spoil_graph(Random& random, Rows& predecessors);

// All zero, all equal, small, up to 10**12, of very different sizes, or one large one; none negative;
// the sum is at most 2**58.
Numbers random_numbers(Random& random, std::size_t count);

// Replaces a number by a negative one or one near 2**63, makes some so large that their sum
// overflows, or all together just too large, or not quite.
void spoil_numbers(Random& random, Numbers& numbers);

// One as large as fits below 2**60, 2**61 or 2**62 together with the others.
void strain_numbers(Random& random, Numbers& numbers);

// Any 64-bit number, mostly near a limit.
std::int64_t wild_number(Random& random);

// A list made shorter or longer.
template <class List>
void spoil_length(Random& random, List& list) {
  const std::size_t before = list.size();
  list.resize(random.pick<std::size_t>({0, before / 2, before + 1, before + 64, 2 * before}));
  if (list.size() == before) list.emplace_back();
}

// All lower sets of a graph of few nodes, by size and then by mask; by trying every subset.
std::vector<Mask> all_lower_sets(const Rows& predecessors);
bool is_lower_set(const Rows& predecessors, Mask set);

// Sets of up to 64 nodes as rows of bits.
BitMatrix rows_of(const std::vector<Mask>& sets, std::size_t nodes);

// Prefixes of the topological order and the ancestors of some nodes, by size: lower sets of a graph
// of any size, the empty set first, V last, none twice; 2 + 3 * `most` at most.
BitMatrix some_lower_sets(Random& random, const Rows& predecessors, std::size_t most = 24);

// Whether a family is what a canonical strategy can be made of: lower sets by size, as wide as the
// graph, the empty set first and V last.
bool is_family(const Rows& predecessors, const BitMatrix& sets);

// Sorts bit sets by size and then by mask and drops those that occur twice.
BitMatrix sorted_sets(const BitMatrix& sets);

// Makes a family unsound, or at least unusual: no sets, another order, repeated sets, random bits
// (also beyond the last node), other widths.
void spoil_sets(Random& random, BitMatrix& sets);

}  // namespace memfit::fuzz
