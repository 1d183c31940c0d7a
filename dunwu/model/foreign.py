"""Any other causal language model, through transformers: slower, and with the same doors as our own.

`Foreign` is a `Transformer` to whoever samples, trains or scores: states and an output matrix, packed texts, a cache whose rows
can be left-padded, dropped and repeated. What cannot be had is refused when it is loaded and not found later: an output head
that is more than a product (soft caps, scales, biases), weights that are missing and would be made up. Code that comes with a model is
never run, pickles are never loaded. Not covered: C kernels, CUDA graphs, dropout, GGUF.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.model.cache import KVCache
from dunwu.model.config import ModelConfig
from dunwu.model.hf_config import KNOWN
from dunwu.model.hf_weights import AGAIN, require_safetensors
from dunwu.model.moe import Routing
from dunwu.model.transformer import Transformer, segments_of
from dunwu.native.train import Segment
from dunwu.types import DunwuError


@dataclass(frozen=True)
class ForeignShape(ModelConfig):
    """What is asked of a `ModelConfig`, of a model that is none."""

    kind: str = ""
    """Its `model_type`."""
    parameters: int = 0
    """Weights, the embedding counted once when tied."""

    @property
    def model_type(self) -> Any:
        return self.kind

    @property
    def num_parameters(self) -> int:
        return self.parameters

    @property
    def active_parameters(self) -> int:
        """As many as there are: which of them are experts is not known here."""
        return self.parameters

    def validate(self) -> None:
        """Raise DunwuError: nothing can be built from it."""
        raise DunwuError(f"a {self.kind} exists through transformers only", f"for this, use one of {KNOWN}")


class ForeignCache(KVCache):
    """transformers' own cache, under the names of `KVCache`."""

    def __init__(self, store: Any, pad_B: Tensor) -> None:
        self.store, self.pad_B, self.length = store, pad_B, 0

    def mask(self, T: int) -> Tensor:
        """(B, filled + T) 1 where a column holds a token, with the next T tokens."""
        columns = torch.arange(self.length + T, device=self.pad_B.device)
        return (columns >= self.pad_B[:, None]).long()

    def select(self, rows: Tensor) -> None:
        self.store.reorder_cache(rows)
        self.pad_B = self.pad_B[rows]


class Foreign(Transformer):
    """A transformers model behind the doors of `Transformer`; its own dropout never acts.

    Args:
        network: a causal language model with a plain output head.
        new_store: makes an empty cache for it.
    """

    native_allowed = False

    def __init__(self, network: Any, new_store: Any) -> None:
        nn.Module.__init__(self)
        self.network = network.eval()
        self._new_store = new_store
        self.config = _shape_of(network)

    @property
    def head_weight(self) -> Tensor:
        weight: Tensor = self.network.get_output_embeddings().weight
        return weight

    @property
    def native(self) -> bool:
        return False

    @property
    def fixed_shapes(self) -> bool:
        return False

    def train(self, mode: bool = True) -> Foreign:
        """Gradients flow in either mode; the network stays in evaluation mode, without dropout."""
        self.training = mode
        return self

    def set_dropout(self, share: float) -> None:
        if share:
            raise DunwuError(f"a {self.config.model_type} through transformers has no dropout here", "set dropout to 0")

    def new_cache(self, pad_B: Tensor, capacity: int) -> KVCache:
        return ForeignCache(self._new_store(), pad_B)

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        cache: KVCache | None = None,
        segments_BT: Tensor | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        if cache is not None:
            if segments_BT is not None:
                raise ValueError("packed rows have no cache")
            return self._continued(ids_BT, cache)
        if segments_BT is not None:
            return self._unpacked(ids_BT, segments_BT)
        return self._states(input_ids=ids_BT, position_ids=positions_BT, use_cache=False)

    def packed(
        self, ids_N: Tensor, segments: Sequence[Segment], rows: int = 1, routing: Routing | None = None
    ) -> Tensor:
        raise ValueError("only where `native` is true")

    def save_foreign(self, folder: Path) -> None:
        """Write config.json and the weights as transformers does, in safetensors; `save_model` says what ends a reply."""
        with _quietly():
            self.network.save_pretrained(folder)

    def _states(self, **asked: Any) -> Tensor:
        states: Tensor = self.network.base_model(**asked).last_hidden_state
        return states

    def _continued(self, ids_BT: Tensor, cache: KVCache) -> Tensor:
        assert isinstance(cache, ForeignCache)
        T = ids_BT.shape[1]
        states = self._states(
            input_ids=ids_BT,
            position_ids=cache.positions(T),
            attention_mask=cache.mask(T),
            past_key_values=cache.store,
            use_cache=True,
        )
        cache.advance(T)
        return states

    def _unpacked(self, ids_BT: Tensor, segments_BT: Tensor) -> Tensor:
        """Each text of a packed row in a row of its own, padded behind, where no causal model looks: that needs no mask, and so
        holds for windows, linear attention and whatever comes."""
        spans = segments_of(segments_BT)
        longest = max(span.end - span.start for span in spans)
        ids_N = ids_BT.flatten()
        rows = torch.stack([F.pad(ids_N[s.start : s.end], (0, longest - (s.end - s.start))) for s in spans])
        states = self._states(input_ids=rows, use_cache=False)
        kept = torch.cat([state[: s.end - s.start] for state, s in zip(states, spans, strict=True)])
        return kept.view(*ids_BT.shape, -1)


