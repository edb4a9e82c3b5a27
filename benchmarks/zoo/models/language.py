"""Language models that predict the next token."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.zoo.models.hub import causal_language_model
from benchmarks.zoo.step import Step

__all__ = ["ARCHITECTURES"]


def _model(kind: str, **changes: Any) -> Step:
    return causal_language_model(kind, **changes)


_OF_DEFAULTS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "phi",
    "phi3",
    "gpt-neox",
    "stablelm",
    "olmo",
    "olmo2",
    "starcoder2",
    "cohere",
    "granite",
    "nemotron",
    "glm",
    "helium",
)

ARCHITECTURES = {
    "gpt2": partial(_model, "gpt2", n_embd=128, n_layer=3, n_head=4, n_positions=128),
    "gpt-neo": partial(
        _model,
        "gpt_neo",
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=16,
    ),
    "gptj": partial(_model, "gptj", n_embd=128, n_layer=3, n_head=4, rotary_dim=16),
    "bloom": partial(_model, "bloom", n_layer=3, n_head=4),
    "opt": partial(_model, "opt", ffn_dim=512, word_embed_proj_dim=128),
    "falcon": partial(_model, "falcon"),
    "mpt": partial(_model, "mpt", d_model=128, n_heads=4, n_layers=3, max_seq_len=128),
    "codegen": partial(_model, "codegen", n_embd=128, n_layer=3, n_head=4, rotary_dim=16),
    "ctrl": partial(_model, "ctrl", n_embd=128, n_layer=3, n_head=4, dff=512),
    "openai-gpt": partial(_model, "openai-gpt", n_embd=128, n_layer=3, n_head=4),
    **{name: partial(_model, name.replace("-", "_")) for name in _OF_DEFAULTS},
}
