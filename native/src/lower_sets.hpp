// Enumeration of the lower sets of an acyclic graph.
#pragma once

#include <cstddef>
#include <optional>

#include "bits.hpp"

namespace memfit {

// All lower sets, the empty and the full one included, ordered by size and then by bit mask.
// Nothing if there are more than `limit`; that is found out after at most limit + 1 of them.
[[nodiscard]] std::optional<BitMatrix> enumerate_lower_sets(const Lists& predecessors,
                                                            std::size_t limit);

}  // namespace memfit
