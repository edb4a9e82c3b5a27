"""TARGET, inputs and loss as written on the command line, made into a training step."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import math
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memfit.errors import MemfitError, UsageError
from memfit.units import format_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from memfit.pytorch.api.unallocated import Unallocated

__all__ = [
    "LOSSES",
    "TensorText",
    "TrainingCase",
    "add_target_arguments",
    "check_target_arguments",
    "load_case",
    "parse_device",
    "parse_tensor",
]

LOSSES = ("auto", "none", "sum", "cross-entropy", "mse")
_INTEGERS = {"int64": 2**63, "int32": 2**31, "int16": 2**15, "int8": 2**7, "uint8": 2**8}
"""Integer dtypes, and one more than their largest values."""
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_DTYPES = (*_FLOATS, *_INTEGERS, "bool")
_TENSOR = re.compile(r"([0-9]+(?:x[0-9]+)*)(?::([a-z]+[0-9]*))?(?::([0-9]+))?")
_MAX_ELEMENTS = 2**48
_DEFAULT_CHOICES = 2

INPUT_HELP = (
    "one input tensor: SHAPE[:DTYPE[:N]], such as 8x3x224x224, 8x3x224x224:bfloat16 or "
    "4x256:int64:5000 (integers from 0 to 4999; N is 2 where it is left out); repeat it for more "
    "inputs, in the order of the model's arguments. Values are random (--seed)."
)
LOSS_HELP = (
    "what is differentiated, computed inside the planned step: auto (default: the output's own "
    "loss where it has one, else the mean of its first tensor), sum (of the first tensor), "
    "cross-entropy or mse (of the first tensor and --target), module:callable (called with the "
    "output and --target), none (the model alone is planned, and the sum of its outputs "
    "differentiated outside of the plan)"
)
TARGET_HELP = (
    "MODULE:CALLABLE, such as pytorchcv.models.resnet:resnet50, called without arguments or with "
    "those of --arg. It returns an nn.Module, (model, inputs) or (model, inputs, loss_fn), where "
    "with a loss_fn the last of the inputs is the target: the step is loss_fn(model(*inputs[:-1]), "
    "inputs[-1]). Modules are found as by python, and in the current folder."
)


@dataclass(frozen=True, slots=True)
class TensorText:
    """A tensor as written: `8x3x224x224`, `4x256:int64:5000`.

    Attributes:
        shape: its sizes.
        dtype: name of its element type.
        choices: integers are drawn from 0 to choices - 1.
    """

    shape: tuple[int, ...]
    dtype: str
    choices: int


@dataclass(frozen=True, slots=True)
class TrainingCase:
    """A training step: the arguments of `memfit.plan` and `memfit.verify`.

    Attributes:
        name: for people.
        model: the model, in training mode.
        inputs: one call's arguments; the target last where there is a loss.
        loss_fn: called with the model's output and the target.
    """

    name: str
    model: nn.Module
    inputs: tuple[Any, ...]
    loss_fn: Callable[..., Any] | None


def add_target_arguments(parser: ArgumentParser) -> None:
    """TARGET and the options that say how to call it and what to differentiate."""
    parser.add_argument("model", metavar="TARGET", help=TARGET_HELP)
    parser.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="keyword argument for TARGET; VALUE is a Python literal (3, True, None, [1,2]), and "
        "otherwise text as it stands; repeatable",
    )
    parser.add_argument(
        "--input", action="append", default=[], metavar="SHAPE[:DTYPE[:N]]", help=INPUT_HELP
    )
    parser.add_argument("--loss", default="auto", metavar="LOSS", help=LOSS_HELP)
    parser.add_argument(
        "--target",
        metavar="SHAPE[:DTYPE[:N]]",
        help="the target tensor for --loss, written like --input: 8:int64:1000 are class numbers "
        "from 0 to 999",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:1")
    parser.add_argument(
        "--seed", type=_seed, default=0, help="for parameters and inputs (default: %(default)s)"
    )


def _seed(text: str) -> int:
    """A seed of PyTorch's generators, of which the next is one too, for `argparse`."""
    try:
        found = int(text) if len(text) <= 20 else 2**63
    except ValueError:
        found = 2**63
    if not -(2**63) <= found < 2**63 - 1:
        raise ArgumentTypeError(f"{text[:30]!r} is no seed; give a whole number of 64 bits")
    return found


