"""A model folder as one GGUF file, which llama.cpp, ollama and LM Studio run.

Weights go from safetensors to the file a block of rows at a time, so memory does not grow with the model. `gguf_names`
says which tensors there are, `gguf_tokenizer` what the vocabulary is; here are the file itself and the keys that tell
llama.cpp the shape. Written for llama.cpp of 2025 and later; a file is whole or absent. Not covered: quantisation to
less than 8 bits (`llama-quantize` makes it of an F16 file), MTP modules, splitting into several files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch

from dunwu.disk import disk_errors, fsync
from dunwu.model.config import LinearRope, ModelConfig, Yarn
from dunwu.model.gguf_names import ARCHITECTURES, Entry, plan, sources
from dunwu.model.gguf_tokenizer import Vocabulary, read_vocabulary
from dunwu.model.hf_config import from_hf_config
from dunwu.model.hf_weights import Stored, stored_in
from dunwu.model.rope import frequencies, score_scale, yarn_factor
from dunwu.model.stored import blocks, check_fit, read_json
from dunwu.types import DunwuError

Kind = Literal["f32", "f16", "bf16", "q8_0"]
KINDS: tuple[Kind, ...] = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class Written:
    """What a GGUF file holds."""

    bytes: int
    """Size of the file."""
    tensors: int
    """Tensors in it."""
    wider: int
    """Matrices of a q8_0 file that stayed F16, since their rows are no multiple of 32."""


def write_gguf(folder: Path, file: Path, kind: Kind = "f16", name: str = "") -> Written:
    """Write the model in `folder` to `file`; matrices as `kind`, vectors and routers in F32.

    Args:
        folder: config.json, safetensors (one file or shards), the tokenizer's files.
        kind: "f32" keeps every bit; "f16" halves; "q8_0" has 8 bits and a scale for every 32 numbers.
        name: what programs show; the folder's name if empty.

    Raises:
        DunwuError: a file is missing or damaged, llama.cpp cannot run this shape or tokenizer, a weight is too large
            for F16, the `gguf` package is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise DunwuError("a GGUF file needs the gguf package", "pip install 'dunwu[gguf]'") from None
    config = from_hf_config(read_json(folder / "config.json"), str(folder / "config.json"))
    entries = plan(config)
    stored = stored_in(folder)
    check_fit(stored, sources(entries), config)
    vocabulary = read_vocabulary(folder, config.vocab_size)
    types = [_type_of(entry, kind) for entry in entries]
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = gguf.GGUFWriter(temporary, ARCHITECTURES[config.model_type])
            _add_shape(writer, config)
            _add_rope(writer, config)
            _add_vocabulary(writer, vocabulary)
            writer.add_name(name or folder.resolve().name)
            _add_types(writer, entries, types, kind)
            with open(temporary, "ab") as out:
                for entry, sort in zip(entries, types):
                    _write_tensor(out, stored, entry, sort, int(writer.data_alignment))
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        fsync(file.parent)
    wider = types.count("F16") if kind == "q8_0" else 0
    return Written(file.stat().st_size, len(entries), wider)


# ---- the file


def _type_of(entry: Entry, kind: Kind) -> str:
    """GGUF's name of the type an entry is written in."""
    if entry.exact or kind == "f32":
        return "F32"
    if kind == "bf16":
        return "BF16"
    return "Q8_0" if kind == "q8_0" and entry.shape[-1] % 32 == 0 else "F16"


def _add_types(writer: Any, entries: list[Entry], types: list[str], kind: Kind) -> None:
    """The head of the file, up to where the weights begin."""
    import gguf

    files = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_file_type(gguf.LlamaFileType[files[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for entry, name in zip(entries, types):
        sort = gguf.GGMLQuantizationType[name]
        per_block, size = gguf.GGML_QUANT_SIZES[sort]
        nbytes = math.prod(entry.shape) // per_block * size
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), nbytes, sort)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _rows(stored: Mapping[str, Stored], entry: Entry) -> Iterator[torch.Tensor]:
    """The rows of an entry in order, changed as it says, float32 (n, columns); a vector is one row."""
    if entry.values is not None:
        yield entry.values.reshape(1, -1)
    for source in entry.sources:
        for piece in blocks(stored[source], entry.block):
            rows = piece.float().reshape(-1, piece.shape[-1])
            if entry.change is not None:
                rows = entry.change(rows.reshape(-1, entry.block, rows.shape[-1]))
            yield rows.reshape(-1, rows.shape[-1])


def _write_tensor(out: BinaryIO, stored: Mapping[str, Stored], entry: Entry, sort: str, alignment: int) -> None:
    import gguf

    out.write(b"\0" * (-out.tell() % alignment))
    for block in _rows(stored, entry):
        numbers = block.numpy()
        if sort == "F16":
            if block.abs().max() > torch.finfo(torch.float16).max:
                raise DunwuError(f"tensor {entry.sources[0]} holds numbers too large for F16", "use f32 or q8_0")
            numbers = numbers.astype(np.float16)
        elif sort != "F32":
            numbers = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[sort])
        out.write(np.ascontiguousarray(numbers).tobytes())
    out.write(b"\0" * (-out.tell() % alignment))


