"""The rules of `dunwu.data.web.pii_numbers` once more, as slowly and literally as can be: every start, every end, every kind.

No regular expression says what a number looks like; a candidate is cut into groups of digits and what stands between them.
"""

from __future__ import annotations

import re
from itertools import product

from dunwu.data.web.pii_numbers import KINDS

_CODES = "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83"
PROVINCES = _CODES.split()
BETWEEN = {a + b + c for a, b, c in product(("", " ", ".", "-"), ("", "(", ")"), ("", " ", ".", "-"))}
MAESTRO = "5018 5020 5038 5893 6304 6759 6761 6762 6763"
CHINESE_CUES = ("版本", "订单", "运单", "单号", "编号", "型号", "流水", "条码", "货号", "发票")
DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def literal(text: str) -> list[tuple[int, int, str]]:
    """What `find` has to find."""
    wide = {ord(c): str(n) for n, c in enumerate("０１２３４５６７８９")} | {
        0x3000: " ",
        0xA0: " ",
        ord("－"): "-",
        ord("＋"): "+",
    }
    text = text.translate(wide | {ord("（"): "(", ord("）"): ")", ord("Ｘ"): "X", ord("–"): "-", ord("—"): "-"})
    found: list[tuple[int, int, str]] = []
    place = 0
    while place < len(text):
        step = place + 1
        if text[place] in "+(0123456789" and before_allows(text, place):
            for kind in KINDS:
                ends = [e for e in range(place + 8, min(len(text), place + 40) + 1) if text[e - 1] in "0123456789Xx"]
                fits = [e for e in reversed(ends) if after_allows(text, e) and is_one(text, place, e, kind)]
                fits = [
                    e
                    for e in fits
                    if not operand(text, place, e) and not (kind_needs(kind, e - place) and numbered(text, place))
                ]
                if fits:
                    found.append((place, fits[0], kind))
                    step = fits[0]
                    break
        place = step
    return found


def before_allows(text: str, place: int) -> bool:
    one, two = text[place - 1 : place], text[max(0, place - 2) : place]
    if text[place] == "(":
        return not (one and one in "0123456789")
    if one and (one in "#$€£¥￥\\_" or (one.isascii() and one.isalnum())):
        return False
    if len(two) == 2 and two[1] in ".-" and two[0] in "0123456789":
        return False
    if len(two) == 2 and two[1] == "/" and two[0].isascii() and (two[0].isalpha() or two[0] == "_"):
        return False
    if text[place] == "+" and one == ")":
        return False
    words = re.split(r"[^!-~]", text[:place])
    return not any(mark in words[-1] for mark in ("http://", "https://", "www.")) or not words[-1]


def after_allows(text: str, end: int) -> bool:
    rest = text[end : end + 2]
    if rest[:1] and (rest[0] == "_" or (rest[0].isascii() and rest[0].isalnum())):
        return False
    if len(rest) == 2 and rest[0] in ".-" and rest[1] in "0123456789":
        return False
    unit = rest[1:] if rest[:1] == " " else rest[:1]
    return not (unit and unit in "%％‰°元亿")


def operand(text: str, start: int, end: int) -> bool:
    left, right = text[max(0, start - 8) : start], text[end : end + 8]
    tight = left[:-1] if left.endswith(" ") else left
    sign, beyond = tight[-1:], (tight[:-1][:-1] if tight[:-1].endswith(" ") else tight[:-1])[-1:]
    if sign and sign in "=+*×÷^<>" and beyond and beyond in "0123456789)":
        return True
    if sign and sign in "+*×÷^" and beyond.isascii() and beyond.isalpha():
        return True
    if (left.endswith(" - ") and left[-4:-3] and left[-4] in "0123456789)") or left.endswith(("=-", "= -")):
        return True
    if right.startswith(" - ") and right[3:4].isdigit():
        return True
    close = right[1:] if right.startswith(" ") else right
    sign, gap = close[:1], close[1:2] == " "
    beyond = close[2:3] if gap else close[1:2]
    letter = beyond.isascii() and beyond.isalpha()
    if not beyond or not (beyond in "0123456789(" or letter):
        return False
    if sign == "+":
        return not (right.startswith(" +") and not gap)
    return sign in ("=", "*", "×", "÷", "^") or (sign in ("<", ">") and not letter)


