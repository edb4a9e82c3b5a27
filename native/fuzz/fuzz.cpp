// Fuzzes the native core: fuzz [--seed N] [--first N] [--cases N] [--seconds S] [--target NAME]
//
// Runs `cases` cases of each target, or as many as fit into `seconds`. A case follows from the seed,
// the target and its number alone; a failing one is named with the command that runs it again.
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "fuzz.hpp"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MEMFIT_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MEMFIT_SANITIZED 1
#endif
#endif

namespace {

using memfit::fuzz::Random;
using memfit::fuzz::Target;
using memfit::fuzz::targets;
using Clock = std::chrono::steady_clock;

constexpr int kHangSeconds = 60;

struct Options {
  std::uint64_t seed = 1;
  std::uint64_t first = 0;
  std::uint64_t cases = 1000;
  double seconds = 0;
  std::string target;
};

// The case that runs now, for the message when it takes the process down.
struct Running {
  std::atomic<const char*> target{nullptr};
  std::atomic<std::uint64_t> seed{0}, number{0}, started{0};
};
Running running;

void name_case() {
  const char* target = running.target;
  if (target == nullptr) return;
  std::fprintf(stderr, "failed: --target %s --seed %" PRIu64 " --first %" PRIu64 " --cases 1\n", target,
               running.seed.load(), running.number.load());
}

// Ends the process when one case takes far too long.
void watch_for_hangs() {
  std::thread([] {
    std::uint64_t seen = 0;
    auto since = Clock::now();
    for (;;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
      const std::uint64_t started = running.started;
      if (started != seen) {
        seen = started;
        since = Clock::now();
      } else if (Clock::now() - since > std::chrono::seconds(kHangSeconds)) {
        std::fprintf(stderr, "a case runs for more than %d seconds\n", kHangSeconds);
        name_case();
        std::_Exit(1);
      }
    }
  }).detach();
}

std::uint64_t case_seed(std::uint64_t seed, const char* target, std::uint64_t number) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char* c = target; *c != '\0'; ++c) hash = (hash ^ static_cast<unsigned char>(*c)) * 0x100000001b3U;
  return Random(Random(Random(seed).next() ^ hash).next() + number).next();
}

bool run_case(const Target& target, std::uint64_t seed, std::uint64_t number) {
  running.target = target.name;
  running.seed = seed;
  running.number = number;
  ++running.started;
  std::string what;
  try {
    Random random(case_seed(seed, target.name, number));
    target.run(random);
    return true;
  } catch (const memfit::fuzz::WrongAnswer& wrong) {
    what = wrong.what;
  } catch (const std::exception& error) {
    what = std::string("unexpected exception: ") + error.what();
  } catch (...) {
    what = "unexpected exception of unknown type";
  }
  std::fprintf(stderr, "%s\n", what.c_str());
  name_case();
  return false;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view name = argv[i];
    if (i + 1 == argc) {
      std::fprintf(stderr, "%s needs a value\n", argv[i]);
      std::exit(2);
    }
    const char* value = argv[i + 1];
    if (name == "--seed") {
      options.seed = std::strtoull(value, nullptr, 10);
    } else if (name == "--first") {
      options.first = std::strtoull(value, nullptr, 10);
    } else if (name == "--cases") {
      options.cases = std::strtoull(value, nullptr, 10);
    } else if (name == "--seconds") {
      options.seconds = std::strtod(value, nullptr);
    } else if (name == "--target") {
      options.target = value;
    } else {
      std::fprintf(stderr, "unknown option %s\n", argv[i]);
      std::exit(2);
    }
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  std::vector<Target> chosen;
  for (const Target& target : targets()) {
    if (options.target.empty() || options.target == target.name) chosen.push_back(target);
  }
  if (chosen.empty()) {
    std::fprintf(stderr, "no target is called %s; there are:", options.target.c_str());
    for (const Target& target : targets()) std::fprintf(stderr, " %s", target.name);
    std::fprintf(stderr, "\n");
    return 2;
  }
  std::sort(chosen.begin(), chosen.end(),
            [](const Target& a, const Target& b) { return std::strcmp(a.name, b.name) < 0; });
#ifdef MEMFIT_SANITIZED
  __sanitizer_set_death_callback(name_case);
#endif
  watch_for_hangs();

  // Targets take turns, so that a run by time gives each the same number of cases.
  std::vector<double> spent(chosen.size(), 0.0), longest(chosen.size(), 0.0);
  const auto begin = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  std::uint64_t done = 0;
  for (; options.seconds > 0 ? elapsed() < options.seconds : done < options.cases; ++done) {
    for (std::size_t t = 0; t < chosen.size(); ++t) {
      const double before = elapsed();
      if (!run_case(chosen[t], options.seed, options.first + done)) return 1;
      const double taken = elapsed() - before;
      spent[t] += taken;
      longest[t] = std::max(longest[t], taken);
    }
  }
  for (std::size_t t = 0; t < chosen.size(); ++t) {
    std::printf("%s: %" PRIu64 " cases, %.1f s, the longest %.2f s\n", chosen[t].name, done, spent[t],
                longest[t]);
  }
  return 0;
}

#ifdef MEMFIT_SANITIZED
// Aborts are reported with a stack and the case; memory asked for beyond all reason fails as it does
// without a sanitizer, by std::bad_alloc.
extern "C" const char* __asan_default_options() { return "handle_abort=1:allocator_may_return_null=1"; }
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1:abort_on_error=1"; }
#endif
