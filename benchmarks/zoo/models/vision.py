"""Classifiers of images and videos."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.models.hub import config_of, image_classifier, labelled
from benchmarks.zoo.step import Step
from benchmarks.zoo.stubs import stubs

__all__ = ["ARCHITECTURES"]

PYRAMID: dict[str, Any] = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [16, 32, 64, 128],
    "embedding_size": 16,
}


def _like_vit(kind: str, **changes: Any) -> Step:
    return image_classifier(kind, **{"image_size": 64, "patch_size": 8, "batch": 16, **changes})


def _like_swin(kind: str) -> Step:
    return image_classifier(
        kind,
        image_size=64,
        patch_size=2,
        embed_dim=24,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    )


def _masked_autoencoder() -> Step:
    config = config_of(
        "vit_mae",
        image_size=64,
        patch_size=8,
        decoder_hidden_size=64,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=128,
    )
    batch = lambda: {"pixel_values": torch.randn(16, 3, 64, 64)}  # noqa: E731
    return labelled("vit_mae", "ViTMAEForPreTraining", batch, config)


def _videos(kind: str, **changes: Any) -> Step:
    def inputs() -> dict[str, torch.Tensor]:
        return {
            "pixel_values": torch.randn(8, 4, 3, 32, 32),
            "labels": torch.randint(0, 10, (8,)),
        }

    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 4, "num_labels": 10}
    return labelled(kind, "AutoModelForVideoClassification", inputs, **{**sizes, **changes})


def _timm(name: str, batch: int = 4, size: int = 64, **changes: Any) -> Step:
    """A classifier of timm's, of random parameters."""
    with stubs():
        import timm

        model = timm.create_model(name, pretrained=False, num_classes=10, **changes)
    return Step(
        model.train(),
        lambda: (torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))),
        nn.functional.cross_entropy,
    )


TIMM: dict[str, dict[str, Any]] = {
    "densenet121": {"growth_rate": 8, "block_config": (2, 2, 2, 2), "size": 128},
    "mobilenetv3_small_050": {"size": 128},
    "ghostnet_050": {"size": 128, "batch": 8},
    "mixer_s32_224": {"img_size": 64, "batch": 16},
    "resmlp_12_224": {"img_size": 64, "batch": 16},
    "xcit_nano_12_p8_224": {"img_size": 64, "depth": 2, "embed_dim": 64, "batch": 8},
    "cait_xxs24_224": {
        "img_size": 64,
        "patch_size": 8,
        "depth": 3,
        "embed_dim": 96,
        "num_heads": 4,
    },
    "res2net50_26w_4s": {"layers": (1, 1, 1, 1), "size": 128, "batch": 8},
    "coatnet_nano_cc_224": {"img_size": 64, "embed_dim": (16, 32, 48, 64), "depths": (1, 1, 1, 1)},
    "edgenext_xx_small": {"size": 96, "batch": 8},
}

ARCHITECTURES = {
    "vit": partial(_like_vit, "vit"),
    "beit": partial(_like_vit, "beit"),
    "dinov2": partial(_like_vit, "dinov2", mlp_ratio=2),
    "vit-mae": _masked_autoencoder,
    "swin": partial(_like_swin, "swin"),
    "swinv2": partial(_like_swin, "swinv2"),
    "convnext": partial(
        image_classifier, "convnext", depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 128], batch=32
    ),
    "convnextv2": partial(
        image_classifier,
        "convnextv2",
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 128],
        batch=32,
    ),
    "resnet": partial(image_classifier, "resnet", batch=32, **PYRAMID),
    "regnet": partial(image_classifier, "regnet", groups_width=8, batch=32, **PYRAMID),
    "mobilenet-v2": partial(image_classifier, "mobilenet_v2", size=96, depth_multiplier=0.35),
    "mobilevit": partial(
        image_classifier,
        "mobilevit",
        hidden_sizes=[32, 48, 64],
        neck_hidden_sizes=[8, 16, 24, 32, 48, 64, 128],
    ),
    "poolformer": partial(
        image_classifier,
        "poolformer",
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 128],
        batch=32,
    ),
    "pvt-v2": partial(
        image_classifier,
        "pvt_v2",
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 128],
        num_attention_heads=[1, 2, 4, 8],
        batch=32,
    ),
    "focalnet": partial(
        image_classifier, "focalnet", batch=16, image_size=64, embed_dim=24, depths=[1, 1, 2, 1]
    ),
    "videomae": partial(_videos, "videomae"),
    "timesformer": partial(_videos, "timesformer"),
    **{f"timm-{name}": partial(_timm, name, **sizes) for name, sizes in TIMM.items()},
}
