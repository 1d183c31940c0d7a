"""What a crawl brings along besides pages worth reading: texts that some step of the pipeline should drop, and planted PII.

Every writer is a function (dice, chinese) → text. All of it is made up: hosts are reserved names (RFC 2606), telephone numbers
in English come from ranges kept for fiction, bank cards and identity numbers merely satisfy their checksums.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

UNSAFE_DOMAINS = (
    "win-big-now.example.net",
    "free-prize.example.com",
    "your-bank-login.example.org",
    "miracle-cure.example.net",
    "lucky88.example.com",
    "zhongjiang.example.net",
)
"""Hosts of the unsafe pages: hand them to the URL filter as a list of your own."""

_GOODS = (
    ("cheap watches", "best loans", "fast diet", "free ringtones", "discount shoes", "lucky lottery", "magic cream"),
    ("便宜手表", "快速贷款", "减肥秘方", "免费彩铃", "打折皮鞋", "幸运彩票", "神奇面霜"),
)
_URGES = (
    ("buy {} online", "{} for sale", "cheapest {} here", "order {} now", "{} best price"),
    ("{}网上购买", "{}大促销", "低价{}", "立即订购{}", "{}最低价"),
)


def spam(dice: Random, chinese: bool) -> str:
    """One keyword over and over, as pages made for search engines have it."""
    goods = dice.choice(_GOODS[chinese])
    urges = [urge.format(goods) for urge in dice.sample(_URGES[chinese], 3)]
    gap = "，" if chinese else ", "
    return gap.join(urges[int(dice.random() * 3)] for _ in range(dice.randint(25, 60))) + ("。" if chinese else ".")


def link_farm(dice: Random, chinese: bool) -> str:
    """Names of links, a line each; `crawl` makes links of them."""
    goods = dice.choice(_GOODS[chinese])
    return "\n".join(f"{goods} {dice.choice((goods, 'shop', '24', 'www'))}" for _ in range(dice.randint(20, 50)))


_LATIN = (
    "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
    "Sed do eiusmod tempor incididunt ut labore et dolore magna aliqua.",
    "Ut enim ad minim veniam, quis nostrud exercitation ullamco laboris.",
    "Duis aute irure dolor in reprehenderit in voluptate velit esse cillum.",
    "Excepteur sint occaecat cupidatat non proident, sunt in culpa qui officia.",
    "Curabitur pretium tincidunt lacus, nulla gravida orci a odio.",
    "Nullam varius turpis et commodo pharetra est eros bibendum elit.",
)
_UNDER_CONSTRUCTION = ("This page is being written. Text will follow here.", "本页正在建设中，正文稍后发布。")


def lorem(dice: Random, chinese: bool) -> str:
    """A page its maker never filled."""
    body = [_LATIN[0], *dice.sample(_LATIN[1:], dice.randint(2, 5))]
    return _UNDER_CONSTRUCTION[chinese] + "\n" + " ".join(body)


_NAMES = ("total", "count", "item", "value", "list", "index", "price", "name")


def code(dice: Random, chinese: bool) -> str:
    """Source code that landed on a page."""
    lines = ["函数如下：" if chinese else "Here is the function:"]
    for _ in range(dice.randint(2, 3)):
        one, other, third = dice.sample(_NAMES, 3)
        number = dice.randint(2, 99)
        lines += [f"function get_{one}({other}) {{", f"  for (var {third} = 0; {third} < {number}; {third}++) {{"]
        lines += [f"    {other}.push({third} * {dice.randint(2, 9)});", "  }", f"  return {other};", "}"]
    return "\n".join(lines)


_COOKIES = (
    (
        "This site uses cookies to give you the best experience.",
        "By using this site you agree to our use of cookies.",
        "Read our cookie policy to learn more.",
        "We use cookies and similar techniques to count visitors.",
        "Our privacy policy says what we do with your data.",
        "See the terms of use for details.",
    ),
    (
        "本网站使用cookie以提供最佳体验。",
        "使用本网站即表示您同意我们使用cookie。",
        "请阅读我们的cookie政策以了解更多。",
        "我们使用cookie统计访问人数。",
        "隐私政策说明我们如何处理您的数据。",
        "详情请见使用条款。",
    ),
)


def cookies(dice: Random, chinese: bool) -> str:
    """A page that shows its consent dialogue and nothing else."""
    return "\n".join(dice.sample(_COOKIES[chinese], dice.randint(3, 5)))


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def gibberish(dice: Random, chinese: bool) -> str:
    """Encoded or encrypted text, in words far too long."""
    return "\n".join(
        " ".join("".join(dice.choices(_LETTERS, k=dice.randint(14, 40))) for _ in range(dice.randint(3, 6)))
        for _ in range(dice.randint(3, 8))
    )


_REFRAINS = (
    ("Click here to see the whole answer.", "Please log in to read on.", "Loading, please wait.", "No messages found."),
    ("点击这里查看完整答案。", "请登录后继续阅读。", "正在加载，请稍候。", "没有找到任何消息。"),
)


def repeated(dice: Random, chinese: bool) -> str:
    """One line again and again."""
    one, other = dice.sample(_REFRAINS[chinese], 2)
    every = dice.choice((4, 5, 99))
    return "\n".join(other if place % every == 3 else one for place in range(dice.randint(8, 30)))


_TEASERS = (
    (
        *("Ten sums you will not believe", "What Anna said next", "The secret of seven", "Why the river is late"),
        *("How to win at cards", "Nobody expected this answer", "Our baker tells all", "The strangest garden in town"),
        *(
            "Five words teachers hate",
            "She opened the door and then",
            "A cat learns to count",
            "He never sold the house",
        ),
    ),
    (
        *("你不会相信的十道题", "小红接着说了什么", "七的秘密", "河水为什么迟到", "怎样打牌能赢", "没人想到这个答案"),
        *("面包师全说了", "城里最怪的花园", "老师最讨厌的五个词", "她打开门以后", "一只猫学会了数数", "他始终没卖房子"),
    ),
)


def teasers(dice: Random, chinese: bool) -> str:
    """An index of beginnings, each cut off."""
    return "\n".join(f"{teaser}..." for teaser in dice.sample(_TEASERS[chinese], dice.randint(6, 11)))


_PLACES = ("Lyon", "Nantes", "Hamburg", "Bremen", "Sevilla", "Toledo")
_FOREIGN: dict[str, tuple[str, ...]] = {
    "fr": (
        "Le marché de {place} ouvre tous les matins à {n} heures.",
        "Ma grand-mère achète toujours {n} pommes et un pain.",
        "Hier soir, nous avons marché longtemps au bord de la rivière.",
        "Les enfants de l'école apprennent à compter jusqu'à {n}.",
        "Il fait froid cet hiver, mais la maison reste chaude.",
        "Je préfère lire un livre plutôt que regarder la télévision.",
        "Le train pour {place} part dans {n} minutes.",
    ),
    "de": (
        "Der Markt in {place} öffnet jeden Morgen um {n} Uhr.",
        "Meine Großmutter kauft immer {n} Äpfel und ein Brot.",
        "Gestern Abend sind wir lange am Fluss entlang gegangen.",
        "Die Kinder in der Schule lernen bis {n} zu zählen.",
        "Dieser Winter ist kalt, aber das Haus bleibt warm.",
        "Ich lese lieber ein Buch, als fernzusehen.",
        "Der Zug nach {place} fährt in {n} Minuten ab.",
    ),
    "es": (
        "El mercado de {place} abre todas las mañanas a las {n}.",
        "Mi abuela siempre compra {n} manzanas y un pan.",
        "Anoche caminamos mucho tiempo junto al río.",
        "Los niños de la escuela aprenden a contar hasta {n}.",
        "Este invierno hace frío, pero la casa sigue caliente.",
        "Prefiero leer un libro a ver la televisión.",
        "El tren para {place} sale dentro de {n} minutos.",
    ),
    "ru": (
        "Рынок открывается каждое утро в {n} часов.",
        "Моя бабушка всегда покупает {n} яблок и хлеб.",
        "Вчера вечером мы долго гуляли вдоль реки.",
        "Дети в школе учатся считать до {n}.",
        "Эта зима холодная, но в доме тепло.",
        "Я больше люблю читать книги, чем смотреть телевизор.",
        "Поезд отправляется через {n} минут.",
    ),
    "ja": (
        "市場は毎朝{n}時に開きます。",
        "祖母はいつもりんごを{n}個とパンを買います。",
        "昨日の夜、私たちは川のそばを長い間歩きました。",
        "学校の子供たちは{n}まで数えることを学びます。",
        "今年の冬は寒いですが、家の中は暖かいです。",
        "テレビを見るより本を読むほうが好きです。",
        "電車は{n}分後に出発します。",
    ),
}
LANGUAGES = tuple(_FOREIGN)
"""Languages of the pages in neither English nor Chinese."""


def foreign(dice: Random, language: str) -> str:
    """A few sentences in one of `LANGUAGES`."""
    gap = "" if language == "ja" else " "
    chosen = dice.sample(_FOREIGN[language], dice.randint(3, 6))
    return gap.join(one.format(place=dice.choice(_PLACES), n=dice.randint(3, 40)) for one in chosen)


RUBBISH: dict[str, tuple[str, Callable[[Random, bool], str]]] = {
    "spam": ("quality:repetition", spam),
    "link_farm": ("quality:repetition", link_farm),
    "repeated": ("quality:repetition", repeated),
    "gibberish": ("quality:gopher", gibberish),
    "teasers": ("quality:gopher", teasers),
    "lorem": ("quality:c4", lorem),
    "code": ("quality:c4", code),
    "cookies": ("quality:c4", cookies),
}
"""Kind → the step that should drop it, and its writer."""

_SIMPLIFIED = (
    "业东个丽么乐习书买于云产从们价会伤体关册写农减凑几击刘刚别务动医华单卖厨发号后吗吴咨团园场坏坛处头学宠对师帮开弃"
    "张归录总户护拨换据数无旧时昵术机权条来杨柠样档欢气汇汤没浏温点烦热猪猫现电画码种秘称笔简红结给统继续绿编网职联脚"
    "苹获蓝见览计订议记许论设访证评诉词译试话询该详语说请读谁谈谎谜谢购贷费赖赢赵车转载辆边过运还这迟邮钥铃银链销锁门"
    "问间阅队陈随隐页顿题颜风饮马驱验骑鱼鸟鸡黄为着启里"
)
_TRADITIONAL = (
    "業東個麗麼樂習書買於雲產從們價會傷體關冊寫農減湊幾擊劉剛別務動醫華單賣廚發號後嗎吳諮團園場壞壇處頭學寵對師幫開棄"
    "張歸錄總戶護撥換據數無舊時暱術機權條來楊檸樣檔歡氣匯湯沒瀏溫點煩熱豬貓現電畫碼種祕稱筆簡紅結給統繼續綠編網職聯腳"
    "蘋獲藍見覽計訂議記許論設訪證評訴詞譯試話詢該詳語說請讀誰談謊謎謝購貸費賴贏趙車轉載輛邊過運還這遲郵鑰鈴銀鏈銷鎖門"
    "問間閱隊陳隨隱頁頓題顏風飲馬驅驗騎魚鳥雞黃為著啟裡"
)
TRADITIONAL = str.maketrans(_SIMPLIFIED, _TRADITIONAL)
"""For `str.translate`: the world's characters one by one, whatever the word; every result is in Big5."""

