"""Denoisers: the loss is the error of the noise that they find, or of the picture."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.step import Inputs, Step
from benchmarks.zoo.stubs import stubs

__all__ = ["ARCHITECTURES"]


class _Denoiser(nn.Module):
    """Adds noise to what it is given and is asked for it again.

    Args:
        network: predicts the noise.
        time: the name of its argument for the time.
    """

    def __init__(self, network: nn.Module, time: str = "timestep") -> None:
        super().__init__()
        self.network, self.time = network, time

    def forward(self, sample: torch.Tensor, **conditions: Any) -> torch.Tensor:
        noise = torch.randn_like(sample)
        time = torch.randint(0, 1000, (sample.shape[0],), device=sample.device)
        level = (time.float() / 1000).view(-1, *[1] * (sample.ndim - 1))
        noisy = (1 - level) * sample + level * noise
        found = self.network(noisy, **{self.time: time}, **conditions)
        found = found if isinstance(found, torch.Tensor) else found.sample
        return nn.functional.mse_loss(found[:, : sample.shape[1]], noise)


def _denoiser(name: str, batch: Any, **sizes: Any) -> Step:
    """A model of diffusers' by its name."""
    import diffusers

    return Step(_Denoiser(getattr(diffusers, name)(**sizes)).train(), batch)


def _images(channels: int = 3, size: int = 32, batch: int = 4, **conditions: Any) -> Any:
    def inputs() -> Inputs:
        made = {name: make(batch) for name, make in conditions.items()}
        return {"sample": torch.randn(batch, channels, size, size), **made}

    return inputs


def _text(batch: int) -> torch.Tensor:
    return torch.randn(batch, 8, 32)


UNET = {
    "sample_size": 32,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


def _autoencoder(name: str, **sizes: Any) -> Step:
    import diffusers

    class Reconstruction(nn.Module):
        """An autoencoder's error."""

        def __init__(self) -> None:
            super().__init__()
            self.network = getattr(diffusers, name)(
                in_channels=3,
                out_channels=3,
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(16, 32),
                norm_num_groups=8,
                **sizes,
            )

        def forward(self, sample: torch.Tensor) -> torch.Tensor:
            if name == "VQModel":
                found = self.network(sample)
                return nn.functional.mse_loss(found.sample, sample) + found.commit_loss.mean()
            code = self.network.encode(sample).latent_dist
            found = self.network.decode(code.sample()).sample
            return nn.functional.mse_loss(found, sample) + 1e-4 * code.kl().mean()

    return Step(Reconstruction().train(), _images())


def _ddpm() -> Step:
    with stubs():
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet

        model = GaussianDiffusion(Unet(dim=16, dim_mults=(1, 2)), image_size=32, timesteps=100)
    return Step(model.train(), lambda: (torch.rand(4, 3, 32, 32),))


def _elucidated() -> Step:
    with stubs():
        from denoising_diffusion_pytorch import ElucidatedDiffusion, Unet

        unet = Unet(dim=16, dim_mults=(1, 2), learned_sinusoidal_cond=True)
        model = ElucidatedDiffusion(unet, image_size=32)
    return Step(model.train(), lambda: (torch.rand(4, 3, 32, 32),))


def _mmdit() -> Step:
    from mmdit import MMDiT

    class Blocks(nn.Module):
        """The two streams' error."""

        def __init__(self) -> None:
            super().__init__()
            self.network = MMDiT(
                depth=2, dim_image=64, dim_text=48, dim_cond=32, dim_head=16, heads=4
            )

        def forward(self, image: torch.Tensor, text: torch.Tensor, cond: torch.Tensor) -> Any:
            words, pixels = self.network(
                time_cond=cond, text_tokens=text, image_tokens=image, text_mask=None
            )
            return nn.functional.mse_loss(pixels, image) + words.square().mean()

    return Step(
        Blocks().train(),
        lambda: (torch.randn(4, 64, 64), torch.randn(4, 16, 48), torch.randn(4, 32)),
    )


ARCHITECTURES = {
    "unet2d": partial(
        _denoiser,
        "UNet2DModel",
        _images(),
        **UNET,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "unet2d-condition": partial(
        _denoiser,
        "UNet2DConditionModel",
        _images(4, encoder_hidden_states=_text),
        **UNET,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    ),
    "unet3d-condition": partial(
        _denoiser,
        "UNet3DConditionModel",
        lambda: {
            "sample": torch.randn(1, 4, 4, 16, 16),
            "encoder_hidden_states": torch.randn(1, 8, 32),
        },
        **UNET,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    ),
    "dit": partial(
        _denoiser,
        "DiTTransformer2DModel",
        _images(4, 32, class_labels=lambda batch: torch.randint(0, 10, (batch,))),
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        num_layers=2,
        sample_size=32,
        num_embeds_ada_norm=1000,
    ),
    "pixart": partial(
        _denoiser,
        "PixArtTransformer2DModel",
        _images(4, 32, encoder_hidden_states=_text),
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=32,
        cross_attention_dim=64,
        caption_channels=32,
        use_additional_conditions=False,
    ),
    "sd3": partial(
        _denoiser,
        "SD3Transformer2DModel",
        _images(
            4,
            32,
            encoder_hidden_states=_text,
            pooled_projections=lambda batch: torch.randn(batch, 32),
        ),
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=32,
    ),
    "autoencoder-kl": partial(_autoencoder, "AutoencoderKL", latent_channels=4),
    "vq-model": partial(_autoencoder, "VQModel", latent_channels=4, num_vq_embeddings=32),
    "ddpm": _ddpm,
    "elucidated-diffusion": _elucidated,
    "mmdit": _mmdit,
}
