"""Graph anchors and relations as tokens (Galkin, Denis, Wu, Hamilton: NodePiece: Compositional and Parameter-Efficient Representations of
Large Knowledge Graphs, ICLR 2022; the survey of 2507.22920 calls the family GART).

A node gets no entry of its own in the vocabulary. It is spelled by what is around it: its k nearest anchors, which are nodes too, how far
they are, and the types of m of its edges. So |anchors| + 2 |relations| entries (an edge's type counts once for its head, once for its
tail) describe any number of nodes, nodes that come later included.

    anchors    a share of them by degree, a share by PageRank, the rest at random                        (seeded; 40, 40 and 20 %)
    token(v)   [a_1 ... a_k, d_1 ... d_k, r_1 ... r_m],   d_i = min(steps from v to a_i in either direction, ``farthest``)
    h_v        = MLP([e(a_1) + e(d_1), ..., e(a_k) + e(d_k), e(r_1), ..., e(r_m)])

Nearest anchors come in order of distance, ties in the anchors' own order. Where a node reaches fewer than k anchors, or has fewer than m
types of edges, the rest is 0, "none"; of more types than m a seeded choice is kept, ascending.

Cost: a breadth-first search for every anchor, |anchors| (nodes + edges) steps; the distances of ``BLOCK`` of them are held at once.
Bits: k ceil(log2 (|anchors| + 1)) + k ceil(log2 (farthest + 1)) + m ceil(log2 (2 |relations| + 1)) a node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from codeword.data.graphs import Graph
from codeword.errors import CodewordError, FormatError, NotFitted, ShapeError
from codeword.io import canonical, objects
from codeword.io.canonical import LIMITS, Limits
from codeword.io.tensors import read_tensors, write_tensors
from codeword.parts import arrays, random
from codeword.tokenizers.tokens import Layout, Tokens

KIND = "graph tokenizer"
BLOCK = 64
"""Anchors whose distances to all nodes are held at once."""
DAMPING, ROUNDS = 0.85, 50
"""Of PageRank."""
LARGEST = 1 << 20
_CONFIG: dict[str, type | tuple[type, ...]] = {"anchors": int, "nearest": int, "incident": int, "farthest": int, "dim": int, "hidden": int,
                                               "shares": list, "seed": int}


class Spelling(NamedTuple):
    """What the tokens of nodes say: ``anchors`` int64 (n, k) node numbers, -1 for none; ``distances`` int64 (n, k), 0 where none;
    ``relations`` int64 (n, m): r for an edge that leaves with type r, |relations| + r for one that comes in, -1 for none."""

    anchors: Tensor
    distances: Tensor
    relations: Tensor


class GraphTokenizer(nn.Module):
    """anchors: how many; nearest: k; incident: m; farthest: largest distance told apart; dim: of embeddings; hidden: width of the MLP;
    shares: of anchors by degree and by PageRank, the rest at random; seed."""

    def __init__(self, *, anchors: int = 64, nearest: int = 8, incident: int = 4, farthest: int = 7, dim: int = 64, hidden: int = 128,
                 shares: Sequence[float] = (0.4, 0.4), seed: int = 0) -> None:
        super().__init__()
        numbers = {"anchors": anchors, "nearest": nearest, "incident": incident, "farthest": farthest, "dim": dim, "hidden": hidden}
        for key, value in numbers.items():
            least = 0 if key == "incident" else 1
            if type(value) is not int or not least <= value <= LARGEST:
                raise CodewordError(f"graph tokenizer got {key}={value!r}; an integer of {least}..{LARGEST} is needed")
        if (nearest + incident) * dim * hidden > 1 << 28:
            raise CodewordError(f"graph tokenizer got nearest={nearest}, incident={incident}, dim={dim} and hidden={hidden}; their first "
                                "layer would have more than 2^28 weights")
        if len(shares) != 2 or any(type(share) not in (int, float) or not 0 <= share <= 1 for share in shares) or sum(shares) > 1:
            raise CodewordError(f"graph tokenizer got shares={shares!r}; two shares that sum to at most 1 are needed")
        if type(seed) is not int:
            raise CodewordError(f"graph tokenizer got seed={seed!r}; an integer is needed")
        self.config: dict[str, Any] = {**numbers, "shares": [float(share) for share in shares], "seed": seed}
        self.relations = 0
        self.anchors: Tensor
        self.register_buffer("anchors", torch.zeros(0, dtype=torch.int64))
        self.words = nn.Embedding(0, dim)
        self.steps = nn.Embedding(farthest + 1, dim)
        self.mlp = nn.Sequential(nn.Linear((nearest + incident) * dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    # ------------------------------------------------------------------ vocabulary

    def fit(self, graph: Graph) -> Self:
        """Choose anchors of ``graph`` and start the embeddings, seeded. Raises CodewordError where it has fewer nodes than anchors."""
        graph.check()
        if self.config["anchors"] > len(graph.nodes):
            raise CodewordError(f"graph tokenizer got a graph of {len(graph.nodes)} nodes for {self.config['anchors']} anchors")
        chosen = torch.from_numpy(choose_anchors(graph, self.config["anchors"], self.config["shares"], self.config["seed"]))
        self._allocate(len(chosen), len(graph.relation_names), chosen)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                fan = parameter.shape[1] if parameter.ndim == 2 and name.startswith("mlp") else self.config["dim"]
                start = random.normal(self.config["seed"], parameter.numel(), stream=f"graph {name}") * np.float32(fan**-0.5)
                parameter.copy_(torch.from_numpy(start).reshape(parameter.shape) if parameter.ndim == 2 else torch.zeros_like(parameter))
        return self

    @property
    def vocabulary_size(self) -> int:
        """Entries of the table of embeddings: anchors, relations of both directions, and "none"."""
        return 1 + len(self.anchors) + 2 * self.relations

    @property
    def levels(self) -> tuple[int, ...]:
        """Alphabet of each position of a node's token."""
        k, m = self.config["nearest"], self.config["incident"]
        return (len(self.anchors) + 1,) * k + (self.config["farthest"] + 1,) * k + (2 * self.relations + 1,) * m

    # ------------------------------------------------------------------ tokens

    def encode(self, graph: Graph) -> Tokens:
        """The token of every node of ``graph``: the one that was fitted, or one that grew from it. Indices (nodes, k + k + m)."""
        self._require_fitted("encode")
        graph.check()
        if int(self.anchors.max()) >= len(graph.nodes) or len(graph.relation_names) != self.relations:
            raise ShapeError(f"the graph has {len(graph.nodes)} nodes and {len(graph.relation_names)} relations; at least "
                             f"{int(self.anchors.max()) + 1} and exactly {self.relations} are needed")
        anchors, distances = self._nearest(graph)
        table = np.concatenate([anchors, distances, self._incident(graph)], axis=1)
        indices = torch.from_numpy(table).to(arrays.unsigned_dtype(max(self.levels)))
        return Tokens(indices, None, None, Layout("graph", self.levels, (len(graph.nodes),)), self.fingerprint)

    def spell(self, tokens: Tokens) -> Spelling:
        """What ``tokens`` say, exactly. Raises FormatError("fingerprint") for those of another tokenizer."""
        rows = self._rows(tokens)
        k = self.config["nearest"]
        nodes = torch.cat((self.anchors.new_full((1,), -1), self.anchors))
        return Spelling(nodes[rows[:, :k]], rows[:, k:2 * k], rows[:, 2 * k:] - 1)

    def forward(self, tokens: Tokens) -> Tensor:
        """Embeddings (nodes, dim) of ``tokens``, differentiable."""
        rows = self._rows(tokens)
        k, m = self.config["nearest"], self.config["incident"]
        near = self.words(rows[:, :k]) + self.steps(rows[:, k:2 * k])
        types = self.words(torch.where(rows[:, 2 * k:] > 0, rows[:, 2 * k:] + len(self.anchors), 0))
        return self.mlp(torch.cat((near, types), dim=1).reshape(len(rows), (k + m) * self.config["dim"]))

    # ------------------------------------------------------------------ identity and files

    @property
    def fingerprint(self) -> str:
        """16 hex digits over configuration, anchors and relations: what decides tokens. Weights of the encoder do not."""
        content = {"anchors": objects.digest_of(self.anchors), "config": self.config, "relations": self.relations}
        return hashlib.sha256(canonical.encode(content)).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, durably and atomically. Same tokenizer, same bytes."""
        self._require_fitted("save")
        state = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        write_tensors(path, state, {"anchors": len(self.anchors), "config": self.config, "fingerprint": self.fingerprint, "kind": KIND,
                                    "relations": self.relations})

    @classmethod
    def load(cls, path: str | Path, *, limits: Limits = LIMITS) -> Self:
        """Read a file written by ``save``. Raises FormatError; never runs code from the file."""
        tensors, header = read_tensors(path, limits=limits)
        objects.check_kind(header, KIND, str(path))
        canonical.fields(header, f"header of {path}", {"anchors": int, "config": dict, "fingerprint": str, "kind": str, "relations": int})
        config = canonical.fields(header["config"], f"configuration of {path}", _CONFIG)
        anchors, relations = header["anchors"], header["relations"]
        try:
            with torch.device("meta"):
                made = cls(**config)
        except CodewordError as error:
            raise FormatError("config", f"{path}: {error}") from None
        if made.config != config or anchors != config["anchors"] or not 0 <= relations <= LARGEST:
            raise FormatError("config", f"{path} has {anchors} anchors and {relations} relations, which its configuration does not have")
        with torch.device("meta"):
            made._allocate(anchors, relations, torch.zeros(anchors, dtype=torch.int64))
        objects.check_declared({name: (t.dtype, tuple(t.shape)) for name, t in made.state_dict().items()}, tensors, str(path))
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise FormatError("value", f"tensor {name!r} of {path} has non-finite values")
        if bool((tensors["anchors"] < 0).any()) or len(torch.unique(tensors["anchors"])) != anchors:
            raise FormatError("value", f"{path} has anchors that are negative or not distinct")
        made.load_state_dict(dict(tensors), assign=True)
        if not canonical.same_digest(made.fingerprint, header["fingerprint"]):
            raise FormatError("fingerprint", f"{path} does not have the fingerprint {header['fingerprint'][:16]!r} that it states")
        return made

    # ------------------------------------------------------------------ inside

    def _allocate(self, anchors: int, relations: int, chosen: Tensor) -> None:
        self.relations = relations
        self.anchors = chosen
        self.words = nn.Embedding(1 + anchors + 2 * relations, self.config["dim"])

    def _require_fitted(self, what: str) -> None:
        if not len(self.anchors):
            raise NotFitted(f"graph tokenizer.{what} needs anchors; call fit(graph) first")

    def _rows(self, tokens: Tokens) -> Tensor:
        self._require_fitted("forward")
        if tokens.fingerprint != self.fingerprint:
            raise FormatError("fingerprint", f"these tokens were made by tokenizer {tokens.fingerprint}, not by {self.fingerprint}")
        return arrays.check_indices(tokens.indices, self.levels, "graph tokens").to(self.anchors.device)

    def _nearest(self, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (n, k) of the nearest anchors, 1 upwards, and distances (n, k), both 0 where there are fewer."""
        k, n = self.config["nearest"], len(graph.nodes)
        starts, neighbours = _undirected(graph)
        far = np.iinfo(np.int32).max
        best, which = np.full((n, k), far, dtype=np.int32), np.zeros((n, k), dtype=np.int64)
        nodes = self.anchors.cpu().numpy()
        for first in range(0, len(nodes), BLOCK):
            block = nodes[first:first + BLOCK]
            distance = np.stack([steps_from(int(node), starts, neighbours, far) for node in block], axis=1)
            distance = np.concatenate([best, distance], axis=1)
            number = np.concatenate([which, np.broadcast_to(np.arange(first + 1, first + 1 + len(block)), (n, len(block)))], axis=1)
            order = np.argsort(distance, axis=1, kind="stable")[:, :k]  # earlier anchors stand first: ties keep their order
            best, which = np.take_along_axis(distance, order, axis=1), np.take_along_axis(number, order, axis=1)
        reached = best < far
        return np.where(reached, which, 0), np.where(reached, np.minimum(best, self.config["farthest"]), 0).astype(np.int64)

    def _incident(self, graph: Graph) -> np.ndarray:
        """Types (n, m) of edges, 1 upwards, ascending, 0 where there are fewer."""
        m, n, types = self.config["incident"], len(graph.nodes), 2 * self.relations
        pairs = np.unique(np.concatenate([graph.heads * types + graph.relations, graph.tails * types + self.relations + graph.relations]))
        node, kind = pairs // max(1, types), pairs % max(1, types)
        order = np.lexsort((random.bits(self.config["seed"], len(pairs), stream="incident"), node))
        node, kind = node[order], kind[order]
        rank = np.arange(len(node)) - np.searchsorted(node, node)
        table = np.full((n, m), types, dtype=np.int64)  # sorts behind all types
        kept = rank < m
        table[node[kept], rank[kept]] = kind[kept]
        table.sort(axis=1)
        return np.where(table < types, table + 1, 0)


