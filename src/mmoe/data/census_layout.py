"""Find out how a file of census rows is written: with a header, or in UCI's format without one."""

import re
from collections.abc import Sequence
from dataclasses import replace

from mmoe.data.census_files import COLUMNS, NUMERIC
from mmoe.data.csv_guess import is_number
from mmoe.data.csv_options import CsvOptions
from mmoe.data.csv_start import DELIMITERS, find_delimiter, first_rows, read_start
from mmoe.errors import UserError

INDEX = "row number"
# With or without the label, and with or without row numbers.
OFFICIAL_FORMATS = (COLUMNS, COLUMNS[:-1], (INDEX, *COLUMNS), (INDEX, *COLUMNS[:-1]))
FIRST_COLUMN_NUMBER = re.compile(r"(\D*)([01])")


def find_options(inputs: Sequence[str], path: str) -> CsvOptions:
    """The options of a text file of census rows, from which a run needs the columns `inputs`.

    Only an empty field is a missing value.

    Raises:
        UserError: the first line is neither a header with some of the inputs nor a row of UCI's format.
    """
    text = read_start(path, None).text
    delimiter = find_delimiter(path, text)
    rows = first_rows(text, delimiter)
    first = rows[0]
    options = CsvOptions(delimiter=delimiter, missing=("",))
    if _is_numbered_header(first):
        names = _official_names(path, 2, rows[min(1, len(rows) - 1)], delimiter)
        return replace(options, names=names)
    found = {name.casefold() for name in first} & {name.casefold() for name in inputs}
    if len(found) < min(2, len(inputs)) and any(map(is_number, first)):
        names = _official_names(path, 1, first, delimiter)
        return replace(options, header=False, names=names, encoding="latin-1")
    if not found:
        rule = f"must be a header with the names of the run's inputs, or a row of {len(COLUMNS)} fields"
        raise UserError(f"{path}, line 1: {rule}, is {text.splitlines()[0][:40]!r}")
    return options


def _official_names(path: str, line: int, row: Sequence[str], delimiter: str) -> Sequence[str]:
    """The names of UCI's columns, with row numbers and the label only if the first row has these."""
    rule = f"must have {len(COLUMNS)} {DELIMITERS[delimiter]}-separated fields"
    possible = [names for names in OFFICIAL_FORMATS if len(names) == len(row)]
    if not possible:
        without_label = f"{len(COLUMNS) - 1} without the label"
        raise UserError(f"{path}, line {line}: {rule} ({without_label}), or a header; has {len(row)}")

    def fits(names: Sequence[str]) -> bool:
        pairs = zip(names, row, strict=True)
        return all(is_number(field) for name, field in pairs if name in NUMERIC or name == INDEX)

    names = next(filter(fits, possible), possible[0])
    if names[0] == INDEX and row[0] not in ("0", "1"):
        what = f"the row number must be 0 or 1 in the first row, is {row[0][:40]!r}"
        raise UserError(f"{path}, line {line}: {what}")
    return names


def _is_numbered_header(names: Sequence[str]) -> bool:
    """Whether a header only numbers the columns: 0, 1, ... as in pandas, or V1, V2, ... as in R."""
    numbered = names[1:] if names[:1] == [""] else names  # pandas and R leave the name of row numbers empty
    begin = FIRST_COLUMN_NUMBER.fullmatch(numbered[0]) if numbered else None
    if not begin or len(numbered) not in (len(COLUMNS), len(COLUMNS) - 1):
        return False
    prefix, first = begin[1], int(begin[2])
    return list(numbered) == [f"{prefix}{i}" for i in range(first, first + len(numbered))]
