"""Decoding by `native/decode.c`: the trainer's weights handed over for one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dunwu.model.block import Block
from dunwu.model.gqa import Attention
from dunwu.model.layers import FeedForward
from dunwu.model.transformer import Transformer
from dunwu.native.decode import DecoderWeights, LayerWeights, generate, supports
from dunwu.rollout.torch_decoder import Draws
from dunwu.types import SamplingParams


class NativeDecoder:
    """Draws completions of one batch; the same door as `TorchDecoder`."""

    def __init__(self, model: Transformer, stop_ids: Sequence[int]) -> None:
        self.model, self.stop_ids = model, stop_ids

    @staticmethod
    def supports(model: Transformer) -> bool:
        """Whether this model can be decoded natively here."""
        shape, head = model.config, model.head_weight
        plain = shape.mla is None and shape.moe is None and not shape.qk_norm
        return (
            plain
            and model.native_allowed
            and head.device.type == "cpu"
            and supports(
                head.dtype,
                shape.num_heads,
                shape.num_kv_heads,
                shape.head_dim,
                shape.hidden_size,
                shape.intermediate_size,
            )
        )

    def draw(
        self, prompts: Sequence[Sequence[int]], parents: Sequence[int], seeds: Sequence[int], params: SamplingParams
    ) -> Draws:
        """As `TorchDecoder.draw`."""
        cos, sin = self.model.rope(max(map(len, prompts)) + params.max_tokens)
        drawn = generate(
            self._weights(), cos, sin, prompts, parents, seeds, self.stop_ids, params, torch.get_num_threads()
        )
        return Draws(drawn.tokens, drawn.logprobs, drawn.lengths)

    def _weights(self) -> DecoderWeights:
        shape, decoder = self.model.config, self.model.model
        layers = []
        for block in decoder.layers:
            assert isinstance(block, Block)
            attention, mlp = block.self_attn, block.mlp
            assert isinstance(attention, Attention) and isinstance(mlp, FeedForward)
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            weight = torch.cat([projection.weight for projection in projections])
            biases: list[Tensor] = [projection.bias for projection in projections]
            layers.append(
                LayerWeights(
                    attention_norm=block.input_layernorm.weight,
                    qkv=weight,
                    bias=torch.cat(biases) if shape.qkv_bias else weight.new_zeros(len(weight)),
                    out=attention.o_proj.weight,
                    feed_forward_norm=block.post_attention_layernorm.weight,
                    gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
                    down=mlp.down_proj.weight,
                )
            )
        return DecoderWeights(
            heads=shape.num_heads,
            kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            eps=shape.rms_norm_eps,
            embedding=decoder.embed_tokens.weight,
            head=self.model.head_weight,
            norm=decoder.norm.weight,
            layers=layers,
        )
