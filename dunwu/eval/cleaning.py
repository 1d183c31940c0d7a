"""What the data pipeline did to a crawl whose truth is known (`dunwu.world.crawl`): precision and recall of every step.

A page's outcome is "kept", the step that dropped it, or "damaged" if it is neither in the records nor among the drops. A step is
judged by the pages that reached it:

    right   dropped, and the truth names this step            precision = (right + other) / dropped
    other   dropped, and the truth names another step         recall    = right / (right + missed)
    wrong   dropped, though the page is good
    missed  passed, though the truth names this step; `late` of them went at a later one

Of the pages of a dump that show the same text, or a re-post of it, one should stay, whichever: n of them that reach a search for duplicates
are n - 1 drops that are right. So good pages that are alike by nature need no word in the truth, and order does not matter.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from sys import intern
from typing import Any

from dunwu.eval.cleaning_texts import Languages, Planted, Texts, same, share, shingle_f1
from dunwu.eval.cleaning_texts import replacements as default_replacements
from dunwu.world.warc import read_truth

STEPS = (
    "damaged",
    "url",
    "extraction",
    "language",
    "quality:repetition",
    "quality:gopher",
    "quality:c4",
    "quality:fineweb",
    "filter",
    "exact_duplicate",
    "near_duplicate",
    "contaminated",
)
"""In the order of the pipeline."""
_ORDER = {step: place for place, step in enumerate((*STEPS, "kept"))}
_DUPLICATES = ("exact_duplicate", "near_duplicate")
_GOOD = ("keep", *_DUPLICATES)
_JUDGED = ("language", *_GOOD)
_NAMES = {
    "read": "damaged",
    "extract": "extraction",
    "contamination": "contaminated",
    "repetition": "quality:repetition",
    "gopher": "quality:gopher",
    "gopher_repetition": "quality:repetition",
    "gopher_quality": "quality:gopher",
    "c4": "quality:c4",
    "fineweb": "quality:fineweb",
}
_REASONS = (
    ("gopher_", "gopher"),
    ("dup_", "repetition"),
    ("duplicated_", "repetition"),
    ("top_", "repetition"),
    *((reason, "fineweb") for reason in ("line_punct_ratio", "short_line_ratio", "char_dup_ratio", "list_ratio")),
    ("", "c4"),
)
"""How the reasons of a quality filter begin (datatrove's names), and whose they are."""
EXAMPLES = 3
"""Shown of each kind of error."""
_EXCERPT = 400

Drop = tuple[str, str, str]
"""(id, step, reason)"""


def step_of(step: str, reason: str) -> str:
    """The name in `STEPS` of a pipeline's step and reason.

    Raises:
        ValueError: a step nobody knows.

    Example:
        >>> step_of("extract", "empty"), step_of("duplicates", "near_duplicate"), step_of("quality", "dup_line_frac")
        ('extraction', 'near_duplicate', 'quality:repetition')
    """
    if step == "quality":
        step = next(owner for beginning, owner in _REASONS if reason.startswith(beginning))
    elif step == "duplicates":
        step = reason
    found = _NAMES.get(step, step)
    if found not in _ORDER or found == "kept":
        raise ValueError(f"no step {step!r} ({reason})")
    return found


def score_cleaning(
    truths: Path | Sequence[Path],
    records: Iterable[Mapping[str, Any]],
    drops: Iterable[Drop],
    replacements: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compare a pipeline's output with the truth. Records stream; a page's truth takes some 300 bytes of memory.

    Args:
        truths: files of `write_warc`; read twice.
        records: with `id`, `text`, `language`.
        drops: every page that was dropped, once.
        replacements: what stands for personal data in records; None: the defaults of `data.web.pii`.

    Returns:
        A JSON object: `pages`, `steps` (see the module's head, with `tp`, `fp`, `fn`, `tn`), `kinds` (of page → outcome → pages),
        `text`, `language`, `pii`, `whole`, `examples`.

    Raises:
        DunwuError: a truth file is missing or damaged.
        ValueError: an unknown step, or an id without truth.
    """
    paths = [truths] if isinstance(truths, Path) else list(truths)
    table = _Table(paths)
    for identity, step, reason in drops:
        fact = table.of(identity)
        fact.outcome, fact.reason = step_of(step, reason), intern(reason)
    language = Languages()
    odd: dict[str, str] = {}
    for record in records:
        fact = table.of(record["id"])
        fact.outcome = "kept"
        # Of rubbish that should have gone elsewhere nobody says what language it is in.
        if fact.fate in _JUDGED:
            language.count(fact.languages, record["language"], record["language"] in fact.languages)
        if fact.planted or _digest(record["text"], fact.dump) != fact.text:
            odd[record["id"]] = record["text"]
    steps = {step: _step(step, table) for step in STEPS}
    for fact in table:
        if fact.outcome == "language" and fact.fate in _JUDGED:
            language.count(fact.languages, "dropped", fact.fate == "language")
    texts, pii, examples = _look(paths, table, odd, default_replacements() if replacements is None else replacements)
    kept = sum(fact.outcome == "kept" and fact.fate in _GOOD for fact in table)
    return {
        "pages": len(table.facts),
        "steps": steps,
        "kinds": _kinds(table),
        "text": texts.result(kept),
        "language": language.result(),
        "pii": pii.result(),
        "whole": _whole(table),
        "examples": examples,
    }


@dataclass
class _Fact:
    """What is true of a page, and what became of it."""

    __slots__ = ("dump", "fate", "group", "kind", "languages", "outcome", "planted", "reason", "text")
    kind: str
    fate: str
    languages: tuple[str, ...]
    text: bytes
    """Digest of its text."""
    group: bytes
    """Digest of the text it is a re-post of, or of its own."""
    dump: str
    planted: bool
    outcome: str
    reason: str


class _Table:
    """The truth of all pages, by id."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.facts: dict[str, _Fact] = {}
        reposts: list[tuple[_Fact, str]] = []
        known: dict[tuple[str, ...], tuple[str, ...]] = {}
        for truth in _all(paths):
            labels = tuple(truth["languages"])
            digest = _digest(truth["text"], truth.get("dump", ""))
            fact = _Fact(
                kind=intern(truth["kind"]),
                fate=intern(truth["fate"]),
                languages=known.setdefault(labels, labels),
                text=digest,
                group=digest,
                dump=intern(truth.get("dump", "")),
                planted=bool(truth.get("pii")),
                outcome="damaged",
                reason="lost",
            )
            self.facts[truth["id"]] = fact
            if "of" in truth:
                reposts.append((fact, truth["of"]))
        for fact, original in reposts:
            if original in self.facts:  # else it is in a file that was not given
                fact.group = self.facts[original].text

    def of(self, identity: str) -> _Fact:
        if identity not in self.facts:
            raise ValueError(f"no truth of page {identity}")
        return self.facts[identity]

    def __iter__(self) -> Iterator[_Fact]:
        return iter(self.facts.values())


def _step(step: str, table: _Table) -> dict[str, Any]:
    """The counts of one step."""
    place = _ORDER[step]
    reached = [fact for fact in table if _ORDER[fact.outcome] >= place]
    counts = Counter[str]()
    if step in _DUPLICATES:
        groups: dict[bytes, list[_Fact]] = defaultdict(list)
        for fact in reached:
            alike = fact.text if step == "exact_duplicate" else fact.group
            groups[alike if fact.fate in _GOOD else b""].append(fact)
        counts["other"] = sum(fact.outcome == step for fact in groups.pop(b"", []))
        for group in groups.values():
            gone = sum(fact.outcome == step for fact in group)
            counts["right"] += min(gone, len(group) - 1)
            counts["wrong"] += max(0, gone - len(group) + 1)
            counts["missed"] += max(0, len(group) - 1 - gone)
    else:
        for fact in reached:
            if fact.outcome == step:
                counts["right" if fact.fate == step else "wrong" if fact.fate in _GOOD else "other"] += 1
            elif fact.fate == step:
                counts["missed"] += 1
                counts["late"] += fact.outcome != "kept"
    right, other, wrong, missed = (counts[name] for name in ("right", "other", "wrong", "missed"))
    return {
        "reached": len(reached),
        "dropped": right + other + wrong,
        "right": right,
        "other": other,
        "wrong": wrong,
        "missed": missed,
        "late": counts["late"],
        "tp": right + other,
        "fp": wrong,
        "fn": missed,
        "tn": len(reached) - right - other - wrong - missed,
        "precision": share(right + other, right + other + wrong),
        "recall": share(right, right + missed),
        "reasons": dict(Counter(fact.reason for fact in reached if fact.outcome == step).most_common()),
    }


def _kinds(table: _Table) -> dict[str, dict[str, int]]:
    """Kind of page → outcome → pages, in the pipeline's order."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for fact in table:
        counts[fact.kind][fact.outcome] += 1
    return {kind: dict(sorted(counts[kind].items(), key=lambda item: _ORDER[item[0]])) for kind in sorted(counts)}


def _whole(table: _Table) -> dict[str, Any]:
    """All steps together: distinct good texts that have a record, rubbish that has none, records too many."""
    records = Counter[bytes]()
    rubbish, left = 0, 0
    for fact in table:
        if fact.fate in _GOOD:
            records[fact.group] += fact.outcome == "kept"
        else:
            rubbish += 1
            left += fact.outcome == "kept"
    present = sum(count > 0 for count in records.values())
    return {
        "good_texts": len(records),
        "good_kept": present,
        "good_kept_share": share(present, len(records)),
        "rubbish": rubbish,
        "rubbish_dropped": rubbish - left,
        "rubbish_dropped_share": share(rubbish - left, rubbish),
        "surplus_records": sum(count - 1 for count in records.values() if count > 1),
    }


def _look(
    paths: Sequence[Path], table: _Table, odd: Mapping[str, str], replacements: Sequence[str]
) -> tuple[Texts, Planted, list[dict[str, Any]]]:
    """The second reading of the truth: texts that differ, personal data, examples of errors."""
    texts, pii, examples = Texts(), Planted(), list[dict[str, Any]]()
    shown = Counter[tuple[str, str]]()

    def show(error: str, step: str, truth: Mapping[str, Any], found: str = "") -> None:
        shown[error, step] += 1
        if shown[error, step] <= EXAMPLES:
            fact = table.of(truth["id"])
            example = {"error": error, "step": step, "reason": fact.reason if fact.outcome != "kept" else ""}
            example |= {"id": truth["id"], "kind": truth["kind"], "text": truth["text"][:_EXCERPT]}
            examples.append(example | ({"found": found[:_EXCERPT]} if found else {}))

    for truth in _all(paths):
        fact = table.of(truth["id"])
        if fact.outcome != "kept":
            if fact.fate == "keep" and fact.outcome not in _DUPLICATES:
                show("wrong", fact.outcome, truth)
            continue
        if fact.fate not in _GOOD:
            show("missed", fact.fate, truth)
        elif truth["id"] in odd:
            found = odd[truth["id"]]
            planted = truth.get("pii", [])
            for one in planted:
                (pii.left if one["text"] in found else pii.gone)[one["kind"]] += 1
                if one["text"] in found:
                    show("missed", "pii", truth, found)
            extra = sum(found.count(text) - truth["text"].count(text) for text in replacements) - len(planted)
            pii.false += max(0, extra)
            if extra > 0:
                show("wrong", "pii", truth, found)
            if not same(truth["text"], found, [one["text"] for one in planted]):
                texts.differ += 1
                texts.lost_f1 += 1 - shingle_f1(truth["text"], found)
                show("differs", "extraction", truth, found)
    return texts, pii, sorted(examples, key=lambda example: (_ORDER.get(example["step"], 99), example["error"]))


def _all(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        yield from read_truth(path)


def _digest(text: str, dump: str) -> bytes:
    """Of a text in a dump: duplicates are looked for within one."""
    return blake2b(text.encode("utf-8", "replace"), digest_size=8, person=dump.encode()[-16:]).digest()