_WRITE = (
    ("Questions? Write to {}.", "Send corrections to {}.", "The author can be reached at {}."),
    ("有问题请写信到{}。", "来信请寄{}。", "作者邮箱：{}。"),
)
_CALL = (
    ("Call {} for help.", "Our telephone: {}.", "Phone {} in the evening."),
    ("联系电话：{}。", "请拨打{}咨询。", "电话{}，晚上也行。"),
)
_ADDRESS = (
    ("Posted from {}.", "Your address {} was logged.", "The server at {} is down."),
    ("发帖人地址：{}。", "来自{}的网友。", "服务器{}已停机。"),
)
_IDENTITY = (("His Chinese ID number is {}.", "ID card: {}."), ("身份证号：{}。", "身份证号码是{}。"))
_CARD = (("Please pay to card {}.", "My card number is {}."), ("请汇款到卡号{}。", "银行卡号：{}。"))
_USERS = ("anna.lee", "tom", "xiaoming99", "li_wei", "sam+sums", "helen-k", "wang.fang", "bob77")
_MAILS = ("mail.example.org", "post.example.net", "school.example.com", "letters.example.org")
_REGIONS = ("110101", "310104", "440305", "510107", "330106", "420111")
_MOBILES = ("130", "135", "138", "139", "150", "158", "177", "186", "189")
_PREFIXES = ("4000", "4532", "5105", "5425", "6217", "6222", "6228")


