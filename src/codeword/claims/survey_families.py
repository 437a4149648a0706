"""Checks of survey_taxonomy for sign codes, composed codes and graph tokens: laws first, then what is expected of small runs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

from codeword.claims import autoencoder
from codeword.claims.record import Check, Rule, Setting
from codeword.data import bundled
from codeword.data.graphs import Graph, word_graph
from codeword.parts import entropy
from codeword.quantizer import Codes
from codeword.quantizers.bsq import BSQ
from codeword.quantizers.group_rvq import GroupRVQ
from codeword.quantizers.lfq import LFQ
from codeword.quantizers.masked_rvq import MaskedRVQ
from codeword.quantizers.rvq import RVQ
from codeword.tokenizers.graph import GraphTokenizer

BITS = 8
FSQ_SPEC, LFQ_SPEC, BSQ_SPEC = "fsq:grid=8x5x5x5", "lfq:num_codebooks=1", "bsq:num_codebooks=1"
"""10 bits a place: 1,000 and 1,024 codes."""
WORDS = {"smoke": 150, "small": 2000, "paper": 5000}


def sign_round_trip(setting: Setting) -> float:
    """Codes of LFQ and BSQ that decode, then encode, to another code: all of 12 bits in two tokens."""
    wrong = 0
    every = torch.stack([torch.arange(1 << 12) & 63, torch.arange(1 << 12) >> 6], dim=1)
    for quantizer in (LFQ(dim=12, num_codebooks=2), BSQ(dim=12, num_codebooks=2)):
        back = quantizer.encode(torch.as_tensor(quantizer.decode(Codes(every)))).indices
        wrong += int((torch.as_tensor(back).to(torch.int64) != every).any(1).sum())
    return float(wrong)


def factorised_entropies(setting: Setting) -> float:
    """Largest difference between the two entropies of sign codes by factors and over all 2^8 codes, in nats, in float64."""
    z = 0.5 * torch.randn(500, BITS, generator=torch.Generator().manual_seed(setting.seed), dtype=torch.float64)
    worst = 0.0
    for scale, temperature in ((1.0, 1.0), (1.0, 0.01), (1 / math.sqrt(BITS), 0.1)):
        codes = torch.tensor(list(itertools.product((-scale, scale), repeat=BITS)), dtype=torch.float64)
        p = torch.softmax(-torch.cdist(z, codes).square() / temperature, dim=1)
        dense = torch.special.entr(p).sum(1).mean(), torch.special.entr(p.mean(0)).sum()
        ours = entropy.sign_entropies(4 * scale * z / temperature, group=BITS)
        worst = max(worst, *(float((a - b).abs()) for a, b in zip(ours, dense, strict=True)))
    return worst


def marginals_above_joint(setting: Setting) -> float:
    """Smallest excess, in nats, of the entropy of the product of marginals over that of the joint distribution, on real vectors' signs."""
    logits = 40 * (setting.train[:1000, :12] - setting.train[:, :12].mean(0)).double()
    each, joint = (float(entropy.sign_entropies(logits, group=group)[1]) for group in (1, 12))
    return each - joint


def sphere_bound(setting: Setting) -> float:
    """Largest squared error of BSQ above 2 - 2/sqrt(d), over 100,000 random unit vectors and all axes."""
    worst = -math.inf
    for dim in (9, 18, 36):
        quantizer = BSQ(dim=dim)
        u = torch.randn(100_000, dim, generator=torch.Generator().manual_seed(setting.seed))
        u = torch.cat((u / torch.linalg.vector_norm(u, dim=1, keepdim=True), torch.eye(dim), -torch.eye(dim)))
        error = (u - torch.as_tensor(quantizer.decode(quantizer.encode(u)))).double().square().sum(1)
        worst = max(worst, float(error.max()) - (2 - 2 / math.sqrt(dim)))
    return worst


def one_group_is_rvq(setting: Setting) -> float:
    """Share of held-out rows coded differently by one-group GroupRVQ and greedy RVQ."""
    dim, train = setting.train.shape[1], setting.train[:2000]
    ours = GroupRVQ(dim=dim, groups=1, layers=3, codebook_size=16, iterations=5, seed=setting.seed).fit(train)
    theirs = RVQ(dim=dim, num_codebooks=3, codebook_size=16, iterations=5, beam=1, seed=setting.seed).fit(train)
    a, b = (torch.as_tensor(quantizer.encode(setting.test).indices) for quantizer in (ours, theirs))
    return float(a.ne(b).any(1).float().mean())


