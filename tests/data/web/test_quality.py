"""The quality filters: datatrove's own verdicts on thousands of texts, each Chinese rule on a text of its own.

`DUNWU_PARITY=5000` compares that many texts; `python tests/data/web/test_quality.py 5000` prints the figures and times both.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.data.web import limits as presets
from dunwu.data.web.limits import (
    CHINESE,
    ENGLISH,
    SYMBOLS,
    TERMINAL,
    C4Limits,
    FineWebLimits,
    GopherLimits,
    RepetitionLimits,
)
from dunwu.data.web.quality import c4, fineweb, gopher, judge, repetition
from dunwu.data.web.words import words
from dunwu.world import spam
from dunwu.world.knobs import Knobs
from dunwu.world.web import pages

DATA = Path(__file__).parents[3].parent / "shared" / "data"
TEXTS = int(os.environ.get("DUNWU_PARITY", "500"))
"""Texts compared with datatrove."""


def real_texts() -> list[str]:
    """Plays, replies, solutions, articles: whatever of `../shared/data` is there."""
    texts: list[str] = []
    if (DATA / "text").is_dir():
        scenes = (DATA / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8").split("\n\n")
        texts += ["\n\n".join(scenes[n : n + 10]) for n in range(0, 2000, 10)]
    if (DATA / "chat").is_dir():
        for row in json.loads((DATA / "chat" / "dpo_en_demo.json").read_text(encoding="utf-8")):
            texts += [row["chosen"]["value"], row["rejected"]["value"]]
        rows = json.loads((DATA / "chat" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
        texts += ["\n".join(map(str, row.values())) for row in rows]
    if (DATA / "math500").is_dir():
        lines = (DATA / "math500" / "test.jsonl").read_text(encoding="utf-8").splitlines()
        texts += [json.loads(line)["solution"] for line in lines[:200]]
    if (DATA / "pages").is_dir():
        truth = json.loads((DATA / "pages" / "ground-truth.json").read_text(encoding="utf-8"))
        texts += [page["articleBody"] for page in truth.values()] * 5
    return texts


Bend = Callable[[random.Random, str], str]


def _lines(dice: random.Random, text: str, change: Callable[[str], str], share: float) -> str:
    return "\n".join(change(line) if dice.random() < share else line for line in text.split("\n"))


def _again(dice: random.Random, text: str, between: str) -> str:
    """A part of the text some times more."""
    parts = text.split(between) if between else [text]
    start = dice.randrange(len(parts))
    part = parts[start : start + dice.choice((1, 1, 2, 5, 10, 11, 14, 30))]
    for _ in range(dice.choice((1, 2, 4, 10))):
        place = dice.randrange(len(parts) + 1)
        parts[place:place] = part
    return between.join(parts)


def _wrapped(dice: random.Random, text: str) -> str:
    """Lines of a few words each."""
    parts, n = text.split(), dice.choice((1, 3, 6, 12))
    return "\n".join(" ".join(parts[place : place + n]) for place in range(0, len(parts), n))


def _put(*extra: str) -> Bend:
    def bend(dice: random.Random, text: str) -> str:
        parts = text.split("\n")
        for _ in range(dice.choice((1, 1, 3))):
            parts.insert(dice.randrange(len(parts) + 1), dice.choice(extra))
        return "\n".join(parts)

    return bend


BENDS: tuple[Bend, ...] = (
    lambda dice, text: text,
    lambda dice, text: text[: dice.randrange(1, 1500)],
    lambda dice, text: _again(dice, text, "\n"),
    lambda dice, text: _again(dice, text, "\n\n"),
    lambda dice, text: _again(dice, text, " "),
    lambda dice, text: _again(dice, text, " "),
    lambda dice, text: (text[: dice.randrange(20, 300)] + dice.choice((" ", "\n", "\n\n"))) * dice.randrange(2, 9),
    lambda dice, text: _again(dice, text.replace("\n", " ").replace(". ", ".\n"), "\n"),
    lambda dice, text: _wrapped(dice, text),
    lambda dice, text: _lines(
        dice, _wrapped(dice, text), lambda line: dice.choice("-•") + " " + line, dice.random() * 1.3
    ),
    lambda dice, text: _lines(dice, _wrapped(dice, text), lambda line: line + dice.choice(("...", "…")), dice.random()),
    lambda dice, text: re.sub(" ", lambda _: dice.choice((" ", " ", " # ", " ... ", " … ", " #")), text),
    lambda dice, text: re.sub(r"\w+", lambda word: word[0] if dice.random() < 0.6 else str(len(word[0])), text),
    lambda dice, text: re.sub(r"\b(\w+) (\w+) (\w+)\b", r"\1\2\3", text),
    lambda dice, text: re.sub(r"\b(the|be|to|of|and|that|have|with)\b", "xyz", text),
    lambda dice, text: text.upper(),
    lambda dice, text: text.replace(".", " "),
    lambda dice, text: re.sub(r"\b\w{1,3}\b", "", text),
    lambda dice, text: re.sub(r"\b\w\w\w+\b", lambda word: word[0][:2], text),
    lambda dice, text: _lines(
        dice, text, lambda line: line + " [12] fact[edit] {" + "x" * dice.randrange(990, 1010), 0.2
    ),
    _put(
        "Lorem ipsum dolor sit amet.",
        "if (x) { return }",
        "Please enable JavaScript to go on.",
        "short",
        "",
        "two\twords",
    ),
    _put(
        "We use cookies.", "See our Privacy Policy and Terms of Use.", "javascript", "lorem[1] ipsum [2] dolor", "a b c"
    ),
    _put(
        "x" * 1001,
        "one two " + "y" * 1500,
        "\u3000\u2028odd\x85lines\x0b here \r\nand there",
        "。 。 。",
        "[1] [2] [3]",
    ),
    lambda dice, text: "\n".join(dice.sample(text.split("\n") * 2, k=len(text.split("\n")))),
    lambda dice, text: re.sub(r"\n+", " ", text),
    lambda dice, text: re.sub(r"[.!?] ", lambda end: end[0] + "\n" * dice.choice((1, 6, 9)), text),
    lambda dice, text: re.sub(r"\s", lambda _: dice.choice(" \n\n\n"), text),
    lambda dice, text: text.translate({ord(c): "。" for c in ".!?"}),
    lambda dice, text: dice.choice(("", " ", "\n\n", "...", "\n \n", "。", "#" * 60, "- \n" * 60, "a " * 80, text[:1])),
    lambda dice, text: " ".join(
        dice.choice(("buy", "cheap", "now", "the", "and", *text.split()[:20])) for _ in range(150)
    ),
)


@cache
def corpus(number: int, seed: int = 0) -> list[str]:
    """World and real texts, cut, mixed, repeated and spoilt in every way the filters look for."""
    dice = random.Random(seed)
    world = [page.text for page in islice(pages(Knobs(), seed), 400)]
    real = real_texts() or world
    texts = []
    for n in range(number):
        text = "\n".join(dice.choice(real if dice.random() < 0.7 else world) for _ in range(dice.choice((1, 1, 2, 3))))
        for bend in dice.sample(BENDS, k=n % 3):
            text = bend(dice, text)[:6_000]
        texts.append(text)
    return texts


@cache
def their_filters() -> tuple[Any, ...]:
    """datatrove's, as FineWeb has them."""
    pytest.importorskip("datatrove")
    pytest.importorskip("spacy", reason="datatrove's English words are spaCy's")
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

    c4_filter = C4QualityFilter(filter_no_terminal_punct=False)
    return GopherRepetitionFilter(), GopherQualityFilter(), c4_filter, FineWebQualityFilter()


