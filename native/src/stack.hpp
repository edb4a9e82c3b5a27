// The lower pieces of a stage over several blocks; see Stack in memfit/_core/reference/stage_dp.py.
#pragma once

#include <algorithm>
#include <cstdint>

#include "front.hpp"
#include "stage.hpp"

namespace memfit {

struct Stack {
  std::int64_t cost = 0;
  std::int64_t cached_bytes = 0;
  std::int64_t forward_bytes = 0;
  std::int64_t standing_bytes = 0;
  std::int64_t beside_top = 0;
  std::int64_t pass_top = kNothing;
  std::int64_t settled = kNothing;
  std::int64_t group = kNothing;
  std::int64_t group_start = 0;
  std::int64_t group_standing = 0;
  bool asks = false;
  bool group_of_top = true;

  // The stack with one more piece below it; `piece` is passed where the stack asks.
  [[nodiscard]] Stack below(const PieceCost& piece, std::int64_t base_bytes) const {
    Stack grown = *this;
    grown.cost += piece.cost;
    grown.cached_bytes += piece.cached_bytes;
    grown.forward_bytes = std::max(piece.forward_bytes, piece.cached_bytes + forward_bytes);
    grown.asks = piece.asks;
    grown.standing_bytes += piece.standing_bytes;
    if (piece.passed) {
      grown.join(piece);
    } else {
      grown.stand_apart(piece.standing_bytes);
    }
    const std::int64_t own = piece.backward_bytes + base_bytes;
    if (piece.joins) {
      grown.group = std::max(grown.group, own);
      return grown;
    }
    grown.settled = std::max({grown.settled, grown.group, more(piece.before_bytes, base_bytes)});
    grown.group = own;
    grown.group_start = piece.start_bytes + base_bytes;
    grown.group_standing = 0;
    grown.group_of_top = false;
    return grown;
  }

  [[nodiscard]] Step stage(const PieceCost& top, std::int64_t base_bytes) const {
    const std::int64_t backward =
        std::max({settled, group, top.before_bytes + base_bytes + standing_bytes,
                  top.backward_bytes + base_bytes + beside_top,
                  top.start_bytes + base_bytes + pass_top});
    return {cost + top.cost, cached_bytes + top.cached_bytes,
            std::max({backward, forward_bytes, cached_bytes + top.forward_bytes})};
  }

 private:
  // A piece below that is computed again when its own turn comes.
  void stand_apart(std::int64_t standing) {
    beside_top += standing;
    pass_top = more(pass_top, standing);
    settled = more(settled, standing);
    group = more(group, standing);
  }

  // A piece below that is computed again with the lowest group.
  void join(const PieceCost& piece) {
    const std::int64_t first = piece.pass_bytes + group_standing;
    settled = more(settled, piece.standing_bytes);
    group = more(group, piece.held_bytes);
    group_standing += piece.standing_bytes;
    if (group_of_top) {
      beside_top += piece.held_bytes;
      pass_top = std::max(more(pass_top, piece.held_bytes), first);
    } else {
      beside_top += piece.standing_bytes;
      pass_top = more(pass_top, piece.standing_bytes);
      group = std::max(group, group_start + first);
    }
  }

  static std::int64_t more(std::int64_t amount, std::int64_t by) {
    return amount <= kNothing ? amount : amount + by;
  }
};

}  // namespace memfit
