"""The first of the fixed random programs: each trains as in plain PyTorch, in its budgets."""

from __future__ import annotations

from programs.fixed import TENS, Part

PART = Part(0)


@TENS
def test_programs_train_as_in_plain_pytorch(tens: int) -> None:
    PART.train(tens)


def test_most_programs_are_trained() -> None:
    PART.most_are_trained()
