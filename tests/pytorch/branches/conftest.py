"""Each test traces anew."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