def pii(dice: Random, chinese: bool) -> tuple[str, str, str]:
    """A sentence with somebody's data, its kind and the exact string.

    Kinds: "email", "ip", "phone", "cn_mobile", "cn_id", "bank_card".

    Example:
        >>> sentence, kind, planted = pii(Random(1), False)
        >>> planted in sentence
        True
    """
    kind = dice.choice(("email", "ip", "phone", "cn_mobile", "cn_id", "bank_card"))
    sentences, make = _PLANTED[kind]
    planted = make(dice)
    return dice.choice(sentences[chinese]).format(planted), kind, planted


def _email(dice: Random) -> str:
    return f"{dice.choice(_USERS)}{dice.randint(1, 999)}@{dice.choice(_MAILS)}"


def _ip(dice: Random) -> str:
    """A public address: those kept for documentation are nobody's, and no filter takes them."""
    return f"{dice.choice((23, 45, 81, 93, 121, 185))}.{dice.randint(1, 250)}.{dice.randint(0, 255)}.{dice.randint(1, 254)}"


def _phone(dice: Random) -> str:
    """555-0100 to 555-0199 and 07700 900000 to 900999 are kept for fiction (NANPA, Ofcom)."""
    area, line = dice.randint(201, 989), dice.randint(100, 199)
    if dice.random() < 0.3:
        return f"+44 7700 900{dice.randint(0, 999):03d}"
    return dice.choice((f"+1 {area}-555-0{line}", f"({area}) 555-0{line}", f"{area}-555-0{line}"))


