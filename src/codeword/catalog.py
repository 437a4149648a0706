"""The one table: every quantizer, combinator and published system. Static data; importing it imports nothing heavy.

A name in a file, a spec string or on the command line resolves here and nowhere else.

    pq:bits=2                          PQ.for_bits(dim, 2)
    vq:codebook_size=256,seed=1        VQ(dim=dim, codebook_size=256, seed=1)
    projected(fsq:bits=2)              Projected around an FSQ of the same width
    residual(vq:codebook_size=256;vq:codebook_size=256)
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from codeword.errors import CodewordError

if TYPE_CHECKING:
    from codeword.quantizer import Quantizer


class Entry(NamedTuple):
    """One quantizer or combinator."""

    name: str
    target: str
    """module:Class under codeword.quantizers"""
    title: str
    input_space: bool = True
    """decode lives in the input's space; False enters search or weights only inside a wrapper that maps back"""
    combinator: bool = False
    maps_back: bool = False
    """a combinator whose decode lives in the input's space whatever it wraps"""
    example: str = ""
    """a tiny spec that the generic tests and the documentation build; by default the dial at 2 bits, around a PQ for a combinator"""
    example_dim: int = 16

    @property
    def example_spec(self) -> str:
        return self.example or (f"{self.name}(pq:bits=2)" if self.combinator else f"{self.name}:bits=2")


class System(NamedTuple):
    """One published system: the unit of ``codeword reproduce NAME``."""

    name: str
    title: str
    paper: str
    venue: str
    arxiv: str
    room: str
    """where its code lives, or will"""


