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
def block_table(
    problem: StageProblem,
    count: int,
    lower: bytes,
    finished: bytes,
    boundary: Sequence[Sequence[int]],
    needed_below: Sequence[Sequence[int]],
    base_bytes: Sequence[int],
    threads: int,
    progress: Callable[[float], None] | None,
) -> BlockTable: ...
def stage_table(
    tables: Sequence[BlockTable],
    base_bytes: Sequence[int],
    total_cost: int,
    slots: int,
    threads: int,
    progress: Callable[[float], None] | None,
) -> StageTable: ...

_Front = tuple[list[int], list[int]]
UnitTuple = tuple[
    tuple[int, int, int, int, int],
    _Front,
    list[tuple[int, int, int, int]],
    list[tuple[int, int, int, int]],
]

def nested_table(
    problem: StageProblem,
    count: int,
    lower: bytes,
    finished: bytes,
    boundary: Sequence[Sequence[int]],
    needed_below: Sequence[Sequence[int]],
    cut_bytes: Sequence[int],
    base_bytes: int,
    after: _Front,
    mantissa_bits: int,
    threads: int,
    progress: Callable[[float], None] | None,
) -> NestedTable: ...
def chain_table(
    unit: UnitTuple,
    steps: int,
    after: _Front | None,
    most_levels: int,
    parts: int,
    first: UnitTuple | None,
) -> ChainTable: ...

class NestedTable:
    def front(self) -> _Front: ...
    def reversal_front(self) -> _Front: ...
    def stretch(
        self,
    ) -> tuple[
        int,
        int,
        int,
        int,
        int,
        int,
        int,
        int,
        int,
        list[tuple[int, int, int, int, int, int]],
    ]: ...
    def path(self, label: int) -> tuple[list[tuple[int, int, int, list[int]]], int]: ...
    def tree(self, label: int) -> list[int]: ...

class ChainTable:
    @property
    def levels(self) -> list[int]: ...
    def reversal_cost(self, count: int, level: int, bottom: bool = False) -> int | None: ...
    def split(self, count: int, level: int, bottom: bool = False) -> tuple[int, int]: ...
    def levels_of(self, k: int, option: int, bottom: bool = False, top: bool = False) -> int: ...
    def front(self) -> tuple[list[int], list[int], list[int]]: ...
    def first_pass(self, level: int) -> tuple[list[tuple[int, int, int]], int]: ...

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
        from_below: Sequence[bool],
        read_above: Sequence[bool],
        used_below: Sequence[bool],
        begun_above: Sequence[bool],
        always_keep: Sequence[bool],
        interface_below: Sequence[int],
        interface_above: Sequence[int],
        cached_below: Sequence[Sequence[int]],
    ) -> None: ...

_Piece = tuple[int, int, int, int, int, int, int, int, int, bool, bool, bool]

class BlockTable:
    @property
    def cuts(self) -> int: ...
    def inner(self, lower: int, upper: int, variant: int) -> tuple[int, int, int, int] | None: ...
    def top(self, upper: int, variant: int) -> _Piece | None: ...
    def bottom(self, lower: int, variant: int, passed: bool) -> _Piece: ...
    def through(self, variant: int, passed: bool) -> _Piece: ...

class StageTable:
    @property
    def exact(self) -> bool: ...
    def curve(self) -> list[tuple[int, int]]: ...
    def smallest_budget(self) -> int: ...
    def path(self, budget_bytes: int) -> list[tuple[int, int, int, int, int]] | None: ...

class CanonicalTable:
    def curve(self) -> list[tuple[int, int]]: ...
    def smallest_budget(self) -> int: ...
    def shortest(self, budget_bytes: int, longest: bool = False) -> list[int] | None: ...
