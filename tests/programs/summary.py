"""Counts over many programs."""

from __future__ import annotations

from collections import Counter
from typing import Any

__all__ = ["Summary"]

EXAMPLES = 8


class Summary:
    """What came of the programs so far."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.status: Counter[str] = Counter()
        self.causes: dict[str, Counter[str]] = {"refused": Counter(), "unfit": Counter()}
        self.seeds: dict[str, list[int]] = {}
        self.groups: dict[tuple[str, str], dict[str, Any]] = {}
        self.runs = self.infeasible = 0
        self.rounded = 0.0
        self.most_rounded = 0.0
        self.cpu_s = 0.0

    def add(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        """Count one program; the first finding of each group that is new."""
        self.status[answer["status"]] += 1
        self.runs += answer.get("runs", 0)
        self.infeasible += answer.get("infeasible", 0)
        self.cpu_s += answer.get("seconds", 0.0)
        rounded = answer.get("rounded", 0.0)
        self.most_rounded = max(self.most_rounded, rounded)
        self.rounded += rounded > 0
        if answer["status"] in self.causes:
            self.causes[answer["status"]][answer["cause"]] += 1
            seeds = self.seeds.setdefault(answer["cause"], [])
            if len(seeds) < EXAMPLES:
                seeds.append(answer["seed"])
        fresh = []
        for finding in answer["findings"]:
            key = finding["kind"], finding["cause"]
            if key not in self.groups:
                self.groups[key] = {**finding, "programs": 0, "seeds": []}
                fresh.append(finding)
            group = self.groups[key]
            if answer["seed"] not in group["seeds"]:
                group["programs"] += 1
                if len(group["seeds"]) < EXAMPLES:
                    group["seeds"].append(answer["seed"])
        return fresh

    @property
    def programs(self) -> int:
        """Programs that plain PyTorch trains."""
        return sum(self.status[s] for s in ("right", "found", "refused"))

    def line(self) -> str:
        """Counts in a few words."""
        kinds = Counter(dict.fromkeys(("wrong", "over budget", "raw error"), 0))
        for (kind, _), group in self.groups.items():
            kinds[kind] += group["programs"]
        found = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        return (
            f"{self.programs} programs: {self.status['right']} right, "
            f"{self.status['refused']} refused, {found}"
        )

    def to_json(self, seconds: float) -> dict[str, Any]:
        """Everything, for a file."""
        return {
            "first_seed": self.seed,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(self.cpu_s, 1),
            "programs": self.programs,
            "right": self.status["right"],
            "with_findings": self.status["found"],
            "refused": self.status["refused"],
            "thrown_away": self.status["unfit"] + self.status["none"],
            "plans_run": self.runs,
            "budgets_infeasible": self.infeasible,
            "programs_that_differ_by_rounding": int(self.rounded),
            "largest_rounding": self.most_rounded,
            "refused_by_cause": [
                {"cause": cause, "programs": n, "seeds": self.seeds[cause]}
                for cause, n in self.causes["refused"].most_common()
            ],
            "findings": sorted(self.groups.values(), key=lambda g: -g["programs"]),
        }
