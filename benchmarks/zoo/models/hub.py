"""Steps of transformers' models: small configurations by the name of the model's type."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.step import Step

__all__ = ["VOCABULARY", "causal_language_model", "config_of", "tokens"]

VOCABULARY = 512

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def config_of(kind: str, **changes: Any) -> Any:
    """A small configuration of a type of model; sizes that it does not have are left out."""
    from transformers import AutoConfig

    known = AutoConfig.for_model(kind).to_dict().keys()
    small = {name: value for name, value in SMALL.items() if name in known}
    return AutoConfig.for_model(kind, **{**small, **changes})


def tokens(batch: int, length: int, most: int = VOCABULARY) -> torch.Tensor:
    """Random tokens, none of them special."""
    return torch.randint(3, most, (batch, length))


def causal_language_model(kind: str, batch: int = 8, length: int = 64, **changes: Any) -> Step:
    """A model with the loss of the next token."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config_of(kind, **changes)).float()

    def inputs() -> dict[str, torch.Tensor]:
        ids = tokens(batch, length)
        return {"input_ids": ids, "labels": ids}

    return Step(model.train(), inputs)


def labelled(kind: str, auto: str, batch: Any, config: Any = None, **changes: Any) -> Step:
    """A model that is given its labels and returns its loss.

    Args:
        kind: the model's type.
        auto: the class of transformers that makes it from its configuration.
        batch: makes a batch of keyword arguments.
        config: the configuration, where it is more than sizes.
        changes: sizes beside those that all small configurations have.
    """
    import transformers

    config = config or config_of(kind, **changes)
    maker = getattr(transformers, auto)
    model = maker.from_config(config) if auto.startswith("Auto") else maker(config)
    return Step(model.float().train(), batch)


def masked_language_model(kind: str, batch: int = 8, length: int = 64, **changes: Any) -> Step:
    """A model with the loss of tokens that were replaced by a mask."""

    def inputs() -> dict[str, torch.Tensor]:
        ids = tokens(batch, length)
        masked = torch.rand(batch, length) < 0.15
        masked[:, 0] = True
        return {
            "input_ids": torch.where(masked, 3, ids),
            "attention_mask": torch.ones_like(ids),
            "labels": torch.where(masked, ids, -100),
        }

    return labelled(kind, "AutoModelForMaskedLM", inputs, **changes)


def sequence_to_sequence(
    kind: str, auto: str = "AutoModelForSeq2SeqLM", batch: int = 4, length: int = 64, **changes: Any
) -> Step:
    """An encoder and a decoder with the loss of the next token."""

    def inputs() -> dict[str, torch.Tensor]:
        ids = tokens(batch, length)
        mask = torch.ones_like(ids)
        return {"input_ids": ids, "attention_mask": mask, "labels": tokens(batch, length // 2)}

    return labelled(kind, auto, inputs, **changes)


def image_classifier(
    kind: str, batch: int = 4, size: int = 64, config: Any = None, **changes: Any
) -> Step:
    """A classifier of images into ten classes."""

    def inputs() -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.randn(batch, 3, size, size),
            "labels": torch.randint(0, 10, (batch,)),
        }

    changes = {"num_labels": 10, **changes}
    return labelled(kind, "AutoModelForImageClassification", inputs, config, **changes)
