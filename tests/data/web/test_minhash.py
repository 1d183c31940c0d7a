"""MinHash: signatures equal datatrove's bit for bit, clusters equal brute force; its files are datatrove's."""

from __future__ import annotations

import itertools
import json
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dunwu.data.web import key_files, sorted_rows
from dunwu.data.web.key_files import KeyFiles, safe_name
from dunwu.data.web.minhash import MinhashConfig, Signer, simplify
from dunwu.data.web.minhash_files import SignatureWriter, cluster, cluster_sizes, find_duplicates, removed
from dunwu.data.web.sorted_rows import components, equal_pairs, merge, sort_rows
from dunwu.types import DunwuError, UsageError
from dunwu.world import knobs, web

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"
SHORT = MinhashConfig(ngram=2, buckets=3, hashes_per_bucket=2)


def datatrove_text(text: str) -> str:
    from datatrove.utils.text import simplify_text

    return str(simplify_text(text))


def real_texts() -> list[str]:
    """English and Chinese texts nobody here wrote."""
    texts = []
    if (DATA / "gsm8k").is_dir():
        lines = (DATA / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
        texts += [json.loads(line)["question"] for line in lines[:500]]
    for name in ("alpaca_en_demo", "alpaca_zh_demo"):
        if (DATA / "chat").is_dir():
            rows = json.loads((DATA / "chat" / f"{name}.json").read_text(encoding="utf-8"))
            texts += [f"{row['instruction']}\n{row['output']}" for row in rows[:400]]
    return texts


# ---- the words ----


@settings(max_examples=300)
@given(st.text(max_size=80) | st.text("aé1２٣.,،’“、１ \x85\u00a0\u0300\u2000\u1fef\u037eİΣ가が\n\t\x1c", max_size=30))
@example("x \u0300 y")
@example("3.5.7 ٣٫٤ 1,2,3 １．５")
@example("a\u1fefb\u2000c")
def test_simplify_is_datatroves(text: str) -> None:
    assert simplify(text) == datatrove_text(text)


def test_simplify_is_datatroves_on_real_text() -> None:
    texts = real_texts()
    if not texts:
        pytest.skip("no ../shared/data")
    for text in texts:
        assert simplify(text) == datatrove_text(text)


def test_every_character_is_simplified_as_by_datatrove() -> None:
    for start in range(0, 0x110000, 0x100):
        text = "a".join(chr(code) for code in range(start, start + 0x100) if not 0xD800 <= code < 0xE000)
        assert simplify(text) == datatrove_text(text), hex(start)


def test_numbers_apart_on_demand() -> None:
    from datatrove.utils.text import TextNormConfig, simplify_text

    text = "In 1999, 3.5 apples — ４ Äpfel."
    assert simplify(text, numbers_alike=False) == simplify_text(text, TextNormConfig(norm_numbers=False))


# ---- the signatures ----


def datatrove_step(hash_fc: str = "xxhash", **settings: Any) -> Any:
    """Its own step. xxhash 4 takes no text any more, which datatrove 0.10 gives it."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig as Config
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    pytest.importorskip("spacy")
    config = Config(hash_config=HashConfig(hash_fc=hash_fc), **settings)  # type: ignore[arg-type]
    step = MinhashDedupSignature("memory://", config)
    if hash_fc == "xxhash":
        step._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())
    return step


def datatrove_signatures(words: Sequence[str], hash_fc: str = "xxhash", **settings: Any) -> list[list[int]] | None:
    """Its signature of given words, without spaCy's."""
    step = datatrove_step(hash_fc, **settings)
    step.word_tokenizer = type("Words", (), {"word_tokenize": staticmethod(lambda text: list(words))})()
    shingles = step.get_shingles("")
    return None if not shingles.size else step.get_signature(shingles)


WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"]), min_size=1, max_size=12), max_size=30)


@settings(deadline=None, max_examples=25)
@given(WORDS, st.sampled_from(["xxhash", "sha1"]))
@example(["a b", "c", "d", "e", "f"], "xxhash")
@example([], "xxhash")
def test_signatures_are_datatroves(words: list[str], hash_fc: Any) -> None:
    ours = Signer(MinhashConfig(hash=hash_fc)).of_words(words)
    expected = datatrove_signatures(words, hash_fc)
    assert (None if ours is None else ours.tolist()) == expected


def test_signatures_are_datatroves_with_other_settings() -> None:
    words = list("abcdefghij")
    ours = Signer(MinhashConfig(ngram=3, buckets=5, hashes_per_bucket=7, seed=42)).of_words(words)
    assert ours is not None
    assert ours.tolist() == datatrove_signatures(words, n_grams=3, num_buckets=5, hashes_per_bucket=7, seed=42)


def test_english_from_text_to_signature_is_datatroves() -> None:
    step, signer = datatrove_step(), Signer()
    texts = [text for text in real_texts()[:120] if text.isascii()] or ["Don't you think it's U.S. $3.50, e.g. now?"]
    for text in texts:
        shingles, ours = step.get_shingles(text), signer.signature(text, "en")
        assert (None if ours is None else ours.tolist()) == (step.get_signature(shingles) if shingles.size else None)


def test_chinese_is_compared_by_characters() -> None:
    one = "今天天气很好，我们去公园散步，看见了很多美丽的花，还遇到了一位老朋友，聊了半天才回家。"
    signer = Signer()
    same, other = (
        signer.signature(one.replace("，", "。 "), "zh-Hans"),
        signer.signature("完全不同的另外一句话。", "zh"),
    )
    ours = signer.signature(one, "zh-Hans")
    assert ours is not None and same is not None and other is not None
    assert (ours == same).all() and not (ours == other).any()
    assert signer.signature("你好吗", "zh") is None


def test_settings_that_cannot_work_are_refused() -> None:
    for config in (MinhashConfig(ngram=0), MinhashConfig(buckets=1001), MinhashConfig(seed=-1)):
        with pytest.raises(UsageError):
            Signer(config)


# ---- sorted rows ----

TABLE = st.lists(st.tuples(*[st.integers(0, 3)] * 2, st.integers(0, 4), st.integers(0, 50)), max_size=40)


def array(rows: Sequence[Sequence[int]]) -> sorted_rows.Rows:
    return np.array(rows, np.uint64).reshape(-1, 4)


@given(TABLE, st.integers(1, 5), st.integers(1, 7))
def test_merging_blocks_is_sorting_the_whole(table: list[tuple[int, ...]], sources: int, block: int) -> None:
    parts = [sort_rows(array(table[n::sources])) for n in range(sources)]
    cut = [iter([part[n : n + block] for n in range(0, len(part), block)]) for part in parts]
    merged = np.concatenate([array([]), *merge(cut)])
    assert merged.tolist() == [list(row) for row in sorted(table)]
    # Pairs do not depend on the blocks either.
    pairs = [pair.tolist() for pair in equal_pairs(iter([row[None] for row in merged]), 2)]
    whole = np.concatenate([array([]), *equal_pairs(iter([merged] if len(merged) else []), 2)])
    assert [pair[0] for pair in pairs] == whole.tolist()
    neighbours = zip(sorted(table), sorted(table)[1:])
    assert whole.tolist() == [[*a[2:], *b[2:]] for a, b in neighbours if a[:2] == b[:2]]


@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), max_size=40))
def test_components_are_those_of_a_walk(pairs: list[tuple[int, int]]) -> None:
    nodes, lowest = components(np.array(pairs, np.uint64).reshape(-1, 2))
    assert nodes.tolist() == sorted({node for pair in pairs for node in pair})
    assert dict(zip(nodes.tolist(), lowest.tolist())) == walk(pairs)


