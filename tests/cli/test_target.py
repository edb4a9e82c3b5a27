"""TARGET, inputs and losses as written on the command line."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from memfit.cli import build_parser
from memfit.cli.target import (
    TensorText,
    add_target_arguments,
    load_case,
    parse_tensor,
)
from memfit.errors import UsageError

MODELS = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=3, name="net"):
        super().__init__()
        self.layer = nn.Linear(4, width)
        self.name = name
    def forward(self, x):
        return {"logits": (self.layer(x),)}

INSTANCE = Net()
NUMBER = 3

def needs(width): return Net(width)
def fails(): raise RuntimeError("no weights here")
def nothing(): return None
def empty(): return ()
def four(): return Net(), 1, 2, 3
def with_inputs(): return Net(), torch.ones(2, 4)
def whole(): return Net(), (torch.ones(2, 4), torch.zeros(2, 3)), loss
def frozen():
    model = torch.nn.Sequential(Net(), torch.nn.Dropout(0.5))
    model[1].eval()
    return model
def asleep(): return frozen().eval()
def bad_loss(): return Net(), torch.ones(2, 4), "mse"
def loss(output, target): return (output["logits"][0] - target).abs().sum()
class Loss(nn.Module):
    def forward(self, output, target): return loss(output, target)
'''  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with models; forgotten afterwards, whatever the module was called."""
    (tmp_path / "target_models.py").write_text(MODELS)
    (tmp_path / "target_broken.py").write_text("1 / 0\n")
    (tmp_path / "target_lacking.py").write_text("import no_such_package_at_all\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.delitem(__import__("sys").modules, "target_models", raising=False)
    return tmp_path


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_target_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8x3x224x224", TensorText((8, 3, 224, 224), "float32", 2)),
        ("7", TensorText((7,), "float32", 2)),
        ("2x2:bfloat16", TensorText((2, 2), "bfloat16", 2)),
        ("4x256:int64:5000", TensorText((4, 256), "int64", 5000)),
        ("4:uint8:256", TensorText((4,), "uint8", 256)),
        ("4:bool", TensorText((4,), "bool", 2)),
    ],
)
def test_tensor_texts(text: str, expected: TensorText) -> None:
    assert parse_tensor(text, "--input") == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "cannot be read"),
        ("3,4", "cannot be read"),
        ("3x", "cannot be read"),
        ("-3x4", "cannot be read"),
        ("3x4:int64:", "cannot be read"),
        ("0x4", "0 elements"),
        ("9999999x9999999x9999999", "2**48"),
        ("3x4:float8", "float32, float64"),
        ("3x4:float32:10", "integer"),
        ("3:int64:0", "1 to"),
        ("3:uint8:257", "1 to 256"),
        ("3:int8:129", "1 to 128"),
    ],
)
def test_wrong_tensor_texts(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=re.escape(part)) as caught:
        parse_tensor(text, "--input")
    assert f"--input {text!r}" in str(caught.value)


def test_a_model_with_written_inputs() -> None:
    words = ("target_models:Net", "--arg", "width=5", "--arg", "name=small", "--input", "2x4")
    case = load_case(parse(*words))
    assert case.model.name == "small"
    assert case.model.training
    image, target = case.inputs
    assert (image.shape, image.dtype, target) == ((2, 4), torch.float32, None)
    again = load_case(parse(*words))
    assert torch.equal(again.inputs[0], image)
    assert torch.equal(again.model.layer.weight, case.model.layer.weight)
    other = load_case(parse(*words, "--seed", "1"))
    assert not torch.equal(other.inputs[0], image)
    # Nothing but the default loss: the mean of the first tensor, however deep it lies.
    assert case.loss_fn is not None
    output = case.model(image)
    assert torch.equal(case.loss_fn(output, target), output["logits"][0].mean())


@pytest.mark.parametrize("text", ["x", "", "1.5", "9" * 40, "9" * 5000], ids=len)
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(UsageError, match="is no seed; give a whole number"):
        build_parser().parse_args(["inspect", "target_models:Net", f"--seed={text}"])


def test_integers_spread_over_their_range() -> None:
    ids, flags = load_case(
        parse("target_models:Net", "--input", "64x64:int32:10", "--input", "99:bool", "--loss",
              "none")
    ).inputs  # fmt: skip
    assert ids.dtype == torch.int32
    assert set(ids.flatten().tolist()) == set(range(10))
    assert flags.dtype == torch.bool


