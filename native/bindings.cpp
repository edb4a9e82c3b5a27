// The only file of the native core that knows Python. Bit sets cross as little-endian bytes, one
// fixed-width record each.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "canonical.hpp"
#include "canonical_dp.hpp"
#include "chain.hpp"
#include "lower_sets.hpp"
#include "nested.hpp"
#include "stage.hpp"
#include "stage_dp.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using memfit::BitMatrix;
using memfit::Lists;
using memfit::Word;
using Numbers = std::vector<std::int64_t>;
using Rows = std::vector<std::vector<std::int32_t>>;

BitMatrix read_masks(const nb::bytes& data, std::size_t rows, std::size_t bits) {
  bits = std::max<std::size_t>(1, bits);
  const std::size_t width = memfit::words_for(bits) * sizeof(Word);
  // By division: a product could overflow. Nothing is allocated before the length is known to be right.
  if (data.size() % width != 0 || data.size() / width != rows) {
    throw std::invalid_argument("wrong length of bit sets");
  }
  BitMatrix matrix(rows, bits);
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
  return {memfit::CanonicalStages(Lists(predecessors), node_bytes, node_cost, std::move(sets), which,
                                  tick),
          threads, tick};
}

std::optional<Numbers> canonical_shortest(const memfit::CanonicalTable& table,
                                          std::int64_t budget_bytes, bool longest) {
  const memfit::Tick tick = make_tick(nb::none());
  const nb::gil_scoped_release release;
  return table.shortest(budget_bytes, longest, tick);
}

using Flags = memfit::StageLists::Flags;

std::shared_ptr<const memfit::BlockTable> block_table(
    const memfit::StageProblem& problem, std::size_t count, const nb::bytes& lower,
    const nb::bytes& finished, Rows boundary, Rows needed_below, Numbers base_bytes,
    std::size_t threads, const nb::object& progress) {
  const memfit::Cuts cuts{read_masks(lower, count, problem.forward_ops()),
                          read_masks(finished, count, problem.backward_ops()), std::move(boundary),
                          std::move(needed_below), std::move(base_bytes)};
  const memfit::Tick tick = make_tick(progress);
  const nb::gil_scoped_release release;
  return std::make_shared<const memfit::BlockTable>(problem, cuts, threads, tick);
}

using PieceTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                              std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool, bool>;

PieceTuple piece_tuple(const memfit::PieceCost& piece) {
  return {piece.cost,       piece.cached_bytes, piece.forward_bytes, piece.standing_bytes,
          piece.pass_bytes, piece.held_bytes,   piece.before_bytes,  piece.start_bytes,
          piece.backward_bytes, piece.asks,     piece.passed,        piece.joins};
}

std::optional<std::vector<memfit::StageTable::Stage>> stage_path(const memfit::StageTable& table,
                                                                 std::int64_t budget_bytes) {
  const nb::gil_scoped_release release;
  return table.path(budget_bytes);
}

memfit::StageTable stage_table(std::vector<std::shared_ptr<const memfit::BlockTable>> tables,
                               Numbers base_bytes, std::int64_t total_cost, std::size_t slots,
                               std::size_t threads, const nb::object& progress) {
  // None passes for a null pointer.
  for (const auto& table : tables) {
    if (table == nullptr) throw std::invalid_argument("a block table is None");
  }
  const memfit::Tick tick = make_tick(progress);
  const nb::gil_scoped_release release;
  return {std::move(tables), std::move(base_bytes), total_cost, slots, threads, tick};
}

using FrontTuple = std::pair<Numbers, Numbers>;

FrontTuple front_tuple(const memfit::CostFront& front) { return {front.costs, front.needs}; }

std::shared_ptr<const memfit::NestedTable> nested_table(
    const memfit::StageProblem& problem, std::size_t count, const nb::bytes& lower,
    const nb::bytes& finished, Rows boundary, Rows needed_below, Numbers cut_bytes,
    std::int64_t base_bytes, FrontTuple after, int mantissa_bits, std::size_t threads,
    const nb::object& progress) {
  const memfit::Cuts cuts{read_masks(lower, count, problem.forward_ops()),
                          read_masks(finished, count, problem.backward_ops()), std::move(boundary),
                          std::move(needed_below), std::move(cut_bytes)};
  const memfit::Tick tick = make_tick(progress);
  const nb::gil_scoped_release release;
  return std::make_shared<const memfit::NestedTable>(
      problem, cuts, base_bytes, memfit::CostFront{std::move(after.first), std::move(after.second)},
      mantissa_bits, threads, tick);
}

using StretchTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                                std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                                std::vector<std::array<std::int64_t, 6>>>;

StretchTuple stretch_tuple(const memfit::NestedTable& table) {
  const memfit::Stretch& s = table.stretch();
  std::vector<std::array<std::int64_t, 6>> staged;
  for (const memfit::StagedCost& x : s.staged) {
    staged.push_back({x.cost, x.cached_bytes, x.forward_bytes, x.backward_bytes, x.sweep_cost, x.sweep_bytes});
  }
  return {s.always_bytes, s.held_bytes, s.dead_bytes, s.first_bytes, s.sweep_cost,
          s.sweep_bytes,  s.lent_bytes, s.leaf_cost,  s.leaf_bytes,  std::move(staged)};
}

using TopStages = std::vector<std::tuple<std::int32_t, std::int32_t, std::int32_t, std::vector<std::int32_t>>>;

std::pair<TopStages, std::int32_t> nested_path(const memfit::NestedTable& table, std::size_t label) {
  auto [stages, after] = table.path(label);
  TopStages found;
  for (auto& stage : stages) found.emplace_back(stage.i, stage.k, stage.option, std::move(stage.tree));
  return {std::move(found), after};
}

using Steps = std::vector<std::array<std::int64_t, 4>>;

// held, sweep cost, sweep, lent, first; leaf; staged; top.
using UnitTuple = std::tuple<std::array<std::int64_t, 5>, FrontTuple, Steps, Steps>;

memfit::ChainUnit chain_unit(UnitTuple unit) {
  auto& [numbers, leaf, staged, top] = unit;
  const auto [held, cost, sweep, lent, first] = numbers;
  return {held, cost, sweep, lent, first, {std::move(leaf.first), std::move(leaf.second)},
          std::move(staged), std::move(top)};
}