def masked_leak(setting: Setting) -> float:
    """Largest entry that a masked codebook of MaskedRVQ contributes outside of its channels."""
    dim, train = setting.train.shape[1], setting.train[:2000]
    quantizer = MaskedRVQ(dim=dim, masked=3, layers=1, codebook_size=16, iterations=5, seed=setting.seed).fit(train)
    codes, before, worst = quantizer.encode(setting.test), torch.zeros(len(setting.test), dim), 0.0
    for used in (1, 2, 3):
        values = torch.as_tensor(quantizer.decode(codes._replace(lengths=torch.full((len(setting.test),), used))))
        added = (values - before).abs()
        added[:, (used - 1) * dim // 3:used * dim // 3] = 0
        worst, before = max(worst, float(added.max())), values
    return worst


def _words(setting: Setting) -> Graph:
    return word_graph(bundled().base_sentences, WORDS[setting.budget])


def graph_distances(setting: Setting) -> float:
    """Distances in the tokens of a graph of 100 words that differ from those found by relaxing all paths (Floyd and Warshall)."""
    graph = word_graph(bundled().base_sentences, 100)
    tokenizer = GraphTokenizer(anchors=100, nearest=100, incident=0, farthest=99, dim=1, hidden=1, seed=setting.seed).fit(graph)
    table = np.full((100, 100), np.inf)
    table[graph.heads, graph.tails] = table[graph.tails, graph.heads] = 1
    np.fill_diagonal(table, 0)
    for k in range(100):
        table = np.minimum(table, table[:, k:k + 1] + table[k])
    spelled = tokenizer.spell(tokenizer.encode(graph))
    there = spelled.anchors >= 0
    node = torch.arange(100).unsqueeze(1).expand_as(there)[there]
    expected = torch.from_numpy(table)[node, spelled.anchors[there]]
    return float((spelled.distances[there] != expected).sum()) + abs(float(there.sum()) - float(np.isfinite(table).sum()))


def distinct_spellings(setting: Setting) -> float:
    """Share of the words of a co-occurrence graph whose token no other word has; the vocabulary is a twentieth of the words."""
    graph = _words(setting)
    anchors = len(graph.nodes) // 20
    tokenizer = GraphTokenizer(anchors=anchors, nearest=min(20, anchors), incident=6, dim=1, hidden=1, seed=setting.seed).fit(graph)
    found = torch.unique(tokenizer.encode(graph).indices, dim=0, return_counts=True)[1]
    return float((found == 1).sum()) / len(graph.nodes)


def fsq_usage(setting: Setting) -> float:
    return autoencoder.arm(setting, FSQ_SPEC, dim=4).usage


def bsq_over_lfq(setting: Setting) -> float:
    return autoencoder.arm(setting, BSQ_SPEC, dim=10).error / autoencoder.arm(setting, LFQ_SPEC, dim=10).error


CHECKS: tuple[Check, ...] = (
    Check("sign_round_trip", "identity", "codes of LFQ and BSQ that do not survive decode and encode, 12 bits in two tokens",
          Rule(0.0, 0.0), sign_round_trip, seeds=1, needs_data=False),
    Check("sign_entropies", "identity", "largest difference of factorised entropies of sign codes to those over 2^8 codes, nats",
          Rule(high=1e-9), factorised_entropies, needs_data=False),
    Check("marginal_entropy", "identity", "entropy of the product of 12 bits' marginals less that of their joint distribution, nats",
          Rule(low=0.0), marginals_above_joint),
    Check("bsq_bound", "identity", "largest squared error of BSQ less 2 - 2/sqrt(d), d = 9, 18, 36", Rule(high=1e-5), sphere_bound,
          needs_data=False),
    Check("group_rvq_is_rvq", "identity", "share of rows coded differently by GroupRVQ with one group and greedy RVQ", Rule(0.0, 0.0),
          one_group_is_rvq),
    Check("masked_channels", "identity", "largest entry that a masked codebook of MaskedRVQ adds outside of its channels", Rule(0.0, 0.0),
          masked_leak),
    Check("gart_distances", "identity", "distances in graph tokens of 100 words that differ from exhaustive ones", Rule(0.0, 0.0),
          graph_distances, seeds=1, needs_data=False),
    Check("gart_distinct", "relation", "share of words of a co-occurrence graph with a token of their own, vocabulary 1/20 of the words",
          Rule(low=0.9), distinct_spellings, needs_data=False),
    Check("fsq_usage", "relation", "share of FSQ's 1,000 codes used on held-out images without any loss term", Rule(low=0.9), fsq_usage,
          on="images"),
    Check("bsq_lfq", "relation", "held-out error of BSQ over LFQ, 10 bits a place, same autoencoder", Rule(high=1.0), bsq_over_lfq,
          on="images"),
)