def kind_needs(kind: str, size: int) -> bool:
    return not (kind == "id" and size > 15)


def last_words(text: str, start: int) -> str:
    """What stands before, as far as the nearest digit, at most 24 characters."""
    return re.split(r"[0-9\n]", text[max(0, start - 24) : start])[-1].lower()


def cue(text: str, start: int, chinese: str, english: str) -> bool:
    tail = text[max(0, start - 24) : start].lower()
    reach = last_words(text, start)
    for word in chinese.split():
        if tail.rfind(word) >= max(len(tail) - 10 - len(word), len(tail) - len(reach)):
            return True
    for word in english.split():
        for at in range(max(0, len(tail) - 10 - len(word), len(tail) - len(reach)), len(tail)):
            if tail.startswith(word, at) and not (at and tail[at - 1] in "abcdefghijklmnopqrstuvwxyz"):
                return True
    return False


def numbered(text: str, start: int) -> bool:
    english = [
        "order",
        "invoice",
        "isbn",
        "issn",
        "ean",
        "upc",
        "sku",
        "serial",
        "tracking",
        "model",
        "part",
        "ref",
        "reference",
        "version",
    ]
    tail = text[max(0, start - 24) : start].lower()
    heads = [tail[: len(tail) - n] for n in range(4) if n <= len(tail) and not tail[len(tail) - n :].strip(" .:：#")]
    for head in heads:
        for n in range(min(4, len(head) + 1)):
            if not head[len(head) - n :].strip("号码为是") and head[: len(head) - n].endswith(CHINESE_CUES):
                return True
        for word, more in product(
            english, ("", *(gap + what for gap in ("", " ") for what in ("no", "number", "id", "code")))
        ):
            if head.endswith(word + more):
                before = head[: len(head) - len(word + more)][-1:]
                if not (before and before in "abcdefghijklmnopqrstuvwxyz"):
                    return True
    return False


def announced(text: str, start: int) -> bool:
    return cue(text, start, "电话 手机 传真 热线 联系 致电", "tel telephone phone fax call cell mobile")


def groups(written: str) -> tuple[list[int], list[str], str]:
    """Sizes of the groups of digits, what stands between, all digits."""
    sizes, between, digits, gap = [], [], "", ""
    for character in written.upper():
        if character in "0123456789X":
            if gap or not sizes:
                between.append(gap)
                sizes.append(0)
            sizes[-1] += 1
            digits, gap = digits + character, ""
        else:
            gap += character
    return sizes, between, digits


def even(between: list[str], allowed: str = " -") -> bool:
    """Nothing in front, one sign in every gap."""
    return between[0] == "" and len(set(between[1:])) <= 1 and all(gap and gap in allowed for gap in between[1:])


def is_one(text: str, start: int, end: int, kind: str) -> bool:
    written = text[start:end]
    sizes, between, digits = groups(written)
    if "X" in digits and (kind != "id" or "X" in digits[:-1]):
        return False
    if kind == "id":
        return sizes in ([18], [15], [6, 8, 4]) and even(between) and is_identity(digits)
    if kind == "card":
        whole = len(sizes) == 1 and 13 <= sizes[0] <= 19
        fours = sizes[:4] == [4, 4, 4, 4] and (len(sizes) == 4 or (len(sizes) == 5 and sizes[4] <= 3))
        return (whole or fours or sizes in ([6, 13], [4, 6, 5], [4, 6, 4])) and even(between) and is_card(digits)
    if digits.endswith("000000"):
        return False
    if kind == "mobile":
        for prefix in (
            *(f"({plus}86){gap}" for plus in ("", "+", "00") for gap in ("", " ", "-")),
            *(f"{plus}86{gap}" for plus in ("", "+", "00") for gap in ("", " ", "-")),
            "",
        ):
            rest = written[len(prefix) :]
            if written.startswith(prefix) and rest[:1] == "1" and rest[1:2] >= "3":
                sizes, between, _ = groups(rest)
                if sizes in ([11], [3, 4, 4], [4, 3, 4]) and even(between):
                    return True
        return False
    return (
        is_landline(written)
        or is_american(written)
        or is_abroad(text, start, end)
        or (announced(text, start) and is_announced(written))
    )


