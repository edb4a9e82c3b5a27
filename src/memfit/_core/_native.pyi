from collections.abc import Callable, Sequence

version: str
compiler: str

def enumerate_lower_sets(predecessors: Sequence[Sequence[int]], limit: int) -> bytes | None: ...
def canonical_table(
    predecessors: Sequence[Sequence[int]],
    node_bytes: Sequence[int],
    node_cost: Sequence[int],
    lower_sets: bytes,
    count: int,
    connected: bool,
    threads: int,
    progress: Callable[[float], None] | None,
) -> CanonicalTable: ...
def stage_edges(
    problem: StageProblem,
    count: int,
    lower: bytes,
    finished: bytes,
    boundary: Sequence[Sequence[int]],
    needed_below: Sequence[Sequence[int]],
    base_bytes: Sequence[int],
    threads: int,
    progress: Callable[[float], None] | None,
) -> EdgeTable: ...

class StageProblem:
    def __init__(
        self,
        value_bytes: Sequence[int],
        outlives: Sequence[bool],
        forward_inputs: Sequence[Sequence[int]],
        forward_outputs: Sequence[Sequence[int]],
        forward_cost: Sequence[int],
        forward_workspace: Sequence[int],
        forward_recomputable: Sequence[bool],
        backward_inputs: Sequence[Sequence[int]],
        backward_outputs: Sequence[Sequence[int]],
        backward_workspace: Sequence[int],
        keep_flags: Sequence[Sequence[bool]],
        always_keep_bytes: int,
        auxiliary_share: int,
    ) -> None: ...

class CanonicalTable:
    def curve(self) -> list[tuple[int, int]]: ...
    def smallest_budget(self) -> int: ...
    def shortest(self, budget_bytes: int, longest: bool = False) -> list[int] | None: ...

class EdgeTable:
    @staticmethod
    def from_lists(
        states: int,
        sources: Sequence[int],
        targets: Sequence[int],
        variants: Sequence[int],
        costs: Sequence[int],
        cached: Sequence[int],
        peaks: Sequence[int],
    ) -> EdgeTable: ...
    def shortest(
        self, budget_bytes: int, longest: bool = False, quantum: int = 1
    ) -> list[int] | None: ...
    def smallest_budget(self) -> tuple[int, list[int]]: ...
    def edge(self, index: int) -> tuple[int, int, int, int, int, int]: ...
    def __len__(self) -> int: ...
    @property
    def states(self) -> int: ...