def theirs(step: Any, text: str) -> tuple[str, str | None]:
    """(the text after a filter of datatrove's, its reason)."""
    from datatrove.data import Document

    document = Document(text=text, id="")
    verdict = step.filter(document)
    return document.text, verdict[1] if isinstance(verdict, tuple) else None


def ours(text: str) -> list[tuple[str, str | None]]:
    """The same four, each on the whole text."""
    parts = words(text, "en")
    rest = [repetition(text, parts, RepetitionLimits()), gopher(text, parts, GopherLimits())]
    return [
        *((text, reason) for reason in rest),
        c4(text, "en", C4Limits()),
        (text, fineweb(text, parts, FineWebLimits())),
    ]


def test_every_verdict_is_datatroves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep or drop, and why, and what C4 leaves of the text; every reason occurs."""
    monkeypatch.setattr(
        "numpy.mean", lambda values: sum(values) / len(values) if values else float("nan")
    )  # no warning
    reasons: Counter[str] = Counter()
    far_apart = "\n\n\n\n".join(f"Line number {n} stands far from the others." for n in range(20))  # rare: list_ratio
    for text in [*corpus(TEXTS), far_apart]:
        for step, (left, reason) in zip(their_filters(), ours(text)):
            assert (left, reason) == theirs(step, text), (step.name, text[:300])
            reasons[str(reason)] += 1
    if not (DATA / "chat").is_dir():
        return  # the world's pages alone do not have every fault
    seen = set(reasons)
    repeated = {f"dup_{part}_frac" for part in ("para", "line", "para_char", "line_char")}
    repeated |= {f"top_{n}_gram" for n in (2, 3, 4)} | {f"duplicated_{n}_n_grams" for n in range(5, 11)}
    if TEXTS >= 5000:
        assert repeated <= seen, repeated - seen
    assert len(repeated & seen) >= 10
    symbols = {"hashes", "ellipsis", "bullets", "end_ellipsis"}
    assert {f"gopher_too_many_{what}" for what in symbols} <= seen
    assert {f"gopher_{side}_threshold" for side in ("below_avg", "above_avg", "below_alpha")} <= seen
    assert {"empty", "gopher_short_doc", "gopher_enough_stop_words"} <= seen
    assert {"lorem_ipsum", "curly_bracket", "too_few_sentences"} <= seen
    assert {"line_punct_ratio", "short_line_ratio", "char_dup_ratio", "list_ratio"} <= seen


OWN = {"gap", "ellipses", "bullets", "line_ellipses", "stop_words", "min_han_share"}
"""Options that datatrove does not have."""
OPTIONS = [f.name for kind in (RepetitionLimits, GopherLimits) for f in fields(kind) if f.name not in OWN]


@pytest.mark.parametrize("option", OPTIONS)
def test_each_check_alone_is_datatroves(option: str) -> None:
    """With every other check off, and this one stricter than published, so that no check hides behind an earlier one."""
    from datatrove.pipeline.filters import GopherQualityFilter
    from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

    their_filters()
    off: dict[str, Any] = {"dup_line_frac": None, "dup_para_frac": None, "dup_line_char_frac": None}
    off |= {"dup_para_char_frac": None, "top_n_grams": (), "dup_n_grams": ()}
    names = {
        "min_words": ("min_doc_words", 90),
        "max_words": ("max_doc_words", 300),
        "min_mean_word": ("min_avg_word_length", 4.1),
        "max_mean_word": ("max_avg_word_length", 4.8),
        "max_hash_ratio": ("max_symbol_word_ratio", 0.01),
        "max_ellipsis_ratio": ("max_symbol_word_ratio", 0.01),
        "max_bullet_lines": ("max_bullet_lines_ratio", 0.2),
        "max_ellipsis_lines": ("max_ellipsis_lines_ratio", 0.1),
        "min_alpha_words": ("max_non_alpha_words_ratio", 0.85),
        "min_stop_words": ("min_stop_words", 6),
    }
    mine: Callable[[str, list[str]], str | None]
    if option in off:
        value: Any = 0.05
        if option.endswith("grams"):
            value = tuple((n, 0.03) for n in ((4, 3, 2) if option.startswith("top") else (10, 7, 5)))
        step = GopherRepetitionFilter(**{**off, option: value})
        chosen = RepetitionLimits(**{**off, option: value})
        mine = lambda text, parts: repetition(text, parts, chosen)  # noqa: E731
    else:
        theirs_off = dict.fromkeys((name for name, _ in names.values()), None)
        step = GopherQualityFilter(**{**theirs_off, "min_doc_words": 1, names[option][0]: names[option][1]})
        both = [n for n, (name, _) in names.items() if name == names[option][0]]
        alone = dict.fromkeys(names, None) | {"min_words": 1} | dict.fromkeys(both, names[option][1])
        quality = GopherLimits(**alone)
        mine = lambda text, parts: gopher(text, parts, quality)  # noqa: E731
    found: Counter[str | None] = Counter()
    for text in corpus(100, seed=7):
        reason = mine(text, words(text, "en"))
        assert reason == theirs(step, text)[1], text[:300]
        found[reason] += 1
    assert found[None] and len(found) > 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "ab", "b", "bc", "abc", "the", "to", "#", "...", "…", "- ", "\n", "\n\n", " ", ". "]),
        max_size=80,
    )
)
def test_texts_of_few_words_too(parts: list[str]) -> None:
    """N-grams equal without their spaces, empty lines, symbols alone: datatrove's verdict, or its failure."""
    text = " ".join(parts)
    repetitive, _, lines, custom = their_filters()
    split = words(text, "en")
    assert repetition(text, split, RepetitionLimits()) == theirs(repetitive, text)[1]
    assert c4(text, "en", C4Limits()) == theirs(lines, text)
    assert fineweb(text, split, FineWebLimits()) == theirs(custom, text)[1]


