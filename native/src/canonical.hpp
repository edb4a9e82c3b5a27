// The stages of canonical strategies under the formulas of Kusumoto et al. 2019, section 3.
#pragma once

#include <cstdint>
#include <vector>

#include "bits.hpp"
#include "edge_table.hpp"

namespace memfit {

// One edge for each pair L < L' of `lower_sets`, which must be sorted by size. With V' = L' \ L:
// cost T(V' \ boundary(L')), cached bytes M(boundary(L') \ L), peak
// 2 M(V') + M(d+(L') \ L') + M(d-(d+(L')) \ L'). With `zero_last`, stages that end in the last lower
// set cost nothing.
[[nodiscard]] EdgeTable canonical_edges(const Lists& predecessors,
                                        const std::vector<std::int64_t>& node_bytes,
                                        const std::vector<std::int64_t>& node_cost,
                                        const BitMatrix& lower_sets, bool zero_last,
                                        const Tick& tick);

}  // namespace memfit
