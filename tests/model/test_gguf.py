"""GGUF files read by the real llama.cpp: the same greedy text, the same ids, thinking apart; and what is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from dunwu.data.chat import encode_conversation, render_prompt
from dunwu.data.tokenizer import (
    CHAT_TEMPLATE,
    GPT2_CONFIG,
    SPECIALS,
    TAGS,
    Tokenizer,
    blank,
    load_tokenizer,
    with_added,
)
from dunwu.model import gguf as ours
from dunwu.model import stored
from dunwu.model.config import LinearRope, Llama3Rope, MlaShape, ModelConfig, MoeShape, Yarn
from dunwu.model.gguf import write_gguf, yarn_keys
from dunwu.model.gguf_names import plan
from dunwu.model.gguf_tokenizer import CONTROL, NORMAL, SPLITS, UNUSED, USER_DEFINED
from dunwu.model.hf import load_model, save_model
from dunwu.model.transformer import Transformer
from dunwu.types import DunwuError, Message
from tests.model.llama_server import PROMPTS, TEXTS, Server, save_reference, small_tokenizer

gguf = pytest.importorskip("gguf", reason="the [gguf] extra is not installed")

LENGTH = 64
TOKENIZER = small_tokenizer()
QWEN2 = ModelConfig(
    vocab_size=TOKENIZER.vocab_size + 5,  # padded, as Qwen2's own are
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=96,
    max_position_embeddings=256,
)
LLAMA = replace(QWEN2, qkv_bias=False, tie_word_embeddings=False)
QWEN3 = replace(LLAMA, qk_norm=True, head_size=32)
EXPERTS = MoeShape(8, 2, 32, shared=1, first_dense=1, groups=4, top_groups=2, scale=2.5)
LATENT = MlaShape(kv_rank=32, nope_dim=16, rope_dim=8, value_dim=12, q_rank=24)
V3 = replace(LLAMA, mla=LATENT, moe=EXPERTS)
SHAPES: dict[str, ModelConfig] = {
    "qwen2": QWEN2,
    "qwen2 yarn": replace(QWEN2, rope_scaling=Yarn(4.0, 32)),
    "llama 3": replace(LLAMA, rope_scaling=Llama3Rope(8.0, 32)),
    "llama linear": replace(LLAMA, rope_scaling=LinearRope(4.0), tie_word_embeddings=True),
    "qwen3": replace(QWEN3, tie_word_embeddings=True),
    "qwen3 yarn": replace(QWEN3, rope_scaling=Yarn(4.0, 32, attention_factor=1.3)),
    "qwen3_moe": replace(QWEN3, moe=MoeShape(8, 2, 32, gate="softmax")),
    "v3": V3,
    "v3 full queries, halves, one group": replace(
        V3, mla=replace(LATENT, q_rank=0, rope_interleave=False), moe=replace(EXPERTS, groups=1, top_groups=1)
    ),
    "v3 latent queries, halves": replace(V3, mla=replace(LATENT, rope_interleave=False)),
    "v3 all groups, two shared": replace(V3, moe=replace(EXPERTS, shared=2, top_groups=4, first_dense=0)),
    "v3 dense": replace(V3, moe=None),
    "v3 yarn": replace(V3, rope_scaling=Yarn(4.0, 32, mscale=1.0, mscale_all_dim=1.0)),
    "v3 yarn, score not sharpened": replace(V3, rope_scaling=Yarn(4.0, 32)),
    "v3 yarn, unequal": replace(V3, rope_scaling=Yarn(4.0, 32, mscale=1.0, mscale_all_dim=0.7)),
}
"""Every class; every way of RoPE, attention and routing that llama.cpp has."""


Serve = Callable[[Path], Server]


@pytest.fixture
def server_of() -> Iterator[Serve]:
    """llama.cpp on a file, until the test is over."""
    with contextlib.ExitStack() as running:
        yield lambda file: running.enter_context(contextlib.closing(Server(file)))


@pytest.mark.parametrize("name", SHAPES)
def test_greedy_text_is_transformers_and_ours(name: str, server_of: Serve, tmp_path: Path) -> None:
    """64 tokens on 20 prompts: at every position llama.cpp's token is the likeliest of transformers' and of ours."""
    theirs = save_reference(SHAPES[name], TOKENIZER, tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", "f32")
    server = server_of(tmp_path / "m.gguf")
    prompts = [TOKENIZER.encode(prompt) for prompt in PROMPTS]
    rows = [prompt + server.greedy(prompt, LENGTH) for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        both = {"transformers": theirs(ids).logits, "ours": load_model(tmp_path)(ids)}
    for who, logits in both.items():
        logits[..., list(TOKENIZER.stop_ids)] = -torch.inf
        for row, prompt, scores in zip(rows, prompts, logits, strict=True):
            assert len(row) == len(prompt) + LENGTH
            best = scores[len(prompt) - 1 : len(row) - 1].argmax(-1).tolist()
            assert row[len(prompt) :] == best, who


@pytest.mark.parametrize(("kind", "near"), [("f32", 1e-4), ("f16", 0.02), ("bf16", 0.1), ("q8_0", 0.3)])
@pytest.mark.parametrize("name", ["llama 3", "qwen3_moe", "v3"])
def test_fewer_bits_stay_close(name: str, kind: ours.Kind, near: float, server_of: Serve, tmp_path: Path) -> None:
    theirs = save_reference(SHAPES[name], TOKENIZER, tmp_path)
    written = write_gguf(tmp_path, tmp_path / "m.gguf", kind)
    assert written.bytes == (tmp_path / "m.gguf").stat().st_size
    # Rows of 24 (v3's queries), 16 and 12 × 4 (its heads) do not divide by 32.
    assert written.wider == (3 * 3 if (name, kind) == ("v3", "q8_0") else 0)
    server = server_of(tmp_path / "m.gguf")
    for prompt in ("The river runs", "今天天气"):
        ids = TOKENIZER.encode(prompt)
        with torch.no_grad():
            logprobs = theirs(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        for token, logprob in server.next_logprobs(ids, 8).items():
            assert abs(logprob - float(logprobs[token])) < near


# ---- the file


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def test_what_the_file_says(tmp_path: Path) -> None:
    save_reference(QWEN2, TOKENIZER, tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", "f16", name="mine")
    said = fields(tmp_path / "m.gguf")
    assert (said["general.name"], said["general.architecture"]) == ("mine", "qwen2")
    assert said["tokenizer.ggml.pre"] == "qwen2" and not said["tokenizer.ggml.add_bos_token"]
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    assert len(tokens) == QWEN2.vocab_size and tokens[-5:] == [f"[PAD{n}]" for n in range(len(tokens) - 5, len(tokens))]
    kind_of = dict(zip(tokens, kinds, strict=True))
    assert {kind_of[token] for token in SPECIALS} == {CONTROL} and {kind_of[tag] for tag in TAGS} == {USER_DEFINED}
    assert kinds[-5:] == [UNUSED] * 5 and kind_of["a"] == NORMAL
    assert tokens[said["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert said["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert all(len(merge.split(" ")) == 2 for merge in said["tokenizer.ggml.merges"])
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == "F16" and types["blk.0.attn_q.bias"] == types["output_norm.weight"] == "F32"
    assert "output.weight" not in types


def test_a_base_ends_with_the_text(tmp_path: Path) -> None:
    theirs = save_reference(QWEN2, TOKENIZER, tmp_path)
    theirs.generation_config.eos_token_id = TOKENIZER.end_id
    theirs.generation_config.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", "f16")
    assert fields(tmp_path / "m.gguf")["tokenizer.ggml.eos_token_id"] == TOKENIZER.end_id


def test_a_token_that_begins_every_text_is_said(folder: Path, tmp_path: Path) -> None:
    """As Llama 3's tokenizer has it: put there by the tokenizer itself, so by llama.cpp too."""
    shutil.copytree(folder, tmp_path / "m")
    backend = Backend.from_file(str(tmp_path / "m" / "tokenizer.json"))
    begin = ("<|reserved_0|>", backend.token_to_id("<|reserved_0|>"))
    backend.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
    backend.save(str(tmp_path / "m" / "tokenizer.json"))
    edit(tmp_path / "m" / "tokenizer_config.json", lambda r: r.update(bos_token=begin[0]))
    write_gguf(tmp_path / "m", tmp_path / "m.gguf", "f16")
    said = fields(tmp_path / "m.gguf")
    assert said["tokenizer.ggml.add_bos_token"] and said["tokenizer.ggml.bos_token_id"] == begin[1]


