#include "canonical_dp.hpp"

#include <algorithm>
#include <utility>

namespace memfit {
namespace {

// Dense fronts take 8 bytes a cost step; this many steps over all states bound them to 256 MiB.
constexpr std::size_t kDenseSteps = std::size_t{1} << 25;
constexpr std::size_t kStatesPerTick = 64;

std::size_t dense_costs(const CanonicalStages& stages) {
  const auto range = static_cast<std::size_t>(stages.total_cost()) + 1;
  return range <= kDenseSteps / stages.states() ? range : 0;
}

}  // namespace

CanonicalTable::CanonicalTable(CanonicalStages stages, std::size_t threads, const Tick& tick)
    : stages_(std::move(stages)), fronts_(states()) {
  const std::size_t count = states();
  Team team(thread_count(threads));
  struct Worker {
    FrontBuilder builder;
    CanonicalStages::Scratch scratch;
  };
  std::vector<Worker> workers(team.threads(), Worker{FrontBuilder(dense_costs(stages_)), {}});
  fronts_.back() = workers[0].builder.last();

  const auto solve = [&](std::size_t i, Worker& worker) {
    stages_.for_each_target(i, worker.scratch, [&](std::size_t j) {
      const Step step = stages_.step(i, j);
      // What a stage to j costs beyond its boundary, one to a superset of j costs too.
      const std::int64_t cost = step.cost + stages_.least_cost(j);
      if (worker.builder.beats(cost, stages_.floor_bytes(i, j))) return false;
      if (!worker.builder.beats(cost, step.peak_bytes)) worker.builder.add(step, fronts_[j]);
      return true;
    });
    fronts_[i] = worker.builder.take();
  };
  // Lower sets of one size do not hold one another.
  for (std::size_t end = count - 1; end > 0;) {
    std::size_t begin = end - 1;
    while (begin > 0 && stages_.nodes_in(begin - 1) == stages_.nodes_in(end - 1)) --begin;
    const auto between = [&] {
      if (tick) tick(1.0 - static_cast<double>(end) / static_cast<double>(count));
    };
    team.run(end - begin, [&](std::size_t k, std::size_t w) { solve(end - 1 - k, workers[w]); },
             between);
    end = begin;
  }
}

std::vector<std::pair<std::int64_t, std::int64_t>> CanonicalTable::curve() const {
  auto points = fronts_.front().points();
  for (auto& point : points) point.second = std::max<std::int64_t>(0, point.second);
  return points;
}

std::int64_t CanonicalTable::smallest_budget() const {
  return std::max<std::int64_t>(0, fronts_.front().least_need());
}

// A search forwards from the empty set among labels that are known to lead to the best path.
class CanonicalTable::Search {
 public:
  Search(const CanonicalTable& table, std::int64_t budget_bytes, const Tick& tick)
      : table_(table), stages_(table.stages_), budget_(budget_bytes), tick_(tick), labels_(table.states()) {}

  std::vector<std::int64_t> least_cost() {
    const std::int64_t total = table_.fronts_.front().cost_within(budget_);
    const auto leads_on = [&](std::size_t j, std::int64_t cost, std::int64_t cached) {
      return table_.fronts_[j].need_at(total - cost) <= budget_ - cached;
    };
    run(leads_on, total, [](std::vector<Label>& labels, const Label& label) {
      // Among labels that all lead to the least cost, only those of equal cost compete.
      const auto at = std::lower_bound(labels.begin(), labels.end(), label, cheaper);
      if (at == labels.end() || at->cost != label.cost) {
        labels.insert(at, label);
      } else if (label.cached < at->cached) {
        *at = label;
      }
    });
    return trace();
  }

  std::vector<std::int64_t> least_cached() {
    const std::int64_t total = least_cached_within();
    const auto leads_on = [&](std::size_t j, std::int64_t, std::int64_t cached) {
      return cached <= total && table_.fronts_[j].least_need() <= budget_ - cached;
    };
    run(leads_on, kNever, [](std::vector<Label>& labels, const Label& label) {
      const auto at = std::lower_bound(labels.begin(), labels.end(), label, cheaper);
      if (at != labels.begin() && std::prev(at)->cached <= label.cached) return;
      if (at != labels.end() && at->cost == label.cost && at->cached <= label.cached) return;
      auto end = at;
      while (end != labels.end() && end->cached >= label.cached) ++end;
      labels.insert(labels.erase(at, end), label);
    });
    return trace();
  }

