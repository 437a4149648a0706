"""Train the feature network of codeword's perceptual loss and reconstruction Frechet distance:

    python tools/train_features.py --data FOLDER --out src/codeword/nets/bundled/features-cifar10.safetensors --seconds 120

FOLDER holds ``train.parquet`` and ``test.parquet`` with the columns ``image`` (JPEG or PNG bytes, 32 x 32) and ``label``. Where there
is no pyarrow, ``--pack FILE`` first writes both as one safetensors file, still compressed, which ``--data`` takes in place of FOLDER.

The network is a residual classifier of about 220,000 parameters (``src/codeword/nets/features.py`` says what it looks like once
trained). It trains with SGD under one cycle of the learning rate on images that are cropped, mirrored, shifted in colour, erased in a
square and, one in five, made grey, so that grey images have sensible features too. What is kept is a moving average of the weights;
its batch normalizations are folded into the convolutions, and the numbers are stored as float16. The accuracy reported is the stored
network's own, on the test images, in colour and made grey.

One run with the same ``--seed`` and ``--steps`` on the same device and versions gives the same network up to the order of parallel
sums; ``--seconds`` measures the machine first and chooses the steps. This file imports nothing of codeword.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

WIDTHS = (32, 64, 96)
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
"""Of the training images' channels in [0, 1], rounded; part of the stored network."""
CLASSES = 10


