"""Encoders with decoders, with the loss of the next token of the target."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.zoo.models.hub import VOCABULARY, config_of, sequence_to_sequence, tokens
from benchmarks.zoo.step import Step

__all__ = ["ARCHITECTURES"]

LIKE_T5 = {
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 256,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 2,
}
LIKE_BART = {
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "decoder_start_token_id": 2,
}


def _like(sizes: dict[str, Any], kind: str, **changes: Any) -> Step:
    return sequence_to_sequence(kind, batch=8, **{**sizes, **changes})


def _bert_to_bert() -> Step:
    from transformers import EncoderDecoderConfig, EncoderDecoderModel

    config = EncoderDecoderConfig.from_encoder_decoder_configs(config_of("bert"), config_of("bert"))
    config.decoder_start_token_id, config.pad_token_id = 0, 2
    model = EncoderDecoderModel(config=config)
    return Step(
        model.train(),
        lambda: {"input_ids": tokens(8, 64), "labels": tokens(8, 32)},
    )


def _x_transformer() -> Step:
    from x_transformers import XTransformer

    sizes = {"num_tokens": VOCABULARY, "depth": 2, "heads": 4, "max_seq_len": 64}
    model = XTransformer(
        dim=128,
        **{f"enc_{name}": value for name, value in sizes.items()},
        **{f"dec_{name}": value for name, value in sizes.items()},
    )
    return Step(model.train(), lambda: (tokens(8, 64), tokens(8, 64)))


ARCHITECTURES = {
    "t5": partial(_like, LIKE_T5, "t5"),
    "umt5": partial(_like, LIKE_T5, "umt5"),
    "longt5": partial(
        _like, LIKE_T5, "longt5", encoder_attention_type="transient-global", local_radius=15
    ),
    "bart": partial(_like, LIKE_BART, "bart"),
    "mbart": partial(_like, LIKE_BART, "mbart"),
    "pegasus": partial(_like, LIKE_BART, "pegasus"),
    "marian": partial(_like, LIKE_BART, "marian"),
    "m2m-100": partial(_like, LIKE_BART, "m2m_100"),
    "blenderbot": partial(_like, LIKE_BART, "blenderbot"),
    "led": partial(
        _like,
        LIKE_BART,
        "led",
        attention_window=16,
        max_encoder_position_embeddings=128,
        max_decoder_position_embeddings=128,
    ),
    "prophetnet": partial(
        _like,
        {},
        "prophetnet",
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_encoder_attention_heads=4,
        num_decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        decoder_start_token_id=2,
    ),
    "bert-to-bert": _bert_to_bert,
    "x-transformers": _x_transformer,
}
