"""Encoders of text, with the loss of masked tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.models.hub import (
    VOCABULARY,
    labelled,
    masked_language_model,
    tokens,
)
from benchmarks.zoo.step import Step

__all__ = ["ARCHITECTURES"]


def _classifier(kind: str, length: int, **changes: Any) -> Step:
    def inputs() -> dict[str, torch.Tensor]:
        return {"input_ids": tokens(4, length), "labels": torch.randint(0, 2, (4,))}

    return labelled(kind, "AutoModelForSequenceClassification", inputs, **changes)


def _masked_token(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def _of_logits(model: nn.Module) -> Step:
    return Step(model.train(), lambda: (tokens(4, 128), tokens(4, 128)), _masked_token)


def _performer() -> Step:
    from performer_pytorch import PerformerLM

    return _of_logits(
        PerformerLM(num_tokens=VOCABULARY, max_seq_len=128, dim=64, depth=2, heads=4, dim_head=16)
    )


def _linear_attention() -> Step:
    from linear_attention_transformer import LinearAttentionTransformerLM

    return _of_logits(
        LinearAttentionTransformerLM(
            num_tokens=VOCABULARY, dim=64, heads=4, depth=2, max_seq_len=128
        )
    )


def _reformer() -> Step:
    from reformer_pytorch import ReformerLM

    model = ReformerLM(
        num_tokens=VOCABULARY, dim=64, depth=2, heads=4, max_seq_len=128, bucket_size=16
    )
    return _of_logits(model)


ARCHITECTURES = {
    "bert": partial(masked_language_model, "bert"),
    "roberta": partial(masked_language_model, "roberta", max_position_embeddings=130),
    "albert": partial(masked_language_model, "albert", embedding_size=64),
    "electra": partial(masked_language_model, "electra", embedding_size=64),
    "deberta": partial(masked_language_model, "deberta"),
    "deberta-v2": partial(
        masked_language_model,
        "deberta-v2",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
    ),
    "distilbert": partial(
        masked_language_model, "distilbert", dim=128, n_layers=3, n_heads=4, hidden_dim=256
    ),
    "mpnet": partial(masked_language_model, "mpnet", max_position_embeddings=130),
    "mobilebert": partial(
        masked_language_model,
        "mobilebert",
        embedding_size=64,
        intra_bottleneck_size=64,
        num_feedforward_networks=2,
    ),
    "convbert": partial(masked_language_model, "convbert", embedding_size=64),
    "fnet": partial(masked_language_model, "fnet"),
    "funnel": partial(
        masked_language_model,
        "funnel",
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_model=128,
        n_head=4,
        d_head=32,
        d_inner=256,
    ),
    "longformer": partial(
        masked_language_model, "longformer", attention_window=16, max_position_embeddings=130
    ),
    "big-bird": partial(
        masked_language_model, "big_bird", length=128, block_size=8, num_random_blocks=2, batch=4
    ),
    "nystromformer": partial(
        masked_language_model, "nystromformer", num_landmarks=16, segment_means_seq_len=64
    ),
    "roformer": partial(masked_language_model, "roformer", embedding_size=128),
    "squeezebert": partial(masked_language_model, "squeezebert", embedding_size=128),
    "xlnet": partial(_classifier, "xlnet", 64, d_model=128, n_layer=3, n_head=4, d_inner=256),
    "canine": partial(_classifier, "canine", 128, local_transformer_stride=32),
    "esm": partial(masked_language_model, "esm", max_position_embeddings=130, mask_token_id=3),
    "modernbert": partial(
        masked_language_model, "modernbert", cls_token_id=0, sep_token_id=1, local_attention=16
    ),
    "ibert": partial(masked_language_model, "ibert", max_position_embeddings=130, quant_mode=True),
    "reformer": _reformer,
    "performer": _performer,
    "linear-attention-transformer": _linear_attention,
}
