"""One training loop for every image tokenizer: any encoder and decoder, any quantizer, on one device or several.

    L = image loss of x^ (``objective.py``) + the tokenizer's own loss (of its quantizer, of its router)
        [+ g generator(x^), once ``gan_start`` of the run is over] [+ r InfoNCE of one codebook against frozen features]
    step:  forward, backward, clipped Adam on L; tokenizer.update(out) on every rank; averaged weights; the discriminator's own step

The rate follows ``schedule.py``. Evaluation, samples and
the saved tokenizer use the averaged weights, w' <- e w' + (1 - e) w with e = min(ema, (1 + t) / (10 + t)).

Everything random in step t follows from (seed, t), and the checkpoint holds weights, averages, optimizers and t: a run that is stopped
and resumed ends with the bits of one that was not (on one machine, with ``steps`` given). With ``minutes`` the number of steps is
planned from their measured duration and planned anew as the run goes on, so that annealing ends with the time.

A job folder (``io/jobs``):   job.json, log.txt    what this run is; strangers are refused by the field that differs
                              checkpoint.cw        the newest state, replaced as a whole
                              log.csv              one row every ``log_every`` steps; cut back to the checkpoint on resume
                              samples/, plots      originals above reconstructions, usage of the codebook, while it trains
                              tokenizer.cw         the result
Interrupts: the first saves and ends after the running step; the second ends at once, with the checkpoint before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codeword.data.images import Batches, Images
from codeword.errors import CodewordError, Unsupported
from codeword.io import files, jobs, objects
from codeword.parts import arrays
from codeword.quantizer import Array
from codeword.report.usage import UsageMeter
from codeword.tokenizers import checkpoint, objective, schedule
from codeword.tokenizers.frame import TrainedTokenizer, from_bytes
from codeword.tokenizers.recorder import LOG, Recorder
from codeword.tokenizers.starting import install, new_tokenizer, start_quantizer

PLAN_AFTER, PLANS = 8, 20
"""Steps before the first plan of a run with a time limit; and into how many parts each plan divides what is left before the next."""
RESERVE = 0.03
"""Share of the time limit that evaluation and saving get."""
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is. ``start``: "data" fits the quantizer on the encoder's first outputs, "random" starts it as the papers do (plain VQ:
    uniform in +-1/codebook_size); ``loss``: weights of the image loss; ``gan``: that of the discriminator's approval, 0 for none;
    ``gan_start``: share of the run before it joins; ``representation``: weight of the first codebook's InfoNCE against the bundled feature
    network (FQGAN), 0 for none; ``ema``: decay of the averaged weights, 0 for none."""

    quantizer: str = "simvq:codebook_size=16384"
    network: str = "vqgan:width=16"
    size: int = 32
    channels: int = 3
    dim: int = 32
    batch_size: int = 64
    learning_rate: float = 2e-3
    shape: str = "linear"
    warmup: int = 100
    hold: float = 0.3
    clip: float = 1.0
    ema: float = 0.999
    loss: str = "l2=4"
    gan: float = 0.0
    discriminator: str = "patch"
    gan_start: float = 0.3
    representation: float = 0.0
    start: str = "data"
    precision: str = "32"
    flip: bool = True
    seed: int = 0

    def check(self) -> Settings:
        """These settings; CodewordError naming the first that is impossible."""
        rules: list[tuple[str, bool, str]] = [
            ("batch_size", self.batch_size >= 1, "at least 1"), ("learning_rate", 0 < self.learning_rate <= 1, "above 0, at most 1"),
            ("shape", self.shape in schedule.SHAPES, ", ".join(schedule.SHAPES)), ("warmup", self.warmup >= 0, "at least 0"),
            ("hold", 0 <= self.hold < 1, "0 up to 1"), ("clip", self.clip > 0, "above 0"), ("ema", 0 <= self.ema < 1, "0 up to 1"),
            ("gan", self.gan >= 0, "at least 0"), ("representation", 0 <= self.representation < 1e6, "at least 0"),
            ("discriminator", self.discriminator in objective.DISCRIMINATORS, ", ".join(objective.DISCRIMINATORS)),
            ("gan_start", 0 <= self.gan_start <= 1, "0 to 1"),
            ("start", self.start in ("data", "random"), "data, random"),
            ("precision", self.precision in PRECISIONS, ", ".join(PRECISIONS)),
        ]
        for name, good, allowed in rules:
            if not good:
                raise CodewordError(f"{name} is {getattr(self, name)!r}; {allowed} is allowed")
        objective.weights(self.loss)
        return self


