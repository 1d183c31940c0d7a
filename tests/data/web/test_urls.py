"""The URL filter beside datatrove's own on made and real addresses, the tricks of phishing, lists that many processes read.

Addresses made of the integrated lists are never shown: a failure names their number only.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dunwu.data.web import url_lists
from dunwu.data.web.urls import UrlConfig, UrlFilter, structural_reason
from dunwu.types import DunwuError

ROOT = Path(__file__).parents[3]
PAGES = ROOT.parent / "shared" / "data" / "pages" / "ground-truth.json"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A DUNWU_HOME whose list of domains is made once."""
    pytest.importorskip("datatrove")
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUNWU_HOME", str(folder))
        yield folder


class SlowAutomaton:
    """What the filter asks of pyahocorasick, which is not among our packages."""

    def __init__(self, words: set[str]) -> None:
        self.words = words

    def iter(self, text: str) -> Iterator[str]:
        return (word for word in self.words if word in text)


def theirs(urls: list[str]) -> list[str | None]:
    """datatrove's URLFilter.filter, with its own word lists, and of its domains those that these addresses could meet."""
    from datatrove.pipeline.filters import url_filter
    from datatrove.utils._import_utils import ASSETS_PATH
    from tldextract import TLDExtract

    extract = TLDExtract(cache_dir=None, suffix_list_urls=())
    hosts = {name for url in urls for name in (extract(url).top_domain_under_public_suffix, extract(url).fqdn)}
    sought = {host.encode("utf-8", "surrogatepass") for host in hosts}
    listed = {
        host.decode()
        for piece in url_lists._member(Path(ASSETS_PATH), "domains")
        for host in sought & set(piece.split())
    }
    one = object.__new__(url_filter.URLFilter)
    one._downloaded, one.soft_word_threshold, one.tldextractor = True, 2, extract
    one.block_listed_domains, one.block_listed_url = listed, set(url_lists._integrated_urls(Path(ASSETS_PATH)))
    for name in ("banned_words", "banned_subwords", "soft_banned_words"):
        setattr(one, name, url_filter.get_list(ASSETS_PATH, f"{name}.txt", set()))
    one.banned_subwords_automaton = SlowAutomaton(one.banned_subwords)
    said: list[str | None] = []
    for url in urls:
        answer: Any = one.filter(SimpleNamespace(metadata={"url": url}))
        said.append(None if answer is True else answer[1])
    return said


def made() -> list[str]:
    """4,000 addresses: real ones, listed domains in several dresses, hosts like them, words of the lists in all places."""
    dice = random.Random(5)
    assets = url_lists._assets()
    words = {
        name: list(url_lists._entries(assets / f"{name}.txt"))
        for name in ("banned_words", "banned_subwords", "soft_banned_words")
    }
    hosts = [host.decode() for host in next(url_lists._member(assets, "domains")).split()[::97]]
    whole = sorted(url_lists._integrated_urls(assets))[::200]
    real = [page["url"] for page in json.loads(PAGES.read_text()).values()] if PAGES.exists() else []
    urls = [*real, *whole, *(f"http://{one}" for one in whole)]
    plain = [
        "example.com",
        "news.example.co.uk",
        "xn--fiqs8s.example.org",
        "localhost",
        "a.b.c.example.net",
        "例子.com",
    ]
    while len(urls) < 4000:
        host = dice.choice(hosts) if dice.random() < 0.3 else dice.choice(plain)
        host = dice.choice(("", "", "www.", "a.b.")) + host + dice.choice(("", "", "", "x", ".", ":8080"))
        word = dice.choice(words[dice.choice(list(words))])
        soft = dice.sample(words["soft_banned_words"], 2)
        cut = dice.randrange(len(word) + 1)
        path = dice.choice(
            (
                "",
                "a/b",
                f"x-{word}-y",
                f"x{word}y",
                word.upper(),
                f"{word[:cut]}-{word[cut:]}",
                "-".join(soft),
                f"{soft[0]}?q={soft[1]}/",
            )
        )
        urls.append(f"{dice.choice(('http', 'https', 'HTTP'))}://{host}/{path}")
    return urls


