"""Mixtures of experts: which expert a token goes to depends on the data."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.models.hub import causal_language_model, sequence_to_sequence
from benchmarks.zoo.step import Step

__all__ = ["ARCHITECTURES"]

EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}


def _model(kind: str, **changes: Any) -> Step:
    from transformers import AutoConfig

    known = AutoConfig.for_model(kind).to_dict().keys()
    experts = {name: value for name, value in EXPERTS.items() if name in known}
    return causal_language_model(kind, batch=8, **{**experts, **changes})


def _deepseek(kind: str) -> Step:
    return causal_language_model(
        kind,
        batch=8,
        moe_intermediate_size=128,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=32,
        q_lora_rank=48,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        head_dim=16,
        v_head_dim=32,
        num_key_value_heads=4,
    )


def _soft_moe() -> Step:
    from soft_moe_pytorch import SoftMoE

    model = nn.Sequential(nn.Linear(32, 64), SoftMoE(64, num_experts=4, seq_len=256))
    return Step(
        model.train(),
        lambda: (torch.randn(8, 256, 32), torch.randn(8, 256, 64)),
        nn.functional.mse_loss,
    )


class _WithAuxiliaryLoss(nn.Module):
    """A mixture's regression, and the losses that balance its experts."""

    def __init__(self, experts: nn.Module, width: int) -> None:
        super().__init__()
        self.enter, self.experts = nn.Linear(32, width), experts
        self.leave = nn.Linear(width, 8)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        found = self.experts(self.enter(x))
        return nn.functional.mse_loss(self.leave(found[0]), target) + found[1].sum()


def _regression() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 128, 32), torch.randn(8, 128, 8)


def _st_moe() -> Step:
    from st_moe_pytorch import MoE

    return Step(_WithAuxiliaryLoss(MoE(dim=64, num_experts=4), 64).train(), _regression)


def _sparsely_gated() -> Step:
    from mixture_of_experts import MoE

    return Step(_WithAuxiliaryLoss(MoE(dim=64, num_experts=4), 64).train(), _regression)


ARCHITECTURES = {
    "mixtral": partial(_model, "mixtral"),
    "qwen2-moe": partial(
        _model, "qwen2_moe", moe_intermediate_size=128, shared_expert_intermediate_size=128
    ),
    "qwen3-moe": partial(_model, "qwen3_moe", moe_intermediate_size=128),
    "olmoe": partial(_model, "olmoe"),
    "deepseek-v2": partial(_deepseek, "deepseek_v2"),
    "deepseek-v3": partial(_deepseek, "deepseek_v3"),
    "granitemoe": partial(_model, "granitemoe"),
    "gpt-oss": partial(_model, "gpt_oss"),
    "phimoe": partial(_model, "phimoe"),
    "switch-transformers": partial(
        sequence_to_sequence,
        "switch_transformers",
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        num_experts=4,
        expert_capacity=32,
        decoder_start_token_id=2,
    ),
    "nllb-moe": partial(
        sequence_to_sequence,
        "nllb-moe",
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        num_experts=4,
        encoder_sparse_step=2,
        decoder_sparse_step=2,
        decoder_start_token_id=2,
    ),
    "soft-moe": _soft_moe,
    "st-moe": _st_moe,
    "sparsely-gated-moe": _sparsely_gated,
}
