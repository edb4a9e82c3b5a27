#include "front.hpp"

namespace memfit {

MEMFIT_CLONES void relax_dense(std::int64_t* __restrict least, const std::int64_t* __restrict need,
                               std::size_t count, std::int64_t cached, std::int64_t peak) {
  for (std::size_t k = 0; k < count; ++k) {
    const std::int64_t on = cached + need[k];
    const std::int64_t value = on > peak ? on : peak;
    least[k] = least[k] < value ? least[k] : value;
  }
}

}  // namespace memfit
