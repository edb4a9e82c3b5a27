// Enumeration of the lower sets of an acyclic graph.
#pragma once

#include <cstddef>
#include <optional>

#include "bits.hpp"

namespace memfit {

// All lower sets, the empty and the full one included, ordered by size and then by bit mask.
// Nothing if there are more than `limit`, which is found out after limit + 1 of them. Throws
// std::invalid_argument where a predecessor is not smaller than its node.
[[nodiscard]] std::optional<BitMatrix> enumerate_lower_sets(const Lists& predecessors,
                                                            std::size_t limit);

}  // namespace memfit
