"""Pictures with words."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.zoo.models.hub import SMALL, VOCABULARY, config_of, tokens
from benchmarks.zoo.models.pages import (
    BATCH,
    LAYERS,
    LENGTH,
    SIZE,
    VISION,
    layoutlm,
    trocr,
    visual_bert,
)
from benchmarks.zoo.step import Inputs, Step
from benchmarks.zoo.stubs import stubs

__all__ = ["ARCHITECTURES"]

IMAGE = VOCABULARY - 1
TEXT = {**LAYERS, "vocab_size": VOCABULARY, "max_position_embeddings": 64}


def _pixels() -> torch.Tensor:
    return torch.randn(BATCH, 3, SIZE, SIZE)


def _pairs() -> Inputs:
    ids = tokens(BATCH, LENGTH, IMAGE)
    ids[:, -1] = VOCABULARY - 1  # the end of the text, where CLIP's text model looks
    return {"input_ids": ids, "pixel_values": _pixels(), "return_loss": True}


def _contrastive(name: str, text: dict[str, Any] = TEXT, **sizes: Any) -> Step:
    """Two towers with the loss of matching pairs."""
    import transformers

    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=VISION, **sizes)
    return Step(getattr(transformers, f"{name}Model")(config).train(), _pairs)


def _captions(length: int = LENGTH) -> Inputs:
    ids = tokens(BATCH, length, IMAGE)
    return {"input_ids": ids, "pixel_values": _pixels(), "labels": ids}


def _blip() -> Step:
    from transformers import BlipConfig, BlipForConditionalGeneration

    text = {**TEXT, "encoder_hidden_size": 128, "bos_token_id": 0, "sep_token_id": 1}
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=64)
    return Step(BlipForConditionalGeneration(config).train(), _captions)


def _git() -> Step:
    from transformers import GitConfig, GitForCausalLM

    config = GitConfig(vision_config=VISION, **TEXT)
    return Step(GitForCausalLM(config).train(), _captions)


def _with_images(count: int) -> Inputs:
    """Tokens of which the first stand for the picture."""
    ids = tokens(BATCH, count + LENGTH, IMAGE)
    ids[:, :count] = IMAGE
    labels = torch.where(ids == IMAGE, -100, ids)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": _pixels(),
        "labels": labels,
    }


def _small_text(kind: str) -> Any:
    return config_of(kind, num_hidden_layers=2)


def _llava() -> Step:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=_small_text("llama"),
        image_token_index=IMAGE,
        image_token_id=IMAGE,
    )
    model = LlavaForConditionalGeneration(config)
    return Step(model.train(), partial(_with_images, (SIZE // 4) ** 2))


def _paligemma() -> Step:
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        SiglipVisionConfig,
    )

    count = (SIZE // 4) ** 2
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, projection_dim=128),
        text_config=_small_text("gemma"),
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        projection_dim=128,
        hidden_size=128,
    )
    model = PaliGemmaForConditionalGeneration(config)

    def inputs() -> Inputs:
        batch = _with_images(count)
        assert isinstance(batch, dict)
        return {**batch, "token_type_ids": (batch["input_ids"] != IMAGE).long()}

    return Step(model.train(), inputs)


def _idefics3() -> Step:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    config = Idefics3Config(
        vision_config={**VISION},
        text_config=_small_text("llama"),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    model = Idefics3ForConditionalGeneration(config)

    def inputs() -> Inputs:
        batch = _with_images((SIZE // 8) ** 2)
        assert isinstance(batch, dict)
        return {**batch, "pixel_values": batch["pixel_values"].unsqueeze(1)}

    return Step(model.train(), inputs)


def _qwen2_vl() -> Step:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = {name: value for name, value in SMALL.items() if name != "head_dim"}
    config = Qwen2VLConfig(
        text_config={
            **text,
            "num_hidden_layers": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 6, 6],
            },
        },
        vision_config={
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
        },
        image_token_id=IMAGE,
        vision_start_token_id=4,
        vision_end_token_id=5,
        video_token_id=6,
    )
    model = Qwen2VLForConditionalGeneration(config)

    def inputs() -> Inputs:
        ids = torch.randint(8, IMAGE, (BATCH, 16 + LENGTH))
        ids[:, 0], ids[:, 1:17], ids[:, 17] = 4, IMAGE, 5
        kinds = (ids == IMAGE).int()
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": kinds,
            "labels": torch.where(ids < 8, -100, ids),
            "pixel_values": torch.randn(BATCH * 64, 3 * 2 * 4 * 4),
            "image_grid_thw": torch.tensor([[1, 8, 8]] * BATCH),
        }

    return Step(model.train(), inputs)


def _vilt() -> Step:
    from transformers import ViltConfig, ViltForQuestionAnswering

    config = ViltConfig(**{**TEXT, **VISION}, num_labels=10)

    def inputs() -> Inputs:
        return {
            "input_ids": tokens(BATCH, LENGTH),
            "pixel_values": _pixels(),
            "pixel_mask": torch.ones(BATCH, SIZE, SIZE, dtype=torch.long),
            "labels": torch.rand(BATCH, 10),
        }

    return Step(ViltForQuestionAnswering(config).train(), inputs)


def _x_clip() -> Step:
    with stubs():
        from x_clip import CLIP

        model = CLIP(
            dim_text=64,
            dim_image=64,
            dim_latent=64,
            num_text_tokens=VOCABULARY,
            text_enc_depth=2,
            text_seq_len=LENGTH,
            text_heads=4,
            visual_enc_depth=2,
            visual_image_size=SIZE,
            visual_patch_size=4,
            visual_heads=4,
            visual_patch_dropout=0.25,
            use_all_token_embeds=True,
        )
    return Step(
        model.train(),
        lambda: {"text": tokens(BATCH, LENGTH), "image": _pixels(), "return_loss": True},
    )


def _coca() -> Step:
    with stubs():
        from coca_pytorch.coca_pytorch import CoCa
        from vit_pytorch.extractor import Extractor
        from vit_pytorch.simple_vit_with_patch_dropout import SimpleViT

        vit = SimpleViT(
            image_size=SIZE,
            patch_size=4,
            num_classes=10,
            dim=64,
            depth=2,
            heads=4,
            mlp_dim=128,
            patch_dropout=0.25,
        )
        vit = Extractor(vit, return_embeddings_only=True, detach=False)
        model = CoCa(
            dim=64,
            img_encoder=vit,
            image_dim=64,
            num_tokens=VOCABULARY,
            unimodal_depth=2,
            multimodal_depth=2,
            dim_head=16,
            heads=4,
            caption_loss_weight=1.0,
            contrastive_loss_weight=1.0,
        )
    return Step(
        model.train(),
        lambda: {"text": tokens(BATCH, LENGTH), "images": _pixels(), "return_loss": True},
    )


ARCHITECTURES = {
    "clip": partial(_contrastive, "CLIP", projection_dim=64),
    "siglip": partial(_contrastive, "Siglip"),
    "chinese-clip": partial(_contrastive, "ChineseCLIP", projection_dim=64),
    "blip": _blip,
    "git": _git,
    "llava": _llava,
    "paligemma": _paligemma,
    "idefics3": _idefics3,
    "qwen2-vl": _qwen2_vl,
    "vilt": _vilt,
    "trocr": trocr,
    "layoutlm": layoutlm,
    "visual-bert": visual_bert,
    "x-clip": _x_clip,
    "coca": _coca,
}
