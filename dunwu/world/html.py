"""The sites of the generated web: how a text becomes an HTML page with menus, bars, boxes, scripts and styles around it.

Ten made-up sites in each language, in five layouts from table to HTML5. The boilerplate is what a main-content extractor is there to
remove, and the markup of a text is such that the text can be had back exactly: its lines, blank lines and runs of spaces.
Not covered: pages that need scripts to show their text, frames, markup errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from urllib.parse import quote


@dataclass(frozen=True)
class Site:
    """A made-up site; its name is reserved (RFC 2606), so it is nobody's."""

    host: str
    name: str
    layout: str
    chinese: bool


_LAYOUTS = ("article", "blog", "table", "forum", "wiki")
_ENGLISH_NAMES = (
    ("sumclub.example.org", "Sum Club"),
    ("numberblog.example.com", "The Number Blog"),
    ("oldpage.example.net", "Anna's Old Page"),
    ("askhere.example.com", "Ask Here"),
    ("openfacts.example.org", "Open Facts"),
    ("dailylearner.example.com", "Daily Learner"),
    ("notes.example.net", "Notes and Queries"),
    ("village.example.org", "Village School"),
    ("puzzlers.example.net", "Puzzlers' Board"),
    ("handbook.example.com", "The Handbook"),
)
_CHINESE_NAMES = (
    ("suanshu.example.org", "算术俱乐部"),
    ("shuzi.example.com", "数字笔记"),
    ("laoye.example.net", "老网页"),
    ("wenda.example.com", "问答网"),
    ("baike.example.org", "小百科"),
    ("xuexi.example.com", "每日学习"),
    ("suibi.example.net", "随笔"),
    ("xuexiao.example.org", "村小学"),
    ("mitijun.example.net", "谜题论坛"),
    ("shouce.example.com", "手册"),
)
SITES: dict[bool, tuple[Site, ...]] = {
    chinese: tuple(Site(host, name, _LAYOUTS[n % 5], chinese) for n, (host, name) in enumerate(names))
    for chinese, names in ((False, _ENGLISH_NAMES), (True, _CHINESE_NAMES))
}
"""The good sites, by whether they are Chinese."""

_WORDS: dict[bool, dict[str, str]] = {
    False: {
        "lang": "en",
        "skip": "Skip to content",
        "home": "Home",
        "archive": "Archive",
        "about": "About us",
        "contact": "Contact",
        "popular": "Popular pages",
        "cookies": "We use cookies to make this site better. By going on you accept our cookie policy.",
        "accept": "Accept",
        "rights": "All rights reserved.",
        "privacy": "Privacy policy",
        "terms": "Terms of use",
        "reply": "Leave a reply",
        "name": "Your name",
        "post": "Post comment",
        "search": "Search",
        "previous": "Previous",
        "next": "Next",
        "best": "Best viewed at 800x600. You are visitor number",
        "posts": "Posts",
        "joined": "Joined",
        "powered": "Powered by a small board",
        "tools": "Tools",
        "links": "What links here",
        "changed": "This page was last changed on",
        "script": "This site works better with JavaScript.",
    },
    True: {
        "lang": "zh",
        "skip": "跳到正文",
        "home": "首页",
        "archive": "归档",
        "about": "关于我们",
        "contact": "联系方式",
        "popular": "热门文章",
        "cookies": "本站使用 Cookie 改善体验。继续浏览即表示同意。",
        "accept": "同意",
        "rights": "版权所有",
        "privacy": "隐私政策",
        "terms": "使用条款",
        "reply": "发表评论",
        "name": "昵称",
        "post": "提交",
        "search": "搜索",
        "previous": "上一篇",
        "next": "下一篇",
        "best": "建议使用800x600分辨率浏览。您是第几位访客：",
        "posts": "帖子",
        "joined": "注册时间",
        "powered": "由小论坛程序驱动",
        "tools": "工具",
        "links": "链入页面",
        "changed": "本页最后修改于",
        "script": "请启用脚本以获得更好的体验。",
    },
}
_TOPICS: dict[bool, tuple[str, ...]] = {
    False: ("Sums", "Puzzles", "People", "Cities", "Words", "Stories", "Questions", "School"),
    True: ("算术", "谜题", "人物", "城市", "词语", "故事", "问答", "学校"),
}
_RELATED: dict[bool, tuple[str, ...]] = {
    False: (
        "How I learned to add",
        "Ten easy puzzles",
        "What to read this winter",
        "A walk by the river",
        "Numbers in the kitchen",
        "Why seven is lucky",
        "Our school garden",
        "Letters from readers",
    ),
    True: (
        "我怎么学会加法",
        "十个简单谜题",
        "冬天读什么书",
        "河边散步",
        "厨房里的数字",
        "七为什么吉利",
        "学校的花园",
        "读者来信",
    ),
}

