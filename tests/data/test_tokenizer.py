"""The tokenizer: lossless, single digits, tags whole, and the same ids in transformers."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.data.tokenizer import SPECIALS, TAGS, Tokenizer, load_tokenizer, train_from_texts
from dunwu.types import DunwuError, UsageError
from dunwu.world.knobs import Knobs
from dunwu.world.web import pages


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts((page.text for page in islice(pages(Knobs(), 0), 800)), 600)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    import unicodedata

    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer.encode(text, allow_special=False)) == unicodedata.normalize("NFC", text)


def test_digits_are_single_and_tags_are_whole(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token(i) for i in tokenizer.encode("2024")] == ["2", "0", "2", "4"]
    for token in (*SPECIALS, *TAGS):
        assert len(tokenizer.encode(token)) == 1
        outside = tokenizer.encode(token, allow_special=False)
        assert len(outside) > 1 and tokenizer.decode(outside) == token
    assert tokenizer.encode_batch(["a <think>1", ""]) == [tokenizer.encode("a <think>1"), []]
    assert tokenizer.vocab_size == len({tokenizer.backend.token_to_id(t) for t in tokenizer.backend.get_vocab()})


def test_same_ids_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for page in islice(pages(Knobs(), 1), 200):
        ids = tokenizer.encode(page.text)
        assert theirs.encode(page.text, add_special_tokens=False) == ids
        assert theirs.decode(ids) == page.text
    assert theirs.eos_token_id == tokenizer.end_id
    kept = theirs.decode(tokenizer.encode("<think>a</think><|endoftext|>"), skip_special_tokens=True)
    assert kept == "<think>a</think>"
    chat = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too small"):
        train_from_texts(["a"], 100)
    with pytest.raises(DunwuError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DunwuError, match="not a tokenizer file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ['{"eos_token": ', "[]"])
def test_a_damaged_config_is_named_and_not_the_tokenizer(tokenizer: Tokenizer, text: str, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(DunwuError, match=r"tokenizer_config\.json is damaged.*copy the model folder again"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"id": 0}}')
    with pytest.raises(DunwuError, match=r"eos_token in tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_a_template_in_its_own_file_is_kept_and_comes_first(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Which of two templates is meant, transformers decides."""
    transformers = pytest.importorskip("transformers", reason="the [hf] extra is not installed")
    tokenizer.save(tmp_path / "a")
    (tmp_path / "a" / "chat_template.jinja").write_text("„{{ messages[0].content }}“", encoding="utf-8")
    for there in (True, False):
        if not there:
            (tmp_path / "a" / "tokenizer_config.json").unlink()
        loaded = load_tokenizer(tmp_path / "a")
        loaded.save(tmp_path / "b")
        loaded.for_chat().save(tmp_path / "c")
        chat = [{"role": "user", "content": "hi"}]
        said = [
            transformers.AutoTokenizer.from_pretrained(tmp_path / name).apply_chat_template(chat, tokenize=False)
            for name in "abc"
        ]
        assert said == ["„hi“", "„hi“", "<|im_start|>user\nhi<|im_end|>\n"]
        assert loaded.end_id == tokenizer.end_id


def test_more_ids_can_end_a_reply(tokenizer: Tokenizer) -> None:
    more = tokenizer.stopping_at([7, tokenizer.end_id])
    assert set(more.stop_ids) == {7, *tokenizer.stop_ids} and list(more.stop_ids) == sorted(more.stop_ids)
    assert 7 not in tokenizer.stop_ids and more.encode("a 1") == tokenizer.encode("a 1")


def test_training_is_deterministic(tmp_path: Path) -> None:
    texts = [page.text for page in islice(pages(Knobs(), 0), 300)]
    a, b = train_from_texts(texts, 500), train_from_texts(texts, 500)
    assert a.backend.to_str() == b.backend.to_str()


def test_a_loaded_tokenizer_keeps_its_own_end_token_and_config(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "a")
    config_file = tmp_path / "a" / "tokenizer_config.json"
    record = json.loads(config_file.read_text(encoding="utf-8"))
    record |= {"eos_token": {"content": "<|im_end|>"}, "chat_template": "theirs"}
    config_file.write_text(json.dumps(record), encoding="utf-8")
    loaded = load_tokenizer(tmp_path / "a")
    assert loaded.token(loaded.end_id) == "<|im_end|>"
    loaded.save(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text(encoding="utf-8")) == record
    config_file.write_text(json.dumps(record | {"eos_token": "</s>"}), encoding="utf-8")
    with pytest.raises(DunwuError, match="no </s> token"):
        load_tokenizer(tmp_path / "a")