 private:
  // A way to reach a state.
  struct Label {
    std::int64_t cost;
    std::int64_t cached;
    std::size_t source;
    std::size_t previous;  // label at the source
  };
  static bool cheaper(const Label& a, const Label& b) { return a.cost < b.cost; }

  const CanonicalTable& table_;
  const CanonicalStages& stages_;
  const std::int64_t budget_;
  const Tick& tick_;
  std::vector<std::vector<Label>> labels_;
  CanonicalStages::Scratch scratch_;

  void pause(std::size_t state) const {
    if (tick_ && state % kStatesPerTick == 0) {
      tick_(static_cast<double>(state) / static_cast<double>(table_.states()));
    }
  }

  template <class LeadsOn, class Insert>
  void run(const LeadsOn& leads_on, std::int64_t dearest, const Insert& insert) {
    labels_[0].push_back({0, 0, 0, 0});
    for (std::size_t i = 0; i + 1 < table_.states(); ++i) {
      pause(i);
      if (labels_[i].empty()) continue;
      std::int64_t room = kNothing;
      for (const Label& label : labels_[i]) room = std::max(room, budget_ - label.cached);
      stages_.for_each_target(i, scratch_, [&](std::size_t j) {
        if (stages_.floor_bytes(i, j) > room) return false;
        const Step step = stages_.step(i, j);
        if (step.cost + stages_.least_cost(j) > dearest - labels_[i].front().cost) return false;
        for (std::size_t k = 0; k < labels_[i].size(); ++k) {
          const Label& from = labels_[i][k];
          const Label to{from.cost + step.cost, from.cached + step.cached_bytes, i, k};
          if (step.peak_bytes <= budget_ - from.cached && leads_on(j, to.cost, to.cached)) {
            insert(labels_[j], to);
          }
        }
        return true;
      });
    }
  }

  // The least bytes cached at V within the budget.
  std::int64_t least_cached_within() {
    std::vector<std::int64_t> least(table_.states(), kNever);
    least[0] = 0;
    for (std::size_t i = 0; i + 1 < table_.states(); ++i) {
      pause(i);
      // From any state one may go on straight to V, which caches nothing more.
      if (least[i] >= least.back()) continue;
      const std::int64_t room = budget_ - least[i];
      stages_.for_each_target(i, scratch_, [&](std::size_t j) {
        if (stages_.floor_bytes(i, j) > room) return false;
        const Step step = stages_.step(i, j);
        const std::int64_t cached = least[i] + step.cached_bytes;
        if (step.peak_bytes <= room && table_.fronts_[j].least_need() <= budget_ - cached) {
          least[j] = std::min(least[j], cached);
        }
        return true;
      });
    }
    return least.back();
  }

  [[nodiscard]] std::vector<std::int64_t> trace() const {
    std::vector<std::int64_t> path;
    std::size_t state = table_.states() - 1;
    std::size_t k = 0;
    while (state != 0) {
      path.push_back(static_cast<std::int64_t>(state));
      const Label& label = labels_[state].at(k);
      state = label.source;
      k = label.previous;
    }
    std::reverse(path.begin(), path.end());
    return path;
  }
};

std::optional<std::vector<std::int64_t>> CanonicalTable::shortest(std::int64_t budget_bytes,
                                                                  bool longest,
                                                                  const Tick& tick) const {
  if (states() > 1 && (budget_bytes < 0 || smallest_budget() > budget_bytes)) return std::nullopt;
  if (states() == 1) return std::vector<std::int64_t>{};
  // The bound keeps sums from overflowing; all budgets beyond it are alike.
  Search search(*this, std::min(budget_bytes, kNever), tick);
  return longest ? search.least_cached() : search.least_cost();
}

}  // namespace memfit
