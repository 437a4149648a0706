"""codeword doctor, places, claims, reproduce: what is installed, what fits where, and what holds."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from codeword.cli.show import Json, count, emit, note, pairs, table

EXTRAS = {"report": ("matplotlib",), "data": ("pyarrow",), "media": ("PIL",), "hf": ("transformers",), "gpu": ("triton",),
          "bench": ("faiss", "rabitqlib"), "fuzz": ("atheris",)}
"""Modules behind each optional extra."""


def register(app: typer.Typer) -> None:
    app.command(epilog="Example:  codeword doctor --json")(doctor)
    app.command(epilog="Example:  codeword places")(places)
    app.command(epilog="Example:  codeword claims")(claims)
    app.command(epilog="Example:  codeword reproduce rabitq")(reproduce)


def doctor(as_json: Json = False) -> None:
    """Say what is installed, which implementation of each operation runs here, and check that they agree with their definitions."""
    import torch

    import codeword
    from codeword import ops
    info = getattr(ops, "native_info", None)
    check = getattr(ops, "self_check", None)
    failures = _failures(check()) if check is not None else {}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    forced = os.environ.get("CODEWORD_OPS", "")
    summary: dict[str, Any] = {
        "codeword": codeword.__version__, "python": platform.python_version(), "platform": platform.platform(),
        "torch": torch.__version__, "numpy": _version("numpy"), "safetensors": _version("safetensors"),
        "cpu": _cpu(), "cores": os.cpu_count(), "threads": ops.num_threads(), "ops_available": list(ops.available()),
        "ops": {} if gpu and forced == "triton" else ops.choices(), "gpu": gpu,
        "ops_gpu": ops.choices("cuda") if gpu and forced != "native" else {},
        "native": dict(info()) if info is not None else {}, "CODEWORD_OPS": forced,
        "self_check": failures, "extras": {name: _present(modules) for name, modules in EXTRAS.items()},
    }

    def show() -> None:
        pairs({"codeword": summary["codeword"], "python": f"{summary['python']} on {summary['platform']}",
               "torch": f"{summary['torch']}, {count(summary['threads'], 'thread')} on {count(summary['cores'] or 1, 'core')}",
               "numpy": summary["numpy"], "safetensors": summary["safetensors"],
               "cpu": f"{summary['cpu']['model']} ({' '.join(summary['cpu']['flags']) or 'no vector flags found'})",
               **({"native": "; ".join(f"{key} {_words(value)}" for key, value in summary["native"].items())} if summary["native"] else {}),
               **({"gpu": f"{gpu}, {_kernels(summary['ops_gpu'])}"} if gpu else {}),
               "extras": ", ".join(f"{name} {'yes' if present else 'no'}" for name, present in summary["extras"].items())})
        print()
        agrees = "agrees" if check is not None else "-"
        table(("operation", "runs", "self-check"), [(op, which, failures.get(op, agrees)) for op, which in summary["ops"].items()])
        if "native" not in summary["ops_available"]:
            print("The compiled module is not installed: same answers, slower. Reinstall with a C++20 compiler to have it.")

    emit(summary, as_json, show)
    if failures:
        note(f"codeword: {len(failures)} operations disagree with their definition: {', '.join(failures)}")
        raise typer.Exit(1)


def places(as_json: Json = False) -> None:
    """Print which quantizer fits in which place: search, weights, caches, networks."""
    from codeword.report.places import matrix
    found = matrix()
    emit(found, as_json, lambda: table(("quantizer", *found["places"]), [(name, *row) for name, row in found["rows"].items()],
                                       notes=found["notes"]))


def claims(as_json: Json = False) -> None:
    """List all published systems with the tier each has reached, and what was measured."""
    from codeword.cli.claims import show_claims
    show_claims(as_json)


def reproduce(name: Annotated[str, typer.Argument(help="A system of the list that codeword claims prints.", show_default=False)],
              budget: Annotated[str, typer.Option(help="smoke (seconds), small (minutes) or paper.")] = "small",
              data: Annotated[str | None, typer.Option(help="Your own vectors instead of the bundled ones.")] = None,
              images: Annotated[Path | None, typer.Option(help="Your own images (a folder, Parquet, idx or .npy) instead of the bundled "
                                                               "ones, where the claim trains on images.")] = None,
              save: Annotated[Path | None, typer.Option(help="Add each row to this claims file (.csv) as soon as it is measured.")] = None,
              as_json: Json = False) -> None:
    """Measure the claims of a published system again."""
    from codeword.cli.claims import show_reproduction
    show_reproduction(name, budget=budget, data=data, images=images, save=save, as_json=as_json)


def _failures(result: Any) -> dict[str, str]:
    """Operations whose check failed, whatever way ``ops.self_check`` tells it: {op: passed} or {op: message or None}."""
    return {op: "differs" if value is False else str(value)
            for op, value in dict(result).items() if value is not True and value not in (None, "")}


def _kernels(choices: dict[str, str]) -> str:
    """Which operations have kernels of their own there."""
    own = [op for op, which in choices.items() if which == "triton"]
    return f"Triton runs {', '.join(own)}; torch the rest" if own else "torch runs everything"


def _words(value: Any) -> str:
    """Lists as words, flags as yes and no."""
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _version(name: str) -> str:
    import importlib.metadata
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _present(modules: tuple[str, ...]) -> bool:
    import importlib.util
    return all(importlib.util.find_spec(module) is not None for module in modules)


def _cpu() -> dict[str, Any]:
    """Model and the vector extensions that kernels may use, where the system tells."""
    known = ("sse4_2", "popcnt", "f16c", "fma", "avx2", "bmi2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_vpopcntdq",
             "avx512vbmi", "amx_tile", "asimd", "asimddp", "sve")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {"model": platform.processor() or platform.machine(), "flags": []}
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {"model": fields.get("model name", platform.machine()), "flags": [flag for flag in known if flag in flags]}
