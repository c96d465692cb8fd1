"""What the contract takes for the beginning of a valid output."""

import pytest
from books import begins_a_book, is_book

WIDE = "\n" + 16 * " "
BOOKS = [
    '{"title":"","year":1950,"tags":["a"]}',
    '{ "title" : "\\"\\u00e9\\\\ 日本" , "year" : 2029 , "tags" : [ "b" , "a" , "b" ] } ',
    WIDE.join(["{", '"title"', ":", '"' + 16 * "\\ud83d" + '"', ',"year":2030,"tags":["b"]', "}"]),
]


@pytest.mark.parametrize("book", BOOKS, ids=["dense", "spaced", "wide"])
def test_every_part_of_a_book_up_to_some_place_begins_one(book):
    assert is_book(book)
    for at in range(len(book) + 1):
        assert begins_a_book(book[:at]), book[:at]


@pytest.mark.parametrize(
    "text",
    [
        "Once",
        "[",
        '{"name',
        '{"title":3',
        '{"title":"12345678901234567',
        '{"title":"\n',
        '{"title":"","year":18',
        '{"title":"","year":2031',
        '{"title":"","year":203,',
        '{"title":"","year":1950,"tags":[]',
        '{"title":"","year":1950,"tags":["c',
        '{"title":"","year":1950,"tags":["a","a","a",',
        '{"title":"","year":1950,"tags":["a"]} and',
        "{" + WIDE + " ",
        "{\n" + WIDE,
    ],
)
def test_what_cannot_become_a_book_does_not_begin_one(text):
    assert not is_book(text)
    assert not begins_a_book(text)