memfit::ChainTable chain_table(UnitTuple unit, std::size_t steps, std::optional<FrontTuple> after,
                               std::size_t most_levels, std::int64_t parts,
                               std::optional<UnitTuple> first) {
  const nb::gil_scoped_release release;
  std::optional<memfit::CostFront> rest;
  if (after) rest = memfit::CostFront{std::move(after->first), std::move(after->second)};
  std::optional<memfit::ChainUnit> bottom;
  if (first) bottom = chain_unit(std::move(*first));
  return {chain_unit(std::move(unit)), steps, std::move(rest), most_levels, parts, bottom};
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
  m.def("block_table", &block_table, "problem"_a, "count"_a, "lower"_a, "finished"_a, "boundary"_a,
        "needed_below"_a, "base_bytes"_a, "threads"_a, "progress"_a.none());
  m.def("stage_table", &stage_table, "tables"_a, "base_bytes"_a, "total_cost"_a, "slots"_a,
        "threads"_a, "progress"_a.none());

  m.def("nested_table", &nested_table, "problem"_a, "count"_a, "lower"_a, "finished"_a, "boundary"_a,
        "needed_below"_a, "cut_bytes"_a, "base_bytes"_a, "after"_a, "mantissa_bits"_a, "threads"_a,
        "progress"_a.none());
  m.def("chain_table", &chain_table, "unit"_a, "steps"_a, "after"_a.none(), "most_levels"_a, "parts"_a,
        "first"_a.none());

  nb::class_<memfit::NestedTable>(m, "NestedTable")
      .def("front", [](const memfit::NestedTable& table) { return front_tuple(table.front()); })
      .def("reversal_front",
           [](const memfit::NestedTable& table) { return front_tuple(table.reversal_front()); })
      .def("stretch", &stretch_tuple)
      .def("path", &nested_path, "label"_a)
      .def("tree", &memfit::NestedTable::tree, "label"_a);

  nb::class_<memfit::ChainTable>(m, "ChainTable")
      .def_prop_ro("levels", &memfit::ChainTable::levels)
      .def("reversal_cost",
           [](const memfit::ChainTable& table, std::size_t count, std::size_t level, bool bottom) {
             const std::int64_t cost = table.reversal_cost(count, level, bottom);
             return cost < memfit::kNever ? std::optional(cost) : std::nullopt;
           },
           "count"_a, "level"_a, "bottom"_a = false)
      .def("split", &memfit::ChainTable::split, "count"_a, "level"_a, "bottom"_a = false)
      .def("levels_of", &memfit::ChainTable::levels_of, "k"_a, "option"_a, "bottom"_a = false,
           "top"_a = false)
      .def("front",
           [](const memfit::ChainTable& table) {
             auto front = table.front();
             return std::tuple{std::move(front.costs), std::move(front.needs), std::move(front.levels)};
           })
      .def("first_pass", &memfit::ChainTable::first_pass, "level"_a);

  nb::class_<memfit::StageProblem>(m, "StageProblem")
      .def(
          "__init__",
          [](memfit::StageProblem* self, Numbers value_bytes, Flags outlives, Rows forward_inputs,
             Rows forward_outputs, Numbers forward_cost, Numbers forward_workspace,
             Flags forward_recomputable, Rows backward_inputs, Rows backward_outputs,
             Numbers backward_workspace, std::vector<Flags> keep_flags,
             std::int64_t always_keep_bytes, std::int64_t auxiliary_share, Flags from_below,
             Flags read_above, Flags used_below, Flags begun_above, Flags always_keep,
             std::vector<std::int32_t> interface_below, std::vector<std::int32_t> interface_above,
             Rows cached_below) {
            new (self) memfit::StageProblem(memfit::StageLists{
                std::move(value_bytes), std::move(outlives), std::move(forward_inputs),
                std::move(forward_outputs), std::move(forward_cost), std::move(forward_workspace),
                std::move(forward_recomputable), std::move(backward_inputs),
                std::move(backward_outputs), std::move(backward_workspace), std::move(keep_flags),
                always_keep_bytes, auxiliary_share, std::move(from_below), std::move(read_above),
                std::move(used_below), std::move(begun_above), std::move(always_keep),
                std::move(interface_below), std::move(interface_above), std::move(cached_below)});
          },
          "value_bytes"_a, "outlives"_a, "forward_inputs"_a, "forward_outputs"_a, "forward_cost"_a,
          "forward_workspace"_a, "forward_recomputable"_a, "backward_inputs"_a,
          "backward_outputs"_a, "backward_workspace"_a, "keep_flags"_a, "always_keep_bytes"_a,
          "auxiliary_share"_a, "from_below"_a, "read_above"_a, "used_below"_a, "begun_above"_a,
          "always_keep"_a, "interface_below"_a, "interface_above"_a, "cached_below"_a);

  nb::class_<memfit::BlockTable>(m, "BlockTable")
      .def_prop_ro("cuts", &memfit::BlockTable::cuts)
      .def("inner",
           [](const memfit::BlockTable& table, std::size_t a, std::size_t b,
              std::size_t v) -> std::optional<std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>> {
             if (a >= b || b >= table.cuts() || v >= table.variants()) throw std::out_of_range("no such stage");
             const memfit::InnerCost& piece = table.inner(a, b, v);
             if (piece.cost < 0) return std::nullopt;
             return std::tuple{piece.cost, piece.cached_bytes, piece.forward_bytes, piece.backward_bytes};
           },
           "lower"_a, "upper"_a, "variant"_a)
      .def("top",
           [](const memfit::BlockTable& table, std::size_t b, std::size_t v) -> std::optional<PieceTuple> {
             if (b >= table.cuts() || v >= table.variants()) throw std::out_of_range("no such piece");
             const memfit::PieceCost* piece = table.top(b, v);
             return piece == nullptr ? std::nullopt : std::optional(piece_tuple(*piece));
           },
           "upper"_a, "variant"_a)
      .def("bottom",
           [](const memfit::BlockTable& table, std::size_t a, std::size_t v, bool passed) {
             if (a >= table.cuts() - 1 || v >= table.variants()) throw std::out_of_range("no such piece");
             return piece_tuple(table.bottom(a, v, passed));
           },
           "lower"_a, "variant"_a, "passed"_a)
      .def("through",
           [](const memfit::BlockTable& table, std::size_t v, bool passed) {
             if (v >= table.variants()) throw std::out_of_range("no such piece");
             return piece_tuple(table.through(v, passed));
           },
           "variant"_a, "passed"_a);

  nb::class_<memfit::StageTable>(m, "StageTable")
      .def_prop_ro("exact", &memfit::StageTable::exact)
      .def("curve", &memfit::StageTable::curve)
      .def("smallest_budget", &memfit::StageTable::smallest_budget)
      .def("path", &stage_path, "budget_bytes"_a);

  nb::class_<memfit::CanonicalTable>(m, "CanonicalTable")
      .def("curve", &memfit::CanonicalTable::curve, nb::call_guard<nb::gil_scoped_release>())
      .def("smallest_budget", &memfit::CanonicalTable::smallest_budget)
      .def("shortest", &canonical_shortest, "budget_bytes"_a, "longest"_a = false);
}
