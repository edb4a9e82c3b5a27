"""The command line: parse, call, print.

Exit codes: 0 done, 1 a failure of ours, 2 wrong usage or input, 3 infeasible budget, 130
interrupted, 141 the reader of stdout went away.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from memfit._core import build_info
from memfit._version import __version__
from memfit.cli.commands import (
    demo,
    explain,
    inspect,
    max_batch,
    plan,
    report,
    solve,
    sweep,
    verify,
)
from memfit.cli.output import (
    EXIT_INFEASIBLE,
    debugging,
    drop_what_cannot_be_written,
    error_payload,
    flush_stdout,
    one_line,
    print_json,
)
from memfit.errors import InfeasibleBudgetError, MemfitError, UsageError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["EXIT_DONE", "EXIT_FAILURE", "EXIT_INFEASIBLE", "EXIT_USAGE", "build_parser", "main"]

EXIT_DONE, EXIT_FAILURE, EXIT_USAGE = 0, 1, 2
_EXIT_INTERRUPTED, _EXIT_BROKEN_PIPE = 130, 141

_EPILOG = """\
A budget is the peak of the whole training step: bytes ("3GiB", "800MB", 3221225472), a share of
the plain step's peak ("60%"), or "auto" (what the device has free). GiB is not GB.

Exit codes: 0 done, 2 wrong usage or input, 3 infeasible budget, 1 a failure of ours.
MEMFIT_DEBUG=1 shows tracebacks.
"""


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the usage, so that an error is one line, or one JSON object."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`."""
        raise UsageError(f"{message}; see {self.prog} --help")

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help; argparse's own passes over what cannot be written."""
        print(self.format_help(), end="", file=file)


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="version and core, and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        info = build_info()
        built = f", {info['compiler']}" if info["compiler"] else ""
        print(f"memfit {info['version']} ({info['core']} core{built})")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each subcommand sets `run`."""
    parser = _Parser(
        prog="memfit",
        description=f"memfit {__version__}: fit a PyTorch training step into a memory budget given "
        "in bytes, with the same gradients.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (
        demo,
        inspect,
        sweep,
        plan,
        verify,
        report,
        max_batch,
        explain,
        solve,
    ):
        command.add_parser(commands)
    for chosen in commands.choices.values():
        chosen.set_defaults(parser=chosen)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process where None.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except BrokenPipeError:
        return _EXIT_BROKEN_PIPE
    finally:
        drop_what_cannot_be_written()


def _run(arguments: Sequence[str]) -> int:
    try:
        args, unknown = _parsed(arguments)
        if unknown:
            raise UsageError(_unexpected(unknown[0], args.parser))
        run: Callable[[argparse.Namespace], int] = args.run
        code = run(args)
        flush_stdout()
        return code
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        _say("interrupted")
        return _EXIT_INTERRUPTED
    except MemfitError as error:
        return _fail(error, str(error), arguments)
    except OSError as error:
        text = (
            f"cannot read or write: {error.strerror or error}"
            f"{f', {error.filename}' if error.filename else ''}; check the path, its permissions "
            "and the room on its disk"
        )
        return _fail(error, text, arguments)
    except Exception as error:
        text = (
            f"unexpected {type(error).__name__}: {error}; set MEMFIT_DEBUG=1 for the traceback, "
            "and please report it"
        )
        return _fail(error, text, arguments)


def _parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    try:
        return build_parser().parse_known_args(arguments)
    except SystemExit:  # --help and --version have printed
        flush_stdout()
        raise


def _unexpected(word: str, parser: argparse.ArgumentParser) -> str:
    """What to do about an argument that a command does not know."""
    help_of = f"see {parser.prog} --help"
    if not word.startswith("-"):
        return (
            f"unexpected argument {word!r}; leave it out, or put what belongs together in quotes "
            f'(--budget "3 GiB"); {help_of}'
        )
    option = word.partition("=")[0]
    near = difflib.get_close_matches(option, parser._option_string_actions, n=1, cutoff=0.75)
    hint = f"write {near[0]}, or leave it out" if near else "leave it out"
    return f"{parser.prog} has no option {option}; {hint}; {help_of}"


def _fail(error: Exception, text: str, arguments: Sequence[str]) -> int:
    """One line on stderr, one object on stdout with `--json`; the exit code."""
    if debugging():
        traceback.print_exception(error)
    _say(f"error: {one_line(text)}")
    if "--json" in arguments:
        try:
            print_json({**error_payload(error), "message": one_line(text)})
            flush_stdout()
        except BrokenPipeError:
            raise
        except OSError:  # the error may be that stdout is full
            pass
    if isinstance(error, InfeasibleBudgetError):
        return EXIT_INFEASIBLE
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURE


def _say(text: str) -> None:
    """One line on stderr; what cannot be written there changes no exit code."""
    with contextlib.suppress(OSError):
        print(f"memfit: {text}", file=sys.stderr)
