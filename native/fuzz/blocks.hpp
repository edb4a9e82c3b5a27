// Random blocks of training graphs, and their cuts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "inputs.hpp"
#include "stage.hpp"

namespace memfit::fuzz {

struct RandomBlock {
  StageLists lists;
  Cuts cuts;
};

// A sound block of `ops` forward ops with some of its cuts: values from below and for above, several
// outputs, gradients that add up, forward outputs, parameter gradients, ops that must not run again.
RandomBlock random_block(Random& random, std::size_t ops, std::size_t variants);

// Makes the lists unsound, or at least unusual, in one place. True if they must be refused.
bool spoil_lists(Random& random, StageLists& lists);

// Sizes and cuts close to the largest numbers that may be accepted, and the same values named again
// and again.
void strain(Random& random, RandomBlock& block);

// As spoil_lists, for the cuts of a block of `values` values.
bool spoil_cuts(Random& random, Cuts& cuts, std::size_t values);

}  // namespace memfit::fuzz