def test_one_file_however_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards, another order of tensors, smaller blocks, merges as pairs or strings: the same bytes."""
    theirs = save_reference(V3, TOKENIZER, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path / "cut", max_shard_size="100KB")
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 3
    record = json.loads((tmp_path / "cut" / "tokenizer.json").read_text("utf-8"))
    record["model"]["merges"] = [" ".join(merge) for merge in record["model"]["merges"]]
    (tmp_path / "cut" / "tokenizer.json").write_text(json.dumps(record), "utf-8")
    write_gguf(tmp_path / "whole", tmp_path / "a.gguf", "q8_0", "x")
    monkeypatch.setattr(stored, "BLOCK", 100)
    write_gguf(tmp_path / "cut", tmp_path / "b.gguf", "q8_0", "x")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_modules_behind_the_last_layer_are_left_out(tmp_path: Path) -> None:
    model = Transformer(replace(V3, mtp_depth=1))
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, tmp_path, TOKENIZER.end_id)
    TOKENIZER.save(tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", "f16")
    names = [tensor.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors]
    assert names == [entry.name for entry in plan(V3)] and not any(name.startswith("blk.3.") for name in names)


def test_layer_counts_that_llama_cpp_takes_for_another_model(server_of: Serve, tmp_path: Path) -> None:
    """27 layers mean V2-Lite to it, which has no latent queries: without them it runs, with them it must be refused."""
    small = replace(
        V3, num_layers=27, hidden_size=32, num_heads=2, moe=replace(EXPERTS, experts=4, groups=1, top_groups=1)
    )
    with pytest.raises(DunwuError, match=r"27 layers .*\(train with another number of layers, or with q_rank 0\)"):
        plan(small)
    config = replace(small, mla=replace(LATENT, q_rank=0))
    theirs = save_reference(config, TOKENIZER, tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", "f32")
    ids = TOKENIZER.encode("The river")
    with torch.no_grad():
        best = int(theirs(torch.tensor([ids])).logits[0, -1].argmax())
    top = server_of(tmp_path / "m.gguf").next_logprobs(ids, 4)
    assert max(top, key=top.__getitem__) == best


def test_v3_own_yarn_is_what_its_converter_writes() -> None:
    scaling = Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=1.0)
    factor, multiplier = yarn_keys(replace(V3, rope_scaling=scaling), scaling)
    assert factor == pytest.approx(1.0) and multiplier == pytest.approx(0.1)
    assert yarn_keys(QWEN2, Yarn(4.0, 32)) == (pytest.approx(1.0), 0.0)


# ---- tokens

HARD = [
    "Hello, world!  It's 2026; don't we'LL know?",
    "今天天气很好，我们去公园。ＡＢＣ　１２３",
    "👩‍👩‍👧‍👦 and 🇨🇳 flags 👍🏽",
    "a\u00a0b\u202fc\u3000d",
    "line\r\nnext\r\n\r\n\tend\n\n\n  x",
    "नमस्ते दुनिया क्षत्रिय",
    "١٢٣٤٥ ٪ ۱۲۳",
    r"\frac{a_1^2}{\sqrt{b}} \le \sum_{i=0}^{n} x_i $$E=mc^2$$",
    "      six spaces,   three, one ",
    "1234567890 3.14159 1,000,000",
    "<think>so</think>\n<answer>4</answer> <thinking>",
    "x = f(a[0])  # été, naïve, Zürich, ǅ\n\tif x:\n\t\treturn -1",
    "\u200bzero\u200dwidth\ufeff",
    "한국어 ไทย עברית العربية",
    "",
]
FRAMES = ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "a<|endoftext|>b"]


def other_split(name: str) -> Tokenizer:
    """A new tokenizer with one of the splits that llama.cpp has a name for."""
    steps = next(steps for steps, pre in SPLITS.items() if pre == name)
    parts: list[Any] = []
    for step in steps:
        if step == "single digits":
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        elif step in ("bytes", "GPT-2 words"):
            parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step != "bytes"))
        else:
            parts.append(pre_tokenizers.Split(Regex(step), behavior="isolated"))
    backend: Backend = blank(models.BPE(ignore_merges=name == "llama-bpe"), "gpt2")
    backend.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS * 4 + HARD, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    return Tokenizer(with_added(backend, SPECIALS, TAGS).backend, GPT2_CONFIG)


@pytest.mark.parametrize("name", SPLITS.values())
def test_ids_are_ours_on_hard_strings(name: str, server_of: Serve, tmp_path: Path) -> None:
    tokenizer = TOKENIZER if name == "qwen2" else other_split(name)
    save_reference(replace(QWEN2, vocab_size=tokenizer.vocab_size, num_layers=1), tokenizer, tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", "f16")
    assert fields(tmp_path / "m.gguf")["tokenizer.ggml.pre"] == name
    server = server_of(tmp_path / "m.gguf")
    for text in HARD + FRAMES:
        assert server.encode(text) == tokenizer.encode(text), text
        assert server.decode(tokenizer.encode(text)) == text
    for text in FRAMES:  # typed by somebody, not part of the frame
        assert server.encode(text, special=False) == tokenizer.encode(text, allow_special=False)


def test_the_servers_prompt_is_ours(server_of: Serve, tmp_path: Path) -> None:
    save_reference(replace(QWEN2, num_layers=1), TOKENIZER, tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", "f16")
    server = server_of(tmp_path / "m.gguf")
    said = [Message("system", "Be kind."), Message("user", "hi"), Message("assistant", "a", "t"), Message("user", "b")]
    rows = [{"role": m.role, "content": m.content} for m in said]
    rows[2]["reasoning_content"] = "t"
    assert server.ask("/apply-template", messages=rows)["prompt"] == render_prompt(said)


# ---- thinking


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that has learned two conversations by heart, one with thinking, in llama.cpp."""
    folder = tmp_path_factory.mktemp("thinker")
    chats = (
        [Message("user", "What is 3 + 4?"), Message("assistant", "It is seven.", "I add them.\nThe 3 and the 4.")],
        [Message("user", "你好"), Message("assistant", "你好，世界！")],
    )
    model = Transformer(replace(QWEN2, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=TOKENIZER.vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(120):
        loss = torch.tensor(0.0)
        for chat in chats:
            encoded = encode_conversation(TOKENIZER, chat)
            ids, mask = torch.tensor([encoded.ids]), torch.tensor(encoded.loss_mask[1:], dtype=torch.float32)
            logprobs = model(ids)[0, :-1].log_softmax(-1)
            loss = loss - (logprobs.gather(1, ids[0, 1:, None])[:, 0] * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_model(model, folder, TOKENIZER.end_id, TOKENIZER.stop_ids)
    TOKENIZER.save(folder)
    write_gguf(folder, folder / "m.gguf", "f32")
    with contextlib.closing(Server(folder / "m.gguf")) as server:
        yield server


ASKED = [("What is 3 + 4?", "I add them.\nThe 3 and the 4.", "It is seven."), ("你好", "", "你好，世界！")]


@pytest.mark.parametrize(("question", "thought", "answer"), ASKED)
@pytest.mark.parametrize("thinking", [None, True, False])
def test_thinking_is_told_from_the_answer(
    thinker: Server, question: str, thought: str, answer: str, thinking: bool | None
) -> None:
    """Whole and streamed; `enable_thinking`, which the template does not know, does not spoil it."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 60}
    if thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": thinking}
    choice = thinker.ask("/v1/chat/completions", **body)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"].get("reasoning_content", "") == thought and choice["message"]["content"] == answer
    pieces: dict[str, str] = {"reasoning_content": "", "content": ""}
    for line in thinker.post("/v1/chat/completions", **body, stream=True).splitlines():
        if line.startswith("data: {"):
            for delta in (choice["delta"] for choice in json.loads(line[6:])["choices"]):
                for name in pieces:
                    pieces[name] += delta.get(name) or ""
    assert pieces == {"reasoning_content": thought, "content": answer}


# ---- what is refused


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model = Transformer(replace(QWEN2, num_layers=1))
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, path, TOKENIZER.end_id, TOKENIZER.stop_ids)
    TOKENIZER.save(path)
    return path


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    record = json.loads(file.read_text("utf-8"))
    change(record)
    file.write_text(json.dumps(record), "utf-8")


def other_regex(record: dict[str, Any]) -> None:
    record["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+"


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), r"tokenizer\.json is missing \(copy the whole"),
    "a split without a name": (
        lambda d: edit(d / "tokenizer.json", other_regex),
        r"no name for the split .*w\+\|.*--to hf.*Qwen2's split",
    ),
    "no byte-level BPE": (
        lambda d: edit(d / "tokenizer.json", lambda r: r["model"].update(type="Unigram")),
        "no byte-level BPE",
    ),
    "a normaliser": (
        lambda d: edit(d / "tokenizer.json", lambda r: r.update(normalizer={"type": "Lowercase"})),
        "does not normalise text by Lowercase",
    ),
    "merges passed over": (
        lambda d: edit(d / "tokenizer.json", lambda r: r["model"].update(ignore_merges=True)),
        "ignore_merges disagree",
    ),
    "fewer rows than tokens": (
        lambda d: edit(d / "tokenizer.json", lambda r: r["added_tokens"][0].update(id=9999)),
        "ids up to 9999, the model only",
    ),
    "a class llama.cpp lacks": (lambda d: edit(d / "config.json", lambda r: r.update(model_type="rwkv")), "'rwkv'"),
    "another ramp of YaRN": (
        lambda d: edit(
            d / "config.json",
            lambda r: r.update(
                rope_scaling={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "beta_slow": 0.1,
                }
            ),
        ),
        "beta_fast 32 and beta_slow 1",
    ),
    "Llama 3's RoPE elsewhere": (
        lambda d: edit(
            d / "config.json",
            lambda r: r.update(
                rope_scaling={
                    "rope_type": "llama3",
                    "factor": 4.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            ),
        ),
        "in llama models only, not qwen2",
    ),
    "a tensor too many": (
        lambda d: edit(d / "config.json", lambda r: r.update(model_type="llama")),
        r"'model\.layers\.0\.self_attn\.q_proj\.bias' is no part of a llama",
    ),
    "a tensor too few": (
        lambda d: edit(d / "config.json", lambda r: r.update(num_hidden_layers=2)),
        r"'model\.layers\.1\..* is missing",
    ),
    "another shape": (
        lambda d: edit(d / "config.json", lambda r: r.update(intermediate_size=64)),
        r"mlp\.gate_proj\.weight' is \(96, 64\), config.json says \(64, 64\)",
    ),
    "a cut file": (
        lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-9]),
        r"model\.safetensors is truncated",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_refusals_are_one_line_and_leave_nothing(fault: str, folder: Path, tmp_path: Path) -> None:
    spoil, said = REFUSED[fault]
    shutil.copytree(folder, tmp_path / "m")
    spoil(tmp_path / "m")
    with pytest.raises(DunwuError, match=said) as error:
        write_gguf(tmp_path / "m", tmp_path / "out" / "m.gguf", "f16")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_numbers_too_large_for_half_precision(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = 1e5
    save_model(model, tmp_path / "m", TOKENIZER.end_id)
    load_tokenizer(folder).save(tmp_path / "m")
    with pytest.raises(DunwuError, match=r"down_proj\.weight holds numbers too large for F16 \(use f32 or q8_0\)"):
        write_gguf(tmp_path / "m", tmp_path / "out" / "m.gguf", "f16")
    assert not list((tmp_path / "out").iterdir())
    write_gguf(tmp_path / "m", tmp_path / "out" / "m.gguf", "f32")


MOE = MoeShape(8, 2, 32, gate="softmax")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(QWEN3, moe=replace(MOE, first_dense=1)), "experts in every layer"),
        (replace(QWEN3, moe=replace(MOE, normalize=False)), "normalised"),
        (replace(V3, moe=replace(EXPERTS, shared=0)), "a shared expert"),
        (replace(V3, num_layers=48, vocab_size=128256), "48 layers"),
    ],
)
def test_shapes_llama_cpp_would_misread(config: ModelConfig, said: str) -> None:
    with pytest.raises(DunwuError, match=said):
        plan(config)
