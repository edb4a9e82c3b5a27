"""The models that `run` trains, with what each peer needs to know of them.

A peer is given what its user would write by hand: which modules to mark, and the model as a chain
of functions where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from benchmarks.lib import networks
from benchmarks.lib.networks import Case

__all__ = ["QUICK", "SUBJECTS", "Subject"]

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class Subject:
    """A training step, and how users of other tools would mark its model.

    Attributes:
        case: the step.
        blocks: the modules of a copy of the model that are checkpointed one by one.
        chain: a copy of the model as functions, each of which takes what the one before it returns;
            None where the model has no such form.
        block: what a block is, in words.
    """

    case: Case
    blocks: Callable[[nn.Module], Sequence[nn.Module]]
    chain: Callable[[nn.Module], list[Function]] | None
    block: str


def _units(model: nn.Module) -> list[nn.Module]:
    """Residual or dense units and transitions of pytorchcv's classifiers, stage by stage."""
    stages = [m for m in model.features if isinstance(m, nn.Sequential)]
    return [unit for stage in stages for unit in stage]


def _classifier_chain(model: nn.Module) -> list[Function]:
    parts: list[Function] = []
    for part in model.features:
        parts.extend(part if isinstance(part, nn.Sequential) else [part])
    return [*parts, lambda x: x.view(x.size(0), -1), model.output]


def _classifier(case: Case, block: str) -> Subject:
    return Subject(case, _units, _classifier_chain, block)


def resnet50() -> Subject:
    return _classifier(networks.resnet50(8, 224), "a residual unit")


def resnet18() -> Subject:
    from pytorchcv.models.resnet import resnet18 as build

    return _classifier(networks.classifier("ResNet18", build(), 8, 224), "a residual unit")


def densenet121() -> Subject:
    from pytorchcv.models.densenet import densenet121 as build

    return _classifier(
        networks.classifier("DenseNet121", build(), 4, 224), "a dense unit or a transition"
    )


def unet() -> Subject:
    def blocks(model: nn.Module) -> list[nn.Module]:
        up = [m for m in model.hg.up_seq if any(True for _ in m.parameters())]
        return [model.stem, *model.hg.down_seq, *up, model.head]

    return Subject(networks.unet(2, 256), blocks, None, "a level on the way down or up")


def gpt2() -> Subject:
    def chain(model: nn.Module) -> list[Function]:
        body = model.transformer
        positions = torch.arange(256).unsqueeze(0)

        def embed(ids: torch.Tensor) -> torch.Tensor:
            return body.drop(body.wte(ids) + body.wpe(positions))

        def head(hidden: torch.Tensor) -> Any:
            return SimpleNamespace(logits=model.lm_head(body.ln_f(hidden)))

        return [embed, *body.h, head]

    return Subject(networks.gpt2(), lambda m: m.transformer.h, chain, "a transformer block")


def bert() -> Subject:
    """BERT with the loss of masked words."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    vocabulary = 5000
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=256,
    )
    words = torch.randint(0, vocabulary, (8, 128))
    target = torch.where(torch.rand(words.shape) < 0.15, words, -100)

    def loss(output: Any, target: torch.Tensor) -> torch.Tensor:
        logits = output.logits
        return nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), target.view(-1))

    def chain(model: nn.Module) -> list[Function]:
        def head(hidden: torch.Tensor) -> Any:
            return SimpleNamespace(logits=model.cls(hidden))

        return [model.bert.embeddings, *model.bert.encoder.layer, head]

    case = Case("BERT", BertForMaskedLM(config).train(), (words, target), loss)
    return Subject(case, lambda m: m.bert.encoder.layer, chain, "an encoder layer")


def lstm() -> Subject:
    steps = 128

    def chain(model: nn.Module) -> list[Function]:
        def embed(tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
            embedded = model.embed(tokens)
            start = embedded.new_zeros(tokens.shape[0], model.width)
            return (embedded, start, start)

        def step(index: int) -> Function:
            def run(state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
                embedded, hidden, memory, *found = state
                hidden, memory = model.cell(embedded[:, index], (hidden, memory))
                return (embedded, hidden, memory, *found, hidden)

            return run

        def head(state: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return model.head(torch.stack(state[3:], dim=1))

        return [embed, *(step(i) for i in range(steps)), head]

    case = networks.lstm(steps=steps, width=256, batch=32, vocabulary=500)
    return Subject(case, lambda m: [m.cell], chain, "one step of the cell")


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "gpt2": gpt2,
    "bert": bert,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "unet": unet,
    "lstm": lstm,
}

QUICK = ("gpt2", "resnet18")
"""What a quick run measures."""