def parse_tensor(text: str, option: str) -> TensorText:
    """Read a tensor as written on the command line.

    Raises:
        UsageError: it cannot be read; names the option, the text and the form.
    """
    form = "write SHAPE[:DTYPE[:N]], such as 8x3x224x224 or 4x256:int64:5000"
    match = _TENSOR.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{option} {text!r} cannot be read; {form}")
    shape = tuple(int(size) for size in match[1].split("x"))
    dtype = match[2] or "float32"
    if dtype not in _DTYPES:
        raise UsageError(f"{option} {text!r}: unknown dtype {dtype!r}; one of {', '.join(_DTYPES)}")
    elements = 1
    for size in shape:
        elements *= size
    if not 0 < elements <= _MAX_ELEMENTS:
        raise UsageError(
            f"{option} {text!r} has {elements} elements; sizes must be 1 or more, and their "
            "product at most 2**48"
        )
    if match[3] is not None and dtype not in _INTEGERS:
        raise UsageError(
            f"{option} {text!r} gives a number of integers for {dtype}; {form}, with an integer "
            f"dtype ({', '.join(_INTEGERS)})"
        )
    choices = int(match[3]) if match[3] is not None else _DEFAULT_CHOICES
    most = min(_INTEGERS.get(dtype, 2), 2**62)
    if not 0 < choices <= most:
        raise UsageError(f"{option} {text!r}: N is {choices}; it must be 1 to {most} for {dtype}")
    return TensorText(shape, dtype, choices)


def check_target_arguments(args: Namespace) -> None:
    """Refuse what can be seen to be wrong before PyTorch and the model are loaded.

    Raises:
        UsageError: see there.
    """
    _split_target(args.model, "target")
    for text in args.input:
        parse_tensor(text, "--input")
    for text in args.arg:
        _parse_keyword(text)
    if args.target is not None:
        parse_tensor(args.target, "--target")
    if args.loss not in LOSSES and ":" not in args.loss:
        raise UsageError(
            f"unknown loss {args.loss!r}; known losses: {', '.join(LOSSES)}, or module:callable"
        )
    wants_target = args.loss in ("cross-entropy", "mse") or ":" in args.loss
    if wants_target and args.target is None:
        raise UsageError(
            f"--loss {args.loss} compares with a target; give its shape, such as --target "
            "8:int64:1000 for 8 class numbers from 0 to 999"
        )
    if args.target is not None and not wants_target:
        raise UsageError(
            f"--target {args.target} is not used by --loss {args.loss}; leave it out or choose "
            "--loss cross-entropy, mse or module:callable"
        )


def load_case(args: Namespace, *, unallocated: Unallocated | None = None) -> TrainingCase:
    """Build the model, its inputs and its loss.

    Args:
        args: the command line.
        unallocated: builds them without memory, for a device that need not be there.

    Raises:
        UsageError: TARGET cannot be found, called or used; inputs or loss are missing or double.
    """
    import torch

    check_target_arguments(args)
    device = _device(args.device) if unallocated is None else unallocated.built_on
    torch.manual_seed(args.seed)
    found = _resolve(args.model, "target")
    torch.manual_seed(args.seed)  # again, as importing a module draws only the first time
    with nullcontext() if unallocated is None else unallocated.building:
        return _build_case(args, found, device, unallocated)


