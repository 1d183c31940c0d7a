"""The shape of a model, and presets by size. No torch: recipes and the command line read this."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dunwu.types import UsageError


@dataclass(frozen=True)
class ModelConfig:
    """A Qwen2-shaped decoder (Qwen2 technical report, section 2; names as in `config.json`).

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
    """Key/value heads shared by groups of query heads (GQA; 1 = MQA)."""
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

    @property
    def head_dim(self) -> int:
        """Width of one head; hidden_size / num_heads."""
        return self.hidden_size // self.num_heads

    def validate(self) -> None:
        """Raise UsageError where the shape cannot be built."""
        if self.hidden_size % self.num_heads or self.head_dim % 2:
            raise UsageError(
                f"hidden_size {self.hidden_size} does not split into {self.num_heads} heads of even width",
                "make hidden_size a multiple of 2 × num_heads",
            )
        if self.num_heads % self.num_kv_heads:
            raise UsageError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}",
                "choose num_kv_heads that divides num_heads",
            )

    @property
    def num_parameters(self) -> int:
        """Weights, embedding counted once when tied."""
        d, kv = self.hidden_size, self.num_kv_heads * self.head_dim
        attention = d * d + d + 2 * (d * kv + kv) + d * d
        block = attention + 3 * d * self.intermediate_size + 2 * d
        head = 0 if self.tie_word_embeddings else self.vocab_size * d
        return self.vocab_size * d + self.num_layers * block + d + head


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


def model_preset(name: str, vocab_size: int) -> ModelConfig:
    """The preset `name` with this vocabulary.

    Example:
        >>> model_preset("0.8M", 1024).num_layers
        4
    """
    if name not in PRESETS:
        raise UsageError(f"no model size '{name}'", "choose from " + ", ".join(PRESETS))
    return replace(PRESETS[name], vocab_size=vocab_size)
