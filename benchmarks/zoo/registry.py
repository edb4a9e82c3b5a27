"""The architectures by name and by group."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from benchmarks.zoo.step import Make

__all__ = ["GROUPS", "group_of", "make_of", "names", "names_of"]

GROUPS = {
    "language": "Language models",
    "experts": "Mixtures of experts",
    "state_space": "State spaces and recurrence",
    "encoders": "Encoders",
    "translation": "Encoders with decoders",
    "vision": "Vision",
    "detection": "Detection with its matching loss",
    "segmentation": "Segmentation",
    "diffusion": "Diffusion",
    "medical": "Three dimensions, medical",
    "speech": "Speech and sound",
    "graphs": "Graphs",
    "force_fields": "Force fields",
    "operators": "Neural operators",
    "generative": "Generative",
    "tabular": "Tables and time series",
    "multimodal": "Several modalities",
}
"""Title of each group; `benchmarks.zoo.models` has a module for each."""


def _table(group: str) -> dict[str, Make]:
    module = importlib.import_module(f"benchmarks.zoo.models.{group}")
    table: dict[str, Make] = module.ARCHITECTURES
    return table


def names_of(group: str) -> list[str]:
    """The architectures of a group."""
    return list(_table(group))


def names() -> list[str]:
    """All architectures, group by group."""
    return [name for group in GROUPS for name in names_of(group)]


def group_of(name: str) -> str:
    """The group of an architecture.

    Raises:
        KeyError: there is no such architecture.
    """
    for group in GROUPS:
        if name in _table(group):
            return group
    raise KeyError(name)


def make_of(name: str) -> Make:
    """What makes the step of an architecture.

    Raises:
        KeyError: there is no such architecture.
    """
    return _table(group_of(name))[name]


def asked(words: Sequence[str]) -> list[str]:
    """The architectures that names of architectures and groups stand for; all, for none.

    Raises:
        KeyError: a word is neither.
    """
    if not words:
        return names()
    found = [n for word in words for n in (names_of(word) if word in GROUPS else [word])]
    for name in found:
        group_of(name)
    return list(dict.fromkeys(found))
