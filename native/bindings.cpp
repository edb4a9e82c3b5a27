// The only file of the native core that knows Python. Bit sets cross as little-endian bytes, one
// fixed-width record each.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "canonical.hpp"
#include "canonical_dp.hpp"
#include "edge_table.hpp"
#include "lower_sets.hpp"
#include "stage.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using memfit::BitMatrix;
using memfit::EdgeTable;
using memfit::Lists;
using memfit::Word;
using Numbers = std::vector<std::int64_t>;
using Rows = std::vector<std::vector<std::int32_t>>;
using EdgeTuple = std::tuple<std::int32_t, std::int32_t, std::int32_t, std::int64_t, std::int64_t,
                             std::int64_t>;

BitMatrix read_masks(const nb::bytes& data, std::size_t rows, std::size_t bits) {
  BitMatrix matrix(rows, std::max<std::size_t>(1, bits));
  const std::size_t width = matrix.words() * sizeof(Word);
  if (data.size() != rows * width) throw std::invalid_argument("wrong length of bit sets");
  const auto* from = static_cast<const unsigned char*>(data.data());
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t i = 0; i < width; ++i) {
      matrix.row(r)[i / sizeof(Word)] |= Word{from[r * width + i]} << (i % sizeof(Word) * 8);
    }
  }
  return matrix;
}

nb::bytes write_masks(const BitMatrix& matrix) {
  const std::size_t width = matrix.words() * sizeof(Word);
  std::vector<unsigned char> data(matrix.rows() * width);
  for (std::size_t r = 0; r < matrix.rows(); ++r) {
    for (std::size_t i = 0; i < width; ++i) {
      data[r * width + i] =
          static_cast<unsigned char>(matrix.row(r)[i / sizeof(Word)] >> (i % sizeof(Word) * 8) & 0xFFU);
    }
  }
  return nb::bytes(data.data(), data.size());
}

// Called without the interpreter's lock: lets Ctrl-C through and reports progress.
memfit::Tick make_tick(const nb::object& progress) {
  return [progress](double share) {
    const nb::gil_scoped_acquire lock;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    if (!progress.is_none()) progress(share);
  };
}

std::optional<nb::bytes> enumerate_lower_sets(const Rows& predecessors, std::int64_t limit) {
  std::optional<BitMatrix> found;
  {
    const nb::gil_scoped_release release;
    found = memfit::enumerate_lower_sets(Lists(predecessors), static_cast<std::size_t>(std::max<std::int64_t>(0, limit)));
  }
  if (!found) return std::nullopt;
  return write_masks(*found);
}

memfit::CanonicalTable canonical_table(const Rows& predecessors, const Numbers& node_bytes,
                                       const Numbers& node_cost, const nb::bytes& lower_sets,
                                       std::size_t count, bool connected, std::size_t threads,
                                       const nb::object& progress) {
  BitMatrix sets = read_masks(lower_sets, count, predecessors.size());
  const memfit::Tick tick = make_tick(progress);
  const nb::gil_scoped_release release;
  const auto which = connected ? memfit::Stages::kConnected : memfit::Stages::kNested;
  return {memfit::CanonicalStages(Lists(predecessors), node_bytes, node_cost, std::move(sets), which),
          threads, tick};
}

std::optional<Numbers> canonical_shortest(const memfit::CanonicalTable& table,
                                          std::int64_t budget_bytes, bool longest) {
  const memfit::Tick tick = make_tick(nb::none());
  const nb::gil_scoped_release release;
  return table.shortest(budget_bytes, longest, tick);
}

EdgeTable stage_edges(const memfit::StageProblem& problem, std::size_t count, const nb::bytes& lower,
                      const nb::bytes& finished, Rows boundary, Rows needed_below,
                      Numbers base_bytes, std::size_t threads, const nb::object& progress) {
  const memfit::Cuts cuts{read_masks(lower, count, problem.forward_ops()),
                          read_masks(finished, count, problem.backward_ops()), std::move(boundary),
                          std::move(needed_below), std::move(base_bytes)};
  const memfit::Tick tick = make_tick(progress);
  const nb::gil_scoped_release release;
  return memfit::stage_edges(problem, cuts, threads, tick);
}

