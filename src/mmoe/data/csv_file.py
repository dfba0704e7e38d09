"""Read a file of delimited text as Arrow columns of text.

Arrow parses the rows. Python's csv module, which is slower, finds the line of an error, and reads files in
which blanks stand before quotes.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from mmoe.data.csv_options import CsvOptions, check_names
from mmoe.data.csv_start import (
    DELIMITERS,
    MARK,
    WHOLE_CHARACTERS,
    find_delimiter,
    is_utf8,
    read_start,
    utf8_stream,
)
from mmoe.data.data_files import file_errors, open_stream
from mmoe.errors import UserError

BLOCK_BYTES = 1 << 22  # a row must be shorter
csv.field_size_limit(BLOCK_BYTES)  # of Python's reader; by default, a field must be shorter than 128 KiB
BATCH_ROWS = 16384  # rows that Python parses at once
LINE = "line"  # the only column of a ragged file, before it is split
NO_DELIMITER = "\x1e"  # no text holds it, so a line is one field
END = "\x1f"  # a line after the last one, which becomes part of the last row if a quote is open
FIRST_ROW_NUMBERS = ("0", "1")
NOT_UTF8 = "must be UTF-8 text; for another encoding, set csv.encoding, such as csv.encoding=latin-1"


class CsvFile:
    """A file of delimited text: its column names, and its rows as text.

    Raises:
        UserError: the file cannot be read or is empty, or two columns have the same name.
    """

    def __init__(self, path: str, options: CsvOptions) -> None:
        self.path, self.options = path, options
        start = read_start(path, options.encoding)
        self.encoding = start.encoding
        self.delimiter = options.delimiter or find_delimiter(path, start.text)
        blanks_before_quotes = rf'(^|[\n{re.escape(self.delimiter)}]) +"(?!")'
        self._needs_python = ' "' in start.text and bool(re.search(blanks_before_quotes, start.text))
        text = io.StringIO(start.text, newline="")
        reader = csv.reader(text, delimiter=self.delimiter, skipinitialspace=True)
        first = next(filter(None, reader))
        header = MARK * start.has_mark + start.text[: text.tell()]
        if options.header and not _is_text(first):
            raise UserError(f"{path}, line 1: {NOT_UTF8}")
        self._header_bytes = len(header.encode()) if options.header else 0
        second = next(filter(None, reader), [])
        is_whole = len(start.text) < WHOLE_CHARACTERS
        self._has_rows = bool(second) or not options.header or not is_whole
        self.names = list(options.names or self._find_names(first, second))
        check_names(self.names, path)

    def _find_names(self, first: Sequence[str], second: Sequence[str]) -> list[str]:
        """The column names of a file with these first two rows."""
        if not self.options.header:
            return [f"column_{i}" for i in range(1, len(first) + 1)]
        # R leaves out the name of its row numbers, so the header is one field short. As in pandas, a column
        # without a name becomes `Unnamed: 0`.
        has_row_numbers = len(second) == len(first) + 1 and second[0] in FIRST_ROW_NUMBERS
        names = ["", *first] if has_row_numbers and not self.options.ragged else first
        return [name.strip() or f"Unnamed: {i}" for i, name in enumerate(names)]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows in blocks of about 4 MiB, as columns of text with null for a missing value.

        Raises:
            UserError: the file is damaged, a row has too few or too many fields, or a quote is not closed.
        """
        if not self._has_rows:
            return
        if self.options.ragged:
            for part in self._parse([LINE], [LINE]):
                yield self._split(part[LINE]).select(columns)
            return
        # `_may_end_in_quotes` needs the last value of the last column.
        wanted = list(dict.fromkeys([*columns, self.names[-1]]))
        last: str | None = None
        try:
            parts = self._parse_in_python(wanted) if self._needs_python else self._parse(self.names, wanted)
            for part in parts:
                yield part.select(columns)
                last = part[self.names[-1]][-1].as_py() if len(part) else last
        except UserError:
            self._check_rows()
            raise
        if self._may_end_in_quotes(last):
            self._check_rows()

    def _parse(self, names: Sequence[str], wanted: Sequence[str]) -> Iterator[pa.Table]:
        """The columns `wanted` of a file with the columns `names`, parsed by Arrow."""
        read = arrow_csv.ReadOptions(column_names=names, block_size=BLOCK_BYTES)
        if self.options.ragged:
            parse = arrow_csv.ParseOptions(delimiter=NO_DELIMITER, quote_char=False)
        else:
            parse = arrow_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True)
        convert = arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()),
            include_columns=wanted,
            null_values=[] if self.options.ragged else list(self.options.missing),
            strings_can_be_null=True,
        )
        with file_errors(self.path), utf8_stream(self.path, self.encoding) as stream:
            stream.read(self._header_bytes)
            with arrow_csv.open_csv(stream, read, parse, convert) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])

    def _parse_in_python(self, wanted: Sequence[str]) -> Iterator[pa.Table]:
        positions = [self.names.index(name) for name in wanted]
        rows = self._checked_rows()
        while block := list(islice(rows, BATCH_ROWS)):
            arrays = [pa.array([row[i] for row in block], pa.string()) for i in positions]
            yield pa.table([self._without_missing(array) for array in arrays], names=wanted)

    def _split(self, lines: pa.ChunkedArray) -> pa.Table:
        """Split lines into columns. The last column takes the rest of each line, or is missing."""
        count = len(self.names)
        # A delimiter is added to each line, so that a line without the last column gets an empty one.
        ended = pc.binary_join_element_wise(lines, "", self.delimiter)
        fields = pc.split_pattern(ended, self.delimiter, max_splits=count - 1)
        is_short = pc.less(pc.list_value_length(fields), count)
        if pc.any(is_short).as_py():
            line = lines.filter(is_short)[0].as_py()
            raise UserError(f"{self.path}: a line must have at least {count - 1} fields, is {line[:60]!r}")
        arrays = [pc.list_element(fields, i) for i in range(count)]
        arrays[-1] = pc.utf8_slice_codeunits(arrays[-1], 0, -1)  # without the added delimiter
        return pa.table([self._without_missing(array) for array in arrays], names=self.names)

    def _without_missing(self, array: pa.Array) -> pa.Array:
        return pc.if_else(pc.is_in(array, pa.array(self.options.missing, pa.string())), None, array)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The number of the first line of each row, and the row's fields, parsed by Python.

        Raises:
            UserError: a field is too long, or a quote is not closed.
        """
        with file_errors(self.path), open_stream(self.path) as stream:
            # A byte that is not valid UTF-8 becomes a surrogate.
            errors = "surrogateescape" if is_utf8(self.encoding) else "strict"
            text = io.TextIOWrapper(stream, self.encoding, errors, newline="")
            lines = chain([text.readline().removeprefix(MARK)], text, [END])
            if self.options.ragged:
                reader = csv.reader(lines, delimiter=NO_DELIMITER, quoting=csv.QUOTE_NONE)
            else:
                reader = csv.reader(lines, delimiter=self.delimiter, skipinitialspace=True)
            is_header = self.options.header
            while True:
                line = reader.line_num + 1
                try:
                    row = next(reader)
                except csv.Error as error:
                    rule = f"must be a row of fields, with all quotes closed ({error})"
                    raise UserError(f"{self.path}, line {line}: {rule}") from None
                if row == [END] and reader.line_num == line:
                    return
                if row and row[-1].endswith(END):
                    raise UserError(f"{self.path}, line {line}: a quote must be closed before the file ends")
                if row and not is_header:
                    yield line, row
                is_header = is_header and not row

    def _checked_rows(self) -> Iterator[list[str]]:
        """The fields of each row. Raise UserError if there are too few or too many, or one is not text."""
        for line, row in self.rows():
            if len(row) != len(self.names):
                name = DELIMITERS.get(self.delimiter, repr(self.delimiter))
                rule = f"must have {len(self.names)} {name}-separated fields, has {len(row)}"
                if len(row) > len(self.names):
                    names = "" if self.options.header or self.options.names else " with csv.names=[...]"
                    rule += f"; csv.ragged=true{names} takes the rest of a line as its last field"
                raise UserError(f"{self.path}, line {line}: {rule}")
            if not _is_text(row):
                raise UserError(f"{self.path}, line {line}: {NOT_UTF8}")
            yield row

    def _check_rows(self) -> None:
        """Raise UserError for the first row that `_checked_rows` rejects."""
        for _ in self._checked_rows():
            pass

    def _may_end_in_quotes(self, last: str | None) -> bool:
        """Whether the file seems to end within quotes, which Arrow accepts.

        Such a file ends with an opening quote and `last`, the last value of the last column.
        """
        values = self.options.missing if last is None else [last]
        ends = ['"' + value.replace('"', '""') for value in values]
        starts = (self.delimiter, "\n", "\r")
        size = (max(map(len, ends), default=0) + 1) * 4  # a character takes up to 4 bytes
        with file_errors(self.path), open_stream(self.path) as stream:
            tail = b""
            if stream.seekable():
                stream.seek(max(0, stream.size() - size) // 4 * 4)
            while block := stream.read(BLOCK_BYTES):
                tail = (tail + block)[-size - 4 :]
        text = tail.decode(self.encoding, errors="ignore")
        return text in ends or any(text.endswith(tuple(start + end for start in starts)) for end in ends)


def _is_text(fields: Sequence[str]) -> bool:
    """Whether fields have no surrogate, which stands for a byte that is not valid in the encoding."""
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return False
    return True
