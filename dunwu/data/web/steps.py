"""The pipeline as datatrove steps, so that its Local, Slurm and Ray executors run them; the work is in the modules beside.

A step takes documents and passes on those that stay. Every page that goes is written into the task's `Ledger` with its
step and reason. What steps tell each other about a page is in its metadata under names that begin with "_", and never
reaches a record. Big tables (block lists, eval n-grams) are loaded where a task runs, not sent there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from dunwu.data.web.config import BuildConfig
from dunwu.data.web.ledger import EXCERPT, Ledger
from dunwu.data.web.records import FIELDS, SUFFIX, Format, RecordWriter, read_records
from dunwu.disk import write_atomically
from dunwu.types import DunwuError

if TYPE_CHECKING:
    from dunwu.data.web.minhash import MinhashConfig
    from dunwu.data.web.workers import ExtractionPool

Pages = Iterable[Document]
_RUN_PAGES, _RUN_BYTES = 256, 32 << 20
Groups = Sequence[Sequence[tuple[str, str]]]
"""For every task, its files: (path, name that records tell)."""

if os.environ.get("DUNWU_DATATROVE_LOG") != "1":
    logger.disable("datatrove")  # its running commentary; ours is the progress line, and errors come as exceptions


def tells(phase: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For the last step of a phase: a failure is left where the build finds it, since an executor may swallow it."""

    def around(run: Callable[..., None]) -> Callable[..., None]:
        @wraps(run)
        def told(self: Any, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
            try:
                run(self, data, rank, world_size)
            except Exception as error:
                what, cure = f"task {rank} of {phase}: {type(error).__name__}: {error}", "the same command resumes"
                if isinstance(error, DunwuError):
                    what, cure = error.what, error.cure
                with contextlib.suppress(OSError, DunwuError):  # a full disk: the executor's own way remains
                    failure = json.dumps({"what": what, "cure": cure})
                    write_atomically(self.work / "failures" / f"{phase}-{rank:05d}.json", failure)
                raise

        return told

    return around


def cleaning(groups: Groups, work: Path, config: BuildConfig, extractors: int = 1) -> list[PipelineStep]:
    """The steps from files to cleaned pages; task i reads `groups[i]`."""
    ledger = Ledger()
    steps: list[PipelineStep] = [ReadPages(groups, work, config, ledger)]
    if config.url_filter:
        steps.append(FilterUrls(config.blocked, ledger))
    steps += [ExtractText(config, ledger, extractors), FilterLanguages(config.languages, config.language_score, ledger)]
    if config.quality != "none":
        steps.append(FilterQuality(config.quality, ledger))
    if config.pii:
        steps.append(ScrubPii(ledger))
    if config.filter:
        steps.append(UsersFilter(config.filter, ledger))
    return [*steps, WriteCleaned(work, config, ledger)]


def writing(work: Path, out: Path, config: BuildConfig, format: Format) -> list[PipelineStep]:
    """The steps from cleaned pages to records."""
    ledger = Ledger()
    steps: list[PipelineStep] = [ReadCleaned(work, config, ledger), DropDuplicates(work, config, ledger)]
    if config.decontaminate:
        steps.append(Decontaminate(config.decontaminate, config.decontaminate_ngram, ledger))
    return [*steps, WriteRecords(work, out, config, format, ledger)]


class _Step(PipelineStep):  # type: ignore[misc]
    """A step that judges page by page: `judge` gives a reason to drop the page, or None."""

    type = "dunwu"

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def judge(self, page: Document) -> str | tuple[str, str] | None:
        """None keeps the page; a reason, or (step, reason), drops it. May change the page."""
        raise NotImplementedError

    def run(self, data: Pages, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Judge every page."""
        for page in data:
            with self.track_time():
                found = self.judge(page)
            if found is None:
                yield page
            else:
                self.drop(page, *(found if isinstance(found, tuple) else (self.name, found)))

    def drop(self, page: Document, step: str, reason: str) -> None:
        """Count a page that goes."""
        self.ledger.drop(step, reason, page.id, page.metadata.get("url", ""), page.text)
        self.stat_update(f"dropped_{reason}")


class ReadPages(_Step):
    """The pages of a task's files. Damage and records that are no pages are noted by reason."""

    name = "read"

    def __init__(self, groups: Groups, work: Path, config: BuildConfig, ledger: Ledger) -> None:
        super().__init__(ledger)
        self.groups, self.work, self.config = groups, work, config

    def run(self, data: Pages | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Pages, their raw content in `_content`."""
        from dunwu.data.web.read import read_pages

        ledger = self.ledger
        ledger.begin(self.work / "beats" / "clean" / str(rank), listed(self.work, self.config, "clean", rank))
        before = 0
        for name, told in self.groups[rank]:
            path = Path(name)

            def skip(reason: str, detail: str) -> None:
                ledger.note(self.name, reason)

            for page in read_pages(path, self.config.dump or None, skip):
                ledger.done_bytes = before + page.place
                ledger.see()
                file_path = told if page.file_path == name else page.file_path
                metadata = {"dump": page.dump, "url": page.url, "date": page.date, "file_path": file_path}
                if not page.named:  # two files of one name hold two pages
                    page.id = f"{told}#{page.id.rpartition('-')[2]}"
                kept = {"_content": page.content, "_kind": page.kind, "_charset": page.charset}
                yield Document(text="", id=page.id, metadata=metadata | kept)
            before += path.stat().st_size


class FilterUrls(_Step):
    """Block lists, words and tricks in the page's address."""

    name = "url"

    def __init__(self, blocked: Sequence[str], ledger: Ledger) -> None:
        super().__init__(ledger)
        self.blocked = tuple(blocked)

    def judge(self, page: Document) -> str | None:
        """The reason of `urls.UrlFilter`; pages without an address stay."""
        url = page.metadata["url"]
        return url_filter(self.blocked).reason(url) if url else None


class ExtractText(_Step):
    """HTML to text, in processes that may die without harm."""

    name = "extract"

    def __init__(self, config: BuildConfig, ledger: Ledger, extractors: int = 1) -> None:
        super().__init__(ledger)
        self.config, self.extractors = config, extractors

    def run(self, data: Pages, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Pages with their text, in the order they came."""
        from dunwu.data.web.workers import ExtractionPool

        config = self.config
        with ExtractionPool(
            backend=config.extraction,
            workers=self.extractors if config.isolate else 0,
            seconds=config.page_seconds,
            megabytes=config.page_megabytes,
        ) as pool:
            for pages in _runs(data):
                yield from self._extracted(pages, pool)

    def _extracted(self, pages: Sequence[Document], pool: ExtractionPool) -> Iterator[Document]:
        html = [page for page in pages if page.metadata["_kind"] == "html"]
        answers = pool.map((n, page.metadata["_content"], page.metadata["_charset"]) for n, page in enumerate(html))
        for page in pages:
            if page.metadata["_kind"] == "html":
                answer = next(answers)
                if answer.reason is not None:
                    self.drop(page, self.name, answer.reason)
                    continue
                page.text = answer.text or ""
            else:
                page.text = page.metadata["_content"]
            yield from self._finish(page)

    def _finish(self, page: Document) -> Iterator[Document]:
        from dunwu.data.web.charset import decode

        content = page.metadata.pop("_content")
        if not page.text.strip():
            self.drop(page, self.name, "empty")
            return
        if self.ledger.would_show(page.id):
            raw = content if isinstance(content, str) else decode(content, page.metadata["_charset"])[0]
            page.metadata["_before"] = {"raw": raw[:EXCERPT], "extracted": page.text[:EXCERPT]}
        yield page


def _runs(data: Pages) -> Iterator[list[Document]]:
    """Pages in runs that are worth a pool's while and fit in memory."""
    run, held = list[Document](), 0
    for page in data:
        run.append(page)
        held += len(page.metadata["_content"])
        if len(run) == _RUN_PAGES or held > _RUN_BYTES:
            yield run
            run, held = [], 0
    if run:
        yield run


class FilterLanguages(_Step):
    """The language with its score, and pages in other languages dropped."""

    name = "language"

    def __init__(self, wanted: Sequence[str], score: float, ledger: Ledger) -> None:
        super().__init__(ledger)
        self.wanted, self.score = tuple(wanted), score

    def judge(self, page: Document) -> str | None:
        """Sets `language` and `language_score`."""
        from dunwu.data.web import langid

        language = langid.identify(page.text)
        page.metadata["language"], page.metadata["language_score"] = language.label, language.score
        return langid.keep(language, self.wanted, self.score)


class FilterQuality(_Step):
    """Gopher's repetition and quality rules, C4's, FineWeb's, in the language of the page."""

    name = "quality"

    def __init__(self, profile: str, ledger: Ledger) -> None:
        super().__init__(ledger)
        self.profile = profile

    def judge(self, page: Document) -> tuple[str, str] | None:
        """In FineWeb's order; C4's rules may take lines out of the text."""
        from dunwu.data.web import quality
        from dunwu.data.web.limits import limits, world

        language, lines = page.metadata["language"], Counter[str]()
        wanted = world(language) if self.profile == "world" else limits(language)
        page.text, reason = quality.judge(page.text, language, wanted, lines)
        for name, count in lines.items():
            self.ledger.note("c4_lines", name, count)
        return (_rules_of(reason), reason) if reason else None


class ScrubPii(_Step):
    """Addresses and numbers of people replaced."""

    name = "pii"

    def judge(self, page: Document) -> None:
        """Drops nothing."""
        from dunwu.data.web.pii import PiiConfig, scrub

        page.text, found = scrub(page.text, PiiConfig())
        for kind, count in found.items():
            self.ledger.note(self.name, kind, count)


class UsersFilter(_Step):
    """The user's own function."""

    name = "filter"

    def __init__(self, path: str, ledger: Ledger) -> None:
        super().__init__(ledger)
        self.path = path

    def judge(self, page: Document) -> str | None:
        """True keeps; False drops as "users_filter", a text drops under that reason."""
        from dunwu.data.web.users_filter import load_filter

        return load_filter(self.path)(page.text, {**_public(page), "id": page.id})


class WriteCleaned(_Step):
    """Cleaned pages to a file of the task, and what the search for duplicates needs of each."""

    name = "cleaned"

    def __init__(self, work: Path, config: BuildConfig, ledger: Ledger) -> None:
        super().__init__(ledger)
        self.work, self.config = work, config

    @tells("clean")
    def run(self, data: Pages, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """The end of phase clean."""
        from dunwu.data.web.exact import ExactWriter
        from dunwu.data.web.minhash import Signer
        from dunwu.data.web.minhash_files import SignatureWriter

        config, work = self.config, self.work
        exact = ExactWriter(work / "exact", rank) if config.exact_duplicates else None
        near = SignatureWriter(work / "signatures", rank, config.minhash) if config.near_duplicates else None
        signer = Signer(config.minhash)
        with RecordWriter(work / "cleaned" / f"{rank:05d}{SUFFIX['jsonl']}") as writer:
            for number, page in enumerate(data):
                with self.track_time():
                    if exact:
                        exact.add(number, page.metadata["dump"], page.text)
                    if near:
                        hashes = signer.signature(page.text, page.metadata["language"])
                        if hashes is not None:
                            near.add(number, page.metadata["dump"], hashes)
                    record = {"text": page.text, "id": page.id, **_public(page)}
                    if "_before" in page.metadata:
                        self.ledger.show(page.id, {})  # so that fewer and fewer pages carry their past along
                        record["_before"] = page.metadata["_before"]
                    writer.write(record)
                    self.ledger.kept += 1
        for closing in filter(None, (exact, near)):
            closing.close()
        self.ledger.finish(work / "ledgers" / f"clean-{rank:05d}.json")


class FindPairs(PipelineStep):  # type: ignore[misc]
    """Pages of a dump with equal signatures in one bucket; task i takes bucket i."""

    type, name = "dunwu", "pairs"

    def __init__(self, work: Path, config: MinhashConfig, tasks: int) -> None:
        super().__init__()
        self.work, self.config, self.tasks = work, config, tasks

    @tells("pairs")
    def run(self, data: Pages | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes pairs."""
        from dunwu.data.web.minhash_files import find_duplicates

        find_duplicates(self.work / "signatures", self.work / "pairs", rank, self.config, ranks=self.tasks)


class FindClusters(PipelineStep):  # type: ignore[misc]
    """Which pages repeat an earlier one: exactly, or nearly."""

    type, name = "dunwu", "clusters"

    def __init__(self, work: Path, config: BuildConfig, tasks: int) -> None:
        super().__init__()
        self.work, self.config, self.tasks = work, config, tasks

    @tells("clusters")
    def run(self, data: Pages | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes, for each task, the numbers of the pages to drop."""
        from dunwu.data.web.exact import exact_duplicates
        from dunwu.data.web.minhash_files import cluster

        if self.config.exact_duplicates:
            exact_duplicates(self.work / "exact", self.work / "drop-exact", ranks=self.tasks)
        if self.config.near_duplicates:
            cluster(self.work / "pairs", self.work / "drop-near")


class ReadCleaned(_Step):
    """The cleaned pages of a task, numbered as they were written."""

    name = "cleaned"

    def __init__(self, work: Path, config: BuildConfig, ledger: Ledger) -> None:
        super().__init__(ledger)
        self.work, self.config = work, config

    def run(self, data: Pages | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Pages with their number in `_number`."""
        self.ledger.begin(self.work / "beats" / "write" / str(rank), listed(self.work, self.config, "write", rank))
        path = self.work / "cleaned" / f"{rank:05d}{SUFFIX['jsonl']}"
        for number, record in enumerate(_own_records(path, self.work)):
            self.ledger.see()
            text, identity = record.pop("text"), record.pop("id")
            yield Document(text=text, id=identity, metadata={**record, "_number": number})


def _own_records(path: Path, work: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from read_records(path)
    except DunwuError as error:
        raise DunwuError(error.what, f"remove {work}; the same command begins anew") from None


class DropDuplicates(_Step):
    """Pages that repeat an earlier one go."""

    name = "duplicates"

    def __init__(self, work: Path, config: BuildConfig, ledger: Ledger) -> None:
        super().__init__(ledger)
        self.work, self.config = work, config

    def run(self, data: Pages, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Reasons `exact_duplicate`, `near_duplicate`."""
        from dunwu.data.web.exact import removed as exactly
        from dunwu.data.web.minhash_files import removed as nearly

        exact = exactly(self.work / "drop-exact", rank) if self.config.exact_duplicates else frozenset()
        near = nearly(self.work / "drop-near", rank) if self.config.near_duplicates else frozenset()
        for page in data:
            number = page.metadata["_number"]
            if number in exact:
                self.drop(page, self.name, "exact_duplicate")
            elif number in near:
                self.drop(page, self.name, "near_duplicate")
            else:
                yield page


class Decontaminate(_Step):
    """Pages that show an evaluation problem go."""

    name = "contamination"

    def __init__(self, files: Sequence[str], ngram: int, ledger: Ledger) -> None:
        super().__init__(ledger)
        self.files, self.ngram = tuple(files), ngram

    def judge(self, page: Document) -> str | None:
        """The reason names the evaluation file."""
        found = ngram_index(self.files, self.ngram).find(page.text)
        return None if found is None else f"shows_{found.rpartition('#')[0]}"


class WriteRecords(_Step):
    """Tokens counted; records written; tokens too, if asked."""

    name = "records"

    def __init__(self, work: Path, out: Path, config: BuildConfig, format: Format, ledger: Ledger) -> None:
        super().__init__(ledger)
        self.work, self.out, self.config, self.format = work, out, config, format

    @tells("write")
    def run(self, data: Pages, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """The end of phase write."""
        from dunwu.data.web.tokens import TokenWriter, counter

        config = self.config
        encode = counter(config.tokenizer) if config.tokenizer else None
        tokens = TokenWriter(self.work / "tokens", rank, config.tokenizer) if config.shards else None
        total = 0
        with RecordWriter(self.out / f"{rank:05d}{SUFFIX[self.format]}", self.format) as writer:
            for page in data:
                with self.track_time():
                    ids = encode(page.text) if encode else None
                    count = None if ids is None else len(ids)
                    total += count or 0
                    if tokens and ids is not None:
                        tokens.add(ids)
                    record = {"text": page.text, "id": page.id, **_public(page), "token_count": count}
                    writer.write({name: record.get(name) for name in FIELDS})
                    if "_before" in page.metadata:
                        before = page.metadata["_before"]
                        self.ledger.show(page.id, {"url": page.metadata["url"] or "", **before, "kept": page.text})
                    self.ledger.keep(page.metadata["language"], len(page.text))
        if tokens:
            tokens.close()
        self.ledger.finish(self.work / "ledgers" / f"write-{rank:05d}.json", tokens=total)


class Finish(PipelineStep):  # type: ignore[misc]
    """Shuffled shards, and all counts in one report."""

    type, name = "dunwu", "finish"

    def __init__(self, out: Path, config: BuildConfig, tasks: int) -> None:
        super().__init__()
        self.out, self.config, self.tasks = out, config, tasks
        self.work = out / ".work"

    @tells("finish")
    def run(self, data: Pages | None = None, rank: int = 0, world_size: int = 1) -> None:
        """Writes report.json, the mark of a finished build."""
        from dunwu.data.web.finish import finish

        finish(self.out, self.config, self.tasks)


def listed(work: Path, config: BuildConfig, phase: str, rank: int) -> Path | None:
    """The file of a task's dropped pages, if they are to be listed."""
    return work.parent / "dropped" / f"{phase}-{rank:05d}{SUFFIX['jsonl']}" if config.list_dropped else None


def _public(page: Document) -> dict[str, Any]:
    return {name: page.metadata.get(name) for name in FIELDS[2:-1]}


_C4 = {"too_few_sentences", "lorem_ipsum", "curly_bracket", "javascript", "policy"}
_FINEWEB = {"line_punct_ratio", "short_line_ratio", "char_dup_ratio", "list_ratio"}


def _rules_of(reason: str) -> str:
    """Whose rule it was.

    Example:
        >>> _rules_of("gopher_short_doc"), _rules_of("top_2_gram"), _rules_of("lorem_ipsum")
        ('gopher_quality', 'gopher_repetition', 'c4')
    """
    if reason.startswith("gopher_"):
        return "gopher_quality"
    return "c4" if reason in _C4 else "fineweb" if reason in _FINEWEB else "gopher_repetition"


@lru_cache(maxsize=1)
def url_filter(blocked: tuple[str, ...]) -> Any:
    from dunwu.data.web.urls import UrlConfig, UrlFilter

    return UrlFilter(UrlConfig(domains=blocked))


@lru_cache(maxsize=1)
def ngram_index(files: tuple[str, ...], ngram: int) -> Any:
    from dunwu.data.web.decontaminate import NgramIndex

    return NgramIndex.build([Path(file) for file in files], ngram)
