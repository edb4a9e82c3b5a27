"""From calls of ops to a verdict for each overload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["VERDICTS", "call_verdict", "examples", "survey_of", "trusted"]

VERDICTS = {
    "same": "sizes, type, strides, offset, shared memory and storage are what tracing is told",
    "idle": "only strides of dimensions of one element, or of empty tensors, differ: nothing reads "
    "them",
    "mended": "PyTorch's fake result differs; a rule of `kernel_layouts` tells tracing what the "
    "kernel does",
    "counted": "the storage, or the type that makes it so, is larger or smaller than the fake one; "
    "`storage_sizes` counts at least what the kernel takes",
    "refused": "the kernel raises, or ends the process, where the fake result is given: eager "
    "fails in the same way",
    "data": "the result depends on data: a number is read anew in each step, a size is a "
    "`CaptureError`",
    "untraced": "the fake function raises where the kernel runs: a `CaptureError`",
    "copied": "a difference that no rule tells: when the op has run its result is looked at, and "
    "copied where need be (`as_traced`); other sizes go on as in eager",
}
"""What each verdict means, the least harmful first."""

_ORDER = list(VERDICTS)
_DATA = ("DataDependentOutput", "DynamicOutputShape", "GuardOnDataDependent", "UnsupportedOperator")


def call_verdict(raw: Sequence[str], told: Sequence[str]) -> str:
    """The verdict of one call, from its differences (`watch.Call`)."""
    left = set(told)
    if not left:
        return "mended" if raw else "same"
    if "kernel refuses" in left:
        return "refused"
    refusals = [d.removeprefix("fake refuses: ") for d in left if d.startswith("fake refuses")]
    if refusals:
        return "data" if refusals[0].startswith(_DATA) else "untraced"
    if left == {"idle strides"}:
        return "idle"
    storage = {"larger storage", "smaller storage", "type", "counted", "idle strides"}
    if left <= storage and "counted" in left:
        return "counted"
    return "copied"


def survey_of(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that the calls of entries say, by overload.

    Args:
        results: for each entry, in order, its name, runs, refused runs, calls and crashes.
    """
    seen: set[str] = set()
    ops: dict[str, dict[str, Any]] = {}
    crashes: dict[tuple[str, int], list[str]] = {}
    totals: Counter[str] = Counter()
    trouble = {}
    for entry in results:
        totals.update(entries=1, runs=entry["runs"], refused_runs=entry["refused"])
        if entry["trouble"]:
            trouble[entry["name"]] = entry["trouble"]
        for crash in entry["crashed"]:
            where = f"{entry['name']}, {crash['run']}"
            crashes.setdefault((crash["op"], crash["status"]), []).append(where)
        for call in entry["calls"]:
            if call["key"] not in seen:
                seen.add(call["key"])
                _add(ops, entry["name"], call)
    for op, _ in crashes:
        ops.setdefault(op, {"verdict": "same", "calls": 0})
        ops[op]["verdict"] = max(ops[op]["verdict"], "refused", key=_ORDER.index)
    counts = Counter(op["verdict"] for op in ops.values())
    return {
        "totals": {**totals, "calls": len(seen), "overloads": len(ops)},
        "verdicts": {name: counts[name] for name in VERDICTS},
        "differences": _differences(ops.values()),
        "crashes": [
            {"op": op, "status": status, "runs": runs}
            for (op, status), runs in sorted(crashes.items())
        ],
        "without_samples": trouble,
        "ops": dict(sorted(ops.items())),
    }


def _add(ops: dict[str, dict[str, Any]], entry: str, call: Mapping[str, Any]) -> None:
    place = {"key": call["key"], "entry": entry, "run": call["run"]}
    op = ops.setdefault(call["op"], {"verdict": "same", "calls": 0, "first": place})
    op["calls"] += 1
    op["first"] = min(op["first"], place, key=lambda p: p["key"])  # in whatever order they come
    fake, told = list(call.get("raw", ())), list(call.get("told", ()))
    verdict = call_verdict(fake, told)
    op["verdict"] = max(op["verdict"], verdict, key=_ORDER.index)
    if not fake and not told:
        return
    example = {"example": call["example"], **place, "note": call.get("note", "")}
    kinds = op.setdefault("differs", [])
    for kind in kinds:
        if (kind["fake"], kind["told"]) == (fake, told):
            kind["calls"] += 1
            if _simple(example) < _simple(kind):
                kind.update(example)
            return
    kinds.append({"fake": fake, "told": told, "verdict": verdict, "calls": 1, **example})
    kinds.sort(key=lambda kind: (kind["fake"], kind["told"]))


def _simple(example: Mapping[str, Any]) -> tuple[int, str]:
    return len(example["example"]), example["example"]


def _differences(ops: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """In how many overloads there is each difference, to PyTorch's fake result and to memfit's."""
    counts: dict[str, Counter[str]] = {"fake": Counter(), "told": Counter()}
    for op in ops:
        for side, counter in counts.items():
            found = {d for kind in op.get("differs", ()) for d in kind[side]}
            serious = found - {"counted"}
            if "strides" in found:
                serious.discard("idle strides")
            counter.update(serious)
    return {side: dict(sorted(counter.items())) for side, counter in counts.items()}


def trusted(survey: Mapping[str, Any]) -> list[str]:
    """Overloads whose results need not be looked at."""
    return sorted(n for n, op in survey["ops"].items() if n and op["verdict"] != "copied")


def examples(survey: Mapping[str, Any], *, same: int) -> list[dict[str, Any]]:
    """For each overload that differs a call with its verdict: entry, run, key, differences.

    Args:
        survey: what `survey_of` gave.
        same: how many overloads that do not differ are named beside them.
    """
    found = []
    for name, op in survey["ops"].items():
        kinds = [kind for kind in op.get("differs", ()) if kind["verdict"] == op["verdict"]]
        found += [{"op": name, **kind} for kind in kinds[:1]]
    equal = [name for name, op in survey["ops"].items() if op["verdict"] == "same"]
    for name in equal[:: max(1, len(equal) // same)]:
        if "first" in survey["ops"][name]:
            found.append({"op": name, "fake": [], "told": [], **survey["ops"][name]["first"]})
    return found
