"""Graph tokens: distances against brute force, anchors, distinct spellings, a graph that grows, files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from codeword.data import bundled
from codeword.data.graphs import Graph, of_triples, read_triples, word_graph
from codeword.errors import CodewordError, FormatError, NotFitted, ShapeError
from codeword.io.tensors import read_tensors, write_tensors
from codeword.tokenizers import GraphTokenizer
from codeword.tokenizers.graph import choose_anchors, page_rank


def words(count: int = 150) -> Graph:
    """The most frequent words of the first bundled sentences and who follows whom."""
    return word_graph(bundled().base_sentences[:1500], count)


def small(**options: object) -> GraphTokenizer:
    return GraphTokenizer(**{"anchors": 12, "nearest": 5, "incident": 3, "dim": 8, "hidden": 16, **options})


def brute_force(graph: Graph) -> np.ndarray:
    """All distances by Floyd and Warshall, inf where there is no way."""
    n = len(graph.nodes)
    table = np.full((n, n), np.inf)
    table[graph.heads, graph.tails] = table[graph.tails, graph.heads] = 1
    np.fill_diagonal(table, 0)
    for k in range(n):
        table = np.minimum(table, table[:, k:k + 1] + table[k])
    return table


def chain(n: int) -> Graph:
    """0 -> 1 -> ... -> n - 1, and a node alone."""
    return Graph(np.arange(n - 1), np.zeros(n - 1, np.int64), np.arange(1, n), [str(i) for i in range(n + 1)], ["next"])


@pytest.mark.parametrize("graph", [words(60), chain(20)], ids=["words", "chain"])
@pytest.mark.parametrize("block", [2, 64])
def test_distances_are_those_of_brute_force(graph: Graph, block: int, monkeypatch) -> None:
    monkeypatch.setattr("codeword.tokenizers.graph.BLOCK", block)
    tokenizer = small(farthest=9).fit(graph)
    spelled, table = tokenizer.spell(tokenizer.encode(graph)), brute_force(graph)
    anchors = tokenizer.anchors.numpy()
    for v in range(len(graph.nodes)):
        order = sorted(range(12), key=lambda i: (table[v, anchors[i]], i))[:5]
        expected = [(int(anchors[i]), min(9, int(table[v, anchors[i]]))) if np.isfinite(table[v, anchors[i]]) else (-1, 0) for i in order]
        assert list(zip(spelled.anchors[v].tolist(), spelled.distances[v].tolist(), strict=True)) == expected


def test_incident_relations_are_those_of_the_edges() -> None:
    graph = words(60)
    tokenizer = small(incident=4).fit(graph)
    spelled = tokenizer.spell(tokenizer.encode(graph)).relations
    for v in range(60):
        there = set(graph.relations[graph.heads == v]) | {3 + r for r in graph.relations[graph.tails == v]}
        found = [r for r in spelled[v].tolist() if r >= 0]
        assert len(found) == min(4, len(there)) == len(set(found)) and set(found) <= there and found == sorted(found)
    every = small(incident=6).fit(graph)
    assert set(every.spell(every.encode(graph)).relations[0].tolist()) - {-1} == set(graph.relations[graph.heads == 0]) | {
        3 + r for r in graph.relations[graph.tails == 0]}


def test_anchors_are_chosen_by_degree_rank_and_chance() -> None:
    graph = words()
    degree = np.bincount(graph.heads, minlength=150) + np.bincount(graph.tails, minlength=150)
    chosen = choose_anchors(graph, 20, (0.4, 0.4), 3)
    assert len(set(chosen.tolist())) == 20 and chosen[:8].tolist() == np.argsort(-degree, kind="stable")[:8].tolist()
    rest = [v for v in np.argsort(-page_rank(graph), kind="stable").tolist() if v not in chosen[:8]]
    assert chosen[8:16].tolist() == rest[:8]
    assert choose_anchors(graph, 20, (0.4, 0.4), 4)[:16].tolist() == chosen[:16].tolist()
    assert choose_anchors(graph, 20, (0.4, 0.4), 4)[16:].tolist() != chosen[16:].tolist()
    assert sorted(choose_anchors(graph, 150, (0.0, 0.0), 0).tolist()) == list(range(150))


def test_page_rank_is_the_stationary_walk() -> None:
    graph, n = chain(6), 7
    degree = np.array([1, 2, 2, 2, 2, 1, 0.0])
    for restart in (None, np.eye(n)[2]):
        start = np.full(n, 1 / n) if restart is None else restart
        walk = np.zeros((n, n))
        for a, b in zip(graph.heads, graph.tails, strict=True):
            walk[a, b], walk[b, a] = 1 / degree[a], 1 / degree[b]
        walk[6] = start
        exact = np.linalg.solve(np.eye(n) - 0.85 * walk.T, 0.15 * start)
        assert np.allclose(page_rank(graph, restart), exact, atol=1e-3) and page_rank(graph, restart).sum() == pytest.approx(1)
    with pytest.raises(ShapeError):
        page_rank(graph, np.zeros(n))


def test_nearly_all_nodes_are_spelled_differently() -> None:
    """What matters in this family: few entries, and still a spelling of its own for (almost) every node."""
    graph = words(400)
    tokenizer = GraphTokenizer(anchors=40, nearest=10, incident=6, dim=4, hidden=4).fit(graph)
    spelled = len(torch.unique(tokenizer.encode(graph).indices, dim=0))
    assert tokenizer.vocabulary_size == 1 + 40 + 6 and spelled >= 0.9 * 400, spelled


def test_tokens_are_checked_small_and_seeded() -> None:
    graph = words()
    tokens = small().fit(graph).encode(graph).check()
    assert tokens.indices.shape == (150, 13) and tokens.indices.dtype == torch.uint8 and tokens.layout.signal == "graph"
    assert torch.equal(small().fit(graph).encode(graph).indices, tokens.indices)
    assert tokens.layout.bits == 5 * 4 + 5 * 3 + 3 * 3


def test_a_grown_graph_keeps_its_words() -> None:
    """A node that comes later is spelled by the same vocabulary; nodes that it brings no nearer to an anchor keep their tokens."""
    graph = words()
    tokenizer = small().fit(graph)
    grown = graph._replace(heads=np.append(graph.heads, 150), relations=np.append(graph.relations, 0), tails=np.append(graph.tails, 7),
                           nodes=[*graph.nodes, "new"])
    before, after = tokenizer.encode(graph), tokenizer.encode(grown)
    near = tokenizer.spell(after)
    assert after.indices.shape == (151, 13) and near.distances[150, 0] == near.distances[7, 0] + 1
    assert torch.equal(after.indices[:150, :10], before.indices[:, :10])
    assert tokenizer(after).shape == (151, 8)


def test_the_encoder_learns_who_is_linked() -> None:
    """Inner products of embeddings tell edges from pairs that are none, among pairs that it did not train on."""
    graph = words(120)
    pairs = np.unique(graph.heads * 120 + graph.tails)
    links = torch.zeros(120, 120)
    links.view(-1)[torch.from_numpy(pairs)] = 1
    held = (torch.arange(120 * 120) * 7919 % 10 == 0).view(120, 120)
    tokenizer = GraphTokenizer(anchors=24, nearest=8, incident=6, dim=16, hidden=48).fit(graph)
    tokens = tokenizer.encode(graph)
    turn = torch.nn.Parameter(torch.eye(16))
    optimizer = torch.optim.Adam([*tokenizer.parameters(), turn], lr=1e-2)
    balance = torch.tensor(float((links == 0).sum() / links.sum()))
    for _ in range(120):
        optimizer.zero_grad()
        h = tokenizer(tokens)
        scores = h @ turn @ h.mT
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores[~held], links[~held], pos_weight=balance)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        h = tokenizer(tokens)
        scores, truth = (h @ turn @ h.mT)[held], links[held] > 0
    area = float((scores[truth].unsqueeze(1) > scores[~truth].unsqueeze(0)).float().mean())
    assert area > 0.7, area


def test_files(tmp_path: Path) -> None:
    graph = words()
    tokenizer, tokens = small().fit(graph), small().fit(graph).encode(graph)
    tokenizer.save(tmp_path / "a.cw")
    tokenizer.save(tmp_path / "b.cw")
    loaded = GraphTokenizer.load(tmp_path / "a.cw")
    assert (tmp_path / "a.cw").read_bytes() == (tmp_path / "b.cw").read_bytes()
    assert torch.equal(loaded.encode(graph).indices, tokens.indices) and torch.equal(loaded(tokens), tokenizer(tokens))
    tensors, header = read_tensors(tmp_path / "a.cw")
    tensors, damage = dict(tensors), []
    damage.append(({**tensors, "anchors": tensors["anchors"] * 0}, header))
    damage.append(({**tensors, "anchors": tensors["anchors"].flip(0)}, header))  # another vocabulary
    damage.append(({**tensors, "words.weight": tensors["words.weight"] * torch.nan}, header))
    damage.append(({key: value for key, value in tensors.items() if key != "mlp.0.bias"}, header))
    damage.append(({**tensors, "words.weight": tensors["words.weight"][:-1]}, header))
    damage.append((tensors, {**header, "relations": 2}))
    damage.append((tensors, {**header, "anchors": 1 << 40}))
    damage.append((tensors, {**header, "kind": "image tokenizer"}))
    damage.append((tensors, {**header, "config": {**header["config"], "dim": 1 << 40}}))
    damage.append((tensors, {**header, "config": {**header["config"], "colour": 1}}))
    for number, (state, record) in enumerate(damage):
        write_tensors(tmp_path / f"{number}.bad", state, record)
        with pytest.raises(FormatError):
            GraphTokenizer.load(tmp_path / f"{number}.bad")


def test_triples(tmp_path: Path) -> None:
    path = tmp_path / "graph.tsv"
    path.write_text("ann\tknows\tbob\nbob\tknows\tcat\nann\tlikes\tcat\nann\tknows\tbob\n")
    graph = read_triples(path)
    assert graph.nodes == ["ann", "bob", "cat"] and graph.relation_names == ["knows", "likes"]
    assert list(zip(graph.heads, graph.relations, graph.tails, strict=True)) == [(0, 0, 1), (1, 0, 2), (0, 1, 2)]
    for bad in ("ann\tknows\n", "ann knows bob\n", "\tknows\tbob\n", ""):
        path.write_text(bad)
        with pytest.raises(FormatError):
            read_triples(path)
    path.write_bytes(b"\xff\tknows\tbob\n")
    with pytest.raises(FormatError):
        read_triples(path)


def test_bad_arguments() -> None:
    graph = words(20)
    for options in ({"anchors": 0}, {"nearest": 0}, {"incident": -1}, {"dim": 0}, {"shares": (0.5,)}, {"shares": (0.8, 0.8)}, {"seed": "a"},
                    {"anchors": 1.5}, {"dim": 1 << 20, "hidden": 1 << 20}):
        with pytest.raises(CodewordError):
            small(**options)
    with pytest.raises(CodewordError, match="20 nodes"):
        small(anchors=21).fit(graph)
    with pytest.raises(NotFitted):
        small().encode(graph)
    tokenizer = small().fit(graph)
    for bad in (graph._replace(heads=graph.heads + 20), graph._replace(tails=graph.tails[:-1]), graph._replace(nodes=[]),
                graph._replace(relation_names=["next"])):
        with pytest.raises(ShapeError):
            tokenizer.encode(bad)
    with pytest.raises(FormatError):
        tokenizer.spell(small(seed=1).fit(graph).encode(graph))
    assert of_triples([("a", "r", "b")]).check().nodes == ["a", "b"]