QUANTIZERS: tuple[Entry, ...] = (
    Entry("vq", "vq:VQ", "Vector quantization: one codebook, k-means, EMA or gradient (Gray 1984; van den Oord et al. 2017)",
          example="vq:codebook_size=12,iterations=5", example_dim=6),
    Entry("pq", "pq:PQ", "Product quantization: one codebook a slice (Jegou et al. 2011)",
          example="pq:num_codebooks=4,codebook_size=8,iterations=4"),
    Entry("gumbel_pq", "gumbel_pq:GumbelPQ", "Product codes drawn from a mixture's posterior in training (Zhu et al. 2022)",
          example="gumbel_pq:num_codebooks=2,codebook_size=8,iterations=4", example_dim=6),
    Entry("opq", "opq:OPQ", "Product quantization after a learned rotation (Ge et al. 2013)",
          example="opq:num_codebooks=2,codebook_size=8,iterations=4", example_dim=8),
    Entry("rvq", "rvq:RVQ", "Residual vector quantization with beam search (Juang, Gray 1982; Liu et al. 2015)",
          example="rvq:num_codebooks=3,codebook_size=4,iterations=3,beam=3", example_dim=6),
    Entry("group_rvq", "group_rvq:GroupRVQ", "Channel groups, each coded residually: layers of product codes (Yang et al. 2023)",
          example="group_rvq:groups=2,layers=2,codebook_size=4,learning=ema,iterations=3", example_dim=6),
    Entry("masked_rvq", "masked_rvq:MaskedRVQ", "Residual codes whose first layer is split over channels (Ji et al. 2025)",
          example="masked_rvq:masked=3,layers=2,codebook_size=4,dropout=0.0,iterations=3", example_dim=7),
    Entry("multi_scale", "multi_scale:MultiScale", "Maps coded residually at growing resolutions with one codebook (Tian et al. 2024)",
          example="multi_scale:size=2x3,scales=1x2,codebook_size=6,steps=3,iterations=3", example_dim=12),
    Entry("aq", "aq:AQ", "Additive quantization: sums of full-width codewords fitted together (Babenko, Lempitsky 2014)",
          example="aq:num_codebooks=3,codebook_size=4,rounds=5,beam=3", example_dim=6),
    Entry("pvq", "pvq:PVQ", "Pyramid vector quantization: integer vectors of fixed L1 norm times a gain (Fischer 1986)",
          example="pvq:group=8,pulses=6,gain_bits=1"),
    Entry("fsq", "fsq:FSQ", "Finite scalar quantization: a tanh and a grid, no codebook (Mentzer et al. 2024)", input_space=False,
          example="fsq:grid=8x5"),
    Entry("lfq", "lfq:LFQ", "Lookup-free quantization: the sign of every dimension, an entropy loss (Yu et al. 2024)", input_space=False,
          example="lfq:num_codebooks=3,temperature=1.0,entropy_bits=3", example_dim=8),
    Entry("bsq", "bsq:BSQ", "Binary spherical quantization: signs on the unit sphere, error bounded (Zhao et al. 2025)", input_space=False,
          example="bsq:num_codebooks=2,temperature=0.2", example_dim=8),
    Entry("simvq", "simvq:SimVQ", "A frozen random codebook moved as a whole by one linear layer (Zhu et al. 2025)",
          example="simvq:codebook_size=12,steps=5,batch_size=32", example_dim=6),
    Entry("cosine_vq", "cosine_vq:CosineVQ", "Vectors and codewords compared by direction, as in ViT-VQGAN (Yu et al. 2022)",
          input_space=False, example="cosine_vq:codebook_size=12,iterations=5", example_dim=6),
    Entry("factorized_vq", "factorized_vq:FactorizedVQ", "Cosine codebooks over slices, pushed apart, as in FQGAN (Bai et al. 2024)",
          input_space=False, example="factorized_vq:codebook_size=6,iterations=5", example_dim=8),
    Entry("bridge_vq", "bridge_vq:BridgeVQ", "A codebook made by a small transformer from a raw one, as in FVQ (Chang et al. 2026)",
          example="bridge_vq:codebook_size=12,group=4,width=8,steps=6,batch_size=32", example_dim=6),
    Entry("projected_vq", "projected_vq:ProjectedVQ", "Frozen features moved as a whole by a linear map, as in VQGAN-LC (Zhu et al. 2024)",
          example="projected_vq:codebook_size=12,steps=5,batch_size=32", example_dim=6),
    Entry("rabitq", "rabitq:RaBitQ", "Random rotation, 1-9 bits a dimension, unbiased estimates (Gao, Long 2024; Gao et al. 2025)",
          example="rabitq:code_bits=3"),
    Entry("plain_rabitq", "plain_rabitq:PlainRaBitQ", "RaBitQ codes without a rotation of their own, as faiss keeps them (Gao, Long 2024)",
          example="plain_rabitq:code_bits=2"),
    Entry("half", "half:Half", "16-bit floats, float16 or bfloat16", example="half:format=float16"),
    Entry("scalar", "scalar:ScalarQuantizer",
          "Scalar quantization: uniform or Lloyd-Max levels, per dimension or per vector (Lloyd 1957; Max 1960)",
          example="scalar:code_bits=3,placement=lloyd"),
    Entry("lvq", "lvq:LVQ",
          "Locally-adaptive vector quantization: each vector's own uniform grid, one or two levels (Aguerrebere et al. 2023)",
          example="lvq:code_bits=3,residual_bits=2"),
    Entry("caq", "caq:CAQ", "RaBitQ's codes found by coordinate sweeps instead of a search (Li et al. 2026)", example="caq:code_bits=3"),
    Entry("saq", "saq:SAQ", "PCA, bits by dynamic programming, codes by coordinate sweeps; unbiased estimates (Li et al. 2026)",
          example="saq:rate=6,granularity=4"),
    Entry("ecsq", "ecsq:ECSQ", "Entropy-coded scalar quantization: one step for all, a frozen table a dimension (Gish, Pierce 1968)"),
    Entry("e8", "e8:E8", "Points of the E8 lattice, 2 to 4 bits a dimension (Tseng et al. 2024)", example="e8:code_bits=3"),
    Entry("rotated", "rotated:Rotated", "Seeded random rotation around any quantizer", combinator=True,
          example="rotated(pq:num_codebooks=3,codebook_size=4,iterations=3)", example_dim=9),
    Entry("gain_shape", "gain_shape:GainShape", "Length and direction coded apart, around any quantizer (Sabin, Gray 1984)",
          combinator=True, maps_back=True, example="gain_shape(pvq:group=4,pulses=3,gain_bits=0):gain_bits=4", example_dim=8),
    Entry("product", "product:Product", "Slices of a vector, each with its own or a shared quantizer", combinator=True,
          example="product(vq:codebook_size=4,iterations=3,learning=ema;fsq:grid=4x3)", example_dim=8),
    Entry("residual", "residual:Residual", "Stages, each coding what the ones before it left over", combinator=True,
          example="residual(vq:codebook_size=4,iterations=3):stages=2", example_dim=6),
    Entry("projected", "projected:Projected", "A linear map into a quantizer's own space and back", combinator=True, maps_back=True,
          example="projected(fsq:bits=2):map=pca,width=5", example_dim=6),
    Entry("affine", "affine:Affine", "Trained affine maps into a quantizer's own space and back", combinator=True, maps_back=True,
          example="affine(fsq:grid=5x4x3):width=3", example_dim=6),
)

