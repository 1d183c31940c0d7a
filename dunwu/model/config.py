"""The shape of a model, and presets by size. No torch: recipes and the command line read this.

One dataclass says what a decoder is made of; the class that others call it by follows from its parts (`model_type`), so
there is nothing to keep in step:

    biases on q, k, v            Qwen2ForCausalLM       dense
    none                         LlamaForCausalLM       dense
    norm of queries and keys     Qwen3ForCausalLM       dense;  with experts Qwen3MoeForCausalLM
    latent attention             DeepseekV3ForCausalLM  dense or experts

Legend: D width, H query heads, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from dunwu.types import UsageError

ModelType = Literal["qwen2", "llama", "qwen3", "qwen3_moe", "deepseek_v3"]


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023): slow dimensions of RoPE are interpolated, fast ones kept, scores are sharpened."""

    factor: float
    """s: new context / old context; 40 in V3."""
    original: int
    """Context the model was trained at."""
    beta_fast: float = 32.0
    """β: dimensions that turn at least so often in the old context are kept."""
    beta_slow: float = 1.0
    """α: dimensions that turn less often are interpolated by s."""
    mscale: float = 0.0
    """With `mscale_all_dim`, sets the factor on cos and sin; both are 1 in V3."""
    mscale_all_dim: float = 0.0
    """With latent attention also sharpens the whole score, the part without RoPE included."""
    attention_factor: float = 0.0
    """Factor on cos and sin, given outright; 0: 0.1 ln s + 1, or what the two above say."""
    truncate: bool = True
    """Round the borders of the ramp to whole dimensions."""


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's RoPE scaling: long wavelengths are divided by `factor`, short ones kept, a ramp between."""

    factor: float
    """8 in Llama 3.1, 32 in Llama 3.2."""
    original: int
    """Context the model was first trained at; 8,192."""
    low_freq_factor: float = 1.0
    """Wavelengths above original / this are divided."""
    high_freq_factor: float = 4.0
    """Wavelengths below original / this are kept."""


@dataclass(frozen=True)
class LinearRope:
    """Position interpolation (Chen et al. 2023): every position divided by `factor`."""

    factor: float
    """New context / old context."""


RopeScaling = Yarn | Llama3Rope | LinearRope


@dataclass(frozen=True)
class MlaShape:
    """Multi-head latent attention (DeepSeek-V2, 2.1; V3, 2.1.1): keys and values are kept as one small latent."""

    kv_rank: int
    """d_c: width of the latent that stands in the cache; 512 in V3."""
    nope_dim: int
    """d_h: width of a head's query and key without position; 128 in V3."""
    rope_dim: int
    """d_h^R: width of the decoupled part with RoPE; the key's is shared by all heads; 64 in V3."""
    value_dim: int
    """Width of a head's value; 128 in V3."""
    q_rank: int = 0
    """d_c': width of the queries' latent; 1,536 in V3; 0 for none."""
    rope_interleave: bool = True
    """RoPE turns neighbours (2i, 2i + 1), as in V3's files; else halves (i, i + d/2)."""

    @property
    def query_dim(self) -> int:
        """Width of a head's query: both parts."""
        return self.nope_dim + self.rope_dim