EdgeTable table_from_lists(std::int64_t states, const std::vector<std::int32_t>& sources,
                           const std::vector<std::int32_t>& targets,
                           const std::vector<std::int32_t>& variants, const Numbers& costs,
                           const Numbers& cached, const Numbers& peaks) {
  if (states < 1) throw std::invalid_argument("an edge table has at least one state");
  const std::size_t count = sources.size();
  if (targets.size() != count || variants.size() != count || costs.size() != count ||
      cached.size() != count || peaks.size() != count) {
    throw std::invalid_argument("the lists of an edge table must have equal lengths");
  }
  std::vector<memfit::Edge> edges;
  edges.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    edges.push_back({sources[i], targets[i], variants[i], costs[i], cached[i], peaks[i]});
  }
  return {static_cast<std::size_t>(states), std::move(edges)};
}

std::optional<Numbers> shortest(const EdgeTable& table, std::int64_t budget_bytes, bool longest,
                                std::int64_t quantum) {
  const memfit::Tick tick = make_tick(nb::none());
  const nb::gil_scoped_release release;
  return table.shortest(budget_bytes, longest, quantum, tick);
}

EdgeTuple edge(const EdgeTable& table, std::int64_t index) {
  if (index < 0) throw std::out_of_range("edge indices are not negative");
  const memfit::Edge& e = table.edge(static_cast<std::size_t>(index));
  return {e.source, e.target, e.variant, e.cost, e.cached_bytes, e.peak_bytes};
}

}  // namespace

NB_MODULE(_native, m) {
  // A table may well be alive when the interpreter ends, held by a caught error's traceback.
  nb::set_leak_warnings(false);
  m.doc() = "The native core of memfit; memfit._core wraps it.";
  m.attr("version") = MEMFIT_VERSION;
  m.attr("compiler") = MEMFIT_COMPILER;

  m.def("enumerate_lower_sets", &enumerate_lower_sets, "predecessors"_a, "limit"_a);
  m.def("canonical_table", &canonical_table, "predecessors"_a, "node_bytes"_a, "node_cost"_a,
        "lower_sets"_a, "count"_a, "connected"_a, "threads"_a, "progress"_a.none());
  m.def("stage_edges", &stage_edges, "problem"_a, "count"_a, "lower"_a, "finished"_a, "boundary"_a,
        "needed_below"_a, "base_bytes"_a, "threads"_a, "progress"_a.none());

  nb::class_<memfit::StageProblem>(m, "StageProblem")
      .def(nb::init<Numbers, const std::vector<bool>&, const Rows&, const Rows&, Numbers, Numbers,
                    const std::vector<bool>&, const Rows&, const Rows&, Numbers,
                    const std::vector<std::vector<bool>>&, std::int64_t, std::int64_t>(),
           "value_bytes"_a, "outlives"_a, "forward_inputs"_a, "forward_outputs"_a, "forward_cost"_a,
           "forward_workspace"_a, "forward_recomputable"_a, "backward_inputs"_a,
           "backward_outputs"_a, "backward_workspace"_a, "keep_flags"_a, "always_keep_bytes"_a,
           "auxiliary_share"_a);

  nb::class_<memfit::CanonicalTable>(m, "CanonicalTable")
      .def("curve", &memfit::CanonicalTable::curve, nb::call_guard<nb::gil_scoped_release>())
      .def("smallest_budget", &memfit::CanonicalTable::smallest_budget)
      .def("shortest", &canonical_shortest, "budget_bytes"_a, "longest"_a = false);

  nb::class_<EdgeTable>(m, "EdgeTable")
      .def_static("from_lists", &table_from_lists, "states"_a, "sources"_a, "targets"_a,
                  "variants"_a, "costs"_a, "cached"_a, "peaks"_a)
      .def("shortest", &shortest, "budget_bytes"_a, "longest"_a = false, "quantum"_a = 1)
      .def("smallest_budget", &EdgeTable::smallest_budget, nb::call_guard<nb::gil_scoped_release>())
      .def("edge", &edge, "index"_a)
      .def("__len__", &EdgeTable::size)
      .def_prop_ro("states", &EdgeTable::states);
}