_BY_NAME = {entry.name: entry for entry in QUANTIZERS}


def entry(name: str) -> Entry:
    """The table's row for ``name``; CodewordError lists what is known."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise CodewordError(f"unknown quantizer {name!r}; the catalog has {', '.join(sorted(_BY_NAME))}") from None


def quantizer_class(name: str) -> type[Quantizer]:
    """The class of a catalog name, imported on demand from inside the package only."""
    module, _, cls = entry(name).target.partition(":")
    return getattr(importlib.import_module(f"codeword.quantizers.{module}"), cls)


def name_of(cls: type) -> str:
    """Catalog name of a quantizer class (its lower-case class name where it is not in the catalog, as in tests)."""
    module = cls.__module__.rpartition(".")[2]
    for row in QUANTIZERS:
        if row.target == f"{module}:{cls.__name__}":
            return row.name
    return cls.__name__.lower()


def system(name: str) -> System:
    """The published system called ``name``; CodewordError lists what is known."""
    for row in SYSTEMS:
        if row.name == name:
            return row
    raise CodewordError(f"unknown system {name!r}; known are {', '.join(row.name for row in SYSTEMS)}")


def lives_in_input_space(name: str, parts: bool) -> bool:
    """Whether decode of ``name`` lives in its input's space, given that its parts (if any) do; combinators that map back always do."""
    row = _BY_NAME.get(name)
    return parts if row is None else row.input_space and (row.maps_back or parts)


# ---------------------------------------------------------------------- spec strings


def make(spec: str, dim: int) -> Quantizer:
    """A quantizer of width ``dim`` from a spec string; ``bits`` goes through ``for_bits``, other options to the constructor."""
    name, inner, options = parse(spec)
    cls: Any = quantizer_class(name)
    _check_options(name, bool(inner), options, spec)
    try:
        if inner:
            return cls.wrap(inner, dim, **options)
        return cls.for_bits(dim, options.pop("bits"), **options) if "bits" in options else cls(dim=dim, **options)
    except TypeError as error:
        raise CodewordError(f"spec {spec!r} has a value that {name} cannot use: {error}") from None


def check(spec: str) -> None:
    """CodewordError where a spec string is wrong at any width: its syntax, unknown names and options, options that are missing."""
    name, inner, options = parse(spec)
    _check_options(name, bool(inner), options, spec)
    for part in inner:
        check(part)


def parse(spec: str) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """(name, inner specs, options) of ``name[(inner;inner)][:key=value,...]``; lists are written 8x5x5."""
    if not isinstance(spec, str):
        raise CodewordError(f"a quantizer is named by a spec string such as 'pq:bits=2'; {type(spec).__name__} was given")
    text = spec.strip()
    if text.count("(") != text.count(")"):
        raise CodewordError(f"spec {spec!r} has {text.count('(')} opening and {text.count(')')} closing parentheses")
    head, inner = text, ()
    options = ""
    if "(" in text and (":" not in text or text.index("(") < text.index(":")):
        head, _, rest = text.partition("(")
        close = rest.rfind(")")
        inner, tail = tuple(_split(rest[:close], ";", spec)), rest[close + 1:]
        if tail and not tail.startswith(":"):
            raise CodewordError(f"spec {spec!r} has {tail!r} after the parenthesis; ':key=value' is allowed there")
        options = tail[1:]
    elif ":" in text:
        head, _, options = text.partition(":")
    entry(head)
    pairs = [option(pair, spec) for pair in options.split(",")] if options else []
    if len(dict(pairs)) != len(pairs):
        raise CodewordError(f"spec {spec!r} gives an option twice")
    return head, inner, dict(pairs)


