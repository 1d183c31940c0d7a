"""`config.json` in and out: transformers reads ours as we mean it, ours reads theirs, and nothing unknown passes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dunwu.model.config import LinearRope, Llama3Rope, MlaShape, ModelConfig, MoeShape, Yarn
from dunwu.model.hf_config import NotOurs, from_hf_config, to_hf_config
from dunwu.types import DunwuError
from tests.model.shapes import PLAIN, QWEN2, SHAPES, V3, YARN

FILE = "some/config.json"
DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "aux_loss_alpha": 0.001, "bos_token_id": 0,
    "eos_token_id": 1, "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
    "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "model_type": "deepseek_v3", "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8,
    "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "pretraining_tp": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "seq_aux": True,
    "tie_word_embeddings": False, "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1", "use_cache": True, "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip
"""What the hub's DeepSeek-V3 says, but for its quantisation."""
QWEN25 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
    "use_cache": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
LLAMA32 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
    "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": True,
    "vocab_size": 128256,
}  # fmt: skip
OPTIONAL = """rms_norm_eps tie_word_embeddings initializer_range hidden_act attention_bias attention_dropout mlp_bias
    use_cache rope_parameters use_sliding_window norm_topk_prob decoder_sparse_step mlp_only_layers rope_interleave"""
ANY = {name: to_hf_config(config, torch.float32, 0) for name, config in SHAPES.items()}


@pytest.mark.parametrize("name", list(SHAPES))
def test_what_is_written_reads_back(name: str) -> None:
    for depth in (0, 1) if SHAPES[name].mla else (0,):
        config = replace(SHAPES[name], mtp_depth=depth)
        record = json.loads(json.dumps(to_hf_config(config, torch.bfloat16, end_id=3)))
        assert from_hf_config(record) == config
        assert (record["torch_dtype"], record["eos_token_id"]) == ("bfloat16", 3)


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize(
    "scaling", [None, LinearRope(2.0), Llama3Rope(4.0, 64), Yarn(4.0, 64), replace(YARN, truncate=False)]
)
def test_transformers_keeps_what_we_write(name: str, scaling: Any, tmp_path: Path) -> None:
    """Ours → transformers 5 → its own form → ours."""
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    config = replace(SHAPES[name], rope_scaling=scaling)
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(config, torch.float32, 0)))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in record
    assert from_hf_config(record) == config


def test_the_hubs_files_are_read() -> None:
    v3 = from_hf_config(DEEPSEEK_V3)
    assert v3.mla == MlaShape(512, 128, 64, 128, 1536)
    assert v3.moe == MoeShape(256, 8, 2048, 1, 3, 8, 4, "sigmoid", True, 2.5)
    assert (v3.rope_scaling, v3.mtp_depth) == (Yarn(40, 4096, mscale=1.0, mscale_all_dim=1.0), 1)
    qwen = from_hf_config(QWEN25)
    assert (qwen.model_type, qwen.head_dim, qwen.num_parameters) == ("qwen2", 64, 494_032_768)
    llama = from_hf_config(LLAMA32)
    assert (llama.rope_scaling, llama.num_parameters) == (Llama3Rope(32.0, 8192), 1_235_814_400)


def test_v3_has_the_weights_it_is_said_to_have() -> None:
    """671 billion, 37 billion of them active (V3, abstract)."""
    v3 = from_hf_config(DEEPSEEK_V3)
    assert round(v3.num_parameters / 1e9) == 671
    # The abstract's 37 leaves out the embedding, of which a token passes one row.
    assert round((v3.active_parameters - v3.vocab_size * v3.hidden_size) / 1e9) == 37


