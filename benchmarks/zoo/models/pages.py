"""Words on pages and pictures."""

from __future__ import annotations

import torch

from benchmarks.zoo.models.hub import VOCABULARY, config_of, tokens
from benchmarks.zoo.step import Inputs, Step

__all__ = ["BATCH", "LAYERS", "LENGTH", "SIZE", "VISION", "layoutlm", "trocr", "visual_bert"]

BATCH, SIZE, LENGTH = 8, 32, 32
LAYERS = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
}
VISION = {**LAYERS, "image_size": SIZE, "patch_size": 4}


def trocr() -> Step:
    """TrOCR: the words on a picture."""
    from transformers import (
        TrOCRConfig,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
    )

    decoder = TrOCRConfig(
        vocab_size=VOCABULARY,
        d_model=128,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=256,
        max_position_embeddings=64,
        cross_attention_hidden_size=128,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    config.decoder_start_token_id, config.pad_token_id = 0, 2

    def inputs() -> Inputs:
        return {"pixel_values": torch.randn(BATCH, 3, SIZE, SIZE), "labels": tokens(BATCH, LENGTH)}

    return Step(VisionEncoderDecoderModel(config=config).train(), inputs)


def layoutlm() -> Step:
    """LayoutLM: a class for each word of a page."""
    from transformers import LayoutLMForTokenClassification

    model = LayoutLMForTokenClassification(config_of("layoutlm", num_labels=5))

    def inputs() -> Inputs:
        boxes = torch.randint(0, 500, (BATCH, LENGTH, 4))
        boxes[..., 2:] += 500
        return {
            "input_ids": tokens(BATCH, LENGTH),
            "bbox": boxes,
            "labels": torch.randint(0, 5, (BATCH, LENGTH)),
        }

    return Step(model.train(), inputs)


def visual_bert() -> Step:
    """VisualBERT: answers to questions on pictures."""
    from transformers import VisualBertForQuestionAnswering

    config = config_of("visual_bert", visual_embedding_dim=32, num_labels=10)

    def inputs() -> Inputs:
        return {
            "input_ids": tokens(BATCH, LENGTH),
            "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long),
            "visual_embeds": torch.randn(BATCH, 16, 32),
            "visual_attention_mask": torch.ones(BATCH, 16, dtype=torch.long),
            "labels": torch.rand(BATCH, 10).softmax(-1),
        }

    return Step(VisualBertForQuestionAnswering(config).train(), inputs)
