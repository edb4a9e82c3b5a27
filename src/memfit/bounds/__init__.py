"""How far from optimal: lower bounds on the overhead of all schedules of an order."""

from memfit.bounds.gap import bound_plan
from memfit.bounds.highs import highs_version
from memfit.bounds.lower_bound import LowerBound
from memfit.bounds.search import DEFAULT_TIME_LIMIT_S, bound_graph

__all__ = ["DEFAULT_TIME_LIMIT_S", "LowerBound", "bound_graph", "bound_plan", "highs_version"]
