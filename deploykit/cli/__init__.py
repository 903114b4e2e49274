"""The command line: it parses arguments, calls the library and prints results.

Exit codes: 0 done, 1 stopped by a gate, 2 wrong input, 3 internal error, 130 interrupted. Only `--debug` shows
tracebacks.
"""

import logging
import sys
from typing import Annotated

import typer

from deploykit import __version__, methods
from deploykit.cli import artifacts, keys, runs, services
from deploykit.cli.output import err, out
from deploykit.errors import DeploykitError, GateError

app = typer.Typer(
    name="deploykit",
    help="From labelled text to a verified, running transformer service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (runs, services, artifacts):
    app.add_typer(module.app)
app.add_typer(keys.app, name="keys")

INTERRUPTED_EXIT_CODE = 130  # of typer and shells for Ctrl-C: 128 + SIGINT


def main() -> None:
    """Runs the command line and turns errors into messages and exit codes."""
    debug = "--debug" in sys.argv
    try:
        arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
        if app(arguments, standalone_mode=False) == INTERRUPTED_EXIT_CODE:
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped. Finished stages are kept: the same command goes on from them.", INTERRUPTED_EXIT_CODE)
    except Exception as error:
        if debug:
            err.print_exception()
        if isinstance(error, ModuleNotFoundError):
            error = methods.explain_missing_module(error, "this command")
        if isinstance(error, DeploykitError):
            _fail(str(error), error.exit_code, "gate" if isinstance(error, GateError) else "error")
        if hasattr(error, "format_message"):  # a usage error of click
            _fail(f"{error.format_message()} See --help.", 2)
        _fail(f"internal: {type(error).__name__}: {error}. Run again with --debug for the traceback.", 3)


def _fail(message: str, code: int, kind: str = "error") -> None:
    """Prints `KIND: MESSAGE` to standard error and exits with a code."""
    err.print(f"{kind}: {message}", markup=False)
    sys.exit(code)


@app.callback(invoke_without_command=True)
def _options(
    _debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; allowed anywhere.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        out.print(__version__)
        raise typer.Exit
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("deploykit").setLevel(logging.INFO)