def choose_anchors(graph: Graph, count: int, shares: Sequence[float], seed: int) -> np.ndarray:
    """int64 (count,) distinct nodes: round(shares[0] count) of the highest degree, then round(shares[1] count) of the highest PageRank
    among the rest, then random ones; ties in the nodes' order."""
    n = len(graph.nodes)
    by_degree, by_rank = (min(count, round(share * count)) for share in shares)
    degree = np.bincount(graph.heads, minlength=n) + np.bincount(graph.tails, minlength=n)
    chosen: list[int] = []
    taken = np.zeros(n, dtype=bool)
    for order, wanted in ((np.argsort(-degree, kind="stable"), by_degree), (np.argsort(-page_rank(graph), kind="stable"), by_rank),
                          (random.permutation(seed, n, stream="anchors"), count)):
        fresh = order[~taken[order]][:min(wanted, count - len(chosen))]
        chosen.extend(fresh.tolist())
        taken[fresh] = True
    return np.array(chosen, dtype=np.int64)


def page_rank(graph: Graph, restart: np.ndarray | None = None) -> np.ndarray:
    """float64 (n,): the share of time at each node of a walk that follows a random edge, in either direction, with probability 0.85, and
    else, or where there is no edge, starts anew at a node drawn from ``restart`` (n,): uniform where None, else personal to those nodes."""
    n = len(graph.nodes)
    start = np.full(n, 1 / n) if restart is None else np.asarray(restart, dtype=np.float64)
    if start.shape != (n,) or not np.isfinite(start).all() or (start < 0).any() or not start.sum() > 0:
        raise ShapeError(f"page_rank got restart of shape {start.shape}; ({n},) weights, not all zero, are needed")
    start = start / start.sum()
    source, target = np.concatenate([graph.heads, graph.tails]), np.concatenate([graph.tails, graph.heads])
    degree = np.bincount(source, minlength=n).astype(np.float64)
    rank = start
    for _ in range(ROUNDS):
        walked = np.bincount(target, weights=(rank / np.maximum(degree, 1))[source], minlength=n)
        rank = DAMPING * (walked + rank[degree == 0].sum() * start) + (1 - DAMPING) * start
    return rank


def steps_from(node: int, starts: np.ndarray, neighbours: np.ndarray, far: int) -> np.ndarray:
    """int32 (n,): steps from ``node`` to every node, ``far`` where there is no way, by breadth-first search."""
    distance = np.full(len(starts) - 1, far, dtype=np.int32)
    distance[node], frontier, step = 0, np.array([node]), 0
    while len(frontier):
        step += 1
        counts = starts[frontier + 1] - starts[frontier]
        offsets = np.repeat(starts[frontier] - (np.cumsum(counts) - counts), counts)
        found = neighbours[offsets + np.arange(int(counts.sum()))]
        frontier = np.unique(found[distance[found] == far])
        distance[frontier] = step
    return distance


def _undirected(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of node v: ``neighbours[starts[v]:starts[v + 1]]``."""
    source, target = np.concatenate([graph.heads, graph.tails]), np.concatenate([graph.tails, graph.heads])
    order = np.argsort(source, kind="stable")
    return np.concatenate([[0], np.cumsum(np.bincount(source, minlength=len(graph.nodes)))]), target[order]
