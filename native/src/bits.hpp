// Fixed-width bit sets, held together as the rows of one matrix.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace memfit {

using Word = std::uint64_t;
inline constexpr std::size_t kWordBits = 64;

[[nodiscard]] constexpr std::size_t words_for(std::size_t bits) {
  return (bits + kWordBits - 1) / kWordBits;
}

[[nodiscard]] inline bool test_bit(const Word* row, std::size_t bit) {
  return (row[bit / kWordBits] >> (bit % kWordBits) & 1U) != 0;
}

inline void set_bit(Word* row, std::size_t bit) { row[bit / kWordBits] |= Word{1} << (bit % kWordBits); }

// Calls visit(bit) for every set bit of `word`, ascending; `base` is the number of its lowest bit.
template <class Visit>
void for_each_bit(Word word, std::size_t base, Visit&& visit) {
  while (word != 0) {
    visit(base + static_cast<std::size_t>(std::countr_zero(word)));
    word &= word - 1;
  }
}

// Calls visit(bit) for every bit of upper that is not in lower, ascending.
template <class Visit>
void for_each_difference(const Word* upper, const Word* lower, std::size_t words, Visit&& visit) {
  for (std::size_t w = 0; w < words; ++w) for_each_bit(upper[w] & ~lower[w], w * kWordBits, visit);
}

[[nodiscard]] inline bool is_subset(const Word* a, const Word* b, std::size_t words) {
  for (std::size_t w = 0; w < words; ++w) {
    if ((a[w] & ~b[w]) != 0) return false;
  }
  return true;
}

[[nodiscard]] inline bool is_equal(const Word* a, const Word* b, std::size_t words) {
  for (std::size_t w = 0; w < words; ++w) {
    if (a[w] != b[w]) return false;
  }
  return true;
}

// Rows of `bits` bits each.
class BitMatrix {
 public:
  BitMatrix() = default;
  BitMatrix(std::size_t rows, std::size_t bits)
      : rows_(rows), words_(words_for(bits)), data_(rows * words_, 0) {}

  [[nodiscard]] std::size_t rows() const { return rows_; }
  [[nodiscard]] std::size_t words() const { return words_; }
  [[nodiscard]] Word* row(std::size_t r) { return data_.data() + r * words_; }
  [[nodiscard]] const Word* row(std::size_t r) const { return data_.data() + r * words_; }

 private:
  std::size_t rows_ = 0;
  std::size_t words_ = 0;
  std::vector<Word> data_;
};

// Lists of different lengths in one array.
class Lists {
 public:
  Lists() : start_(1, 0) {}
  explicit Lists(const std::vector<std::vector<std::int32_t>>& lists) : start_(1, 0) {
    for (const auto& list : lists) {
      items_.insert(items_.end(), list.begin(), list.end());
      start_.push_back(items_.size());
    }
  }

  struct View {
    const std::int32_t* first;
    const std::int32_t* last;
    [[nodiscard]] const std::int32_t* begin() const { return first; }
    [[nodiscard]] const std::int32_t* end() const { return last; }
    [[nodiscard]] bool empty() const { return first == last; }
  };

  [[nodiscard]] std::size_t size() const { return start_.size() - 1; }
  [[nodiscard]] View operator[](std::size_t i) const {
    return {items_.data() + start_[i], items_.data() + start_[i + 1]};
  }
  [[nodiscard]] View operator[](std::int32_t i) const { return (*this)[static_cast<std::size_t>(i)]; }

 private:
  std::vector<std::size_t> start_;
  std::vector<std::int32_t> items_;
};

}  // namespace memfit