def test_defaults_are_those_of_the_class() -> None:
    """transformers writes no field that it did not change; what is absent has its default there and here."""
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    for name in ("Qwen2", "Llama", "Qwen3", "Qwen3Moe", "DeepseekV3"):
        theirs = getattr(transformers, f"{name}Config")()
        ours = from_hf_config(json.loads(theirs.to_json_string(use_diff=False)))
        slim = {key: value for key, value in json.loads(theirs.to_json_string()).items() if key not in OPTIONAL.split()}
        assert from_hf_config(slim) == ours
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qwen2", {"model_type": "olmo2"}),
        ("qwen2", {"model_type": None}),
        ("qwen2", {"model_type": ["qwen2"]}),
        ("qwen2", {"hidden_act": "gelu"}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
        ("qwen2", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        ("qwen2", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}}),
        ("qwen2", {"attention_dropout": 0.1}),
        ("llama", {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"partial_rotary_factor": 0.5}),
        ("qwen3", {"attention_bias": True}),
        ("qwen3_moe", {"decoder_sparse_step": 2}),
        ("qwen3_moe", {"mlp_only_layers": [1]}),
        ("deepseek_v3", {"attention_bias": True}),
        ("deepseek_v3", {"scoring_func": "softmax"}),
        ("deepseek_v3", {"topk_method": "greedy"}),
        ("deepseek_v3", {"moe_layer_freq": 2}),
        ("deepseek_v3", {"num_nextn_predict_layers": 2}),
    ],
)
def test_what_is_not_ours_says_what_is(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(NotOurs, match="DeepSeek-V3") as caught:
        from_hf_config(ANY[name] | change, FILE)
    field = next(iter(change))
    said = "RoPE scaling" if field == "rope_scaling" else field
    assert FILE in str(caught.value) and said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("qwen2", {"hidden_size": -64}, "hidden_size is -64 .*whole number"),
        ("qwen2", {"hidden_size": 0}, "hidden_size is 0"),
        ("qwen2", {"hidden_size": "64"}, "hidden_size is '64'"),
        ("qwen2", {"hidden_size": 64.0}, r"hidden_size is 64\.0"),
        ("qwen2", {"hidden_size": None}, "no field 'hidden_size'"),
        ("qwen2", {"num_hidden_layers": True}, "num_hidden_layers is True"),
        ("qwen2", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ("qwen2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes' .*true or false"),
        ("qwen2", {"layer_types": 3}, "layer_types is 3 .*a list"),
        ("qwen2", {"sliding_window": "wide", "use_sliding_window": True}, "sliding_window is 'wide'"),
        ("qwen3_moe", {"mlp_only_layers": "all"}, "mlp_only_layers is 'all'"),
        ("qwen2", {"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": "4"}}, "rope_scaling: factor is '4'"),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "finetuned": True}}, "'finetuned' is not known"),
        ("qwen2", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ("qwen2", {"logit_scale": 0.5}, "'logit_scale' is not known of a qwen2.*foreign=True"),
        ("deepseek_v3", {"kv_lora_rank": None}, "no field 'kv_lora_rank'"),
        ("deepseek_v3", {"n_group": 3}, "3 groups"),
    ],
)
def test_bad_fields_are_one_line(name: str, change: dict[str, Any], match: str) -> None:
    with pytest.raises(DunwuError, match=match) as caught:
        from_hf_config(ANY[name] | change, FILE)
    assert not isinstance(caught.value, NotOurs)
    assert FILE in str(caught.value) and "\n" not in str(caught.value)


def test_fields_that_say_nothing_are_passed() -> None:
    said = {"unsloth_version": "2025.1", "_name_or_path": "x", "sep_token_id": 4, "dtype": "float32", "license": "mit"}
    assert from_hf_config(ANY["qwen2"] | said | {"some_new_switch": None}) == QWEN2


@pytest.mark.parametrize(
    "config",
    [
        replace(PLAIN, qk_norm=True, qkv_bias=True),
        replace(PLAIN, qk_norm=True, moe=V3),
        replace(PLAIN, mla=MlaShape(32, 16, 8, 16), moe=replace(V3, gate="softmax")),
        replace(PLAIN, mtp_depth=1),
    ],
)
def test_a_shape_without_a_class_is_not_written(config: ModelConfig) -> None:
    with pytest.raises(DunwuError, match=r"no \w+ForCausalLM has"):
        to_hf_config(config, torch.float32, 0)
