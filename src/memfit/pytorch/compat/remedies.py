"""What to do about code that cannot be captured, by what PyTorch's tracing says of it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "BACKWARDS_HOOKS",
    "WITH_BREAKS",
    "remedy_for",
    "remedy_for_op",
    "remedy_inside_torch",
]

WITH_BREAKS = (
    'or use torch.compile(model, backend="memfit", options={"budget": ...}), which plans the '
    "graphs before and after that line"
)
_ELSE = (
    "rewrite that line without a call that PyTorch cannot trace, or fit the parts of the model "
    f"before and after it one by one, {WITH_BREAKS}"
)
BACKWARDS_HOOKS = "backwards hooks"
"""Stands for hooks that modules have for their backward pass."""

_Remedies = Sequence[tuple[tuple[str, ...], str]]  # the first of which a part is said counts

_OF_OPS: _Remedies = (
    (
        ("no fake impl", "has no fake impl", "no meta kernel", "UnsupportedOperatorException"),
        "register what the op does to shapes: @op.register_fake, a function that returns empty "
        "tensors of the result's shape",
    ),
    (
        ("no autograd formula",),
        "register the op's backward formula: op.register_autograd, or call it on x.detach()",
    ),
    (
        ("Tensor device mismatch", "Unhandled FakeTensor Device", "to be on the same device"),
        "put the model and all inputs on one device: model.to(device), x.to(device)",
    ),
)
_OF_CODE: _Remedies = (
    *_OF_OPS,
    (
        (BACKWARDS_HOOKS,),
        "take off the hooks that modules have for their backward pass "
        "(register_full_backward_hook); hooks on tensors and parameters (Tensor.register_hook) "
        "work",
    ),
    (
        ("maximum recursion depth",),
        "raise the limit before the first step, sys.setrecursionlimit(10_000), or make the nesting "
        "of what forward calls flatter",
    ),
    (
        ("FSDP with use_orig_params=False",),
        "use FSDP2: memfit.fit_blocks, then fully_shard",
    ),
    (
        ("higher order op", "torch.cond", "UncapturedHigherOrderOp"),
        "have both branches of torch.cond, or each step of a loop, take and return fresh tensors "
        "(x.clone()) of the same shapes and types, without side effects",
    ),
    (
        ("data-dependent branching", "is_nonzero"),
        "choose by torch.where, which computes both ways, or by torch.cond; a check of values can "
        f"be done outside of forward, {WITH_BREAKS}",
    ),
    (
        ("data dependent operator", "data-dependent operator", "DataDependentOutputException"),
        "compare tensors by ops that return tensors, (a == b).all() in place of torch.equal(a, b), "
        f"and choose by torch.where; or compare outside of forward, {WITH_BREAKS}",
    ),
    (
        ("output shape depends on input tensor data", "dynamic shape operator", "DynamicOutput"),
        "make shapes independent of data, by torch.where or a product with the mask in place of "
        f"x[mask], nonzero or unique, {WITH_BREAKS}",
    ),
    (
        ("torch.autograd.grad", "tensor.backward()", "trace_autograd_ops"),
        "differentiate by torch.func.grad (or jacrev, hessian) inside of forward, or outside of "
        "what is fitted",
    ),
    (
        ("requires_grad_()",),
        "set requires_grad_() on what the step is given, before the call, or leave it out",
    ),
    (
        ("`print`", "_warnings.warn", "/logging/", "logging.", "LoggingLogger"),
        "leave printing, warning and logging out of forward, or put it behind `if not "
        f"torch.compiler.is_compiling():`, {WITH_BREAKS}",
    ),
    (
        ("`breakpoint`", "pdb"),
        "take the breakpoint out, or debug the plain model",
    ),
    (
        ("manual_seed", "rng_state", "fork_rng", "random.seed"),
        "seed, and keep or set states of generators, before the step and not in forward; "
        "randomness that is computed again is drawn again from its own state",
    ),
    (
        ("random.", "use_numpy_random_stream", "RandomState", "`time.", "datetime", "uuid"),
        "read clocks and draw Python's and NumPy's random numbers before the step and give them as "
        f"inputs, tensors, or draw by torch.rand, {WITH_BREAKS}",
    ),
    (
        ("numpy",),
        "use the function of torch that does the same, or call NumPy outside of forward and give "
        f"the result as an input, {WITH_BREAKS}",
    ),
    (
        ("checkpoint",),
        "leave checkpointing out, as memfit chooses what to compute again, or put "
        "torch.utils.checkpoint.checkpoint around single blocks",
    ),
    (
        ("compiler.disable", "_dynamo.disable", "graph_break()"),
        "take off what keeps the compiler out there (torch.compiler.disable, graph_break), or fit "
        f"the parts of the model before and after it one by one, {WITH_BREAKS}",
    ),
    (
        ("context manager", "threading", "_thread.", "`lock`"),
        "enter it, take locks and start threads around the call of the fitted module, not inside "
        f"of forward, {WITH_BREAKS}",
    ),
    (
        ("`open`", "posix.", "genericpath", "pickle", "socket", "torch.load", "shutil"),
        "read and write files before or after the step and give forward what they hold, "
        f"{WITH_BREAKS}",
    ),
    (
        ("sparse",),
        "use dense tensors in what is fitted (x.to_dense()), or do the sparse part outside of it, "
        f"{WITH_BREAKS}",
    ),
    (
        ("more than one element of the written-to tensor",),
        "write into a copy, x = x.clone(): an input that is expanded is one piece of memory under "
        "many indices",
    ),
    (
        ("inplace view on a graph input",),
        "turn an input by what returns a view, x.t() or x.squeeze() in place of x.t_() or "
        "x.squeeze_()",
    ),
    (
        ("Tensor.random_",),
        "draw by torch.randint, whose result can be copied in: x.copy_(torch.randint(...))",
    ),
    (
        ("duplicate tensor input",),
        "give the function a copy the second time, Function.apply(x, x.clone())",
    ),
    (
        ("non-contiguous `out=`",),
        "copy the result in, x.copy_(torch.add(a, b)), in place of out=x",
    ),
    (
        ("torch.jit",),
        "give the original nn.Module in place of the scripted or traced one",
    ),
    (
        ("torch.nn.Parameter()", "nn.Parameter constructor"),
        "make parameters in __init__, and plain tensors in forward",
    ),
    (
        ("deepcopy",),
        "copy modules and tensors in __init__ (of tensors, x.clone() works in forward)",
    ),
    (
        ("pack_padded_sequence", "pad_packed_sequence", "PackedSequence"),
        f"give padded sequences and mask what is behind their ends, {WITH_BREAKS}",
    ),
    (
        ("bind arguments",),
        "call functions with arguments that they take, and do not find out by an exception whether "
        f"they do, {WITH_BREAKS}",
    ),
    (
        ("__build_class__",),
        "define classes at the top of the file, not inside of forward",
    ),
    (
        ("recompile_limit", "recompile limit", "cache_size_limit"),
        "keep what changes from step to step out of forward's Python numbers and branches, or give "
        "it as a tensor",
    ),
    (
        ("data-dependent", "unbacked symbol"),
        "give numbers that sizes, loops and branches take from tensors (item, tolist, nonzero) as "
        "Python numbers, or compute everything and mask by torch.where; a loss or a check whose "
        f"own code does so can stay outside of what is fitted, {WITH_BREAKS}",
    ),
    (
        ("Python builtin", "C/C++", "marked as skipped", "skip"),
        "call it outside of forward and give its result as an input, or make it a custom op "
        f"(torch.library.custom_op), {WITH_BREAKS}",
    ),
)


def remedy_for(said: str, otherwise: str = _ELSE) -> str:
    """What to do about code that PyTorch could not trace.

    Args:
        said: what tracing said of it.
        otherwise: the remedy where the cause is none that is known.
    """
    return _first(_OF_CODE, said, otherwise)


def remedy_for_op(said: str, otherwise: str) -> str:
    """What to do about an error that an op raised while it was traced; arguments as above."""
    return _first(_OF_OPS, said, otherwise)


def remedy_inside_torch() -> str:
    """What to do about code of PyTorch's own, or of Python's, that could not be traced."""
    return (
        "what is called there cannot be traced: call it outside of what is fitted (a loss after "
        f"it), {WITH_BREAKS}"
    )


def _first(remedies: _Remedies, said: str, otherwise: str) -> str:
    text = said.lower()
    for parts, remedy in remedies:
        if any(part.lower() in text for part in parts):
            return remedy
    return otherwise
