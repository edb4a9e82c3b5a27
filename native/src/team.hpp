// Threads that share out numbered items.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace memfit {

// Called now and then, from the calling thread, with the share done; an exception that it throws
// stops the computation.
using Tick = std::function<void(double)>;

// The number of threads to use where `wanted` are asked for; 0 means one for each CPU core.
[[nodiscard]] std::size_t thread_count(std::size_t wanted);

// A fixed number of threads, the calling one among them.
class Team {
 public:
  using Body = std::function<void(std::size_t item, std::size_t worker)>;

  explicit Team(std::size_t threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  [[nodiscard]] std::size_t threads() const;

  // Calls body(item, worker) once for each item below `count`, items in ascending order, and returns
  // when all are done. `between` is called from the calling thread every 50 ms or so. The first
  // exception of any of them stops the rest and is thrown again.
  void run(std::size_t count, const Body& body, const std::function<void()>& between);

  // Calls `between` if 50 ms have passed since it was last called; for work outside of `run`.
  void pause(const std::function<void()>& between);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace memfit
