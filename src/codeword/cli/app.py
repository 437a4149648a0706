"""All commands in one place, and what every command owes its user: one line for an error, an exit code, nothing lost on Ctrl-C.

    exit codes   0 done    1 a check found something (verify, doctor)    2 refused: bad input, bad file    130 interrupted

CODEWORD_DEBUG=1 shows the traceback.
"""

from __future__ import annotations

import os
import sys

import typer

from codeword.cli import about, compare, demo, files, index, interchange, quantize, tokenizer
from codeword.errors import CodewordError

app = typer.Typer(
    name="codeword", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Vectors into codes, and codes made useful: compare quantizers on your own vectors, build a compressed index, search it.",
    epilog="Start here:  codeword demo    or    codeword compare my_vectors.npy",
)

compare.register(app)
quantize.register(app)
index.register(app)
interchange.register(app)
tokenizer.register(app)
files.register(app)
about.register(app)
demo.register(app)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line ``arguments`` (default: those of the process) and return its exit code."""
    try:
        result = app(arguments, standalone_mode=False, prog_name="codeword")
        code = result if isinstance(result, int) else 0
        return _fail(_INTERRUPTED, code) if code == 130 else code  # the command line library has its own answer to Ctrl-C
    except typer.Exit as stop:
        return _fail(_INTERRUPTED, 130) if stop.exit_code == 130 else stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_INTERRUPTED, 130)
    except BrokenPipeError:  # "codeword ... | head" is no error; nothing more may be written to that pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (CodewordError, OSError, MemoryError) as error:
        if os.environ.get("CODEWORD_DEBUG"):
            raise
        return _fail(_sentence(error), 2)
    except Exception as error:
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:  # else a usage error of the command line itself
            raise
        show()
        return code


_INTERRUPTED = "interrupted; what was finished is kept, and --resume continues where the command has it"


def _fail(message: str, code: int) -> int:
    print(f"codeword: {message}", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory{f': {error}' if str(error) else ''}; fewer rows or a smaller --limit need less"
    return " ".join(str(error).split()) or type(error).__name__
