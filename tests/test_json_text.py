"""JSON of strangers neither ends the process nor changes what it says."""

import json
import sys

import pytest

from jaxmlip import json_text


@pytest.fixture
def raised_limit():
    """As some libraries leave it: then the parser itself would overflow the stack."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.parametrize("text", [b"[" * 10**6, '{"a":' * 10**5, b"[" * 101 + b"]" * 101])
def test_nesting_without_end_is_refused(raised_limit, text):
    with pytest.raises(ValueError, match="nested deeper"):
        json_text.parse(text)


@pytest.mark.parametrize(
    "value", [[], {"a": [1, {"b": '[[[{{{\\"'}]}, "[" * 1000, ["]" * 200, "\\"], 1.5, None]
)
def test_what_it_says_is_kept(value):
    text = json.dumps(value)
    assert json_text.parse(text) == json_text.parse(text.encode()) == value
