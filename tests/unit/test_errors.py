"""The error tree: one line, whatever is quoted."""

from __future__ import annotations

from compress.errors import DataError


def test_an_error_is_one_line_whatever_it_quotes() -> None:
    assert (
        str(DataError("x.csv: no column 'a\r\nb\x1b[31m\u2028': é")) == "x.csv: no column 'a\\r\\nb\\x1b[31m\\u2028': é"
    )