@dataclass(frozen=True)
class MoeShape:
    """A mixture of experts in place of the feed-forward (DeepSeekMoE; V3, 2.1.2)."""

    experts: int
    """E, N_r: routed experts; 256 in V3."""
    per_token: int
    """K_r: routed experts of a token; 8 in V3."""
    width: int
    """Inner width of one expert; 2,048 in V3."""
    shared: int = 0
    """N_s: experts that every token passes; 1 in V3."""
    first_dense: int = 0
    """Layers at the bottom that keep the dense feed-forward; 3 in V3."""
    groups: int = 1
    """Groups of experts; 8 in V3, one to a node."""
    top_groups: int = 1
    """Groups that a token may choose from; 4 in V3."""
    gate: Literal["sigmoid", "softmax"] = "sigmoid"
    """Affinity of token and expert. "sigmoid" has a bias that only chooses and is moved against the load (V3);
    "softmax" is Qwen3's."""
    normalize: bool = True
    """The chosen experts' weights are divided by their sum."""
    scale: float = 1.0
    """Factor on those weights; 2.5 in V3."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder: RMSNorm, attention with RoPE, SwiGLU (names as in `config.json` where there is one).

    Example:
        >>> ModelConfig(hidden_size=128, num_heads=4).head_dim
        32
    """

    vocab_size: int = 1024
    """V: rows of the embedding; the tokenizer's size, special tokens included."""
    hidden_size: int = 128
    """D: width of the residual stream."""
    num_layers: int = 4
    """Decoder blocks."""
    num_heads: int = 4
    """H: query heads."""
    num_kv_heads: int = 1
    """Key/value heads shared by groups of query heads (GQA; 1 = MQA); with `mla` they have no meaning."""
    intermediate_size: int = 352
    """Width of the SwiGLU feed-forward."""
    max_position_embeddings: int = 1024
    """Longest context the model claims; RoPE itself has no table limit."""
    rope_theta: float = 10_000.0
    """RoPE base."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square inside RMSNorm."""
    tie_word_embeddings: bool = True
    """Output head = input embedding."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights; 0.006 in V3, whose width is 7168."""
    head_size: int = 0
    """Width of one head; 0 for hidden_size / num_heads."""
    qkv_bias: bool = True
    """Biases on the projections to queries, keys and values (Qwen2)."""
    qk_norm: bool = False
    """RMSNorm of every head's query and key before RoPE (Qwen3)."""
    rope_scaling: RopeScaling | None = None
    """How RoPE reaches further than it was trained."""
    mla: MlaShape | None = None
    """Latent attention instead of grouped-query attention."""
    moe: MoeShape | None = None
    """Experts instead of the dense feed-forward."""
    mtp_depth: int = 0
    """D: modules behind the last block that predict the token after the next (V3, 2.2); 0 or 1."""

    @property
    def head_dim(self) -> int:
        """Width of one head of grouped-query attention."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def rope_dim(self) -> int:
        """Width that RoPE turns."""
        return self.mla.rope_dim if self.mla else self.head_dim

    @property
    def model_type(self) -> ModelType:
        """What `config.json` calls such a model.

        Example:
            >>> ModelConfig(qkv_bias=False).model_type
            'llama'
        """
        if self.mla:
            return "deepseek_v3"
        if self.qk_norm:
            return "qwen3_moe" if self.moe else "qwen3"
        return "qwen2" if self.qkv_bias else "llama"

    def is_moe(self, layer: int) -> bool:
        """Whether the block of this number has experts."""
        return self.moe is not None and layer >= self.moe.first_dense

    def validate(self) -> None:
        """Raise UsageError where the shape cannot be built."""
        counts = {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads, "num_layers": self.num_layers}
        counts |= {"mla.kv_rank": self.mla.kv_rank} if self.mla else {}
        counts |= {"moe.groups": self.moe.groups, "moe.experts": self.moe.experts} if self.moe else {}
        if low := [name for name, count in counts.items() if count < 1]:
            raise UsageError(f"{low[0]} is {counts[low[0]]}", "use 1 or more")
        if (not self.head_size and not self.mla and self.hidden_size % self.num_heads) or self.rope_dim % 2:
            raise UsageError(
                f"hidden_size {self.hidden_size} does not split into {self.num_heads} heads of even width",
                "make hidden_size a multiple of 2 × num_heads",
            )
        if not self.mla and self.num_heads % self.num_kv_heads:
            raise UsageError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}",
                "choose num_kv_heads that divides num_heads",
            )
        if self.mtp_depth not in (0, 1):
            raise UsageError(f"mtp_depth is {self.mtp_depth}", "use 0 or 1, as V3 does")
        if self.moe:
            _check_experts(self.moe)
            if not self.mla and not self.qk_norm:
                raise UsageError(
                    "experts under this attention are no class that other programs load", "add mla, or qk_norm"
                )

    @property
    def num_parameters(self) -> int:
        """Weights, embedding counted once when tied; without the modules of `mtp_depth`."""
        return self._count(active=False)

    @property
    def active_parameters(self) -> int:
        """Weights that one token passes: of the routed experts only those it is sent to."""
        return self._count(active=True)

    def _count(self, active: bool) -> int:
        d = self.hidden_size
        head = 0 if self.tie_word_embeddings else self.vocab_size * d
        blocks = sum(self._attention_weights() + self._inner_weights(n, active) + 2 * d for n in range(self.num_layers))
        return self.vocab_size * d + blocks + d + head

    def _attention_weights(self) -> int:
        d, h = self.hidden_size, self.num_heads
        if self.mla:
            m = self.mla
            queries = d * m.q_rank + m.q_rank + m.q_rank * h * m.query_dim if m.q_rank else d * h * m.query_dim
            latent = d * (m.kv_rank + m.rope_dim) + m.kv_rank + m.kv_rank * h * (m.nope_dim + m.value_dim)
            return queries + latent + h * m.value_dim * d
        q, kv = h * self.head_dim, self.num_kv_heads * self.head_dim
        biases = q + 2 * kv if self.qkv_bias else 0
        return 2 * d * q + 2 * d * kv + biases + (2 * self.head_dim if self.qk_norm else 0)

    def _inner_weights(self, layer: int, active: bool) -> int:
        d, moe = self.hidden_size, self.moe
        if moe is None or not self.is_moe(layer):
            return 3 * d * self.intermediate_size
        routed = moe.per_token if active else moe.experts
        return 3 * d * moe.width * (routed + moe.shared) + d * moe.experts


def _check_experts(moe: MoeShape) -> None:
    if not 1 <= moe.per_token <= moe.experts // moe.groups * moe.top_groups:
        raise UsageError(
            f"{moe.per_token} experts per token of {moe.experts}", "choose fewer, or more groups to choose from"
        )
    if moe.experts % moe.groups or not 1 <= moe.top_groups <= moe.groups:
        raise UsageError(
            f"{moe.experts} experts in {moe.groups} groups, {moe.top_groups} of them chosen",
            "let groups divide experts, and top_groups be at most groups",
        )


def _shape(width: int, layers: int, head_dim: int, kv_heads: int) -> ModelConfig:
    ff = -(-width * 8 // 3 // 32) * 32
    return ModelConfig(
        hidden_size=width,
        num_layers=layers,
        num_heads=width // head_dim,
        num_kv_heads=kv_heads,
        intermediate_size=ff,
    )


PRESETS: dict[str, ModelConfig] = {
    "tiny": _shape(64, 2, 32, 1),
    "0.5M": _shape(96, 4, 32, 1),
    "0.8M": _shape(128, 4, 32, 1),
    "1.3M": _shape(160, 4, 32, 1),
    "2M": _shape(192, 5, 32, 1),
    "4M": _shape(256, 5, 32, 1),
    "12M": _shape(384, 7, 64, 2),
    "50M": _shape(640, 10, 64, 2),
    "120M": _shape(768, 16, 64, 4),
}
"""Named shapes; the name says the parameters outside the embedding, roughly."""

ARCHITECTURES = ("dense", "mla", "moe", "moe-mla", "v3")
"""What such a shape may be built of: Qwen2's parts, latent attention, experts (Qwen3-MoE's parts), both as in V3, both
and multi-token prediction."""


def model_preset(name: str, vocab_size: int, arch: str = "dense") -> ModelConfig:
    """The preset `name` with this vocabulary, built as `arch` says.

    Example:
        >>> model_preset("0.8M", 1024).num_layers
        4
        >>> v3 = model_preset("0.8M", 1024, "moe-mla")
        >>> v3.active_parameters / model_preset("0.8M", 1024).num_parameters, v3.moe.experts
        (0.99..., 8)
    """
    if name not in PRESETS:
        raise UsageError(f"no model size '{name}'", "choose from " + ", ".join(PRESETS))
    if arch not in ARCHITECTURES:
        raise UsageError(f"no architecture '{arch}'", "choose from " + ", ".join(ARCHITECTURES))
    dense = replace(PRESETS[name], vocab_size=vocab_size)
    config = dense if arch in ("dense", "moe") else _latent(dense)
    if arch == "moe":
        config = replace(config, qkv_bias=False, qk_norm=True)
    if arch in ("dense", "mla"):
        return _as_large(config, dense)
    config = replace(config, mtp_depth=int(arch == "v3"))
    return _as_large(config, dense, _experts(config))


def _latent(dense: ModelConfig) -> ModelConfig:
    """Latent attention with heads as wide as the dense ones. V3's proportions do not fit so small a width, where four
    heads' worth of latent would be all of it: the latent has half the width, the queries' three quarters."""
    head, width = dense.head_dim, dense.hidden_size
    mla = MlaShape(width // 2, head // 2, head // 2, head, q_rank=width * 3 // 4)
    return replace(dense, qkv_bias=False, num_kv_heads=dense.num_heads, mla=mla)


def _experts(config: ModelConfig) -> MoeShape:
    """8 routed experts, 2 of them for a token; under V3's gate one shared, a dense layer at the bottom, 4 groups of which 2."""
    if config.mla is None:
        return MoeShape(experts=8, per_token=2, width=16, gate="softmax")
    return MoeShape(experts=8, per_token=2, width=16, shared=1, first_dense=1, groups=4, top_groups=2, scale=2.0)


def _as_large(config: ModelConfig, dense: ModelConfig, moe: MoeShape | None = None) -> ModelConfig:
    """`config` with feed-forwards of such widths that every token passes as many weights as in `dense`."""
    d = config.hidden_size
    room = dense._attention_weights() + 3 * d * dense.intermediate_size - config._attention_weights()
    config = replace(config, intermediate_size=round(room / (3 * d) / 32) * 32)
    if moe is None:
        return config
    width = (room - d * moe.experts) / (3 * d * (moe.per_token + moe.shared))
    return replace(config, moe=replace(moe, width=round(width / 16) * 16))
