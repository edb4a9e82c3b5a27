"""A class for each pixel."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.models.hub import config_of
from benchmarks.zoo.step import Step
from benchmarks.zoo.stubs import stubs

__all__ = ["ARCHITECTURES"]

CLASSES, SIZE = 5, 64


def _labelled(batch: int = 4) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.randn(batch, 3, SIZE, SIZE),
        "labels": torch.randint(0, CLASSES, (batch, SIZE, SIZE)),
    }


def _semantic(kind: str, **sizes: Any) -> Step:
    from transformers import AutoModelForSemanticSegmentation

    config = config_of(kind, num_labels=CLASSES, **sizes)
    return Step(AutoModelForSemanticSegmentation.from_config(config).train(), _labelled)


def _upernet() -> Step:
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = ConvNextConfig(
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=32,
        auxiliary_in_channels=64,
        auxiliary_channels=16,
        num_labels=CLASSES,
        use_pretrained_backbone=False,
    )
    return Step(UperNetForSemanticSegmentation(config).train(), _labelled)


def _masks() -> dict[str, Any]:
    return {
        "pixel_values": torch.randn(2, 3, SIZE, SIZE),
        "mask_labels": [(torch.rand(3, SIZE, SIZE) < 0.3).float() for _ in range(2)],
        "class_labels": [torch.randint(0, CLASSES, (3,)) for _ in range(2)],
    }


def _swin() -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        image_size=SIZE,
        patch_size=2,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def _mask2former() -> Step:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(
        backbone_config=_swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=64,
        dim_feedforward=64,
        encoder_layers=2,
        decoder_layers=3,
        num_attention_heads=4,
        num_queries=10,
        num_labels=CLASSES,
        train_num_points=256,
    )
    return Step(Mask2FormerForUniversalSegmentation(config).train(), _masks)


def _maskformer() -> Step:
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

    decoder = DetrConfig(
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        num_queries=10,
        use_timm_backbone=False,
        backbone=None,
        backbone_config=_swin(),
    )
    config = MaskFormerConfig(
        backbone_config=_swin(),
        decoder_config=decoder,
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=CLASSES,
    )
    return Step(MaskFormerForInstanceSegmentation(config).train(), _masks)


def _of_encoder(
    name: str, encoder: str = "timm-mobilenetv3_small_minimal_100", **sizes: Any
) -> Step:
    """A decoder of segmentation-models-pytorch, over a small encoder of random parameters."""
    with stubs():
        import segmentation_models_pytorch as smp

        make = getattr(smp, name)
        model = make(encoder, encoder_weights=None, classes=CLASSES, **sizes)
        loss = smp.losses.DiceLoss("multiclass")
    return Step(
        model.train(),
        lambda: (torch.randn(4, 3, 96, 96), torch.randint(0, CLASSES, (4, 96, 96))),
        lambda output, target: loss(output, target) + nn.functional.cross_entropy(output, target),
    )


SMALL_DECODER = {"decoder_channels": (64, 32, 16, 16, 8)}

ARCHITECTURES = {
    "segformer": partial(
        _semantic,
        "segformer",
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=64,
        num_attention_heads=[1, 2, 4, 8],
    ),
    "beit-segmentation": partial(
        _semantic,
        "beit",
        image_size=SIZE,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=4,
        out_indices=[1, 2, 3, 4],
        auxiliary_channels=16,
        pool_scales=[1, 2],
    ),
    "dpt": partial(
        _semantic,
        "dpt",
        image_size=SIZE,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 32, 64, 64],
        fusion_hidden_size=32,
        is_hybrid=False,
        backbone_config=None,
    ),
    "upernet": _upernet,
    "mask2former": _mask2former,
    "maskformer": _maskformer,
    "unet": partial(_of_encoder, "Unet", **SMALL_DECODER),
    "unet-plus-plus": partial(_of_encoder, "UnetPlusPlus", **SMALL_DECODER),
    "ma-net": partial(_of_encoder, "MAnet", **SMALL_DECODER),
    "linknet": partial(_of_encoder, "Linknet"),
    "fpn": partial(
        _of_encoder, "FPN", decoder_pyramid_channels=64, decoder_segmentation_channels=32
    ),
    "deeplab-v3-plus": partial(_of_encoder, "DeepLabV3Plus", decoder_channels=64),
    "pspnet": partial(_of_encoder, "PSPNet"),
}