def _check_options(name: str, wraps: bool, options: dict[str, Any], spec: str) -> None:
    """Names and presence of the options, by the signature of what ``make`` is going to call."""
    from codeword.quantizer import Quantizer
    cls: Any = quantizer_class(name)
    if wraps and not entry(name).combinator:
        raise CodewordError(f"{name!r} takes no inner quantizer in {spec!r}")
    if not wraps and entry(name).combinator:
        raise CodewordError(f"{name} wraps other quantizers; put one in parentheses, e.g. {name}(pq:bits=2), instead of {spec!r}")
    own = parameters(cls.wrap if wraps else cls.__init__)
    dial = {} if wraps or cls.for_bits.__func__ is Quantizer.for_bits.__func__ else parameters(cls.for_bits)
    needed = [key for key, parameter in own.items() if parameter.default is parameter.empty]
    known = own if not dial or "bits" not in options else _beside_bits(dial, own, needed) if "options" in dial else dial
    for key in options:
        if key not in known and not (key == "bits" and dial):
            why = f"chooses {key!r} by bits; it" if key in own else f"has no option {key!r}; it"
            takes = ", ".join(other for other in (known if "bits" in options else {**dial, **own}) if other != "options")
            raise CodewordError(f"{name} {why} takes {takes}, in {spec!r}")
    missing = [] if "bits" in options else [key for key in needed if key not in options]
    if missing:
        raise CodewordError(f"{name} needs {' and '.join(missing)}{' or bits' if dial else ''}, "
                            f"e.g. {f'{name}:bits=2' if dial else entry(name).example_spec}; got {spec!r}")


def _beside_bits(dial: dict[str, Any], own: dict[str, Any], needed: list[str]) -> dict[str, Any]:
    """What may be said beside ``bits`` where the dial hands options on: all but what it decides itself, sizes and needed arguments."""
    return {**dial, **{key: value for key, value in own.items() if key not in needed and key != "codebook_size"}}


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return {key: parameter for key, parameter in inspect.signature(function).parameters.items() if key not in ("self", "dim", "inner")}