class Limits(NamedTuple):
    """When to stop, and how often to speak. One of ``steps`` and ``minutes`` is needed; ``minutes`` counts all the time of a job, that
    before a resume too."""

    steps: int | None = None
    minutes: float | None = None
    log_every: int = 20
    eval_every: int = 200
    save_seconds: float = 60.0
    eval_images: int = 512


class Progress(NamedTuple):
    """What a watcher is told after each step."""

    step: int
    total: int
    seconds: float
    row: dict[str, float] | None
    """the newest row of the log, on the steps that have one"""


class Outcome(NamedTuple):
    """``tokenizer`` with averaged weights; steps done; seconds trained in all; rows of the log (of rank 0); whether an interrupt ended it;
    images left out by this rank; which rank this is."""

    tokenizer: TrainedTokenizer
    steps: int
    seconds: float
    rows: list[dict[str, float]]
    interrupted: bool
    bad: list[str]
    rank: int


def train(images: Images, valid: Images, settings: Settings, limits: Limits, folder: str | Path, *, resume: bool = False,
          skip_bad: bool = False, devices: str | int = 1, accelerator: str = "auto", tensorboard: bool = False,
          features: Array | None = None, watch: Callable[[Progress], None] = lambda progress: None) -> Outcome:
    """Train on ``images``, looking at ``valid`` from time to time, in the job folder ``folder``; ``features`` (codebook_size, any width):
    what a projected_vq keeps frozen (VQGAN-LC). Raises CodewordError for settings that cannot be, a folder that is another job's, or a
    loss that is no longer finite."""
    settings.check()
    if limits.steps is None and limits.minutes is None:
        raise CodewordError("a training run needs a number of steps or of minutes")
    fabric = start_fabric(settings, devices, accelerator)
    place = Path(folder)
    job = _start_job(place, settings, images, valid, features, resume) if fabric.global_rank == 0 else None
    fabric.barrier()
    try:
        run = Run(images, valid, settings, limits, place, fabric, skip_bad, resume, features)
        recorder = Recorder(place, run, tensorboard) if job else None
        outcome = run.loop(recorder, watch, job)
        if fabric.world_size > 1:  # nobody leaves while another still waits for an answer
            fabric.barrier()
            torch.distributed.destroy_process_group()
        return outcome
    except CodewordError:
        if job and not (place / "checkpoint.cw").exists():  # nothing was learnt: the corrected call can begin
            _discard(place)
        raise
    finally:
        if job:
            job.close()


def estimate(images: Images, valid: Images, settings: Settings, limits: Limits, features: Array | None = None) -> dict[str, Any]:
    """What a run would take, from three steps of it on one device: duration, memory, bytes on the disk. Writes nothing."""
    import resource
    settings.check()
    settings = dataclasses.replace(settings, start="random" if settings.quantizer.startswith(("vq", "simvq")) else settings.start)
    run = Run(images, valid, settings, limits, Path(), start_fabric(settings), True, False, features)
    run.total, durations = 1 << 20, []
    for t in range(3):
        batch = from_bytes(run.batches.batch(t).to(run.fabric.device))
        began = time.perf_counter()
        run.train_step(batch)
        run.step += 1
        durations.append(time.perf_counter() - began)
    each = min(durations)
    steps = limits.steps or max(1, round(60 * (limits.minutes or 0) * (1 - RESERVE) / each))
    own = sum(t.numel() * t.element_size() for t in run.tokenizer.state_dict().values())
    cached = min(run.batches.cache_bytes, len(images) * settings.size**2 * images.channels)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"parameters": sum(p.numel() for p in run.tokenizer.parameters() if p.requires_grad), "steps": steps, "step_seconds": each,
            "seconds": each * steps, "memory_bytes": peak + cached, "bytes": 5 * own, "bits_per_pixel": run.tokenizer.bits_per_pixel}


def start_fabric(settings: Settings, devices: str | int = 1, accelerator: str = "auto") -> Any:
    """Lightning Fabric over the devices asked for; launches the other ranks where there are several."""
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.utilities.exceptions import MisconfigurationException
    except ImportError:
        raise Unsupported("training needs Lightning Fabric, the extra 'train': pip install 'codeword[train]'") from None
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, precision=PRECISIONS[settings.precision])  # type: ignore[arg-type]
        fabric.launch()
    except (MisconfigurationException, ValueError) as error:
        raise CodewordError(f"{devices} {accelerator} devices cannot be used: {' '.join(str(error).split())[:200]}") from None
    return fabric