def is_identity(digits: str) -> bool:
    born = digits[6:14] if len(digits) == 18 else "19" + digits[6:12]
    year, month, day = int(born[:4]), int(born[4:6]), int(born[6:])
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if (
        digits[:2] not in PROVINCES
        or not (1 <= month <= 12 and 1 <= day <= DAYS[month - 1])
        or (month == 2 and day == 29 and not leap)
    ):
        return False
    if len(digits) == 15:
        return "X" not in digits and digits[4:6] != "00" and (1 <= int(digits[2:4]) <= 70 or digits[2:4] == "90")
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return 1900 <= year <= 2099 and "10X98765432"[sum(int(d) * w for d, w in zip(digits, weights)) % 11] == digits[17]


def is_card(digits: str) -> bool:
    size, doubled = len(digits), 0
    for place, digit in enumerate(reversed(digits)):
        doubled += int(digit) if place % 2 == 0 else (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)[int(digit)]
    if doubled % 10:
        return False
    ranges = [
        ("4", "4", (16, 19)),
        ("51", "55", (16,)),
        ("2221", "2720", (16,)),
        ("34", "34", (15,)),
        ("37", "37", (15,)),
        ("300", "305", (14, 16)),
        ("3095", "3095", (14, 16)),
        ("36", "36", (14, 16)),
        ("38", "39", (14, 16)),
        ("62", "62", (16, 17, 18, 19)),
        ("81", "81", (16, 17, 18, 19)),
        ("3528", "3589", (16, 17, 18, 19)),
        ("2200", "2204", (16, 17, 18, 19)),
        ("60", "60", (16, 19)),
        ("65", "65", (16, 19)),
        ("644", "649", (16, 19)),
        ("9558", "9558", (19,)),
    ]
    ranges += [(m, m, tuple(range(13, 20))) for m in MAESTRO.split()]
    return any(first <= digits[: len(first)] <= last and size in sizes for first, last, sizes in ranges)


def local(rest: str) -> bool:
    """A Chinese number within its town, with or without extension."""
    for tail in range(7):
        number, dash, extension = rest, "", ""
        if tail and tail < len(rest):
            number, dash, extension = rest[:-tail], rest[-tail], rest[len(rest) - tail + 1 :]
            if dash != "-" or not (1 <= len(extension) <= 5 and extension.isdigit()):
                continue
        sizes, between, _ = groups(number) if number and number[0].isdigit() else ([], [], "")
        if (
            number[:1] >= "2"
            and (sizes in ([7], [8]) or (sizes in ([3, 4], [4, 4]) and even(between)))
            and number[-1:].isdigit()
        ):
            return True
    return False


def areas(text: str) -> list[str]:
    """The area codes (without 0) that a text may begin with."""
    return [
        text[:size]
        for size in (2, 3)
        if text[:size].isdigit()
        and (
            (size == 2 and (text[0] == "2" or text[:2] == "10"))
            or (size == 3 and len(text[:3]) == 3 and text[0] >= "3")
        )
    ]


def is_landline(written: str) -> bool:
    for prefix in ("", "86 ", "86-"):
        if written.startswith(prefix):
            rest = written[len(prefix) :]
            for area in areas(rest[2:] if rest.startswith("(0") else rest[1:]):
                for shape in (f"(0{area})", f"(0{area}) ", f"(0{area})-", f"0{area} ", f"0{area}-"):
                    if rest.startswith(shape) and local(rest[len(shape) :]):
                        return True
    return written.startswith("86-") and any(
        written.startswith(f"86-{area}-") and local(written[len(area) + 4 :]) for area in areas(written[3:])
    )