def load_foreign(folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Foreign:
    """A model folder of whatever class transformers knows.

    Raises:
        ImportError: transformers is not installed.
        DunwuError: transformers does not load it, weights are missing, or its output head is more than a product.
    """
    from transformers import AutoModelForCausalLM, DynamicCache

    require_safetensors(Path(folder))
    try:
        with _quietly():
            network, found = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=dtype or "auto",
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise DunwuError(f"transformers does not load {folder}: {said}", f"without it: {KNOWN}") from error
    # Both would be filled with random numbers.
    for name in sorted(found["missing_keys"]):
        raise DunwuError(f"{folder}: tensor '{name}' is missing", AGAIN)
    for name, there, wanted in sorted(found["mismatched_keys"]):
        shapes = f"{tuple(there)}, the config says {tuple(wanted)}"
        raise DunwuError(f"{folder}: tensor '{name}' has shape {shapes}", AGAIN)
    model = Foreign(network.to(device), lambda: DynamicCache(config=network.config))
    _check_head(model, folder)
    return model


def _shape_of(network: Any) -> ForeignShape:
    text = network.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 1
    return ForeignShape(
        vocab_size=len(network.get_output_embeddings().weight),
        hidden_size=network.get_output_embeddings().weight.shape[1],
        num_layers=text.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        intermediate_size=getattr(text, "intermediate_size", None) or 0,
        # A model without positions has no end of them.
        max_position_embeddings=getattr(text, "max_position_embeddings", None) or 1 << 20,
        tie_word_embeddings=network.get_output_embeddings().weight is network.get_input_embeddings().weight,
        initializer_range=getattr(text, "initializer_range", None) or 0.02,
        kind=network.config.model_type,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )


@torch.no_grad()
def _check_head(model: Foreign, folder: str | Path) -> None:
    """Logits must be states times matrix. States are enlarged until logits are near 1,000, or a cap at 30 would not show."""
    head = model.network.get_output_embeddings()
    ids = torch.arange(8, device=head.weight.device)[None] % model.config.vocab_size
    product = model.hidden(ids) @ head.weight.T
    scale = 1000.0 / max(float(product.abs().max()), 1e-3)
    hook = head.register_forward_pre_hook(lambda _, args: (args[0] * scale,))
    try:
        logits = model.network(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    if getattr(head, "bias", None) is not None or not torch.allclose(
        logits.float(), product.float() * scale, atol=20.0
    ):
        raise DunwuError(
            f"{folder}: the output head of a {model.config.model_type} is more than a product (a cap, scale or bias)",
            f"use another model; known: {KNOWN}",
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars and reports: what is wrong is told in one line."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
