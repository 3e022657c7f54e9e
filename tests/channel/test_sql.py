"""Queries are asked for by name; a comment is for the reader of the file."""

from channel.sql import parse_queries

FILE = """-- Of channels.

-- load --
-- One of them.
SELECT a
  FROM channel;

-- store --
INSERT INTO channel VALUES (1);
"""


def test_a_query_stands_under_its_name_without_its_comments() -> None:
    assert parse_queries(FILE) == {
        "load": "SELECT a\n  FROM channel;",
        "store": "INSERT INTO channel VALUES (1);",
    }


def test_a_file_without_names_has_no_query() -> None:
    assert parse_queries("-- Only a comment.\nSELECT 1;") == {}