def _build_case(
    args: Namespace, found: Any, device: torch.device, unallocated: Unallocated | None
) -> TrainingCase:
    from torch import nn

    from memfit.pytorch.api.training_mode import put_in_training_mode

    keywords = dict(_parse_keyword(text) for text in args.arg)
    made = found if isinstance(found, nn.Module) else _call(args.model, found, keywords)
    parts = tuple(made) if isinstance(made, (tuple, list)) else (made,)
    model = parts[0] if parts else None
    if not isinstance(model, nn.Module) or len(parts) > 3:
        what = "an empty tuple" if not parts else f"a {type(model).__name__}"
        if len(parts) > 1:
            what = f"a tuple of {len(parts)} that starts with {what}"
        raise UsageError(
            f"target {args.model!r} returned {what}; it must return an nn.Module, (model, inputs) "
            "or (model, inputs, loss_fn)"
        )
    if unallocated is None:
        model = model.to(device)
    else:
        unallocated.fake_module(model)
    put_in_training_mode(model)
    if len(parts) == 1:
        inputs, loss_fn = _written_case(args, device)
    else:
        inputs, loss_fn = _returned_case(args, parts[1:], device)
    return TrainingCase(type(model).__name__, model, inputs, loss_fn)


def _written_case(
    args: Namespace, device: torch.device
) -> tuple[tuple[Any, ...], Callable[..., Any] | None]:
    """Inputs and loss from `--input`, `--loss` and `--target`."""
    if not args.input:
        raise UsageError(
            f"target {args.model!r} returned a model without inputs; give at least one --input, "
            "such as --input 8x3x224x224, or return (model, inputs)"
        )
    inputs = _tensors([parse_tensor(text, "--input") for text in args.input], args.seed, device)
    if args.loss == "none":
        return inputs, None
    # A loss without a target still takes one, so that it is planned with the model.
    target: Any = None
    if args.target is not None:
        (target,) = _tensors([parse_tensor(args.target, "--target")], args.seed + 1, device)
    return (*inputs, target), _loss(args.loss)


def _returned_case(
    args: Namespace, parts: Sequence[Any], device: torch.device
) -> tuple[tuple[Any, ...], Callable[..., Any] | None]:
    """Inputs and loss that TARGET returned beside the model."""
    import torch

    if args.input:
        raise UsageError(
            f"target {args.model!r} returned its own inputs, and --input {args.input[0]} gives "
            "others; leave --input out, or return the model alone"
        )
    given = parts[0]
    given = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    inputs = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), given)
    loss_fn = parts[1] if len(parts) > 1 else None
    if loss_fn is not None:
        if args.loss != "auto":
            raise UsageError(
                f"target {args.model!r} returned its own loss_fn, and --loss {args.loss} gives "
                "another; leave --loss out, or return (model, inputs)"
            )
        if not callable(loss_fn):
            raise UsageError(
                f"target {args.model!r} returned a {type(loss_fn).__name__} as loss_fn; it must "
                "be a callable that takes the model's output and the target"
            )
        return inputs, loss_fn
    if args.loss == "none":
        return inputs, None
    target: Any = None
    if args.target is not None:
        (target,) = _tensors([parse_tensor(args.target, "--target")], args.seed + 1, device)
    return (*inputs, target), _loss(args.loss)


def _tensors(
    texts: Sequence[TensorText], seed: int, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """Random tensors: normal floats, uniform integers from 0 to choices - 1, fair booleans."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    made = []
    for text in texts:
        dtype = getattr(torch, text.dtype)
        try:
            if text.dtype in _FLOATS:
                tensor = torch.randn(text.shape, generator=generator).to(dtype)
            else:
                tensor = torch.randint(text.choices, text.shape, generator=generator).to(dtype)
            made.append(tensor.to(device))
        except (RuntimeError, MemoryError):  # also of a number of elements beyond 64 bits
            shape = "x".join(map(str, text.shape))
            size = format_bytes(math.prod(text.shape) * dtype.itemsize)
            raise UsageError(
                f"a tensor of shape {shape} and type {text.dtype} takes {size}, more than there is "
                "memory for; write a smaller shape"
            ) from None
    return tuple(made)


def _device(name: str) -> torch.device:
    import torch

    device = parse_device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(
                f"device {name!r} is not there: PyTorch sees {count} CUDA devices; use --device cpu"
            )
    return device


def parse_device(name: str) -> torch.device:
    """The device of that name, which need not be there.

    Raises:
        UsageError: it is none, or of another kind than CPU and CUDA.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}; write cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported; write cpu, cuda or cuda:1")
    return device


# --- losses ---------------------------------------------------------------------------------------


