"""Networks of tables and of time series."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.step import Step

__all__ = ["ARCHITECTURES"]

ROWS, NUMBERS, KINDS = 256, 10, (4, 8, 16)


def _numbers() -> torch.Tensor:
    return torch.randn(ROWS, NUMBERS)


def _categories() -> torch.Tensor:
    return torch.stack([torch.randint(0, most, (ROWS,)) for most in KINDS], dim=1)


def _target() -> torch.Tensor:
    return torch.randn(ROWS, 1)


class _WithSparsity(nn.Module):
    """TabNet's output with the loss of its masks added to the error."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        found, sparsity = self.network(x)
        return nn.functional.mse_loss(found, target) - 1e-3 * sparsity


def _tabnet(**sizes: Any) -> Step:
    from pytorch_tabnet.tab_network import TabNet

    model = _WithSparsity(TabNet(NUMBERS, 1, group_attention_matrix=torch.eye(NUMBERS), **sizes))
    return Step(model.train(), lambda: (_numbers(), _target()))


def _of_tables(name: str, **sizes: Any) -> Step:
    import tab_transformer_pytorch as package

    model = getattr(package, name)(
        categories=KINDS, num_continuous=NUMBERS, dim=32, dim_out=1, depth=2, heads=4, **sizes
    )
    return Step(
        model.train(), lambda: (_categories(), _numbers(), _target()), nn.functional.mse_loss
    )


def _ft_transformer() -> Step:
    from rtdl_revisiting_models import FTTransformer

    sizes = FTTransformer.get_default_kwargs(n_blocks=2)
    model = FTTransformer(n_cont_features=NUMBERS, cat_cardinalities=list(KINDS), d_out=1, **sizes)
    return Step(
        model.train(), lambda: (_numbers(), _categories(), _target()), nn.functional.mse_loss
    )


def _residual() -> Step:
    from rtdl_revisiting_models import ResNet

    model = ResNet(
        d_in=NUMBERS,
        d_out=1,
        n_blocks=3,
        d_block=128,
        d_hidden_multiplier=2.0,
        dropout1=0.1,
        dropout2=0.0,
    )
    return Step(model.train(), lambda: (_numbers(), _target()), nn.functional.mse_loss)


def _periodic() -> Step:
    from rtdl_num_embeddings import PeriodicEmbeddings

    model = nn.Sequential(
        PeriodicEmbeddings(NUMBERS, 16, lite=False),
        nn.Flatten(),
        nn.Linear(NUMBERS * 16, 128),
        nn.ReLU(),
        nn.Linear(128, 1),
    )
    return Step(model.train(), lambda: (_numbers(), _target()), nn.functional.mse_loss)


def _inverted() -> Step:
    from iTransformer import iTransformer

    model = iTransformer(
        num_variates=8, lookback_len=64, pred_length=16, dim=64, depth=3, heads=4, dim_head=16
    )

    def inputs() -> dict[str, torch.Tensor]:
        return {"x": torch.randn(16, 64, 8), "targets": torch.randn(16, 16, 8)}

    return Step(model.train(), inputs)


def _probabilistic(name: str, **sizes: Any) -> Step:
    """A forecast of a distribution, with its likelihood as loss."""
    import transformers

    config = getattr(transformers, f"{name}Config")(
        prediction_length=16,
        context_length=32,
        lags_sequence=[1, 2, 3],
        num_time_features=2,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        **sizes,
    )

    def inputs() -> dict[str, torch.Tensor]:
        past = 32 + 3
        return {
            "past_values": torch.randn(8, past),
            "past_time_features": torch.randn(8, past, 2),
            "past_observed_mask": torch.ones(8, past),
            "future_values": torch.randn(8, 16),
            "future_time_features": torch.randn(8, 16, 2),
        }

    model = getattr(transformers, f"{name}ForPrediction")(config)
    return Step(model.train(), inputs)


def _patches(name: str, **sizes: Any) -> Step:
    import transformers

    config = getattr(transformers, f"{name}Config")(
        context_length=128,
        prediction_length=16,
        patch_length=8,
        num_input_channels=4,
        d_model=64,
        **sizes,
    )
    model = getattr(transformers, f"{name}ForPrediction")(config)

    def inputs() -> dict[str, torch.Tensor]:
        return {"past_values": torch.randn(8, 128, 4), "future_values": torch.randn(8, 16, 4)}

    return Step(model.train(), inputs)


ARCHITECTURES = {
    "tabnet": _tabnet,
    "tabnet-entmax": partial(_tabnet, mask_type="entmax"),
    "tab-transformer": partial(_of_tables, "TabTransformer", mlp_act=nn.ReLU()),
    "ft-transformer-lucidrains": partial(_of_tables, "FTTransformer"),
    "ft-transformer": _ft_transformer,
    "tabular-resnet": _residual,
    "mlp-plr": _periodic,
    "itransformer": _inverted,
    "time-series-transformer": partial(_probabilistic, "TimeSeriesTransformer"),
    "informer": partial(_probabilistic, "Informer"),
    "autoformer": partial(_probabilistic, "Autoformer"),
    "patchtst": partial(
        _patches, "PatchTST", patch_stride=8, num_attention_heads=4, ffn_dim=128, loss="mse"
    ),
    "patchtsmixer": partial(_patches, "PatchTSMixer", num_layers=3),
}
