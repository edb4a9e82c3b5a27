"""Detectors, trained with the loss that matches their boxes to those of the image."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.zoo.step import Step

__all__ = ["ARCHITECTURES"]

SIZE, BOXES, CLASSES = 96, 3, 5
DETR = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "num_queries": 20,
    "num_labels": CLASSES,
}


def _images(images: int = 4, size: int = SIZE) -> dict[str, Any]:
    return {
        "pixel_values": torch.randn(images, 3, size, size),
        "labels": [
            {
                "class_labels": torch.randint(0, CLASSES, (BOXES,)),
                "boxes": torch.rand(BOXES, 4) * 0.4 + 0.3,
            }
            for _ in range(images)
        ],
    }


def _resnet(*stages: str) -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=list(stages),
    )


def _hgnet() -> Any:
    from transformers import HGNetV2Config

    return HGNetV2Config(
        stem_channels=[3, 8, 16],
        stage_in_channels=[16, 16, 32, 64],
        stage_mid_channels=[8, 8, 16, 16],
        stage_out_channels=[16, 32, 64, 128],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


def _detector(name: str, backbone: Any, images: Any = _images, **sizes: Any) -> Step:
    """A detector by the name that its classes begin with."""
    import transformers

    config = getattr(transformers, f"{name}Config")(
        backbone_config=backbone,
        backbone=None,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        **sizes,
    )
    model = getattr(transformers, f"{name}ForObjectDetection")(config)
    return Step(model.train(), images)


def _like_detr(name: str, *stages: str, **sizes: Any) -> Step:
    images = partial(_images, 4, SIZE if stages else 2 * SIZE)
    return _detector(name, _resnet(*(stages or ("stage3",))), images, **{**DETR, **sizes})


def _like_rt_detr(name: str, **sizes: Any) -> Step:
    from transformers import RTDetrResNetConfig

    backbone = (
        _hgnet()
        if name == "DFine"
        else RTDetrResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 64, 128],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
    )
    return _detector(
        name,
        backbone,
        encoder_hidden_dim=64,
        encoder_in_channels=[32, 64, 128],
        feat_strides=[8, 16, 32],
        encoder_layers=1,
        encoder_ffn_dim=128,
        encoder_attention_heads=4,
        d_model=64,
        decoder_in_channels=[64, 64, 64],
        decoder_layers=2,
        decoder_ffn_dim=128,
        decoder_attention_heads=4,
        num_queries=20,
        num_denoising=6,
        num_labels=CLASSES,
        **sizes,
    )


def _yolos() -> Step:
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=[SIZE, SIZE],
        patch_size=8,
        num_detection_tokens=20,
        num_labels=CLASSES,
    )
    return Step(YolosForObjectDetection(config).train(), _images)


ARCHITECTURES = {
    "detr": partial(_like_detr, "Detr"),
    "table-transformer": partial(_like_detr, "TableTransformer"),
    "conditional-detr": partial(_like_detr, "ConditionalDetr"),
    "deformable-detr": partial(
        _like_detr, "DeformableDetr", "stage2", "stage3", "stage4", num_feature_levels=3
    ),
    "dab-detr": partial(_like_detr, "DabDetr", hidden_size=64),
    "rt-detr": partial(_like_rt_detr, "RTDetr"),
    "rt-detr-v2": partial(_like_rt_detr, "RTDetrV2"),
    "d-fine": partial(_like_rt_detr, "DFine"),
    "yolos": _yolos,
}
