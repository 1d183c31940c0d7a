"""Personal numbers in a text: telephones, Chinese mobile and identity numbers, bank cards.

A number counts only in a form people write it in, where nothing around it makes it part of something else, and where its
digits keep the rules of its kind (check digit, valid date, known prefix, country code). Precision comes first: bare runs of
ten digits, "200 300 4000", ISBNs, decimals, hex, dates, what stands in an address of the web, after a currency sign, beside
an operator or after "order no." stay as they are. Not covered: passports, plates, names, numbers without a form of their own.

Sources: GB 11643-1999 (identity number; check digit of ISO 7064 MOD 11-2), ISO/IEC 7812 (cards; Luhn), ITU-T E.164 (country
codes, at most 15 digits), the North American Numbering Plan, China's numbering plan of the MIIT.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

KINDS = ("id", "card", "mobile", "phone")
"""In the order in which they are tried at one place."""
LONGEST = 40
"""Characters of the longest form of a number, signs and spaces included."""

_LIKELY = re.compile(r"[0-9](?:[ ().\-]{0,3}[0-9]){7}")
_WIDE = re.compile("[\u00a0\u2010-\u2015\u2212\u3000\uff08\uff09\uff0b\uff0d\uff10-\uff19\uff38\uff58]")
_NARROW = {
    0xA0: " ",
    0x3000: " ",
    0x2212: "-",
    0xFF0D: "-",
    0xFF08: "(",
    0xFF09: ")",
    0xFF0B: "+",
    0xFF38: "X",
    0xFF58: "x",
}
_NARROW |= dict.fromkeys(range(0x2010, 0x2016), "-") | {0xFF10 + digit: str(digit) for digit in range(10)}
_ADDRESS = re.compile(r"(?:https?://|ftp://|www\.)[!-~]+")

# What may not stand before a number, the candidate's first character being consumed already (the dot at the end).
_START = re.compile(
    r"[+(0-9](?:(?<=\()(?<![0-9].)|(?<!\()(?<![0-9A-Za-z_#$€£¥￥\\].)(?<![0-9][.\-].)(?<![A-Za-z_]/.)(?<!\)\+))"
    r"(?=(?:[ ().+\-]{0,3}[0-9]){7})"
)
_END = r"(?![0-9A-Za-z_])(?![.\-][0-9])(?![ ]?[%％‰°元亿])"


def _forms(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern + _END) for pattern in patterns)


_ID = _forms("(?:[1-9][0-9]{16}[0-9Xx])", r"[1-9][0-9]{5}([ \-])[0-9]{8}\1[0-9]{3}[0-9Xx]", "[1-9][0-9]{14}")
_CARD = _forms(
    "[0-9]{13,19}",
    r"[0-9]{4}([ \-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}\1[0-9]{1,3}",
    r"[0-9]{6}[ \-][0-9]{13}",
    r"[0-9]{4}([ \-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}",
    r"[0-9]{4}([ \-])[0-9]{6}\1[0-9]{4,5}",
)
_MOBILE = _forms(
    r"(?:\((?:\+|00)?86\)[ \-]?|(?:\+|00)?86[ \-]?)?"
    r"1[3-9](?:[0-9]{9}|[0-9]([ \-])[0-9]{4}\1[0-9]{4}|[0-9]{2}([ \-])[0-9]{3}\2[0-9]{4})"
)
_LOCAL = r"(?:[2-9][0-9]{6,7}|[2-9][0-9]{2,3}[ \-][0-9]{4})(?:-[0-9]{1,5})?"
_LANDLINE = _forms(
    rf"(?:86[ \-])?(?:\(0(?:10|2[0-9]|[3-9][0-9]{{2}})\)[ \-]?|0(?:10|2[0-9]|[3-9][0-9]{{2}})[ \-]){_LOCAL}",
    rf"86-(?:10|2[0-9]|[3-9][0-9]{{2}})-{_LOCAL}",
)
_AMERICAN = _forms(
    r"(?:1[ .\-]?)?\([2-9][0-9]{2}\)[ .\-]?[2-9][0-9]{2}[ .\-][0-9]{4}",
    r"(?:1[ .\-])?[2-9][0-9]{2}([.\-])[2-9][0-9]{2}\1[0-9]{4}",
)
_ANNOUNCED_AMERICAN = _forms(r"(?:1[ ]?)?[2-9][0-9]{2}[ ]?[2-9][0-9]{2}[ ]?[0-9]{4}")
_ANNOUNCED_LANDLINE = _forms(rf"0(?:10|2[0-9]|[3-9][0-9]{{2}}){_LOCAL}")
_ABROAD = re.compile(r"\(?(?:\+|(?<!\.)00 ?)[1-9](?:[ .\-]?[()]?[ .\-]?[0-9]){6,17}")
_BOUNDARY = re.compile(_END)
_DIGITS = re.compile("[0-9]+")

_ANNOUNCES = re.compile(
    r"(?:电话|手机|传真|热线|联系|致电|(?<![a-z])(?:tel|telephone|phone|fax|call|cell|mobile))[^0-9\n]{0,10}$",
    re.IGNORECASE,
)
_OTHERWISE = re.compile(
    r"(?:(?:版本|订单|运单|单号|编号|型号|流水|条码|货号|发票)[号码为是]{0,3}|(?<![a-z])(?:order|invoice|isbn|issn|ean|upc|sku"
    r"|serial|tracking|model|part|ref|reference|version)(?: ?(?:no|number|id|code))?)[ .:：#]{0,3}$",
    re.IGNORECASE,
)
_OPERATOR_BEFORE = re.compile(r"(?:[0-9)] ?[=+*×÷^<>] ?|[a-z] ?[+*×÷^] ?|[0-9)] - |= ?-)$", re.IGNORECASE)
_OPERATOR_AFTER = re.compile(
    r" - [0-9]| ?(?:[=*×÷^] ?[0-9(a-z]|[<>] ?[0-9(]|\+ ?[0-9(a-z](?<! \+[0-9(a-z]))", re.IGNORECASE
)


def _expand(ranges: str) -> frozenset[str]:
    """ "7 30-32" → 7, 30, 31, 32, as text."""
    ends = [part.partition("-") for part in ranges.split()]
    return frozenset(str(n) for first, _, last in ends for n in range(int(first), int(last or first) + 1))


_PROVINCES = _expand("11-15 21-23 31-37 41-46 50-54 61-65 71 81-83")
_COUNTRIES = _expand(
    "1 7 20 27 30-34 36 39-41 43-49 51-58 60-66 81-82 84 86 90-95 98 211-213 216 218 220-258 260-269 290-291 297-299 350-359 "
    "370-378 380-383 385-387 389 420-421 423 500-509 590-599 670 672-683 685-692 850 852-853 855-856 880 886 960-968 970-977 "
    "992-996 998"
)
_LEADING_ZERO = frozenset({"39", "225", "240", "241", "242", "378"})
"""Countries whose national numbers may begin with 0."""


class Number(NamedTuple):
    """A number found: `text[start:end]` is of `kind`."""

    start: int
    end: int
    kind: str


def find(text: str, kinds: Collection[str] = KINDS) -> list[Number]:
    """Every personal number of the wanted kinds, from the left, none inside another; time is linear in the text.

    At each place kinds are tried in the order of `KINDS`, longer forms first. Full-width digits and signs count as plain ones.

    Example:
        >>> text = "电话13812345678联系，或 (010) 6234-5678"
        >>> [(text[n.start : n.end], n.kind) for n in find(text)]
        [('13812345678', 'mobile'), ('(010) 6234-5678', 'phone')]
    """
    if not text.isascii() and _WIDE.search(text):
        text = text.translate(_NARROW)
    if not _LIKELY.search(text):
        return []
    found: list[Number] = []
    free = 0
    addresses = _addresses(text)
    address = next(addresses, None)
    for match in _START.finditer(text):
        start = match.start()
        while address and address[1] <= start:
            address = next(addresses, None)
        if start < free or (address and address[0] <= start):
            continue
        for kind in KINDS:
            if kind in kinds and (end := _end(text, start, kind)):
                found.append(Number(start, end, kind))
                free = end
                break
    return found


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    if "://" in text or "www." in text:
        yield from (match.span() for match in _ADDRESS.finditer(text))


def _end(text: str, start: int, kind: str) -> int:
    """Where a number of `kind` that starts here ends; 0 if there is none."""
    end = _written(text, start, kind, _RULES[kind])
    if kind != "phone" or end:
        return end
    if match := _ABROAD.match(text, start):  # groups are free: the longest that makes a number
        for end in [start + digits.end() for digits in _DIGITS.finditer(match.group())][::-1]:
            if _BOUNDARY.match(text, end) and abroad(text[start:end]) and not _elsewhere(text, start, end, kind):
                return end
    announced = _ANNOUNCES.search(text[max(0, start - 24) : start])
    return _written(text, start, kind, _ANNOUNCED) if announced else 0


def _written(text: str, start: int, kind: str, rules: _Rules) -> int:
    for forms, holds in rules:
        for form in forms:
            match = form.match(text, start)
            fits = match and holds(re.sub("[^0-9X]", "", match.group().upper()))
            if match and fits and not _elsewhere(text, start, match.end(), kind):
                return match.end()
    return 0


def _elsewhere(text: str, start: int, end: int, kind: str) -> bool:
    """Whether what stands around makes it an operand, an order number, or the like."""
    before = text[max(0, start - 24) : start]
    if _OPERATOR_BEFORE.search(before) or _OPERATOR_AFTER.match(text, end):
        return True
    return not (kind == "id" and end - start > 15) and bool(_OTHERWISE.search(before))


def identity_number(digits: str) -> bool:
    """A Chinese identity number: 18 digits with check digit (the last may be X), or the 15 in use until 1999.

    Example:
        >>> identity_number("11010519491231002X"), identity_number("110105194912310021")
        (True, False)
    """
    if digits[:2] not in _PROVINCES:
        return False
    if len(digits) == 15:  # without check digit: all the more is asked of the rest
        return (
            _date("19" + digits[6:12]) and ("01" <= digits[2:4] <= "70" or digits[2:4] == "90") and digits[4:6] != "00"
        )
    remainder = sum(int(digit) * (1 << (17 - place)) for place, digit in enumerate(digits[:17])) % 11
    return "1900" <= digits[6:10] <= "2099" and _date(digits[6:14]) and digits[17] == "10X98765432"[remainder]


def _date(digits: str) -> bool:
    try:
        datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:8]))
    except ValueError:
        return False
    return True


def bank_card(digits: str) -> bool:
    """A card of a known issuer: prefix, length and Luhn's check digit.

    Visa's old form of 13 digits is left out: German and Japanese articles have such numbers (EAN) on every page of a shop.

    Example:
        >>> bank_card("4111111111111111"), bank_card("4111111111111112"), bank_card("9111111111111111")
        (True, False, False)
    """
    return _issued(digits) and luhn(digits)


def _issued(digits: str) -> bool:
    size, four = len(digits), int(digits[:4])
    two, three = four // 100, four // 10
    if digits[0] == "4":  # Visa
        return size in (16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:  # Mastercard
        return size == 16
    if two in (34, 37):  # American Express
        return size == 15
    if 300 <= three <= 305 or four == 3095 or two in (36, 38, 39):  # Diners Club
        return size in (14, 16)
    if two in (62, 81) or four in range(3528, 3590) or four in range(2200, 2205):  # UnionPay, JCB, Mir
        return 16 <= size <= 19
    if two in (60, 65) or 644 <= three <= 649:  # Discover, RuPay
        return size in (16, 19)
    if four == 9558:  # ICBC, before UnionPay
        return size == 19
    return four in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763) and 13 <= size <= 19  # Maestro


def luhn(digits: str) -> bool:
    """Luhn's check: the digits' sum, every second from the right doubled, ends in 0."""
    total = sum(int(digit) for digit in digits[-1::-2])
    return (total + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])) % 10 == 0


def _not_round(digits: str) -> bool:
    """A number that ends in six zeros is a quantity."""
    return not digits.endswith("000000")


def north_american(digits: str) -> bool:
    """Ten digits of the North American plan, after a 1 or not: area code and office begin with 2 to 9."""
    return len(digits) in (10, 11) and min(digits[-10], digits[-7]) >= "2" and _not_round(digits)


def abroad(written: str) -> bool:
    """A number with "+" or "00" and a country code, 8 to 15 digits, in the lengths that countries have.

    Example:
        >>> abroad("+44 20 7946 0958"), abroad("+49.12345678"), abroad("+10 000 000")
        (True, False, False)
    """
    if written.count("(") != written.count(")"):
        return False
    if "." in written and (written.count(".") == 1 or " " in written or "-" in written):
        return False  # decimals
    plus = "+" in written
    body = written.replace("(0)", "").lstrip("(+ ") if plus else written.replace("(0)", "").lstrip("(")[2:].lstrip()
    digits = "".join(_DIGITS.findall(body))
    code = next((digits[:size] for size in (1, 2, 3) if digits[:size] in _COUNTRIES), None)
    if code is None or not 8 <= len(digits) <= 15 or not _not_round(digits):
        return False
    if not plus and code != "86" and body.isdigit():
        return False  # a run with leading zeros
    national = digits[len(code) :]
    if national[0] == "0" and code not in _LEADING_ZERO:
        return False
    if code == "1":
        return len(national) == 10 and north_american(national)
    if code == "7":
        return len(national) == 10 and national[0] in "3456789"
    if code == "86":
        if national[0] == "1" and national[1] != "0":
            return len(national) == 11 and national[1] in "3456789"
        area = 2 if national[0] in "12" else 3
        return 7 <= len(national) - area <= 8 and national[area] in "23456789"
    return 9 <= len(national) <= 10 if code == "44" else 7 <= len(national) <= 12


_Rules = tuple[tuple[tuple[re.Pattern[str], ...], Callable[[str], bool]], ...]
_RULES: dict[str, _Rules] = {
    "id": ((_ID, identity_number),),
    "card": ((_CARD, bank_card),),
    "mobile": ((_MOBILE, _not_round),),
    "phone": ((_LANDLINE, _not_round), (_AMERICAN, north_american)),
}
_ANNOUNCED: _Rules = ((_ANNOUNCED_AMERICAN, north_american), (_ANNOUNCED_LANDLINE, _not_round))