_HEAD = """<head>
$meta<title>$title - $site</title>
<link rel="canonical" href="$url">
<link rel="stylesheet" href="/static/site.css">
"""
_ARTICLE = f"""<!DOCTYPE html>
<html lang="$lang">
{_HEAD}<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.6 sans-serif;margin:0}}nav li{{display:inline}}.cookie-banner{{position:fixed;bottom:0}}</style>
<script>window.layer=window.layer||[];function track(){{layer.push(arguments)}}track("page",new Date());</script>
</head>
<body>
<a class="skip-link" href="#main">$skip</a>
<header class="site-header"><h1>$site</h1></header>
<nav><ul>
<li><a href="/">$home</a></li>
<li><a href="/archive">$archive</a></li>
<li><a href="/about">$about</a></li>
</ul></nav>
<nav class="breadcrumb"><ol><li><a href="/">$home</a></li><li>$topic</li></ol></nav>
<main id="main"><article>$body
</article></main>
<aside class="sidebar"><h3>$popular</h3><ul>
<li><a href="/p/1">$first</a></li>
<li><a href="/p/2">$second</a></li>
</ul></aside>
<div class="cookie-banner"><p>$cookies</p><button>$accept</button></div>
<footer><p>&copy; $year $site. $rights <a href="/privacy">$privacy</a> <a href="/terms">$terms</a></p></footer>
<noscript>$script</noscript>
<script src="/static/app.js" defer></script>
</body>
</html>
"""
_BLOG = f"""<!DOCTYPE html>
<html lang="$lang">
{_HEAD}<style type="text/css">#content{{width:640px}} .sidebar{{float:right}}</style>
</head>
<body class="single">
<div id="header" class="site-header"><div class="logo"><a href="/">$site</a></div></div>
<div id="menu"><a href="/">$home</a> | <a href="/archive">$archive</a> | <a href="/contact">$contact</a></div>
<form class="search" role="search" action="/search"><input name="q" placeholder="$search"></form>
<div id="content">
<div class="breadcrumbs"><a href="/">$home</a> &raquo; $topic</div>
<div class="post" id="post-$number"><div class="entry-content">$body
</div></div>
<div class="related-posts"><h3>$popular</h3><ul><li><a href="/p/3">$first</a></li><li><a href="/p/4">$second</a></li></ul></div>
<form class="comment-form" action="/comment" method="post"><label>$reply</label><input name="author" placeholder="$name">
<textarea name="comment"></textarea><button type="submit">$post</button></form>
</div>
<div class="sidebar"><h3>$popular</h3><ul><li><a href="/p/5">$third</a></li></ul></div>
<div id="footer"><p>&copy; $year $site. $rights</p></div>
<div id="cookie-consent">$cookies <a href="/privacy">$privacy</a></div>
<script>var post=$number;if(post<9){{document.title="new"}}</script>
</body>
</html>
"""
_TABLE = f"""<HTML>
{_HEAD}</head>
<body bgcolor="#FFFFEE" text="#000000">
<table width="760" border="0" cellspacing="0" cellpadding="4">
<tr><td colspan="2" class="banner" bgcolor="#003366"><font size="5" color="white">$site</font></td></tr>
<tr><td width="150" valign="top" id="menu"><a href="/index.htm">$home</a><br><a href="/links.htm">$archive</a><br>
<a href="/mail.htm">$contact</a></td>
<td valign="top">$body
</td></tr>
<tr><td colspan="2" class="footer"><small>&copy; $year $site. $best $number</small></td></tr>
</table>
<script language="JavaScript"><!--
function warm(){{for(var i=0;i<3;i++){{self.status="$site"}}}}
//--></script>
</body>
</HTML>
"""
_FORUM = f"""<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" lang="$lang">
{_HEAD}<style>.thread td{{border:1px solid #ccc}}.postbody{{width:80%}}</style>
</head>
<body>
<div id="header" class="site-header"><a href="/">$site</a></div>
<ul class="menu"><li><a href="/login">$name</a></li><li><a href="/search">$search</a></li></ul>
<div class="breadcrumbs"><a href="/">$home</a> &raquo; <a href="/f/1">$topic</a></div>
<table class="thread" width="100%"><tr>
<td class="sidebar">user$number<br />$posts: 12<br />$joined: $year</td>
<td class="postbody">$body
</td></tr></table>
<div class="pagination"><a href="?p=1">$previous</a> 1 <a href="?p=2">$next</a></div>
<form class="comment-form" action="/post"><textarea rows="4" cols="60" name="text"></textarea><button>$reply</button></form>
<div id="footer">$powered. <a href="/terms">$terms</a></div>
</body>
</html>
"""
_WIKI = f"""<!DOCTYPE html>
<html lang="$lang" dir="ltr">
{_HEAD}<script async src="/load.js?modules=startup"></script>
</head>
<body class="page ns-0">
<div id="sidebar" class="sidebar"><div class="logo"><a href="/">$site</a></div><h3>$tools</h3><ul>
<li><a href="/links">$links</a></li><li><a href="/new">$next</a></li></ul></div>
<div id="content" role="main">
<!-- text begins -->$body
<!-- text ends -->
</div>
<div id="footer" role="contentinfo"><ul><li>$changed $date</li><li><a href="/about">$about</a></li>
<li><a href="/privacy">$privacy</a></li></ul></div>
</body>
</html>
"""
_SKELETONS = {"article": _ARTICLE, "blog": _BLOG, "table": _TABLE, "forum": _FORUM, "wiki": _WIKI}
_SLOT = re.compile(r"\$([a-z]+)")
_EXACT = re.compile(r"  |\n\n|\n\s|\s\n|^\s|\s$|^.$|^.\n|\n.\n|\n.$")
"""What is only safe where it is preformatted: runs of spaces, blank lines, and lines of one character, which resiliparse
2.0.1 takes for decoration when the character is an ideograph in a text node of its own."""