def _split(text: str, mark: str, spec: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, ch in enumerate(text + mark):
        depth += (ch == "(") - (ch == ")")
        if depth < 0:
            raise CodewordError(f"spec {spec!r} closes a parenthesis that it did not open")
        if ch == mark and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return parts


def option(pair: str, spec: str) -> tuple[str, Any]:
    key, sign, value = pair.partition("=")
    if not sign or not key.isidentifier():
        raise CodewordError(f"option {pair!r} in spec {spec!r} is not key=value")
    return key, _value(value.strip())


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    if "x" in text and all(part.isdecimal() for part in text.split("x")):
        return [int(part) for part in text.split("x")]
    return text


# ---------------------------------------------------------------------- published systems

SYSTEMS: tuple[System, ...] = (
    System("fvq_vqbridge", "FVQ / VQBridge",
           "Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization",
           "ICLR 2026", "2509.10140", "quantizers"),
    System("pvq_llm", "PVQ for LLMs", "Pyramid Vector Quantization for LLMs", "preprint 2024", "2410.16926", "quantizers"),
    System("rabitq", "RaBitQ",
           "Quantizing High-Dimensional Vectors with a Theoretical Error Bound for ANN Search",
           "SIGMOD 2024, 2025", "2405.12497", "quantizers"),
    System("saq", "SAQ",
           "Pushing the Limits of Vector Quantization through Code Adjustment and Dimension Segmentation",
           "SIGMOD 2026", "2509.12086", "quantizers"),
    System("simvq", "SimVQ",
           "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer",
           "ICCV 2025", "2411.02038", "quantizers"),
    System("survey_taxonomy", "Taxonomy",
           "Discrete Tokenization for Multimodal LLMs: A Comprehensive Survey",
           "TPAMI", "2507.22920", "quantizers"),
    System("vqgan_lc", "VQGAN-LC",
           "Scaling the Codebook Size of VQGAN to 100,000 with a Utilization Rate of 99%",
           "NeurIPS 2024", "2406.11837", "quantizers"),
    System("distill_vq", "Distill-VQ",
           "Learning Retrieval Oriented Vector Quantization By Distilling Knowledge from Dense Embeddings",
           "SIGIR 2022", "2204.00185", "search"),
    System("jpq", "JPQ",
           "Jointly Optimizing Query Encoder and Product Quantization to Improve Retrieval Performance",
           "CIKM 2021", "2108.00644", "search"),
    System("aqlm", "AQLM", "Extreme Compression of Large Language Models via Additive Quantization", "ICML 2024", "2401.06118", "compress"),
    System("crossquant", "CrossQuant",
           "A Post-Training Quantization Method with Smaller Quantization Kernel for Precise LLM Compression",
           "preprint 2024", "2410.07505", "compress"),
    System("efficient_qat", "EfficientQAT",
           "Efficient Quantization-Aware Training for Large Language Models",
           "ACL 2025", "2407.11062", "compress"),
    System("lr2vq", "LR²VQ", "Learning Low-Rank Representations for Model Compression", "IJCNN 2023", "2211.11397", "compress"),
    System("mbq", "MBQ", "Modality-Balanced Quantization for Large Vision-Language Models", "CVPR 2025", "2412.19509", "compress"),
    System("pareto_resnet_aqt", "Pareto-ResNet / AQT",
           "Pareto-Optimal Quantized ResNet Is Mostly 4-bit",
           "CVPR 2021 workshop", "2105.03536", "compress"),
    System("pv_tuning", "PV-Tuning",
           "Beyond Straight-Through Estimation for Extreme LLM Compression",
           "NeurIPS 2024", "2405.14852", "compress"),
    System("q_hyvit", "Q-HyViT",
           "Post-Training Quantization of Hybrid Vision Transformers with Bridge Block Reconstruction for IoT Systems",
           "IEEE IoT Journal 2024", "2303.12557", "compress"),
    System("quant_mcu", "QuantMCU",
           "Value-Driven Mixed-Precision Quantization for Patch-Based Inference on Microcontrollers",
           "DATE 2024", "2401.13714", "compress"),
    System("quant_vggt", "QuantVGGT", "Quantized Visual Geometry Grounded Transformer", "ICLR 2026", "2509.21302", "compress"),
    System("qvgen", "QVGen", "Pushing the Limit of Quantized Video Generative Models", "ICLR 2026", "2505.11497", "compress"),
    System("repq_vit", "RepQ-ViT",
           "Scale Reparameterization for Post-Training Quantization of Vision Transformers",
           "ICCV 2023", "2212.08254", "compress"),
    System("spqr", "SpQR",
           "A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression",
           "ICLR 2024", "2306.03078", "compress"),
    System("svdquant", "SVDQuant",
           "Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models",
           "ICLR 2025", "2411.05007", "compress"),
    System("vidit_q", "ViDiT-Q",
           "Efficient and Accurate Quantization of Diffusion Transformers for Image and Video Generation",
           "ICLR 2025", "2406.02540", "compress"),
    System("vidkv", "VidKV",
           "Plug-and-Play 1.x-Bit KV Cache Quantization for Video Large Language Models",
           "preprint 2025", "2503.16257", "compress"),
    System("vptq", "VPTQ",
           "Extreme Low-bit Vector Post-Training Quantization for Large Language Models",
           "EMNLP 2024", "2409.17066", "compress"),
    System("vq4dit", "VQ4DiT",
           "Efficient Post-Training Vector Quantization for Diffusion Transformers",
           "AAAI 2025", "2408.17131", "compress"),
    System("vq_logits", "VQ-Logits",
           "Compressing the Output Bottleneck of Large Language Models via Vector Quantized Logits",
           "preprint 2025", "2505.10202", "compress"),
    System("dq_vae", "DQ-VAE / DQ-Transformer",
           "Towards Accurate Image Coding: Improved Autoregressive Image Generation with Dynamic Vector Quantization",
           "CVPR 2023", "2305.11718", "tokenizers"),
    System("fqgan", "FQGAN", "Factorized Visual Tokenization and Generation", "preprint 2024", "2411.16681", "tokenizers"),
    System("vit_vqgan", "ViT-VQGAN", "Vector-quantized Image Modeling with Improved VQGAN", "ICLR 2022", "2110.04627", "tokenizers"),
    System("vq_vla", "VQ-VLA",
           "Improving Vision-Language-Action Models via Scaling Vector-Quantized Action Tokenizers",
           "ICCV 2025", "2507.01016", "tokenizers"),
    System("control_gic", "Control-GIC",
           "Once-for-All: Controllable Generative Image Compression with Dynamic Granularity Adaptation",
           "ICLR 2025", "2406.00758", "codecs"),
    System("extreme_vqgan", "Extreme-VQGAN", "Extreme Image Compression using Fine-tuned VQGANs", "DCC 2024", "2307.08265", "codecs"),
    System("hifi_codec", "HiFi-Codec",
           "Group-residual Vector Quantization for High Fidelity Audio Codec",
           "preprint 2023", "2305.02765", "codecs"),
    System("language_codec", "Language-Codec",
           "Reducing the Gaps Between Discrete Codec Representation and Speech Language Models",
           "ACL 2025", "2402.12208", "codecs"),
    System("mcquic", "McQuic",
           "Unified Multivariate Gaussian Mixture for Efficient Neural Image Compression",
           "CVPR 2022", "2203.10897", "codecs"),
    System("unitts_distilcodec", "UniTTS / DistilCodec",
           "An end-to-end TTS system without decoupling of acoustic and semantic information",
           "preprint 2025", "2505.17426", "codecs"),
    System("addp", "ADDP",
           "Learning General Representations for Image Recognition and Generation with Alternating Denoising Diffusion Process",
           "ICLR 2024", "2306.05423", "generate"),
    System("ctf", "CTF",
           "Improving Autoregressive Image Generation through Coarse-to-Fine Token Prediction",
           "preprint 2025", "2503.16194", "generate"),
    System("hier_vq_inpaint", "Diverse-Structure Inpainting",
           "Generating Diverse Structure for Image Inpainting With Hierarchical VQ-VAE",
           "CVPR 2021", "2103.10022", "generate"),
    System("llasa", "Llasa",
           "Scaling Train-time and Inference-time Compute for Llama-based Speech Synthesis",
           "preprint 2025", "2502.04128", "generate"),
    System("mardm", "MARDM",
           "Rethinking Diffusion for Text-Driven Human Motion Generation: Redundant Representations, Evaluation, and Masked Autoregression",
           "CVPR 2025", "2411.16575", "generate"),
    System("put", "PUT", "Reduce Information Loss in Transformers for Pluralistic Image Inpainting", "CVPR 2022", "2205.05076", "generate"),
    System("resgen", "ResGen",
           "Efficient Generative Modeling with Residual Vector Quantization-Based Tokens",
           "ICML 2025", "2412.10208", "generate"),
    System("seit_pp", "SeiT++", "Masked Token Modeling Improves Storage-efficient Training", "ECCV 2024", "2312.10105", "generate"),
    System("vq_ddm", "VQ-DDM",
           "Global Context with Discrete Diffusion in Vector Quantised Modelling for Image Generation",
           "CVPR 2022", "2112.01799", "generate"),
    System("vq_diffusion", "VQ-Diffusion",
           "Vector Quantized Diffusion Model for Text-to-Image Synthesis",
           "CVPR 2022", "2111.14822", "generate"),
    System("longvq", "LongVQ", "Long Sequence Modeling with Vector Quantization on Structured Memory", "IJCAI 2024", "2404.11163", "nets"),
    System("aim_marl", "AIM",
           "AI Mother Tongue: Self-Emergent Communication in MARL via Endogenous Symbol Systems",
           "preprint 2025", "2507.10566", "systems"),
    System("arlon", "ARLON",
           "Boosting Diffusion Transformers with Autoregressive Models for Long Video Generation",
           "ICLR 2025", "2410.20502", "systems"),
    System("bathymetry", "UA-VQ-VAE",
           "Learning Enhanced Structural Representations with Block-Based Uncertainties for Ocean Floor Mapping",
           "ICLR 2025 workshop", "2504.14372", "systems"),
    System("d2m_gan", "D2M-GAN", "Quantized GAN for Complex Music Generation from Dance Videos", "ECCV 2022", "2204.00604", "systems"),
    System("healthivert_gan", "HealthiVert-GAN",
           "A Novel Framework of Pseudo-Healthy Vertebral Image Synthesis for Interpretable Compression Fracture Grading",
           "IEEE JBHI 2025", "2503.05990", "systems"),
    System("qvf", "QVF", "Quantum Visual Fields with Neural Amplitude Encoding", "NeurIPS 2025", "2508.10900", "systems"),
    System("tm2d", "TM2D", "Bimodality Driven 3D Dance Generation via Music-Text Integration", "ICCV 2023", "2304.02419", "systems"),
    System("vq_nerf", "VQ-NeRF", "Vector Quantization Enhances Implicit Neural Representations", "preprint 2023", "2310.14487", "systems"),
    System("vqd_sr", "VQD-SR",
           "Learning Data-Driven Vector-Quantized Degradation Model for Animation Video Super-Resolution",
           "ICCV 2023", "2303.09826", "systems"),
)
"""Every published system of the project and its place in the house, built yet or not; ``codeword claims`` shows what was re-checked."""
