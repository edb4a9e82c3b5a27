"""From a program with a finding to a smaller one with the same finding."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from programs.check import Finding, Pair, Verdict, check
from programs.program import Made, Program, Statement

__all__ = ["finding_of", "same_finding", "shrink"]

Test = Callable[[Program], bool]


def finding_of(program: Program, pairs: list[Pair] | None, measured: bool, fresh: bool) -> Verdict:
    """What comes of a program; errors of the check itself are none of its findings."""
    try:
        return check(program, pairs, measured=measured, fresh=fresh)
    except Exception as error:
        return Verdict("unfit", f"{type(error).__name__}: {error}")


def same_finding(a: Finding, b: Finding) -> bool:
    """Whether two findings are of one cause."""
    return a.kind == b.kind and _stem(a.cause) == _stem(b.cause)


def _stem(cause: str) -> str:
    """What tells causes apart: for wrong numbers how they are wrong, not where they show."""
    if not cause.startswith("not "):
        return cause
    how, _, where = cause.partition(":")
    return f"{how}{', missing' in where}{'output' in where}"


def shrink(program: Program, finding: Finding, *, measured: bool, seconds: float = 60) -> Program:
    """A smaller program with the same finding, as far as the processor time goes."""
    end = time.process_time() + seconds
    budget = finding.budget.partition(",")[0]
    fresh = "anew" in finding.budget
    pairs: list[Pair] | None = [(finding.planner, budget)]
    if finding.kind == "minimum":
        pairs = [(finding.planner, "smallest")]
    if finding.planner in ("eval()", "store-all", ""):
        pairs = []

    def fails(candidate: Program) -> bool:
        if time.process_time() > end:
            return False
        verdict = finding_of(candidate, pairs, measured, fresh)
        if finding.kind == "refused":
            return verdict.status == "refused" and verdict.cause == finding.cause
        return any(same_finding(f, finding) for f in verdict.findings)

    if not fails(program):
        pairs = None
        if not fails(program):
            return program
    while True:
        smaller = next((c for c in _smaller(program) if fails(c)), None)
        if smaller is None:
            return program
        program = smaller


def _smaller(program: Program) -> Iterator[Program]:
    """Candidates, the boldest first."""
    count = len(program.statements)
    for size in (8, 4, 2, 1):
        if size <= max(1, count // 2):
            for start in range(count - size, -1, -1):
                made = _without(program, set(range(start, start + size)))
                if made is not None:
                    yield made
    yield from _simpler(program)


def _simpler(program: Program) -> Iterator[Program]:
    if program.accumulate:
        yield replace(program, accumulate=False)
    if program.update:
        yield replace(program, update=False)
    if program.objective == "out[0]":
        whole, _, rest = program.result[1:-1].rpartition(", ")
        yield replace(program, result=whole, objective="").trimmed()
        for fewer in _fewer_terms(whole):
            yield replace(program, result=f"({fewer}, {rest})").trimmed()
    elif program.objective:
        names = re.findall(r"v\d+", program.result)
        for name in names if len(names) > 1 else ():
            objective = re.sub(r"in out(\.values\(\))?\)$", "in [out])", program.objective)
            yield replace(program, result=name, objective=objective).trimmed()
    else:
        for fewer in _fewer_terms(program.result):
            yield replace(program, result=fewer).trimmed()
    for name, made in program.inputs.items():
        plain = re.sub(r"(\.requires_grad_\(\)|\.detach\(\))", "", made)
        if plain != made:
            yield replace(program, inputs={**program.inputs, name: plain})


def _fewer_terms(total: str) -> Iterator[str]:
    """A sum without one of its terms."""
    terms = total.split(" + ")
    for i in range(len(terms) if len(terms) > 1 else 0):
        rest = " + ".join(terms[:i] + terms[i + 1 :])
        if rest.count("(") == rest.count(")"):
            yield rest


def _without(program: Program, dropped: set[int]) -> Program | None:
    """Without some statements; others read something else of the same shape and type."""
    kept: list[Statement] = []
    known: dict[str, Made] = {}
    instead: dict[str, str] = {}
    parts = dict(program.parts)
    for i, statement in enumerate(program.statements):
        if i not in dropped:
            kept.append(replace(statement, code=_renamed(statement.code, instead)))
            known.update(statement.makes)
            continue
        for name, made in statement.makes.items():
            if not made.dtype:
                return None
            instead[name] = _stand_in(name, made, known, parts)
    return replace(
        program,
        parts=parts,
        statements=tuple(kept),
        result=_renamed(program.result, instead),
    ).trimmed()


def _renamed(text: str, instead: dict[str, str]) -> str:
    for name, other in instead.items():
        text = re.sub(rf"\b{name}\b", other, text)
    return text


def _stand_in(name: str, made: Made, known: dict[str, Made], parts: dict[str, str]) -> str:
    for other, have in reversed(known.items()):
        if (have.shape, have.dtype, have.grad) == (made.shape, made.dtype, made.grad):
            return other
    part = f"p{name[1:]}0"
    if made.dtype.startswith(("float", "bfloat")):
        value = f"torch.randn({made.shape}, dtype=torch.{made.dtype})"
    else:
        value = f"torch.zeros({made.shape}, dtype=torch.{made.dtype})"
    parts[part] = (
        f"nn.Parameter({value})" if made.grad else f'!self.register_buffer("{part}", {value})'
    )
    return f"self.{part}"