def escape(text: str) -> str:
    """Text as HTML.

    Example:
        >>> escape("<think> 1 & 2")
        '&lt;think&gt; 1 &amp; 2'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def marked(dice: Random, text: str) -> str:
    """A text as the HTML of its author: preformatted, lines with breaks, a block per line.

    Example:
        >>> marked(Random(0), "1  2")
        '<pre><code>1  2</code></pre>'
    """
    inner = escape(text)
    place = dice.random()
    if place < 0.2:
        inner = inner.replace('"', "&quot;").replace("'", "&#39;")
    if place < 0.3 or _EXACT.search(text):
        return f"<pre>{inner}</pre>" if place < 0.2 else f"<pre><code>{inner}</code></pre>"
    if place < 0.4:
        first, *rest = inner.split("\n")
        inner = "\n".join((f"<b>{first}</b>", *rest))
    if place < 0.7:
        return "<p>" + inner.replace("\n", "<br>\n") + "</p>"
    if place < 0.85:
        return "<p>" + inner.replace("\n", "<br/>") + "</p>"
    if place < 0.9:
        return "<blockquote>" + inner.replace("\n", "<br>") + "</blockquote>"
    return '<div class="line">' + inner.replace("\n", '</div>\n<div class="line">') + "</div>"


def address(dice: Random, site: Site, index: int) -> str:
    """The URL of the site's page number `index`; no two pages have the same."""
    topic = _TOPICS[site.chinese][int(dice.random() * 8)]
    if site.chinese:
        return f"https://{site.host}/{quote(topic)}/{index}.html" if index % 3 else f"http://{site.host}/t/{index}.htm"
    if index % 3:
        return f"https://{site.host}/{topic.lower()}/page-{index}"
    return f"http://{site.host}/{2010 + index % 15}/{1 + index % 12:02d}/{topic.lower()}-{index}.html"


def page(place: int, site: Site, body: str, title: str, url: str, date: str, charset: str | None, index: int) -> str:
    """A whole document: `body` (HTML) in the site's layout.

    Args:
        place: any number; it chooses the topic and the pages linked to.
        title: text; its first 40 characters are shown.
        date: as in the WARC; its first ten characters are shown.
        charset: what the document says of its charset; None says nothing.
    """
    related = _RELATED[site.chinese]
    place %= 8
    values = {
        "meta": _META[site.layout in ("table", "forum")].format(charset) if charset else "",
        "title": escape(title.split("\n", 1)[0][:40]),
        "url": url,
        "topic": _TOPICS[site.chinese][place],
        "body": body,
        "first": related[place],
        "second": related[place - 3],
        "third": related[place - 5],
        "number": str(index % 9973),
        "year": date[:4],
        "date": date[:10],
    }
    pieces = list(_skeleton(site))
    for slot, name in _slots(site):
        pieces[slot] = values[name]
    return "".join(pieces)


_META = ('<meta charset="{}">\n', '<meta http-equiv="Content-Type" content="text/html; charset={}">\n')


@cache
def _skeleton(site: Site) -> tuple[str, ...]:
    """The site's document cut at its slots; every second piece is the name of a slot."""
    words: Mapping[str, str] = {**_WORDS[site.chinese], "site": escape(site.name)}
    head, body, tail = _SKELETONS[site.layout].partition("$body")
    # Preformatted text keeps white space that stands before it, so there is none.
    start = head.index("<body")
    whole = head[:start] + head[start:].replace(">\n<", "><") + body + tail
    whole = _SLOT.sub(lambda found: words.get(found.group(1), found.group(0)), whole)
    return tuple(_SLOT.split(whole))


@cache
def _slots(site: Site) -> tuple[tuple[int, str], ...]:
    return tuple((place, name) for place, name in enumerate(_skeleton(site)) if place % 2)