# ---- the keys


def _add_shape(writer: Any, config: ModelConfig) -> None:
    """What the model is made of, as llama.cpp asks for it."""
    import gguf

    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    moe = config.moe
    if moe:
        writer.add_expert_count(moe.experts)
        writer.add_expert_used_count(moe.per_token)
        writer.add_expert_feed_forward_length(moe.width)
    if not config.mla:
        writer.add_head_count_kv(config.num_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        return
    mla = config.mla
    writer.add_head_count_kv(1)  # absorbed, all heads read one latent
    writer.add_key_length(mla.kv_rank + mla.rope_dim)
    writer.add_value_length(mla.kv_rank)
    writer.add_key_length_mla(mla.query_dim)
    writer.add_value_length_mla(mla.value_dim)
    writer.add_kv_lora_rank(mla.kv_rank)
    writer.add_q_lora_rank(mla.q_rank)  # asked for even where there is none
    if moe is None:
        writer.add_leading_dense_block_count(config.num_layers)
        writer.add_expert_feed_forward_length(config.intermediate_size)
        writer.add_expert_shared_count(0)
        return
    writer.add_leading_dense_block_count(moe.first_dense)
    writer.add_expert_shared_count(moe.shared)
    writer.add_expert_weights_scale(moe.scale)
    writer.add_expert_weights_norm(moe.normalize)
    gates = gguf.ExpertGatingFuncType
    writer.add_expert_gating_func(gates.SIGMOID if moe.gate == "sigmoid" else gates.SOFTMAX)
    if moe.top_groups < moe.groups:  # else every group may be chosen from, and llama.cpp wants no groups
        writer.add_expert_group_count(moe.groups)
        writer.add_expert_group_used_count(moe.top_groups)


def _add_rope(writer: Any, config: ModelConfig) -> None:
    """RoPE's base, and its scaling in llama.cpp's terms; Llama 3's is a tensor (`gguf_names.rope_divisors`)."""
    import gguf

    writer.add_rope_dimension_count(config.rope_dim)
    writer.add_rope_freq_base(config.rope_theta)
    scaling = config.rope_scaling
    if isinstance(scaling, LinearRope):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    if not isinstance(scaling, Yarn):
        return
    if not torch.equal(_ramp(config, scaling), _ramp(config, Yarn(scaling.factor, scaling.original))):
        raise DunwuError(
            "llama.cpp's YaRN has beta_fast 32 and beta_slow 1, rounded, in every model of this class",
            "use `--to hf`, or scale by YaRN as it is by default",
        )
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling.factor)
    writer.add_rope_scaling_orig_ctx_len(scaling.original)
    factor, multiplier = yarn_keys(config, scaling)
    writer.add_rope_scaling_attn_factors(factor)
    if multiplier:
        writer.add_rope_scaling_yarn_log_mul(multiplier)


def _ramp(config: ModelConfig, scaling: Yarn) -> torch.Tensor:
    return frequencies(config.rope_dim, config.rope_theta, scaling)[0]


def yarn_keys(config: ModelConfig, scaling: Yarn) -> tuple[float, float]:
    """`rope.scaling.attn_factor` a and `rope.scaling.yarn_log_multiplier` m (0: not written) for a YaRN model.

    With L = ln(factor), llama.cpp turns by cos and sin times c and, where attention is latent, scales scores by s²:

        m = 0:  c = a (1 + 0.1 L)    s = a (1 + 0.1 L)
        else:   c = a                s = a (1 + m L)

    Solved for our c (`rope.yarn_factor`) and s (`rope.score_scale`); V3's own config gives a = 1, m = 0.1.
    """
    stretch = math.log(scaling.factor) if scaling.factor > 1 else 0.0
    c, usual = yarn_factor(scaling), 1 + 0.1 * stretch
    if config.mla is None or not stretch:
        return c / usual, 0.0
    s = math.sqrt(score_scale(config) * math.sqrt(config.mla.query_dim))
    return (c / usual, 0.0) if math.isclose(s, c) else (c, (s / c - 1) / stretch)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.eos)
    if vocabulary.pad is not None:
        writer.add_pad_token_id(vocabulary.pad)
    if vocabulary.bos is not None:
        writer.add_bos_token_id(vocabulary.bos)
    writer.add_add_bos_token(vocabulary.add_bos)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)
