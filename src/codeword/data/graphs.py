"""Graphs with typed edges: read from files of triples, or made of the words of sentences. Imports no torch.

A file of triples has one edge a line, ``head<TAB>relation<TAB>tail``, names in UTF-8, as knowledge graphs are published.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codeword.errors import FormatError, ShapeError

MOST_EDGES = 1 << 28
NEXT = ("next", "second next", "third next")
"""Relations of ``word_graph``."""


class Graph(NamedTuple):
    """``heads``, ``relations``, ``tails`` int64 (edges,); ``nodes`` and ``relation_names``: names by number."""

    heads: np.ndarray
    relations: np.ndarray
    tails: np.ndarray
    nodes: list[str]
    relation_names: list[str]

    def check(self) -> Graph:
        """This graph, every number checked. Raises ShapeError."""
        limits = {"heads": len(self.nodes), "relations": len(self.relation_names), "tails": len(self.nodes)}
        for key, limit in limits.items():
            values = np.asarray(getattr(self, key))
            if values.shape != (len(self.heads),) or values.dtype.kind not in "iu":
                raise ShapeError(f"{key} of a graph are {values.dtype} {values.shape}; integers ({len(self.heads)},) are needed")
            if len(values) and (int(values.min()) < 0 or int(values.max()) >= limit):
                raise ShapeError(f"{key} of a graph lie in {int(values.min())}..{int(values.max())}; 0..{limit - 1} are allowed")
        if not self.nodes:
            raise ShapeError("a graph without nodes was given; at least one is needed")
        return self


def of_triples(triples: Iterable[tuple[str, str, str]]) -> Graph:
    """A graph of (head, relation, tail) names, numbered in order of appearance; repeated edges count once."""
    nodes: dict[str, int] = {}
    relations: dict[str, int] = {}
    edges = dict.fromkeys((nodes.setdefault(head, len(nodes)), relations.setdefault(relation, len(relations)),
                           nodes.setdefault(tail, len(nodes))) for head, relation, tail in triples)
    table = np.array(list(edges), dtype=np.int64).reshape(-1, 3)
    return Graph(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy(), list(nodes), list(relations))


def read_triples(path: str | Path) -> Graph:
    """The graph of a file of triples. Raises FormatError for lines that are not three names."""
    def lines() -> Iterable[tuple[str, str, str]]:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                parts = line.rstrip("\r\n").split("\t")
                if len(parts) != 3 or not all(parts) or number > MOST_EDGES:
                    raise FormatError("value", f"line {number} of {path} has {len(parts)} fields; head, relation and tail, separated by "
                                               f"tabs, at most {MOST_EDGES} times, are needed")
                yield parts[0], parts[1], parts[2]
    try:
        graph = of_triples(lines())
    except UnicodeDecodeError as error:
        raise FormatError("value", f"{path} is not UTF-8: {error}") from None
    if not len(graph.heads):
        raise FormatError("value", f"{path} has no triples")
    return graph


def word_graph(sentences: Sequence[str], words: int) -> Graph:
    """The ``words`` most frequent words of ``sentences`` (by count, then by name) and who follows whom: one directed edge for each pair of
    them that occurs at distance 1, 2 or 3 in some sentence, the distance being the relation."""
    split = [re.findall(r"[a-z]+", sentence.lower()) for sentence in sentences]
    counts = Counter(word for sentence in split for word in sentence)
    kept = sorted(counts, key=lambda word: (-counts[word], word))[:words]
    number = {word: i for i, word in enumerate(kept)}
    edges = sorted({(number[a], step, number[b]) for sentence in split for step in range(3)
                    for a, b in zip(sentence, sentence[step + 1:], strict=False) if a in number and b in number})
    table = np.array(edges, dtype=np.int64).reshape(-1, 3)
    return Graph(table[:, 0].copy(), table[:, 1].copy(), table[:, 2].copy(), kept, list(NEXT))