def test_the_constants_are_datatroves() -> None:
    pytest.importorskip("datatrove")
    from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION

    assert set(TERMINAL) == TERMINAL_PUNCTUATION
    assert set(SYMBOLS) == PUNCTUATION_SET


def test_whatever_is_none_is_off() -> None:
    """Of every filter, by name; a text that fails everything else passes."""
    text = "{ lorem ipsum\n" * 40
    gopher_off = GopherLimits(**{f.name: None for f in fields(GopherLimits) if "None" in f.type})
    parts = words(text, "en")
    assert gopher(text, parts, gopher_off) is None
    assert gopher("", [], gopher_off) == "empty"
    assert gopher("#" * 9, ["#"] * 9, replace(gopher_off, min_mean_word=3)) is None
    off = {f.name: None for f in fields(RepetitionLimits) if "None" in f.type}
    assert repetition(text, parts, RepetitionLimits(**off, top_n_grams=(), dup_n_grams=())) is None
    assert (
        fineweb(text, parts, FineWebLimits(**{f.name: None for f in fields(FineWebLimits) if "None" in f.type})) is None
    )
    c4_off = C4Limits(
        **{f.name: None for f in fields(C4Limits) if "None" in f.type}, placeholder=(), script=(), policy=()
    )
    assert c4(text, "en", c4_off) == (text.strip(), None)