def walk(pairs: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The lowest node each node can reach."""
    near: dict[int, set[int]] = {}
    for a, b in pairs:
        near.setdefault(a, {a}).add(b)
        near.setdefault(b, {b}).add(a)
    lowest: dict[int, int] = {}
    for node in sorted(near):
        todo = [node] if node not in lowest else []
        while todo:
            at = todo.pop()
            if at not in lowest:
                lowest[at] = node
                todo += near[at]
    return lowest


# ---- files ----

Signatures = dict[tuple[int, int], Any]


def write(folder: Path, signatures: Signatures, config: MinhashConfig, ranks: int, dump: str = "d", **kw: Any) -> None:
    for rank in range(ranks):
        writer = SignatureWriter(folder, rank, config, **kw)
        for (r, number), signature in sorted(signatures.items()):
            if r == rank:
                writer.add(number, dump, signature)
        writer.close()


def removals(folder: Path, out: Path, config: MinhashConfig, ranks: int, **kw: Any) -> set[tuple[int, int]]:
    for bucket in reversed(range(config.buckets)):
        find_duplicates(folder, out / "pairs", bucket, config, **kw)
    cluster(out / "pairs", out / "clusters")
    return {(rank, number) for rank in range(ranks) for number in removed(out / "clusters", rank)}


def brute_force(signatures: Signatures) -> dict[tuple[int, int], tuple[int, int]]:
    """The first document of the cluster of every document that has a near-duplicate: every pair is looked at."""
    names = sorted(signatures)
    stacked = np.stack([signatures[name] for name in names])
    pairs = []
    for n in range(len(names)):
        alike = (stacked[n + 1 :] == stacked[n]).all(axis=2).any(axis=1)
        pairs += [(n, n + 1 + int(m)) for m in np.flatnonzero(alike)]
    return {names[a]: names[b] for a, b in walk(pairs).items()}


def documents(count: int) -> list[tuple[str, str]]:
    """Pages of the world, real texts, and near-duplicates of both, planted."""
    dice = random.Random(5)
    texts = [(page.text, "en") for page in itertools.islice(web.pages(knobs.Knobs(), 1), count // 2)]
    texts += [(text, "en" if text.isascii() else "zh") for text in real_texts()]
    texts = texts[: 3 * count // 4]
    while len(texts) < count:
        text, language = texts[dice.randrange(len(texts))]
        parts = text.split() if language == "en" else list(text)
        for _ in range(dice.choice([0, 0, 1, 1, 2, 3, 9])):
            parts[dice.randrange(len(parts))] = dice.choice(["another", "word", "here", "字"])
        texts.append(((" " if language == "en" else "").join(parts), language))
    dice.shuffle(texts)
    return texts


def test_clusters_of_2000_documents_are_those_of_brute_force(tmp_path: Path) -> None:
    signer, ranks = Signer(), 7
    found = ((n, signer.signature(text, language)) for n, (text, language) in enumerate(documents(2000)))
    signatures = {(n % ranks, n // ranks): signature for n, signature in found if signature is not None}
    write(tmp_path / "s", signatures, signer.config, ranks, memory=100_000)
    expected = brute_force(signatures)
    assert len(expected) > 600 and 100 < len({*expected.values()}) < len(expected)
    gone = removals(tmp_path / "s", tmp_path, signer.config, ranks, memory=50_000)
    assert gone == {name for name, first in expected.items() if name != first}
    sizes = {(r, n): size for r in range(ranks) for n, size in cluster_sizes(tmp_path / "clusters", r).items()}
    firsts = list(expected.values())
    assert sizes == {name: firsts.count(first) for name, first in expected.items()}


@pytest.fixture
def small() -> Signatures:
    """Random signatures with values so few that many buckets agree; rank 2 has no documents."""
    dice = np.random.default_rng(3)
    names = [(rank, number) for rank in (0, 1, 3) for number in range(0, 60, 2)]
    return {name: dice.integers(0, 6, (3, 2)).astype(np.uint64) for name in names}


def test_datatrove_reads_our_files_and_finds_the_same(tmp_path: Path, small: Signatures) -> None:
    from datatrove.pipeline.dedup.minhash import MinhashConfig as Config
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster

    dice = np.random.default_rng(4)
    for name in small:  # mostly pairs, so that datatrove's choice of whom to keep is ours
        small[name] = dice.integers(0, 22, (3, 2)).astype(np.uint64)
    write(tmp_path / "s", small, SHORT, 4)
    gone = removals(tmp_path / "s", tmp_path, SHORT, 4)
    config = Config(n_grams=2, num_buckets=3, hashes_per_bucket=2)
    for bucket in range(3):
        step = MinhashDedupBuckets(str(tmp_path / "s" / "d"), str(tmp_path / "theirs"), config=config)
        step.run(None, bucket, 3)
    for pairs in (tmp_path / "theirs", tmp_path / "pairs" / "d"):  # their pairs, and ours
        out = tmp_path / f"of-{pairs.parent.name}"
        MinhashDedupCluster(str(pairs), str(out), config=config, save_cluster_id=True).run(None, 0, 1)
        theirs = {(int(f.stem), n) for f in out.glob("*.remove") for n in np.fromfile(f, "<u4").tolist()}
        assert len(theirs) > 5 and theirs == gone
        for file in out.glob("*.clusters"):
            ours = tmp_path / "clusters" / "d" / file.name
            assert np.array_equal(np.fromfile(file, "<u4"), np.fromfile(ours, "<u4"))


def test_datatroves_files_are_ours_byte_for_byte(tmp_path: Path) -> None:
    from datatrove.data import Document
    from datatrove.io import get_datafolder

    texts = [f"one two three four five six {n % 4} and so on {'x' * (n % 3)}" for n in range(20)] + ["too short"]
    pages = [Document(text=text, id=str(n)) for n, text in enumerate(texts)]
    step = datatrove_step()
    step.output_folder = get_datafolder(str(tmp_path / "theirs"))
    step.run(iter(pages), 3, 4)
    signer, writer = Signer(), SignatureWriter(tmp_path / "ours", 3)
    for number, text in enumerate(texts):
        signature = signer.signature(text)
        if signature is not None:
            writer.add(number, "CC-MAIN-2024-10", signature)
    writer.close()
    for bucket in range(14):
        name = f"bucket_{bucket:03d}/00003.minhash.sig"
        assert (tmp_path / "ours" / "CC-MAIN-2024-10" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_neither_memory_nor_order_changes_a_byte(tmp_path: Path, small: Signatures) -> None:
    write(tmp_path / "a" / "s", small, SHORT, 4)
    write(tmp_path / "b" / "s", dict(reversed(small.items())), SHORT, 4, memory=1)
    assert removals(tmp_path / "a" / "s", tmp_path / "a", SHORT, 4) == removals(
        tmp_path / "b" / "s", tmp_path / "b", SHORT, 4, memory=1
    )
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in tmp_path.iterdir()]
    assert files[0] == files[1] and len(files[0]) > 20


def test_six_documents_show_their_duplicates(tmp_path: Path) -> None:
    signer = Signer()
    long = "It was a bright cold day in April, and the clocks were striking thirteen as he came home."
    texts = [
        long,
        "Something else altogether, of which nobody has heard.",
        long.upper(),
        "Short.",
        long + "!",
        "Short.",
    ]
    writer = SignatureWriter(tmp_path / "s", 0)
    for number, text in enumerate(texts):
        signature = signer.signature(text)
        if signature is not None:
            writer.add(number, "", signature)
    writer.close()
    assert removals(tmp_path / "s", tmp_path, signer.config, 1) == {(0, 2), (0, 4)}


def test_dumps_are_looked_through_one_by_one(tmp_path: Path) -> None:
    key = np.zeros((3, 2), np.uint64)
    for rank in range(2):
        writer = SignatureWriter(tmp_path / "s", rank, SHORT)
        for number, dump in enumerate(["news/1", "news/2", "news/1"]):
            writer.add(number, dump, key)
        writer.close()
    assert sorted(KeyFiles(tmp_path / "s").dumps().values()) == ["news/1", "news/2"]
    assert removals(tmp_path / "s", tmp_path, SHORT, 2) == {(0, 2), (1, 0), (1, 1), (1, 2)}
    found = cluster(tmp_path / "pairs", tmp_path / "again", dump="news/2")
    assert [(c.documents, c.clusters, c.removed, c.largest) for c in found.values()] == [(2, 1, 1, 2)]


def test_all_documents_equal_leaves_one(tmp_path: Path) -> None:
    key = np.full((3, 2), 7, np.uint64)
    write(tmp_path / "s", {(r, n): key for r in range(3) for n in range(100)}, SHORT, 3, memory=3000)
    gone = removals(tmp_path / "s", tmp_path, SHORT, 3, memory=1)
    assert len(gone) == 299 and (0, 0) not in gone


def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    dice, peaks = np.random.default_rng(6), []
    for count in (10_000, 40_000):
        keys = dice.integers(0, 1 << 60, (count, 3, 2)).astype(np.uint64)
        tracemalloc.start()
        for rank in range(2):
            writer = SignatureWriter(tmp_path / str(count), rank, SHORT, memory=100_000)
            for number in range(rank, count, 2):
                writer.add(number, "d", keys[number])
            writer.close()
        find_duplicates(tmp_path / str(count), tmp_path / f"{count}.pairs", 0, memory=100_000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 1_000_000


def test_nothing_at_all_is_no_duplicate(tmp_path: Path) -> None:
    write(tmp_path / "s", {}, SHORT, 2)
    assert removals(tmp_path / "s", tmp_path, SHORT, 2) == set()


def test_names_of_dumps_cannot_leave_the_folder() -> None:
    names = ["CC-MAIN-2024-10", "..", "a/b", "a_b", "", ".hidden", "\ud800", "中文", "x" * 300, "x" * 301]
    safe = [safe_name(name) for name in names]
    assert len({*safe}) == len(names) and safe[0] == names[0]
    assert all(not set(name) & set("/\\:\0") and not name.startswith(".") and len(name) < 120 for name in safe)


# ---- damage ----


@pytest.mark.parametrize("damage", ["cut", "cut at a record", "flipped", "gone"])
def test_a_damaged_signature_file_is_named(tmp_path: Path, small: Signatures, damage: str) -> None:
    write(tmp_path, small, SHORT, 4)
    victim = tmp_path / "d" / "bucket_001" / "00001.minhash.sig"
    data = victim.read_bytes()
    changed = {"cut": data[:-3], "cut at a record": data[:-20], "flipped": data[:40] + b"\xff" + data[41:]}
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(changed[damage])
    find_duplicates(tmp_path, tmp_path / "pairs", 0)
    with pytest.raises(DunwuError, match=r"bucket_001.00001\.minhash\.sig"):
        find_duplicates(tmp_path, tmp_path / "pairs", 1)
    assert not (tmp_path / "pairs" / "d" / "00001_00.dups").exists()
    with pytest.raises(DunwuError, match=r"00001_00"):
        cluster(tmp_path / "pairs", tmp_path / "clusters")


def test_an_unfinished_rank_is_not_read(tmp_path: Path, small: Signatures) -> None:
    write(tmp_path, small, SHORT, 4)
    (tmp_path / "00001.json").unlink()
    with pytest.raises(DunwuError, match="unfinished"):
        find_duplicates(tmp_path, tmp_path / "pairs", 0)
    SignatureWriter(tmp_path, 1, SHORT)  # begun again, not closed: what it left is gone
    with pytest.raises(DunwuError, match=r"ranks \[1\] of 4"):
        find_duplicates(tmp_path, tmp_path / "pairs", 0, ranks=4)
    find_duplicates(tmp_path, tmp_path / "pairs", 0)


def test_settings_do_not_mix(tmp_path: Path, small: Signatures) -> None:
    write(tmp_path, small, SHORT, 4)
    with pytest.raises(DunwuError, match="sign anew"):
        find_duplicates(tmp_path, tmp_path / "pairs", 0, MinhashConfig())
    other = MinhashConfig(ngram=3, buckets=3, hashes_per_bucket=2)
    SignatureWriter(tmp_path, 2, other).close()
    with pytest.raises(DunwuError, match="other settings"):
        find_duplicates(tmp_path, tmp_path / "pairs", 0)
    with pytest.raises(ValueError, match="signature"):
        SignatureWriter(tmp_path, 2, other).add(0, "d", np.zeros((14, 8), np.uint64))


def test_damaged_pairs_and_clusters_are_named(tmp_path: Path, small: Signatures) -> None:
    write(tmp_path / "s", small, SHORT, 4)
    removals(tmp_path / "s", tmp_path, SHORT, 4)
    table = tmp_path / "clusters" / "d" / "000001.remove"
    table.write_bytes(table.read_bytes()[:-4])
    with pytest.raises(DunwuError, match=r"000001\.remove"):
        removed(tmp_path / "clusters", 1)
    pairs = tmp_path / "pairs" / "d" / "00002_00.dups"
    pairs.write_bytes(pairs.read_bytes()[16:])
    with pytest.raises(DunwuError, match=r"00002_00\.dups"):
        cluster(tmp_path / "pairs", tmp_path / "clusters")
    (tmp_path / "clusters" / "d" / "clusters.json").unlink()
    with pytest.raises(DunwuError, match="not finished"):
        removed(tmp_path / "clusters", 0)


def test_wrong_paths_fail_at_once(tmp_path: Path) -> None:
    SignatureWriter(tmp_path / "s", 0, SHORT).close()
    for call in (
        lambda: find_duplicates(tmp_path / "nowhere", tmp_path, 0),
        lambda: find_duplicates(tmp_path / "s", tmp_path, 0, dump="nowhere"),
        lambda: cluster(tmp_path / "nowhere", tmp_path / "c"),
        lambda: removed(tmp_path / "nowhere", 0),
    ):
        with pytest.raises(DunwuError, match="nowhere"):
            call()
    with pytest.raises(DunwuError, match="32 bits"):
        SignatureWriter(tmp_path / "s", 0, SHORT).add(1 << 32, "d", np.zeros((3, 2), np.uint64))


def test_a_killed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), key_files.whole_file(tmp_path / "f") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