def _mobile(dice: Random) -> str:
    number = dice.choice(_MOBILES) + f"{dice.randint(0, 99_999_999):08d}"
    spaced = f"{number[:3]} {number[3:7]} {number[7:]}"
    return dice.choice((number, number, spaced, spaced.replace(" ", "-"), f"+86 {number}"))


def _identity(dice: Random) -> str:
    """18 characters, the last by ISO 7064 MOD 11-2 (GB 11643)."""
    born = f"{dice.randint(1950, 2005)}{dice.randint(1, 12):02d}{dice.randint(1, 28):02d}"
    digits = f"{dice.choice(_REGIONS)}{born}{dice.randint(1, 999):03d}"
    total = sum(int(digit) * (1 << (17 - place)) for place, digit in enumerate(digits))
    return digits + "10X98765432"[total % 11]


def _card(dice: Random) -> str:
    """16 digits, the last by Luhn (ISO/IEC 7812)."""
    digits = dice.choice(_PREFIXES) + f"{dice.randint(0, 99_999_999_999):011d}"
    total = sum(sum(divmod(int(digit) * (2 - place % 2), 10)) for place, digit in enumerate(digits))
    number = digits + str(-total % 10)
    groups = [number[start : start + 4] for start in range(0, 16, 4)]
    return dice.choice((number, " ".join(groups), "-".join(groups)))


_PLANTED: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], Callable[[Random], str]]] = {
    "email": (_WRITE, _email),
    "ip": (_ADDRESS, _ip),
    "phone": (_CALL, _phone),
    "cn_mobile": (_CALL, _mobile),
    "cn_id": (_IDENTITY, _identity),
    "bank_card": (_CARD, _card),
}