@pytest.mark.filterwarnings("ignore:The 'registered_domain'")
def test_the_same_addresses_for_the_same_reasons_as_datatrove(home: Path) -> None:
    urls = made()
    ours = UrlFilter(UrlConfig(structure=False))
    said = [ours.reason(url) for url in urls]
    expected = theirs(urls)
    assert [place for place in range(len(urls)) if said[place] != expected[place]] == []
    counts = Counter(expected)
    reasons = {"domain", "subdomain", "url", "hard_blacklisted", "soft_blacklisted", "blacklisted_subword", None}
    assert set(counts) == reasons and min(counts.values()) >= 5, counts


def test_the_whole_list_of_domains_is_there(home: Path) -> None:
    lists = url_lists.UrlLists(dict.fromkeys(("domains", "urls", "words", "subwords", "soft"), ()), True)
    for number, piece in enumerate(url_lists._member(url_lists._assets(), "domains")):
        assert all(lists.has_domain(host.decode()) for host in piece.split()[::5000]), number
        assert not any(lists.has_domain(host.decode() + "q.zz") for host in piece.split()[::5000]), number
    assert len(list((home / "lists").glob("*.u64"))) == 1


def test_a_filter_travels_without_its_lists(home: Path) -> None:
    one = UrlFilter()
    assert one.reason("https://www.example.co.uk/") is None
    sent = pickle.dumps(one)
    assert len(sent) < 1000 and pickle.loads(sent).reason("http://10.0.0.1/") == "url_ip_host"  # noqa: S301 - ours


def test_nothing_is_fetched(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from dunwu.data.web import urls

    urls._suffixes.cache_clear()
    assert UrlFilter().reason("https://www.example.co.uk/page.html") is None


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://medium.com/@writer/story?to=a@b.com#@", None),
        ("http://www.example.com:8080/x", None),
        ("https://example.com./", None),
        ("https://xn--fiqs8s.com/", None),  # 中国.com
        ("https://例子.com/路径", None),
        ("https://xn--e1afmkfd.xn--p1ai/", None),  # пример.рф
        ("https://банк.com/", None),
        ("https://büro-münchen.de/", None),
        ("http://localhost/", None),
        ("http://user:word@example.com/", "url_userinfo"),
        ("https://my-bank.com@203.0.113.9/login", "url_userinfo"),
        ("http://203.0.113.9/", "url_ip_host"),
        ("http://3405803785/", "url_ip_host"),
        ("http://0xcb007109:80/", "url_ip_host"),
        ("http://0313.0.0x71.9", "url_ip_host"),
        ("http://[2001:db8::1]/", "url_ip_host"),
        ("https://xn--80ak6aa92e.com/", "url_lookalike"),  # аррӏе in Cyrillic
        ("https://pаypal.com/", "url_lookalike"),  # a Cyrillic а among Latin letters
        ("https://login.gοogle.example.com/", "url_lookalike"),  # a Greek ο
        ("https://xn--999999999/", None),
        ("https://xn--\u00e9.com/", "url_malformed"),
        ("http://" + "a." * 130 + "com/", "url_long_host"),
        ("http://" + "a" * 64 + ".com/", "url_long_host"),
        ("javascript:alert(1)", "url_scheme"),
        ("data:text/html,<p>hi", "url_scheme"),
        ("ftp://example.com/", "url_scheme"),
        ("FILE:///etc/hosts", "url_scheme"),
        ("HTTPS://EXAMPLE.COM/", None),
        ("example.com/page", "url_malformed"),
        ("http://", "url_malformed"),
        ("http:///x", "url_malformed"),
        ("http://a..b.com/", "url_malformed"),
        ("http://good.com\\@evil.com/", "url_malformed"),
        ("http://good.com\t.evil.com/", "url_malformed"),
        ("http://example.com:99x/", "url_malformed"),
        ("nonsense", "url_malformed"),
    ],
)
def test_structure(url: str, reason: str | None) -> None:
    if url == "https://xn--999999999/":  # punycode of something or nothing, never an exception
        assert structural_reason(url) in (None, "url_malformed")
    else:
        assert structural_reason(url) == reason