def test_lines_left_out_are_counted() -> None:
    """One of each, by hand; a citation counts for a line's words, and goes."""
    lines = [
        "Please enable JavaScript in your browser.",
        "Two words.",
        "This line has its full stop and stays [12].",
        "a b " + "x" * 1001,
        "Read our Privacy Policy before you go on.",
        "This line has none and goes",
    ]
    dropped: Counter[str] = Counter()
    limits = replace(C4Limits(), min_sentences=1, terminal_marks=(".",))
    assert c4("\n".join(lines), "en", limits, dropped) == ("This line has its full stop and stays .", None)
    assert dropped == {"javascript": 1, "too_few_words": 1, "too_long_word": 1, "policy": 1, "no_terminal_punc": 1}


STORY = """村子里有一条小河，河水从山上流下来，清得可以看见石头。老人每天早上都到河边散步。

他说，四十年前这里还没有桥，孩子们上学要坐船。后来大家凑钱修了一座石桥，船也就不用了。

去年夏天雨下得很大，水漫过了桥面，可是桥没有倒。老人很高兴，他认得每一块石头的来历。
现在村里的年轻人多半在城里工作，只有过年的时候才回来。桥上又热闹起来了！"""


def spoilt(reason: str) -> str:
    """The story, spoilt so that it goes for this reason."""
    first, *rest = STORY.split("\n\n")
    return {
        "dup_para_frac": "\n\n".join([STORY, "好。", "好。", "好。", "好。"]),
        "dup_para_char_frac": "\n\n".join([STORY, rest[1]]),
        "dup_line_frac": STORY + "\n好。" * 5,
        "dup_line_char_frac": "\n".join([first + rest[0], rest[1], first + rest[0]]),
        "top_3_gram": STORY + "最便宜" * 40 + "。",
        "top_5_gram": STORY + "，".join("买药找老王" + mark for mark in "一二三四五六七八九十甲乙丙丁戊己庚辛") + "。",
        "duplicated_8_n_grams": STORY + "。" + rest[0][:60] + "。另外，" + rest[0][:60] + "。",
        "gopher_short_doc": first,
        "gopher_below_han_share": STORY + " parameters environment configuration" * 30 + "的 了 。",
        "gopher_above_avg_threshold": STORY + "q8Xv2LrT0aZkWm4c7dNe的了" * 90,
        "gopher_too_many_hashes": STORY.replace("，", "#，#，#"),
        "gopher_too_many_ellipsis": STORY.replace("，", "……，……"),
        "gopher_too_many_bullets": "● "
        + STORY.replace("。", "。\n● ").replace("\n\n", "\n● ").replace("\n现", "\n● 现"),
        "gopher_too_many_end_ellipsis": STORY.replace("。\n", "……\n").replace("。", "。。。\n"),
        "gopher_below_alpha_threshold": re.sub("[，。]", lambda _: "，1 2 3 4 5 6 7 8。", STORY),
        "gopher_enough_stop_words": STORY.translate(dict.fromkeys(map(ord, CHINESE.gopher.stop_words), "石")),
        "lorem_ipsum": STORY + "\n这一段是网站模板里的乱数假文。",
        "curly_bracket": STORY + "\nfunction() { 返回一个数值 }",
        "too_few_sentences": STORY.replace("。", "，").replace("！", "，").replace("\n", ""),
        "line_punct_ratio": re.sub("[。！]\n*", "，然后接着再往下说一说吧\n", STORY),
        "short_line_ratio": re.sub("(.{8})", r"\1。\n", STORY),
        "char_dup_ratio": "\n".join([STORY, first[:25]] + ["村子里的人都喜欢这条河。"] * 4),
        "list_ratio": re.sub("(.{11,13}?)[，。！]\n*", r"\1。\n\n", STORY),
    }[reason]


