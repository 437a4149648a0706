"""What a training run leaves to look at: log.csv, pictures of samples, curves, usage of the codebook; TensorBoard where asked for."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from codeword.errors import CodewordError, Unsupported
from codeword.io import files
from codeword.report.usage import UsageMeter

if TYPE_CHECKING:
    from codeword.tokenizers.evaluate import Look
    from codeword.tokenizers.train import Run

LOG = "log.csv"
COLUMNS = ("step", "seconds", "images", "rate", "loss", "l1", "l2", "logit_laplace", "perceptual", "generator", "discriminator",
           "representation", "quantizer", "fine", "gradient", "usage", "perplexity", "perplexity_share", "valid_psnr", "valid_error")
SAMPLES = 16


class Recorder:
    """Of the run's first rank. ``rows``: the log so far."""

    def __init__(self, folder: Path, run: Run, tensorboard: bool) -> None:
        self.folder, self.run, self.rows = folder, run, read_log(folder / LOG)
        self._sums: list[dict[str, Tensor]] = []
        self._before = UsageMeter(run.meter.levels)
        self._board: Any = _board(folder) if tensorboard else None

    def begin(self, step: int) -> None:
        """Forget rows after ``step``: they will come again."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        self._write()

    def take(self, sums: dict[str, Tensor]) -> None:
        """Losses of one step."""
        self._sums.append(sums)

    def check(self) -> None:
        """CodewordError where a loss since the last row was not finite: asked before each row and each checkpoint."""
        if self._sums and not bool(torch.isfinite(torch.stack([sums["loss"] for sums in self._sums])).all()):
            raise CodewordError(f"the loss is no longer finite at step {self.run.step}; a smaller learning rate, or --precision 32, helps")

    def note(self) -> dict[str, float]:
        """A row of the log: means since the last one; usage since the last but one, so that no short window makes it look small.
        Raises CodewordError where the loss is no longer finite."""
        self.check()
        run = self.run
        means = {key: float(torch.stack([sums[key].float().cpu() for sums in self._sums if key in sums]).mean())
                 for key in self._sums[-1]}
        row = {"step": float(run.step), "seconds": run.seconds, "images": float(run.step * run.batches.batch_size), **means,
               **usage_statistics(UsageMeter(run.meter.levels).merge(self._before).merge(run.meter))}
        self._before, run.meter = run.meter, UsageMeter(run.meter.levels)
        self._sums = []
        self.rows.append(row)
        self._write()
        self._scalars(row)
        return row

    def look(self) -> None:
        """Evaluate the averaged weights on held-out images; the newest row gets the numbers, the folder the pictures."""
        from codeword.tokenizers.evaluate import evaluate
        run = self.run
        model = run.averaged()
        found = evaluate(model, run.valid, size=run.settings.size, most=run.limits.eval_images, keep=SAMPLES, thorough=False, skip_bad=True)
        numbers = {"valid_psnr": found.numbers["psnr"], "valid_error": found.numbers["error"]}
        self.rows[-1].update(numbers)
        self._write()
        self._scalars({"step": self.rows[-1]["step"], **numbers})
        self._draw(found)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def _draw(self, found: Look) -> None:
        from codeword.report import tokenizer as pictures
        files.make_folder(self.folder / "samples")
        sheet = pictures.sheet_array(found.originals, found.reconstructions, found.fine)
        files.write_file(self.folder / "samples" / f"step-{self.run.step:07d}.png", [pictures.png_bytes(sheet)], durable=False)
        files.write_file(self.folder / "curves.png", [pictures.curves_png(self.rows)], durable=False)
        files.write_file(self.folder / "usage.png", [pictures.usage_png(found.meter)], durable=False)
        if self._board is not None:
            self._board.add_image("samples", sheet, self.run.step, dataformats="HWC")

    def _scalars(self, row: dict[str, float]) -> None:
        if self._board is not None:
            for key, value in row.items():
                if key not in ("step", "seconds", "images"):
                    self._board.add_scalar(key, value, int(row["step"]))

    def _write(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow([f"{row[key]:.8g}" if key in row else "" for key in COLUMNS])
        files.write_file(self.folder / LOG, [text.getvalue().encode()], durable=False)


def read_log(path: Path) -> list[dict[str, float]]:
    """Rows of a log; empty where there is none."""
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{key: float(value) for key, value in row.items() if key in COLUMNS and value} for row in csv.DictReader(file)]
    except (ValueError, TypeError, KeyError) as error:
        raise CodewordError(f"{path} is no log of a training run: {error}") from None


def usage_statistics(meter: UsageMeter) -> dict[str, float]:
    """Share of codewords with a hit, perplexity, and perplexity over the number of codewords: each the mean over positions."""
    return {"usage": float(np.mean(meter.usage)), "perplexity": float(np.mean(meter.perplexity)),
            "perplexity_share": float(np.mean([value / level for value, level in zip(meter.perplexity, meter.levels)]))}


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise Unsupported("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(str(folder / "tensorboard"))
