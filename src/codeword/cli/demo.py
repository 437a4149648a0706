"""codeword demo: the main job on the bundled sentence embeddings. Every command is printed as one would type it, then run."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from codeword.cli.show import Json, count, emit
from codeword.errors import CodewordError


def register(app: typer.Typer) -> None:
    app.command(epilog="Example:  codeword demo --out demo")(demo)