def test_a_chinese_story_is_kept() -> None:
    """Simplified, with a banner, whose line goes."""
    dropped: Counter[str] = Counter()
    kept = STORY.replace("\n\n", "\n")  # C4 takes empty lines for lines of too few words
    assert judge(STORY, "zh-Hans") == (kept, None)
    assert judge(STORY, "zh-Hant")[1] is None
    assert judge(STORY + "\n本网站使用Cookie，点击查看隐私政策。\n上一篇", "zh-Hans", None, dropped) == (kept, None)
    assert dropped == {"policy": 1, "too_few_words": 3}
    assert judge(STORY + "\n\n" + STORY[:40] + " And that is what the old man of the river said.", "mixed")[1] is None


REASONS = re.findall(r'^        "(\w+)": ', Path(__file__).read_text(encoding="utf-8").split("def spoilt")[1], re.M)


@pytest.mark.parametrize("reason", REASONS)
def test_each_english_rule_has_its_chinese(reason: str) -> None:
    """The story, spoilt in one way, goes for that reason, and only with that check on."""
    text = spoilt(reason)
    parts = words(text, "zh")
    verdicts = {
        repetition(text, parts, CHINESE.repetition),
        gopher(text, parts, CHINESE.gopher),
        c4(text, "zh", CHINESE.c4)[1],
        fineweb(text, parts, CHINESE.fineweb),
    }
    assert reason in verdicts, verdicts


def test_the_worlds_pages_are_kept_and_its_spam_is_not() -> None:
    """With the limits for the world: short pages and sums are fine there, what no one would read is not."""
    for page in islice(pages(Knobs(), 2), 300):
        assert judge(page.text, page.language, presets.world(page.language))[1] is None, page.text
    dice = random.Random(4)
    for writer in (
        spam.spam,
        spam.link_farm,
        spam.lorem,
        spam.code,
        spam.cookies,
        spam.gibberish,
        spam.repeated,
        spam.teasers,
    ):
        for chinese in (False, True):
            language = "zh-Hans" if chinese else "en"
            for _ in range(10):
                text = writer(dice, chinese)
                assert judge(text, language, presets.world(language))[1], text


def test_limits_by_language() -> None:
    assert presets.limits("en") is ENGLISH and presets.limits("zh-Hant") is CHINESE
    assert presets.limits("de").gopher.min_stop_words is None
    assert presets.limits("de").repetition == ENGLISH.repetition
    assert presets.limits("ja").gopher.min_words == 80 and presets.limits("ja").gopher.min_han_share is None
    assert {"的", "the"} <= presets.limits("mixed").gopher.stop_words


def _bench(number: int) -> None:
    """Figures for a page of documentation: equal shares, reasons, texts a second."""
    texts = corpus(number)
    steps = their_filters()
    equal, reasons = Counter[str](), Counter[str]()
    for text in texts:
        for step, mine in zip(steps, ours(text)):
            his = theirs(step, text)
            reasons[f"{type(step).__name__} {his[1]}"] += 1
            equal[type(step).__name__] += his == mine
    print(number, "texts,", sum(map(len, texts)), "characters; equal:", dict(equal))
    for reason, count in sorted(reasons.items()):
        print(f"  {count:6} {reason}")

    def all_of_theirs(text: str) -> tuple[str, str | None]:
        for step in steps:
            text, reason = theirs(step, text)
            if reason:
                return text, reason
        return text, None

    for name, kept in (("all", texts), ("kept by all four", [text for text in texts if not judge(text, "en")[1]])):
        times = []
        for run in (all_of_theirs, lambda text: judge(text, "en"), lambda text: words(text, "en")):
            start = time.process_time()
            verdicts = [run(text) for text in kept]
            times.append(time.process_time() - start)
            if run is all_of_theirs:
                assert verdicts == [judge(text, "en") for text in kept]
        rates = ", ".join(f"{len(kept) / seconds:.0f}" for seconds in times)
        mean = sum(map(len, kept)) / len(kept)
        print(
            f"{name}: {len(kept)} texts of {mean:.0f} characters; theirs, ours, words: {rates} texts/s, x{times[0] / times[1]:.1f}"
        )


if __name__ == "__main__":
    _bench(int(sys.argv[1]))
