"""Guess from a column's name what it holds: codes, numbers, times, weights or groups."""

import re
from collections.abc import Collection

# Words in the names of columns of codes, numbers, times and weights.
CODE_WORDS = (
    "id", "uid", "pid", "code", "type", "zip", "zipcode", "postcode", "category", "categorical", "cate",
    "cat", "class", "group", "segment", "kind", "brand", "city", "country", "region", "state", "channel",
    "device", "user", "item", "author", "product", "store", "shop", "gender", "sex", "sku", "status", "level",
    "campaign", "customer",
)  # fmt: skip
NUMBER_WORDS = (
    "age", "count", "num", "amount", "price", "value", "quantity", "qty", "rate", "ratio", "score", "total",
    "sum", "mean", "avg", "day", "duration", "distance", "numerical", "numeric", "income", "cost", "size",
    "weight", "length", "width", "height", "temperature", "speed", "year",
)  # fmt: skip
TIME_WORDS = ("time", "timestamp", "date", "datetime", "day", "ts", "at", "created", "updated")
WEIGHT_WORDS = ("weight", "exposure", "wt")
CODE_SUFFIX = re.compile(r"(user|item|movie|product|seg|group|session|customer|client|order|query|ad|doc)id$")
PLURAL = re.compile(r"(?<![su])s$")  # not the s of class or status
GROUP = re.compile(r"(user|uid|customer|client|session)([_ ]?id)?$")


def suggests_codes(name: str) -> bool:
    """Whether a column name says that the values are codes."""
    found = _words(name)
    suffix = CODE_SUFFIX.search(name.lower().rstrip("s"))
    return bool(found) and (found[-1] in CODE_WORDS or "categorical" in found or suffix is not None)


def suggests_numbers(name: str) -> bool:
    """Whether a column name says that the values are numbers."""
    return _has_word(name, NUMBER_WORDS)


def suggests_times(name: str) -> bool:
    """Whether a column name says that the values are times."""
    return _has_word(name, TIME_WORDS)


def suggests_weights(name: str) -> bool:
    """Whether a column name says that the values are weights of rows."""
    return _has_word(name, WEIGHT_WORDS)


def suggests_groups(name: str) -> bool:
    """Whether a column name says that rows with the same value, such as the same user, belong together."""
    return GROUP.search(name.lower()) is not None


def _has_word(name: str, words: Collection[str]) -> bool:
    return not set(_words(name)).isdisjoint(words)


def _words(name: str) -> list[str]:
    """The words of a column name in lower case, without a plural s."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+", name)
    return [part if len(part) < 4 else PLURAL.sub("", part) for part in map(str.lower, parts)]
