// What every fuzzing target needs: random choices, the rule on exceptions, and the list of targets.
//
// A target is one file: a function that makes one random input, calls the native core with it and
// checks what can be checked, and a `const Register` with its name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace memfit::fuzz {

// The same numbers on every platform, from a seed (splitmix64).
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31U);
  }
  // 0 … count - 1; count must not be 0.
  std::size_t below(std::size_t count) { return static_cast<std::size_t>(next() % count); }
  // low … high, both included.
  std::int64_t between(std::int64_t low, std::int64_t high) {
    const auto range = static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low);
    const std::uint64_t step = range + 1 == 0 ? next() : next() % (range + 1);
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(low) + step);
  }
  // True once in `times` on average.
  bool once_in(std::size_t times) { return below(times) == 0; }
  template <class T>
  T pick(std::initializer_list<T> from) {
    return from.begin()[below(from.size())];
  }
  template <class T>
  const T& pick(const std::vector<T>& from) {
    return from[below(from.size())];
  }

 private:
  std::uint64_t state_;
};

// A wrong answer. No std::exception, so that nothing takes it for a refusal.
struct WrongAnswer {
  std::string what;
};

inline void check(bool right, std::string_view what,
                  std::source_location where = std::source_location::current()) {
  if (right) return;
  throw WrongAnswer{std::string(where.file_name()) + ":" + std::to_string(where.line()) + ": " +
                    std::string(what)};
}

// Calls the core. False if it refuses its input, which it may do by std::invalid_argument and
// std::out_of_range alone; any other exception goes on and fails the case.
template <class Call>
bool accepts(Call&& call) {
  try {
    std::forward<Call>(call)();
    return true;
  } catch (const std::invalid_argument&) {
    return false;
  } catch (const std::out_of_range&) {
    return false;
  }
}

struct Target {
  const char* name;
  void (*run)(Random&);
};

inline std::vector<Target>& targets() {
  static std::vector<Target> all;
  return all;
}

struct Register {
  Register(const char* name, void (*run)(Random&)) { targets().push_back({name, run}); }
};

}  // namespace memfit::fuzz