class Run:
    """The state of a run, and its steps."""

    def __init__(self, images: Images, valid: Images, settings: Settings, limits: Limits, folder: Path, fabric: Any, skip_bad: bool,
                 resume: bool, features: Array | None = None) -> None:
        self.settings, self.limits, self.folder, self.fabric, self.valid = settings, limits, folder, fabric, valid
        self._began = time.monotonic()
        options: dict[str, Any] = {"size": settings.size, "batch_size": settings.batch_size, "seed": settings.seed, "flip": settings.flip,
                                   "skip_bad": skip_bad}
        self.batches = Batches(images, **options, rank=fabric.global_rank, world=fabric.world_size)
        self.tokenizer = new_tokenizer(settings).to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.step, self.seconds, self.rows = 0, 0.0, []
        self.total = limits.steps or 0
        held = checkpoint.read(folder / "checkpoint.cw", settings) if resume and (folder / "checkpoint.cw").exists() else None
        if held is None:
            install(self.tokenizer.quantizer, features)
            start_quantizer(self.tokenizer, Batches(images, **options).stream(0), settings)
        else:
            self.tokenizer.quantizer.restore(held.structure)
        self.losses = objective.Objective(settings, self.tokenizer).to(fabric.device)
        self.average = {name: tensor.detach().clone() for name, tensor in self._averaged_ones()}
        self.learned = [p for p in (*self.tokenizer.parameters(), *self.losses.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.learned, lr=settings.learning_rate, betas=(0.9, 0.95))
        if held is not None:
            self._restore(held)
        self.model, self.optimizer = fabric.setup(self.tokenizer, self.optimizer)
        self.losses.setup(fabric)
        self._starting = time.monotonic() - self._began
        self.meter = UsageMeter(self.tokenizer.quantizer.levels)

    # ------------------------------------------------------------------ the loop

    def loop(self, recorder: Any, watch: Callable[[Progress], None], job: Any) -> Outcome:
        """Steps until the limits are reached or an interrupt comes."""
        limits, saved, interrupted = self.limits, time.monotonic(), False
        began, next_plan = self._began - self.seconds, self.step + PLAN_AFTER
        stream = self.batches.stream(self.step)
        if recorder:
            recorder.begin(self.step)
        with jobs.graceful() as stop:
            while not self._over():
                batch = next(stream)
                sums = self.train_step(from_bytes(batch.to(self.fabric.device)))
                self.step += 1
                if recorder:
                    recorder.take(sums)
                self.seconds = time.monotonic() - began
                if limits.minutes is not None and self.step >= next_plan:  # the same steps on every rank: planning is collective
                    self._plan()
                    next_plan = self.step + max(1, (self.total - self.step) // PLANS)
                last = self._over()
                row = None
                looking = self.step % limits.eval_every == 0 or last
                if recorder and (looking or self.step % limits.log_every == 0 or self.step == 1):
                    row = recorder.note()
                if recorder and looking:
                    recorder.look()
                if self._agree(bool(stop)):
                    interrupted = not last
                    break
                if recorder and not last and time.monotonic() - saved > limits.save_seconds:
                    recorder.check()
                    self.save()
                    saved = time.monotonic()
                watch(Progress(self.step, self.total, self.seconds, row))
        stream.close()  # type: ignore[attr-defined]
        if recorder:
            recorder.check()
            self.save()
            job.log(f"{'interrupted' if interrupted else 'finished'} at step {self.step} of {self.total}")
            recorder.close()
        done = self.averaged()
        if recorder and not interrupted:
            done.save(self.folder / "tokenizer.cw")
        return Outcome(done, self.step, self.seconds, recorder.rows if recorder else [], interrupted,
                       [bad.reason for bad in self.batches.bad.values()], self.fabric.global_rank)

    def train_step(self, x: Tensor) -> dict[str, Tensor]:
        """One step on pixels in [0, 1]; returns detached losses."""
        settings = self.settings
        torch.manual_seed(jobs.unit_seed(settings.seed, f"step {self.step}") & 0xFFFFFFFF)
        factor = schedule.rate(self.step, self.total or 1 << 30, shape=settings.shape, warmup=settings.warmup, hold=settings.hold)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        x = x.contiguous(memory_format=torch.channels_last)
        out = self.model(x)
        loss, parts = self.losses(out, x, self._gan_weight())
        loss = loss + out.loss
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.learned, settings.clip)
        self.optimizer.step()
        self.tokenizer.update(out)
        self.losses.train_step(out.values, x, self._gan_weight(), self.step, factor, self.fabric)
        self._average()
        self.meter.add_codes(out.quantized.codes)
        routed = {"fine": out.stats["fine"]} if "fine" in out.stats else {}
        return {"loss": loss.detach(), **parts, **routed, "quantizer": out.quantized.loss.detach(), "gradient": norm.detach(),
                "rate": torch.tensor(factor * settings.learning_rate)}

    def averaged(self) -> TrainedTokenizer:
        """A copy of the tokenizer with the averaged weights, in inference mode."""
        copy = new_tokenizer(self.settings)
        state = {name: tensor.detach().clone() for name, tensor in self.tokenizer.state_dict().items()}
        state.update({name: tensor.clone() for name, tensor in self.average.items()})
        copy.quantizer.restore(self.tokenizer.quantizer.structure)
        copy.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()})
        copy.quantizer.rebuild()
        copy.about = {"settings": dataclasses.asdict(self.settings), "steps": self.step, "seconds": round(self.seconds, 1)}
        return copy.to(self.fabric.device).eval()

    def save(self) -> None:
        """Replace the checkpoint."""
        checkpoint.write(self.folder / "checkpoint.cw", self)

    # ------------------------------------------------------------------ inside

    def _over(self) -> bool:
        limits = self.limits
        return (limits.steps is not None and self.step >= limits.steps) \
            or (limits.minutes is not None and bool(self.total) and self.step >= self.total)

    def _plan(self) -> None:
        """Total steps that fit into the time, from the mean duration of a step so far. Rank 0 decides."""
        limits = self.limits
        assert limits.minutes is not None
        left = max(0.0, 60 * limits.minutes * (1 - RESERVE) - self.seconds)
        total = self.step + round(left / ((self.seconds - self._starting) / self.step))
        total = min(total, limits.steps or total)
        self.total = int(self.fabric.broadcast(total)) if self.fabric.world_size > 1 else total

    def _agree(self, stop: bool) -> bool:
        """Whether any rank was asked to stop: all must leave at the same step."""
        if self.fabric.world_size == 1:
            return stop
        return bool(self.fabric.all_reduce(torch.tensor(float(stop), device=self.fabric.device), reduce_op="sum") > 0)

    def _gan_weight(self) -> float:
        settings = self.settings
        return settings.gan if settings.gan and self.total and self.step >= settings.gan_start * self.total else 0.0

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step)) if self.settings.ema else 0.0
        for name, tensor in self._averaged_ones():
            self.average[name].lerp_(tensor.detach(), 1 - decay)

    def _averaged_ones(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.tokenizer.named_parameters()
        yield from ((name, self.tokenizer.get_buffer(name)) for name in self.tokenizer.following)

    def _restore(self, held: checkpoint.Held) -> None:
        self.tokenizer.load_state_dict(held.model)
        self.tokenizer.quantizer.rebuild()
        self.average = {name: held.average[name].to(self.fabric.device) for name in self.average}
        checkpoint.load_optimizer(self.optimizer, held.optimizer)
        self.losses.restore(held)
        self.step, self.seconds, self.total = held.step, held.seconds, self.limits.steps or held.total


def _discard(folder: Path) -> None:
    """Remove what a run leaves that has saved nothing; strangers' files, and then the folder, stay."""
    with contextlib.suppress(OSError):
        for name in (jobs.JOB, jobs.LOG, LOG):
            files.remove_file(folder / name)
        folder.rmdir()


def _start_job(folder: Path, settings: Settings, images: Images, valid: Images, features: Array | None, resume: bool) -> jobs.Job:
    """The job folder of a run, locked. Limits and places of images are no part of what the job is."""
    extra = {} if features is None else {"features": _identity(features)}
    return jobs.Job.start(folder, "train_tokenizer", config=dataclasses.asdict(settings),
                          inputs={"images": images.identity, "valid": valid.identity, **extra}, seed=settings.seed,
                          resume=resume and (folder / jobs.JOB).exists())


def _identity(features: Array) -> dict[str, Any]:
    """What stands for frozen features: their shape, and the digest of their values."""
    rows = arrays.as_tensor(features).detach().cpu().contiguous()
    return {"sha256": objects.digest_of(rows), "shape": list(rows.shape)}
