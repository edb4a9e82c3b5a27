#include "team.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace memfit {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kBetween = std::chrono::milliseconds(50);
constexpr std::size_t kMaxThreads = 64;

}  // namespace

std::size_t thread_count(std::size_t wanted) {
  if (wanted == 0) wanted = std::max(1U, std::thread::hardware_concurrency());
  return std::clamp<std::size_t>(wanted, 1, kMaxThreads);
}

struct Team::State {
  std::vector<std::thread> helpers;
  std::mutex mutex;
  std::condition_variable begin, done;
  std::uint64_t round = 0;
  std::size_t running = 0;
  bool quit = false;

  const Body* body = nullptr;
  std::size_t count = 0;
  std::atomic<std::size_t> next{0};
  std::atomic<bool> stop{false};
  std::exception_ptr error;
  Clock::time_point last = Clock::now();  // when the caller was last given a turn

  void fail() {
    const std::lock_guard lock(mutex);
    if (!error) error = std::current_exception();
    stop = true;
  }

  // Works until no items are left; `pause` is called after each one.
  template <class Pause>
  void work(std::size_t worker, Pause&& pause) {
    try {
      for (std::size_t i = next++; i < count && !stop; i = next++) {
        (*body)(i, worker);
        pause();
      }
    } catch (...) {
      fail();
    }
  }

  void help(std::size_t worker) {
    std::uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock lock(mutex);
        begin.wait(lock, [&] { return quit || round != seen; });
        if (quit) return;
        seen = round;
      }
      work(worker, [] {});
      const std::lock_guard lock(mutex);
      if (--running == 0) done.notify_all();
    }
  }
};

Team::Team(std::size_t threads) : state_(std::make_unique<State>()) {
  for (std::size_t w = 1; w < threads; ++w) {
    state_->helpers.emplace_back([state = state_.get(), w] { state->help(w); });
  }
}

Team::~Team() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->quit = true;
  }
  state_->begin.notify_all();
  for (auto& helper : state_->helpers) helper.join();
}

std::size_t Team::threads() const { return state_->helpers.size() + 1; }

// Many short rounds in a row count as one long one.
void Team::pause(const std::function<void()>& between) {
  if (!between || Clock::now() - state_->last < kBetween) return;
  between();
  state_->last = Clock::now();
}

void Team::run(std::size_t count, const Body& body, const std::function<void()>& between) {
  State& s = *state_;
  s.body = &body;
  s.count = count;
  s.next = 0;
  s.stop = false;
  s.error = nullptr;
  const bool share = !s.helpers.empty() && count > 1;
  if (share) {
    {
      const std::lock_guard lock(s.mutex);
      s.running = s.helpers.size();
      ++s.round;
    }
    s.begin.notify_all();
  }
  s.work(0, [&] { pause(between); });
  if (share) {
    std::unique_lock lock(s.mutex);
    while (!s.done.wait_for(lock, kBetween, [&] { return s.running == 0; })) {
      if (s.stop || !between) continue;
      lock.unlock();
      try {
        between();
      } catch (...) {
        s.fail();
      }
      lock.lock();
    }
  }
  if (s.error) std::rethrow_exception(s.error);
}

}  // namespace memfit
