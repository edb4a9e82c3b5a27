"""State spaces, linear attention and gated recurrence over tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.models.hub import VOCABULARY, causal_language_model, tokens
from benchmarks.zoo.step import Step

__all__ = ["ARCHITECTURES"]


def _model(kind: str, **changes: Any) -> Step:
    return causal_language_model(kind, **{"batch": 4, "length": 48, **changes})


def _next_token(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


class _LanguageModel(nn.Module):
    """Layers over embedded tokens, and a head."""

    def __init__(self, layers: nn.Module, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = layers
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(ids)))


def _of_layers(layers: nn.Module, width: int) -> Step:
    model = _LanguageModel(layers, width)
    return Step(model.train(), lambda: (tokens(4, 64), tokens(4, 64)), _next_token)


def _mambapy() -> Step:
    from mambapy.mamba import Mamba, MambaConfig

    return _of_layers(Mamba(MambaConfig(d_model=64, n_layers=2)), 64)


def _min_gru() -> Step:
    from minGRU_pytorch import minGRU

    return _of_layers(nn.Sequential(*(minGRU(64) for _ in range(3))), 64)


ARCHITECTURES = {
    "mamba": partial(_model, "mamba", state_size=8),
    "falcon-mamba": partial(_model, "falcon_mamba", state_size=8),
    "mamba2": partial(_model, "mamba2", num_heads=8, head_dim=32, state_size=16, chunk_size=16),
    "rwkv": partial(_model, "rwkv", attention_hidden_size=128, context_length=64),
    "recurrent-gemma": partial(_model, "recurrent_gemma", lru_width=128, attention_window_size=16),
    "jamba": partial(
        _model,
        "jamba",
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=3,
        expert_layer_offset=1,
        mamba_d_state=8,
        use_mamba_kernels=False,
    ),
    "bamba": partial(
        _model,
        "bamba",
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_head=32,
        mamba_d_state=16,
        mamba_chunk_size=16,
    ),
    "zamba2": partial(
        _model,
        "zamba2",
        layers_block_type=["mamba", "hybrid", "mamba"],
        hybrid_layer_ids=[1],
        mamba_ngroups=1,
        n_mamba_heads=8,
        mamba_d_state=16,
        chunk_size=16,
        num_mem_blocks=1,
        use_mem_rope=False,
    ),
    "falcon-h1": partial(
        _model,
        "falcon_h1",
        mamba_d_ssm=128,
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_d_state=16,
        mamba_chunk_size=16,
    ),
    "lfm2": partial(_model, "lfm2", batch=4, length=64),
    "qwen3-next": partial(
        _model,
        "qwen3_next",
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
    ),
    "mambapy": _mambapy,
    "mingru": _min_gru,
}