class Convolution(nn.Module):
    """3 x 3 or 1 x 1 convolution and its batch normalization, which ``folded`` turns into weight and bias."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        return self.conv.weight.double() * scale[:, None, None, None], norm.bias.double() - norm.running_mean.double() * scale


class Block(nn.Module):
    """relu(s(x) + b(relu(a(x)))): two convolutions beside a 1 x 1 one where the width changes, else the identity."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = Convolution(inputs, outputs, 3), Convolution(outputs, outputs, 3)
        self.skip = Convolution(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        return F.relu(y + (x if self.skip is None else self.skip(x)))


class Classifier(nn.Module):
    """stem, then a block a width, each after the first on means over 2 x 2 places; the mean over places goes to a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, WIDTHS[0], 3)
        self.blocks = nn.ModuleList(Block(a, b) for a, b in zip((WIDTHS[0], *WIDTHS[:-1]), WIDTHS))
        self.head = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for i, block in enumerate(self.blocks):
            x = block(F.avg_pool2d(x, 2) if i else x)
        return self.head(x.mean((2, 3)))

    def tensors(self) -> dict[str, Tensor]:
        """What is stored: folded convolutions, the head, and the scaling of the input."""
        out = {"mean": torch.tensor(MEAN), "std": torch.tensor(STD), "head.weight": self.head.weight, "head.bias": self.head.bias}
        for name, module in self.named_modules():
            if isinstance(module, Convolution):
                out[f"{name}.weight"], out[f"{name}.bias"] = module.folded()
        return {name: value.detach().cpu().to(torch.float16).contiguous() for name, value in out.items()}


def logits(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """The stored network itself, in plain calls: float images (n, 3, h, w) in [0, 1] -> (n, CLASSES)."""
    t = {name: value.to(images) for name, value in tensors.items()}

    def conv(x: Tensor, name: str) -> Tensor:
        weight = t[f"{name}.weight"]
        return F.conv2d(x, weight, t[f"{name}.bias"], padding=weight.shape[-1] // 2)

    x = F.relu(conv((images - t["mean"].view(1, 3, 1, 1)) / t["std"].view(1, 3, 1, 1), "stem"))
    for i in range(len(WIDTHS)):
        x = F.avg_pool2d(x, 2) if i else x
        y = conv(F.relu(conv(x, f"blocks.{i}.first")), f"blocks.{i}.second")
        x = F.relu(y + (conv(x, f"blocks.{i}.skip") if f"blocks.{i}.skip.weight" in t else x))
    return F.linear(x.mean((2, 3)), t["head.weight"], t["head.bias"])


# ---------------------------------------------------------------------- data

def read(data: Path, part: str) -> tuple[list[bytes], np.ndarray]:
    """Compressed images and labels of "train" or "test"."""
    if data.is_file():
        with safe_open(str(data), "np") as file:
            ends, blob = file.get_tensor(f"{part}.ends"), file.get_tensor(f"{part}.bytes").tobytes()
            return [blob[a:b] for a, b in zip([0, *ends[:-1].tolist()], ends.tolist())], file.get_tensor(f"{part}.labels")
    import pyarrow.parquet as parquet
    table = parquet.read_table(data / f"{part}.parquet", columns=["image", "label"])
    images = [item["bytes"] if isinstance(item, dict) else item for item in table.column("image").to_pylist()]
    return images, table.column("label").to_numpy().astype(np.int64)


def pack(data: Path, out: Path) -> None:
    tensors = {}
    for part in ("train", "test"):
        images, labels = read(data, part)
        tensors[f"{part}.bytes"] = torch.frombuffer(bytearray(b"".join(images)), dtype=torch.uint8)
        tensors[f"{part}.ends"] = torch.from_numpy(np.cumsum([len(image) for image in images]))
        tensors[f"{part}.labels"] = torch.from_numpy(labels.copy())
    save_file(tensors, str(out))


def decoded(images: list[bytes]) -> Tensor:
    """uint8 (n, 3, 32, 32)."""
    from PIL import Image
    out = np.empty((len(images), 32, 32, 3), dtype=np.uint8)
    for i, data in enumerate(images):
        with Image.open(io.BytesIO(data)) as image:
            out[i] = np.asarray(image.convert("RGB"))
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


def grey(x: Tensor) -> Tensor:
    """Luma in all three channels."""
    return (x * x.new_tensor((0.299, 0.587, 0.114)).view(1, 3, 1, 1)).sum(1, keepdim=True).expand_as(x)


def augmented(images: Tensor, g: torch.Generator) -> Tensor:
    """uint8 (n, 3, 32, 32) -> normalized floats, changed at random, all on the device of ``images``."""
    n, device = len(images), images.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g, device=device)

    padded = F.pad(images.float() / 255, (4, 4, 4, 4), mode="reflect")
    span = torch.arange(32, device=device)
    rows = (draw(n, 1) * 9).long() + span
    columns = (draw(n, 1) * 9).long() + span
    columns = torch.where(draw(n, 1) < 0.5, columns.flip(1), columns)
    x = padded.gather(2, rows[:, None, :, None].expand(n, 3, 32, 40)).gather(3, columns[:, None, None, :].expand(n, 3, 32, 32))
    centre = x.mean((1, 2, 3), keepdim=True)
    x = ((x - centre) * (1 + 0.3 * (draw(n, 1, 1, 1) - 0.5)) + centre + 0.15 * (draw(n, 3, 1, 1) - 0.5)).clamp(0, 1)
    x = torch.where(draw(n, 1, 1, 1) < 0.2, grey(x), x)
    x = (x - x.new_tensor(MEAN).view(1, 3, 1, 1)) / x.new_tensor(STD).view(1, 3, 1, 1)
    top, left = (draw(n, 1) * 32).long(), (draw(n, 1) * 32).long()
    inside = ((span - top).abs() < 5)[:, :, None] & ((span - left).abs() < 5)[:, None, :]
    return torch.where(inside[:, None], 0.0, x)


# ---------------------------------------------------------------------- training

class Run:
    """One training: network, optimizer, moving average, and a batch after another."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int, peak: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.device = images.device
        self.images, self.labels, self.batch, self.peak = images, labels, batch, peak
        self.network = Classifier().to(self.device, memory_format=torch.channels_last)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}],
                                         lr=peak, momentum=0.9, nesterov=True)
        self.average = copy.deepcopy(self.network)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64, device=self.device)

    def step(self, at: int, steps: int) -> float | Tensor:
        rate = self.peak * min(1.0, (at + 1) / (0.2 * steps)) * min(1.0, (1 - at / steps) / 0.8)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if len(self.order) < self.batch:
            self.order = torch.randperm(len(self.images), generator=self.generator, device=self.device)
        chosen, self.order = self.order[:self.batch], self.order[self.batch:]
        x = augmented(self.images[chosen], self.generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            out = self.network(x)
        loss = F.cross_entropy(out.float(), self.labels[chosen], label_smoothing=0.1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self._follow(min(0.998, (at + 1) / (at + 10)))
        return loss.detach()

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        mine, theirs = list(self.average.state_dict().values()), list(self.network.state_dict().values())
        floats = [(a, b) for a, b in zip(mine, theirs) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)


def measured_steps(images: Tensor, labels: Tensor, args: argparse.Namespace) -> int:
    """How many steps fit into ``--seconds``, from a short run of their own."""
    run = Run(images, labels, args.batch, args.peak, args.seed)
    for at in range(3):
        float(run.step(at, 1000))
    begun, count = time.perf_counter(), 0
    while count < 20 and time.perf_counter() - begun < 0.1 * args.seconds:
        float(run.step(3 + count, 1000))
        count += 1
    return max(1, int(0.88 * args.seconds * count / (time.perf_counter() - begun)))


@torch.no_grad()
def accuracy(tensors: dict[str, Tensor], images: Tensor, labels: Tensor, colourless: bool) -> float:
    right = 0
    for x, y in zip(images.split(500), labels.split(500)):
        x = x.float() / 255
        right += int((logits(tensors, grey(x) if colourless else x).argmax(1) == y).sum())
    return right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet, or a packed file")
    parser.add_argument("--out", type=Path, help="the safetensors file to write")
    parser.add_argument("--pack", type=Path, help="write the data as one packed file instead of training")
    parser.add_argument("--seconds", type=float, default=120, help="training time; the steps are chosen by a measurement")
    parser.add_argument("--steps", type=int, help="training steps, in place of --seconds")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--peak", type=float, default=0.2, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="read only this many images of each part (for a trial)")
    args = parser.parse_args()
    if args.pack is not None:
        pack(args.data, args.pack)
        return
    if args.out is None:
        parser.error("--out is needed (or --pack)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for part in ("train", "test"):
        data, labels = read(args.data, part)
        parts[part] = (decoded(data[:args.limit]).to(device), torch.from_numpy(labels[:args.limit].copy()).long().to(device))
    images, labels = parts["train"]
    args.batch = min(args.batch, len(images))
    steps = args.steps or measured_steps(images, labels, args)
    print(f"{len(images)} training images, {steps} steps of {args.batch} on {device}", flush=True)
    run = Run(images, labels, args.batch, args.peak, args.seed)
    begun = time.perf_counter()
    for at in range(steps):
        loss = run.step(at, steps)
        if at % max(1, steps // 20) == 0 or at == steps - 1:
            value = float(loss)
            print(f"step {at + 1}/{steps}  loss {value:.4f}  {time.perf_counter() - begun:.0f} s", flush=True)
            if not math.isfinite(value):
                sys.exit("the loss is no number any more; a lower --peak may help")
    tensors = run.average.tensors()
    facts = {
        "name": "features-cifar10", "data": "CIFAR-10 (Krizhevsky 2009), JPEG copy", "training_images": len(images),
        "test_accuracy": round(accuracy(tensors, *parts["test"], False), 4),
        "test_accuracy_grey": round(accuracy(tensors, *parts["test"], True), 4),
        "train_accuracy": round(accuracy(tensors, images[:5000], labels[:5000], False), 4),
        "steps": steps, "batch": args.batch, "peak": args.peak, "seed": args.seed, "device": device.type, "torch": torch.__version__,
        "seconds": round(time.perf_counter() - begun, 1), "parameters": sum(t.numel() for t in tensors.values()),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(args.out), metadata={"features": json.dumps(facts, sort_keys=True)})
    print(json.dumps(facts, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