def test_no_address_raises_or_lingers() -> None:
    alone = UrlFilter(UrlConfig(integrated=False))
    dice = random.Random(2)
    for _ in range(3000):
        alone.reason("".join(dice.choices("ht:/@.[]%\\ a1-\x00\ud800中xn", k=dice.randrange(30))))
        structural_reason("http://" + "".join(dice.choices(":@.[]%\\ a1-\x00\ud800中xn", k=dice.randrange(30))))
    for text in ("a." * 200_000, "xn--" * 200_000, "@" * 200_000, "-" * 200_000):
        assert alone.reason(f"http://{text}com/{text}") is not None
    assert alone.reason("") is None


def test_lists_of_ones_own(tmp_path: Path) -> None:
    files = {
        "domains": "# mine\nExample.com\n\nforum.other.org\nintranet.local\n",
        "urls": "https://fine.org/but-not-this\n",
        "words": "gamble\n",
        "subwords": "cas-ino\nxyz\n",
        "soft": "bonus\nfree\nprize\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
    own = UrlFilter(UrlConfig(integrated=False, **{name: (str(tmp_path / name),) for name in files}))
    table = {
        "https://EXAMPLE.com/": "domain",
        "https://www.example.com/": "domain",
        "https://example.community/": None,
        "https://forum.other.org/": "subdomain",
        "https://other.org/": None,
        "https://intranet.local/": "subdomain",
        "https://fine.org/but-not-this": "url",
        "https://fine.org/but-not-this?": None,
        "https://fine.org/gamble.html": "hard_blacklisted",
        "https://fine.org/gambler": None,
        "https://fine.org/the-ca/sino": "blacklisted_subword",
        "https://fine.org/bonus": None,
        "https://fine.org/bonus-free": "soft_blacklisted",
    }
    assert {url: own.reason(url) for url in table} == table


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DunwuError, match="nowhere"):
        UrlFilter(UrlConfig(integrated=False, domains=(str(tmp_path / "nowhere"),))).reason("https://example.com/")
    (tmp_path / "latin").write_bytes(b"caf\xe9.com\n")
    with pytest.raises(DunwuError, match="latin"):
        UrlFilter(UrlConfig(integrated=False, domains=(str(tmp_path / "latin"),))).reason("https://example.com/")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A package named datatrove that has nothing but small lists."""
    assets = tmp_path / "datatrove" / "assets"
    assets.mkdir(parents=True)
    (tmp_path / "datatrove" / "__init__.py").touch()
    for name in ("banned_words", "banned_subwords", "soft_banned_words"):
        (assets / f"{name}.txt").write_text("zzzz\n")
    (tmp_path / "domains").write_text("".join(f"bad{n}.com\n" for n in range(50_000)))
    (tmp_path / "urls").write_text("bad.org/page\n")
    with tarfile.open(assets / url_lists._ARCHIVE, "w:gz") as archive:
        for name in ("urls", "domains"):
            archive.add(tmp_path / name, arcname=name)
    return tmp_path


def test_processes_that_start_together_make_one_list(toy: Path) -> None:
    """datatrove's issue 140: twenty workers unpacked the archive over each other."""
    code = "from dunwu.data.web.urls import *; f = UrlFilter(); print(f.reason('http://www.bad49999.com/'), f.reason('http://bad50000.com/'))"
    env = {**os.environ, "PYTHONPATH": f"{toy}{os.pathsep}{ROOT}", "DUNWU_HOME": str(toy / "home")}
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=env, cwd=toy, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in started] == ["domain None"] * 4
    assert sorted(path.suffix for path in (toy / "home" / "lists").iterdir()) == [".lock", ".u64"]


def test_a_damaged_list_is_made_again(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUNWU_HOME", str(toy / "home"))
    monkeypatch.setattr(url_lists, "_assets", lambda: toy / "datatrove" / "assets")
    assert UrlFilter().reason("http://bad7.com/") == "domain" and capsys.readouterr().err == ""
    (path,) = (toy / "home" / "lists").glob("*.u64")
    whole = path.read_bytes()
    for damaged in (whole[:-8], whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:], b"", whole[:-3]):
        path.unlink()
        path.write_bytes(damaged)
        assert UrlFilter().reason("http://bad7.com/") == "domain"
        assert "damaged" in capsys.readouterr().err and path.read_bytes() == whole
