// Threads that share out items: each item once, and no exception lost.
#include "team.hpp"

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "fuzz.hpp"

namespace memfit::fuzz {
namespace {

struct Stop {};

void one_round(Random& random, Team& team) {
  const std::size_t count = random.pick<std::size_t>({0, 1, 2, 3, 63, 64, 65, 500});
  const std::size_t failing = random.once_in(2) ? random.below(count + 1) : count;
  const bool slow = random.once_in(200);  // so slow that `between` is called
  const bool stops = random.once_in(2);
  const auto done = std::make_unique<std::atomic<int>[]>(count);
  std::atomic<bool> stranger{false};
  bool failed = false;
  bool paused = false;
  const auto between = [&] {
    paused = true;
    if (stops) throw Stop{};
  };
  try {
    team.run(
        count,
        [&](std::size_t item, std::size_t worker) {
          if (worker >= team.threads() || item >= count) {
            stranger = true;
            return;
          }
          ++done[item];
          if (slow && item < 4) std::this_thread::sleep_for(std::chrono::milliseconds(60));
          if (item == failing) throw Stop{};
        },
        between);
  } catch (const Stop&) {
    failed = true;
  }
  check(!stranger, "an item or a worker that is not there");
  check(failed == (failing < count || (paused && stops)),
        "an exception is lost or made up");
  for (std::size_t i = 0; i < count; ++i) {
    check(done[i] <= 1, "an item runs twice");
    check(failed || done[i] == 1, "an item is left out");
  }
}

void run(Random& random) {
  check(thread_count(0) >= 1, "no thread");
  check(thread_count(static_cast<std::size_t>(random.next() >> random.below(64))) >= 1, "no thread");
  Team team(1 + random.below(4));
  for (std::size_t rounds = 1 + random.below(4); rounds > 0; --rounds) one_round(random, team);
}

const Register registered("team", &run);

}  // namespace
}  // namespace memfit::fuzz
