"""Networks of sound."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.models.hub import config_of, labelled, tokens
from benchmarks.zoo.step import Step
from benchmarks.zoo.stubs import stubs

__all__ = ["ARCHITECTURES"]

WAVES: dict[str, Any] = {
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_length": 2,
    "vocab_size": 32,
}


def _of_waves(kind: str, auto: str = "AutoModelForCTC", **changes: Any) -> Step:
    """A recogniser with the loss of all alignments (CTC)."""

    def inputs() -> dict[str, torch.Tensor]:
        return {"input_values": torch.randn(4, 4000), "labels": tokens(4, 8, 32)}

    return labelled(kind, auto, inputs, **{**WAVES, **changes})


def _keywords(kind: str, **changes: Any) -> Step:
    """A classifier of sounds."""

    def inputs() -> dict[str, torch.Tensor]:
        return {"input_values": torch.randn(4, 4000), "labels": torch.randint(0, 5, (4,))}

    sizes = {**WAVES, "num_labels": 5, "classifier_proj_size": 32, **changes}
    return labelled(kind, "AutoModelForAudioClassification", inputs, **sizes)


SPEECH = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "decoder_start_token_id": 2,
}


def _whisper() -> Step:
    def inputs() -> dict[str, torch.Tensor]:
        return {"input_features": torch.randn(4, 40, 256), "labels": tokens(4, 32)}

    return labelled(
        "whisper",
        "WhisperForConditionalGeneration",
        inputs,
        num_mel_bins=40,
        max_source_positions=128,
        max_target_positions=64,
        **SPEECH,
    )


def _speech_to_text() -> Step:
    def inputs() -> dict[str, torch.Tensor]:
        return {
            "input_features": torch.randn(4, 256, 40),
            "attention_mask": torch.ones(4, 256, dtype=torch.long),
            "labels": tokens(4, 32),
        }

    return labelled(
        "speech_to_text",
        "Speech2TextForConditionalGeneration",
        inputs,
        input_feat_per_channel=40,
        conv_channels=64,
        max_source_positions=512,
        max_target_positions=64,
        **SPEECH,
    )


def _moonshine() -> Step:
    def inputs() -> dict[str, torch.Tensor]:
        return {"input_values": torch.randn(2, 8000), "decoder_input_ids": tokens(2, 32)} | {
            "labels": tokens(2, 32)
        }

    return labelled(
        "moonshine",
        "MoonshineForConditionalGeneration",
        inputs,
        encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
        encoder_num_key_value_heads=4,
        decoder_num_key_value_heads=4,
        decoder_start_token_id=2,
    )


def _spectrograms() -> Step:
    config = config_of(
        "audio-spectrogram-transformer", num_mel_bins=32, max_length=128, num_labels=5
    )

    def inputs() -> dict[str, torch.Tensor]:
        return {"input_values": torch.randn(8, 128, 32), "labels": torch.randint(0, 5, (8,))}

    return labelled("", "ASTForAudioClassification", inputs, config)


class _Reconstruction(nn.Module):
    """A codec's error."""

    def __init__(self, codec: nn.Module) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        found = self.codec(wave).audio_values
        wave = wave[..., : found.shape[-1]]
        return nn.functional.l1_loss(found.view(len(wave), -1), wave.reshape(len(wave), -1))


def _encodec() -> Step:
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        num_filters=8,
        hidden_size=32,
        codebook_size=64,
        codebook_dim=32,
        upsampling_ratios=[4, 4, 2],
        num_lstm_layers=1,
    )
    model = _Reconstruction(EncodecModel(config))
    return Step(model.train(), lambda: (torch.randn(2, 1, 4096),))


def _dac() -> Step:
    from transformers import DacConfig, DacModel

    config = DacConfig(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        upsampling_ratios=[4, 2],
        decoder_hidden_size=32,
        n_codebooks=3,
        codebook_size=64,
        codebook_dim=8,
    )
    model = _Reconstruction(DacModel(config))
    return Step(model.train(), lambda: (torch.randn(2, 1, 2048),))


class _Blocks(nn.Module):
    def __init__(self, blocks: list[nn.Module], width: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x)).log_softmax(-1).transpose(0, 1)


def _conformer() -> Step:
    from conformer import ConformerBlock

    blocks = [ConformerBlock(dim=64, dim_head=16, heads=4, conv_kernel_size=15) for _ in range(2)]

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        lengths = torch.full((4,), logits.shape[0]), torch.full((4,), target.shape[1])
        return nn.functional.ctc_loss(logits, target, *lengths)

    model = _Blocks(blocks, 64, 32)
    return Step(model.train(), lambda: (torch.randn(4, 128, 64), tokens(4, 12, 32)), loss)


def _demucs() -> Step:
    with stubs():
        from demucs.demucs import Demucs

        model = Demucs(["voice", "rest"], audio_channels=1, channels=8, depth=3, resample=False)
    return Step(
        model.train(),
        lambda: (torch.randn(2, 1, 8192), torch.randn(2, 2, 1, 8192)),
        nn.functional.l1_loss,
    )


def _ht_demucs() -> Step:
    with stubs():
        from demucs.htdemucs import HTDemucs

        model = HTDemucs(
            ["voice", "rest"],
            audio_channels=1,
            channels=8,
            depth=2,
            nfft=512,
            t_layers=2,
            t_heads=4,
            bottom_channels=32,
            segment=1,
            samplerate=8192,
            t_group_norm=True,
        )
    return Step(
        model.train(),
        lambda: (torch.randn(1, 1, 8192), torch.randn(1, 2, 1, 8192)),
        nn.functional.l1_loss,
    )


ARCHITECTURES = {
    "wav2vec2": partial(_of_waves, "wav2vec2"),
    "hubert": partial(_of_waves, "hubert"),
    "wavlm": partial(_of_waves, "wavlm", num_buckets=32, max_bucket_distance=64),
    "wav2vec2-conformer": partial(
        _of_waves,
        "wav2vec2-conformer",
        position_embeddings_type="rotary",
        conv_depthwise_kernel_size=7,
    ),
    "data2vec-audio": partial(_of_waves, "data2vec-audio", conv_pos_kernel_size=5),
    "sew": partial(_of_waves, "sew", squeeze_factor=2),
    "unispeech-sat": partial(_keywords, "unispeech-sat"),
    "whisper": _whisper,
    "speech-to-text": _speech_to_text,
    "moonshine": _moonshine,
    "audio-spectrogram-transformer": _spectrograms,
    "encodec": _encodec,
    "dac": _dac,
    "conformer": _conformer,
    "demucs": _demucs,
    "htdemucs": _ht_demucs,
}