def test_the_models_own_loss_comes_first() -> None:
    class Output:
        loss = torch.tensor(5.0)

    case = load_case(parse("target_models:Net", "--input", "2x4"))
    assert case.loss_fn is not None
    assert case.loss_fn(Output(), None) == 5


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--loss", "sum"), lambda y, t: y.sum()),
        (("--loss", "mse", "--target", "2x3"), nn.functional.mse_loss),
        (
            ("--loss", "cross-entropy", "--target", "2:int64:3"),
            lambda y, t: nn.functional.cross_entropy(y, t),
        ),
        (("--loss", "target_models:loss", "--target", "2x3"), lambda y, t: (y - t).abs().sum()),
        (("--loss", "target_models:Loss", "--target", "2x3"), lambda y, t: (y - t).abs().sum()),
    ],
)
def test_losses(words: tuple[str, ...], expected: object) -> None:
    case = load_case(parse("target_models:Net", "--input", "2x4", *words))
    x, target = case.inputs
    output = case.model(x)
    assert case.loss_fn is not None
    assert callable(expected)
    assert torch.equal(case.loss_fn(output, target), expected(output["logits"][0], target))


def test_no_loss_plans_the_model_alone() -> None:
    case = load_case(parse("target_models:Net", "--input", "2x4", "--loss", "none"))
    assert case.loss_fn is None
    assert len(case.inputs) == 1


def test_an_instance_is_a_model() -> None:
    case = load_case(parse("target_models:INSTANCE", "--input", "2x4"))
    assert isinstance(case.model, nn.Module)


def test_what_a_target_returns_is_used() -> None:
    case = load_case(parse("target_models:with_inputs"))
    assert torch.equal(case.inputs[0], torch.ones(2, 4))
    assert case.inputs[1] is None
    case = load_case(parse("target_models:whole"))
    x, target = case.inputs
    assert case.loss_fn is not None
    assert case.loss_fn(case.model(x), target).ndim == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("resnet50",), "module:callable"),
        (("a:b:c",), "module:callable"),
        (("a/b.py:c",), "module:callable"),
        (("no_such_module_at_all:f",), "no module 'no_such_module_at_all'"),
        (("target_models.deeper:f",), "no module 'target_models.deeper'"),
        (("target_lacking:f",), "install no_such_package_at_all"),
        (("target_broken:f",), "ZeroDivisionError"),
        (("target_models:Nett",), "did you mean Net"),
        (("target_models:NUMBER",), "of type int, cannot be called"),
        (("target_models:needs",), "--arg NAME=VALUE"),
        (("target_models:Net", "--arg", "depth=3"), "depth=3"),
        (("target_models:Net", "--arg", "depth"), "NAME=VALUE"),
        (("target_models:Net", "--arg", "name=true"), "True, False or None"),
        (("target_models:fails",), "no weights here"),
        (("target_models:nothing",), "returned a NoneType"),
        (("target_models:empty",), "returned an empty tuple"),
        (("target_models:four",), "tuple of 4"),
        (("target_models:Net",), "give at least one --input"),
        (("target_models:whole", "--input", "2x4"), "leave --input out"),
        (("target_models:whole", "--loss", "sum"), "leave --loss out"),
        (("target_models:bad_loss",), "a str as loss_fn"),
        (("target_models:Net", "--loss", "hinge"), "unknown loss 'hinge'"),
        (("target_models:Net", "--loss", "mse"), "--target"),
        (("target_models:Net", "--target", "3"), "not used by --loss auto"),
        (("target_models:Net", "--input", "3", "--device", "abacus"), "unknown device"),
        (("target_models:Net", "--input", "3", "--device", "meta"), "not supported"),
        (("target_models:Net", "--input", "3", "--device", "cuda:99"), "use --device cpu"),
        (
            ("target_models:Net", "--input", "3", "--loss", "target_models:NUMBER",
             "--target", "3"),
            "cannot be called",
        ),
    ],
)  # fmt: skip
def test_wrong_targets(words: tuple[str, ...], part: str) -> None:
    with pytest.raises(UsageError, match=re.escape(part)):
        load_case(parse(*words))


def test_modules_frozen_in_evaluation_mode_stay_so() -> None:
    case = load_case(parse("target_models:frozen", "--input", "2x4"))
    assert [m.training for m in case.model.modules()] == [True, True, True, False]


def test_a_model_in_evaluation_mode_is_put_in_training_mode() -> None:
    case = load_case(parse("target_models:asleep", "--input", "2x4"))
    assert all(m.training for m in case.model.modules())