def is_american(written: str) -> bool:
    sizes, between, digits = groups(written)
    if sizes[:1] == [1] and digits[0] == "1" and written[0] == "1":
        sizes, digits, lead, between = sizes[1:], digits[1:], between[1], between[1:]
        if lead not in (" ", ".", "-", "(", " (", ".(", "-("):
            return False
        between = [lead[1:] if lead[0] in " .-" else lead, *between[1:]]
    if sizes != [3, 3, 4] or digits[0] < "2" or digits[3] < "2":
        return False
    if between[0] == "(":
        return between[1] in (")", ") ", ").", ")-") and between[2] in (" ", ".", "-")
    return between[0] == "" and between[1] == between[2] and between[1] in ("-", ".")


def is_announced(written: str) -> bool:
    sizes, between, digits = groups(written)
    if written[0] == "1" and set(between[1:]) <= {" "} and between[0] == "" and len(digits) == 11:
        digits, cuts = digits[1:], [1, 4, 7]
    else:
        cuts = [3, 6]
    positions = [sum(sizes[:n]) for n in range(1, len(sizes))]
    cut_well = between[0] == "" and set(between[1:]) <= {" "} and set(positions) <= set(cuts)
    if cut_well and len(digits) == 10 and digits[0] >= "2" and digits[3] >= "2":
        return True
    return written[0] == "0" and any(local(written[1 + len(area) :]) for area in areas(written[1:]))


def is_abroad(text: str, start: int, end: int) -> bool:
    written = text[start:end]
    _, between, digits = groups(written)
    front = between[0] if digits[:2] != "00" or "+" in between[0] else between[0] + "00"
    if front not in ("+", "(+", "00", "(00"):
        return False
    if "00" in front:
        if text[start - 1 : start] == ".":
            return False
        body = written[len(front) :]
        body = body[1:] if body.startswith(" ") else body
    else:
        body = written[len(front) :]
    if not body or not "1" <= body[0] <= "9":
        return False
    _, between, digits = groups(body)
    if (
        any(gap not in BETWEEN for gap in between)
        or not 7 <= len(digits) <= 18
        or written.count("(") != written.count(")")
    ):
        return False
    if "." in written and (written.count(".") == 1 or " " in written or "-" in written):
        return False
    digits = groups(body.replace("(0)", ""))[2]
    codes = "1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86 90 91 92 93 94 95 98"
    known = codes.split() + [str(n) for n in range(210, 1000) if n in THREE]
    code = next((digits[:size] for size in (1, 2, 3) if digits[:size] in known), None)
    if code is None or not 8 <= len(digits) <= 15:
        return False
    if "00" in front and code != "86" and body.replace("(0)", "").isdigit():
        return False
    national = digits[len(code) :]
    if national[0] == "0" and code not in ("39", "225", "240", "241", "242", "378"):
        return False
    if code == "1":
        return len(national) == 10 and national[0] >= "2" and national[3] >= "2"
    if code == "7":
        return len(national) == 10 and national[0] >= "3"
    if code == "86" and national[0] == "1" and national[1] != "0":
        return len(national) == 11 and national[1] >= "3"
    if code == "86":
        area = 2 if national[0] in "12" else 3
        return len(national) - area in (7, 8) and national[area] >= "2"
    return len(national) in ((9, 10) if code == "44" else range(7, 13))


THREE = {
    *(
        211,
        212,
        213,
        216,
        218,
        290,
        291,
        297,
        298,
        299,
        389,
        420,
        421,
        423,
        670,
        850,
        852,
        853,
        855,
        856,
        880,
        886,
        998,
    ),
    *range(220, 259),
    *range(260, 270),
    *range(350, 360),
    *range(370, 379),
    *range(380, 384),
    *range(385, 388),
    *range(500, 510),
    *range(590, 600),
    *range(672, 684),
    *range(685, 693),
    *range(960, 969),
    *range(970, 978),
    *range(992, 997),
}
