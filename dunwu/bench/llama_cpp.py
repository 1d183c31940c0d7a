"""llama.cpp's server as a peer: our weights as a GGUF file, requests over HTTP, one thread each.

The GGUF holds what this needs: a dense Qwen2 with its vocabulary.
"""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from dunwu.data.tokenizer import Tokenizer
from dunwu.model.transformer import Transformer

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Our parts of a block → llama.cpp's."""


class LlamaCpp:
    """A server with `slots` sequences at once, for as long as the `with` block lasts.

    Args:
        file: what `write_gguf` wrote.
        columns: tokens of a sequence at most, its prompt among them.
        threads: for a single token, and for more of them at once (prompts, several sequences).
    """

    def __init__(self, file: Path, slots: int, columns: int, threads: tuple[int, int]) -> None:
        import xllamacpp

        self.slots = slots
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_parallel = slots
        params.n_ctx = slots * columns
        params.cont_batching = True
        params.warmup = False
        params.cache_prompt = False
        params.port = 0
        params.cpuparams.n_threads, params.cpuparams_batch.n_threads = threads
        params.verbosity = -1
        self._params = params
        self._start = xllamacpp.Server

    def __enter__(self) -> LlamaCpp:
        self._server = self._start(self._params)
        self._pool = ThreadPoolExecutor(self.slots)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        del self._server

    def generate(self, prompts: list[list[int]], length: int) -> float:
        """Tokens generated for all prompts at once."""
        return float(sum(self._pool.map(lambda prompt: self._complete(prompt, length), prompts)))

    def _complete(self, prompt: list[int], length: int) -> int:
        body: dict[str, Any] = {
            "prompt": prompt,
            "n_predict": length,
            "ignore_eos": True,
            "temperature": 1.0,
            "seed": 0,
        }
        body |= {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "cache_prompt": False}
        request = urllib.request.Request(
            f"{self._server.listening_address}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return int(json.load(answer)["tokens_predicted"])


def write_gguf(model: Transformer, tokenizer: Tokenizer, file: Path, bf16: bool = False) -> None:
    """The weights and the vocabulary; matrices in float32 or bfloat16, vectors in float32, as llama.cpp has them."""
    import gguf

    shape = model.config
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.ALL_F32)
    record = json.loads(tokenizer.backend.to_str())
    ids: dict[str, int] = record["model"]["vocab"]
    special = {entry["content"]: entry["id"] for entry in record["added_tokens"]}
    names = {number: token for token, number in (ids | special).items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([names.get(number, f"<unused{number}>") for number in range(shape.vocab_size)])
    kinds = [gguf.TokenType.NORMAL if n in names else gguf.TokenType.UNUSED for n in range(shape.vocab_size)]
    for number in special.values():
        kinds[number] = gguf.TokenType.CONTROL
    writer.add_token_types(kinds)
    merges = record["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.end_id)
    for name, tensor in model.state_dict().items():
        kind = gguf.GGMLQuantizationType.BF16 if bf16 and tensor.dim() > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(_gguf_name(name), gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    """Our name of a tensor → llama.cpp's.

    Example:
        >>> _gguf_name("model.layers.3.self_attn.q_proj.bias")
        'blk.3.attn_q.bias'
    """
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    if name == "lm_head.weight":
        return "output.weight"
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[part]}.{kind}"
