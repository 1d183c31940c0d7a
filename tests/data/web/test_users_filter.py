import pytest

from dunwu.data.web.users_filter import load_filter
from dunwu.types import UsageError


def written(tmp_path, body):
    path = tmp_path / "mine.py"
    path.write_text(body, encoding="utf-8")
    return str(path)


def test_true_keeps_false_and_reasons_drop(tmp_path):
    reason = load_filter(
        written(
            tmp_path,
            "def keep(text, record):\n    if 'casino' in text:\n        return 'casino'\n    return record['url'] != 'bad'\n",
        )
    )
    assert reason("a page", {"url": "good"}) is None
    assert reason("a page", {"url": "bad"}) == "users_filter"
    assert reason("casino night", {"url": "good"}) == "casino"


@pytest.mark.parametrize(
    "body, said",
    [
        ("def keep(text, record:\n    pass\n", r"mine\.py:1"),
        ("import nothing_of_that_name\n", r"mine\.py:1: ModuleNotFoundError"),
        ("def other(text, record):\n    return True\n", "has no function keep"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path, body, said):
    with pytest.raises(UsageError, match=said):
        load_filter(written(tmp_path, body))


@pytest.mark.parametrize(
    "body, said",
    [
        ("def keep(text, record):\n    x = 1\n    return x / 0\n", r"mine\.py:3 failed on page p7: ZeroDivisionError"),
        ("def keep(text, record):\n    return 1\n", "keep answered 1 for page p7"),
        ("def keep(text, record):\n    pass\n", "keep answered None for page p7"),
    ],
)
def test_a_bad_answer_is_told_with_its_page(tmp_path, body, said):
    with pytest.raises(UsageError, match=said):
        load_filter(written(tmp_path, body))("text", {"id": "p7"})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="no file"):
        load_filter(str(tmp_path / "none.py"))
