"""Networks of volumes, with the overlap of what they mark as loss."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.step import Step

__all__ = ["ARCHITECTURES"]

CLASSES = 3


def _volumes(name: str, size: tuple[int, ...] = (32, 32, 32), batch: int = 1, **sizes: Any) -> Step:
    """A network of MONAI's by its name."""
    from monai.losses import DiceCELoss
    from monai.networks import nets

    loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def of(output: Any, target: torch.Tensor) -> torch.Tensor:
        outputs = output if isinstance(output, list | tuple) else [output]
        return torch.stack([loss(one, target) for one in outputs]).sum()

    def inputs() -> tuple[torch.Tensor, torch.Tensor]:
        shape = (batch, 1, *size)
        return torch.randn(shape), torch.randint(0, CLASSES, shape)

    return Step(getattr(nets, name)(**sizes).train(), inputs, of)


def _densenet() -> Step:
    from monai.networks.nets import DenseNet

    model = DenseNet(
        3, in_channels=1, out_channels=4, init_features=8, growth_rate=8, block_config=(2, 2, 2)
    )
    return Step(
        model.train(),
        lambda: (torch.randn(8, 1, 32, 32, 32), torch.randint(0, 4, (8,))),
        nn.functional.cross_entropy,
    )


IN_OUT = {"in_channels": 1, "out_channels": CLASSES}

ARCHITECTURES = {
    "unet-3d": partial(
        _volumes,
        "UNet",
        spatial_dims=3,
        channels=(8, 16, 32),
        strides=(2, 2),
        num_res_units=1,
        **IN_OUT,
    ),
    "attention-unet": partial(
        _volumes, "AttentionUnet", spatial_dims=3, channels=(8, 16, 32), strides=(2, 2), **IN_OUT
    ),
    "basic-unet-plus-plus": partial(
        _volumes, "BasicUNetPlusPlus", spatial_dims=3, features=(4, 4, 8, 8, 16, 4), **IN_OUT
    ),
    "dyn-unet": partial(
        _volumes,
        "DynUNet",
        spatial_dims=3,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[8, 16, 32],
        res_block=True,
        **IN_OUT,
    ),
    "seg-res-net": partial(_volumes, "SegResNet", spatial_dims=3, init_filters=8, **IN_OUT),
    "v-net": partial(_volumes, "VNet", spatial_dims=3, **IN_OUT),
    "unetr": partial(
        _volumes,
        "UNETR",
        img_size=(32, 32, 32),
        feature_size=8,
        hidden_size=48,
        mlp_dim=96,
        num_heads=4,
        spatial_dims=3,
        **IN_OUT,
    ),
    "swin-unetr": partial(
        _volumes,
        "SwinUNETR",
        (64, 32, 32),
        feature_size=12,
        depths=(1, 1, 1, 1),
        spatial_dims=3,
        **IN_OUT,
    ),
    "high-res-net": partial(_volumes, "HighResNet", size=(16, 16, 16), spatial_dims=3, **IN_OUT),
    "densenet-3d": _densenet,
}
