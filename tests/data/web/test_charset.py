"""Bytes to text: declared rightly, wrongly, not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunwu.data.web.charset import clean, codec, decode, sanity

TEXTS = {
    "zh-Hans": "北京时间今天上午，国家统计局发布了最新的经济数据。数据显示，今年前三个季度国内生产总值同比增长百分之五点二。",
    "zh-Hant": "臺北市政府今天宣布，將於下個月開始實施新的交通管理辦法。市民可以透過網路查詢相關資訊，並且提出意見。",
    "ja": "東京都は今日、新しい交通ルールを来月から実施すると発表しました。市民はインターネットで情報を確認できます。",
    "ko": "서울시는 오늘 새로운 교통 정책을 다음 달부터 시행한다고 발표했다. 시민들은 인터넷에서 정보를 확인할 수 있다.",
    "fr": "Le gouvernement a annoncé aujourd'hui une nouvelle politique de sécurité routière, d'après le ministère.",
    "de": "Die Bundesregierung hat heute ein neues Gesetz über den Straßenverkehr angekündigt, das später geprüft wird.",
    "ru": "Правительство сегодня объявило о новой политике безопасности на дорогах. Граждане узнают подробности.",
    "en": "It’s “quoted” text — with dashes… and a price of £5 or €6.",
}
CHARSETS = {
    "zh-Hans": ["gbk", "gb18030", "gb2312", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "hz"],
    "zh-Hant": ["big5", "big5hkscs", "gb18030", "utf-8", "utf-16"],
    "ja": ["shift_jis", "cp932", "euc_jp", "iso2022_jp", "utf-8"],
    "ko": ["euc_kr", "cp949", "utf-8"],
    "fr": ["cp1252", "iso8859_15", "utf-8"],
    "de": ["latin-1", "utf-8"],
    "ru": ["cp1251", "koi8_r", "utf-8"],
    "en": ["cp1252", "utf-8"],
}
CASES = [(language, charset) for language, charsets in CHARSETS.items() for charset in charsets]


def page(text: str, charset: str, meta: str | None) -> bytes:
    tag = f'<meta http-equiv="Content-Type" content="text/html; charset={meta}">' if meta else ""
    return f"<html><head>{tag}<title>{text}</title></head>\n<body class='a'><p>{text}</p></body></html>".encode(charset)


@pytest.mark.parametrize("meta", [None, "right", "utf-8", "iso-8859-1"])
@pytest.mark.parametrize("header", [None, "right", "utf-8", "ISO-8859-1", "gb2312", "no-such-charset"])
@pytest.mark.parametrize(("language", "charset"), CASES)
def test_whatever_is_declared_the_text_is_read(
    language: str, charset: str, header: str | None, meta: str | None
) -> None:
    """Short texts too: the title alone, three times its first words."""
    meta, header = (charset if said == "right" else said for said in (meta, header))
    for text in (TEXTS[language], TEXTS[language][:24]):
        raw = page(text, charset, meta)
        assert decode(raw, header)[0] == raw.decode(charset)


@pytest.mark.parametrize(
    ("charset", "text"),
    [("big5hkscs", "啲嘢喺度嘅，佢哋唔知點解"), ("gb18030", "㐀㐁𠀀和常用的汉字在一起的文章，这是一个例子")],
)
def test_characters_beyond_the_declared_charset(charset: str, text: str) -> None:
    """Pages that say Big5 or gb2312 and use the larger sets, as browsers allow."""
    declared = {"big5hkscs": "big5", "gb18030": "gb2312"}[charset]
    assert decode(page(text, charset, declared), declared)[0] == page(text, charset, declared).decode(charset)


def test_a_page_cut_within_a_character_or_with_a_few_bad_bytes() -> None:
    for charset in ("gbk", "utf-8", "big5hkscs"):
        language = "zh-Hant" if charset == "big5hkscs" else "zh-Hans"
        raw = (TEXTS[language] * 5).encode(charset)
        text, _ = decode(raw[:-1])
        assert text.rstrip("\ufffd") == (TEXTS[language] * 5)[:-1]
    text, name = decode(TEXTS["zh-Hans"].encode("gbk") * 5 + b"\xff\xff ad", "utf-8")
    assert name == "gb18030" and text.startswith(TEXTS["zh-Hans"] * 5)


@pytest.mark.parametrize("language", ["fr", "en", "zh-Hans", "ja"])
def test_utf8_written_twice(language: str) -> None:
    """Read as windows-1252 (undefined bytes as they are) and written as UTF-8 again."""
    wrong = "".join(
        bytes((byte,)).decode("cp1252" if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else "latin-1")
        for byte in TEXTS[language].encode()
    )
    assert decode(wrong.encode(), "utf-8") == (TEXTS[language], "utf-8 twice")
    assert decode(TEXTS[language].encode())[1] == "utf-8"


def test_the_shorter_the_text_the_more_its_declaration_counts() -> None:
    """Two characters could be anything."""
    for text, charset in (("联通", "gbk"), ("標題", "big5"), ("漢字", "shift_jis"), ("é", "latin-1")):
        assert decode(text.encode(charset), charset)[0] == text


def test_marks_win_over_declarations() -> None:
    assert decode(b"\xef\xbb\xbf" + "标题".encode(), "gbk") == ("标题", "utf-8")
    assert decode("标题".encode("utf-16"), "gbk") == ("标题", "utf-16-le")
    assert decode("标题".encode("utf-32"), "gbk") == ("标题", "utf-32-le")


@given(
    st.binary(max_size=400),
    st.sampled_from([None, "gbk", "utf-16", "hz", "iso-2022-jp", "utf-7", "zlib", "idna", "\0"]),
)
def test_any_bytes_give_clean_text(raw: bytes, declared: str | None) -> None:
    text, name = decode(raw, declared)
    assert "\0" not in text and name
    text.encode("utf-8")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_utf8_is_never_mistaken(text: str) -> None:
    """Undeclared, without marks and NULs: what was written comes back, or it was double-encoded to begin with."""
    if "\0" in text or "\x1b" in text or "~" in text or text.startswith("\ufeff"):
        return
    found, name = decode(text.encode())
    assert found == text or name == "utf-8 twice"


def test_names_of_the_web() -> None:
    assert [codec(name) for name in ("GB2312", "x-gbk", "Big5", "Shift_JIS", "ISO-8859-1", "windows-1251", "iso-8859-2")] == [
        "gb18030", "gb18030", "big5hkscs", "cp932", "cp1252", "cp1251", "iso8859_2",
    ]  # fmt: skip
    assert [codec(name) for name in ("zlib", "rot13", "idna", "unicode_escape", "utf-7", "", None)] == [None] * 7


def test_sanity_is_about_one_for_text_and_low_for_the_wrong_charset() -> None:
    for language, charset in CASES:
        if charset in ("utf-8", "gbk", "big5", "shift_jis", "euc_kr"):
            wrong = TEXTS[language].encode(charset).decode("latin-1")
            assert sanity(TEXTS[language]) > 0.4 > sanity(wrong) or language in ("fr", "en", "de")


def test_clean() -> None:
    assert clean("a\0b\ud800c\udfffd\U0001f600") == "abcd\U0001f600"