def _loss(text: str) -> Callable[..., Any]:
    """The loss of that name, called with the model's output and the target."""
    import torch.nn.functional as F

    if text == "auto":
        return _own_loss_or_mean
    if text == "sum":
        return lambda output, _: _first_tensor(output).sum()
    if text == "cross-entropy":
        return lambda output, target: F.cross_entropy(_first_tensor(output), target)
    if text == "mse":
        return lambda output, target: F.mse_loss(_first_tensor(output), target)
    found: Callable[..., Any] = _resolve(text, "loss")
    if inspect.isclass(found):
        found = _call(text, found, {})
    if not callable(found):
        raise UsageError(
            f"loss {text!r} is a {type(found).__name__}; it must be a callable that takes the "
            "model's output and the target"
        )
    return found


def _own_loss_or_mean(output: Any, _: Any) -> Any:
    loss = getattr(output, "loss", None)
    return loss if loss is not None else _first_tensor(output).mean()


def _first_tensor(output: Any) -> Any:
    while isinstance(output, (tuple, list, Mapping)):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


# --- names and arguments --------------------------------------------------------------------------


def _split_target(text: str, what: str) -> tuple[str, str]:
    module, _, name = text.partition(":")
    parts = (*module.split("."), *name.split("."))
    if not all(part.isidentifier() for part in parts):
        raise UsageError(f"{what} {text!r} is not of the form module:callable; {_right_form(text)}")
    return module, name


def _right_form(text: str) -> str:
    """What to write instead of a TARGET of another form."""
    path, _, name = text.partition(":")
    if not name and path.endswith((".json", ".txt")):
        return (
            "it looks like a plan or a graph, and a model is wanted here; memfit report draws a "
            "plan, memfit solve plans a graph"
        )
    module = path.removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")
    if not name and module == path and "." in module:
        module, _, name = module.rpartition(".")
    parts = (*module.split("."), *name.split("."))
    if name and all(part.isidentifier() for part in parts):
        return f"write {module}:{name}"
    if module != path and all(part.isidentifier() for part in module.split(".")):
        return f"write {module}:NAME, where NAME makes the model"
    return "write something like pytorchcv.models.resnet:resnet50 or my_file:make_model"


def _parse_keyword(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--arg {text!r} is not of the form NAME=VALUE; write --arg depth=18")
    if value in ("true", "false", "none", "null"):
        raise UsageError(f"--arg {text!r}: write Python's True, False or None")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value


def _resolve(text: str, what: str) -> Any:
    """The object that `module:name` names; the current folder is searched first."""
    module_name, name = _split_target(text, what)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        importlib.invalidate_caches()
        found: Any = importlib.import_module(module_name)
    except MemfitError:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name.endswith(".py"):
            remedy = f"leave .py out: {module_name.removesuffix('.py')}:{name}"
        elif module_name == missing or module_name.startswith(f"{missing}."):
            remedy = "check the spelling, install it, or run memfit from the folder that holds it"
        else:
            remedy = f"install {missing}"
        raise UsageError(f"{what} {text!r}: there is no module {missing!r}; {remedy}") from None
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{what} {text!r}: importing {module_name} failed with {type(error).__name__}: "
            f"{error}; fix it so that `python -c 'import {module_name}'` works"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n in dir(found) if not n.startswith("_")]
            near = difflib.get_close_matches(part, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "check the spelling"
            raise UsageError(f"{what} {text!r}: {module_name} has no {part!r}; {hint}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(
            f"{what} {text!r}, of type {type(found).__name__}, cannot be called; name a function "
            "or class"
        )
    return found


def _call(text: str, function: Callable[..., Any], keywords: Mapping[str, Any]) -> Any:
    try:
        return function(**keywords)
    except MemfitError:
        raise
    except (Exception, SystemExit) as error:
        written = ", ".join(f"{k}={v!r}" for k, v in keywords.items())
        raise UsageError(
            f"target {text!r}: calling it with ({written}) failed with "
            f"{type(error).__name__}: {error}; give its arguments with --arg NAME=VALUE, or name a "
            "function of your own that takes none"
        ) from error
