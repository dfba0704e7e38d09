"""Read a file of delimited text as Arrow columns of text."""

import codecs
import csv
import io
from collections.abc import Collection, Iterator
from itertools import islice
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from mmoe.data.csv_options import CsvOptions, check_names
from mmoe.data.data_files import open_stream, reading
from mmoe.data.text_blocks import ENCODINGS
from mmoe.errors import UserError

BLOCK_BYTES = 1 << 22  # a line must be shorter
HEADER_BYTES = 1 << 20
LINE = "line"  # the only column of a ragged file, before it is split


class CsvFile:
    """A file of delimited text: its column names, and its rows as text."""

    def __init__(self, path: str, options: CsvOptions) -> None:
        self.path, self.options = path, options
        self.delimiter = options.delimiter or ("\t" if ".tsv" in path.lower() else ",")
        with reading(path), decoded_stream(path, options.encoding) as stream:
            text = stream.read(HEADER_BYTES).decode(errors="ignore")
        if not text.strip("\ufeff\r\n"):
            raise UserError(f"{path}: is empty")
        lines = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), delimiter=self.delimiter)
        first = next(filter(None, lines))
        self._skipped = lines.line_num - 1 - sum("\n" in field for field in first) if options.header else 0
        if options.header:
            # R writes row names without a header, and pandas names such a column like this.
            self.names = [name.strip() or f"Unnamed: {i}" for i, name in enumerate(first)]
        else:
            self.names = list(options.names or (f"column_{i}" for i in range(1, len(first) + 1)))
        check_names(self.names, path)

    def batches(self, columns: Collection[str]) -> Iterator[pa.Table]:
        """The rows in blocks of about 4 MiB, as columns of text with null for a missing value.

        A block may also have the last column of the file, which is always checked.

        Raises:
            UserError: the file is damaged, or a line has too few or too many fields.
        """
        is_ragged = self.options.ragged
        last = self.names[-1]
        wanted = [LINE] if is_ragged else [name for name in self.names if name in columns or name == last]
        last_value: str | None = None
        read = arrow_csv.ReadOptions(
            column_names=[LINE] if is_ragged else self.names,
            block_size=BLOCK_BYTES,
            skip_rows=self._skipped,
            skip_rows_after_names=int(self.options.header),
        )
        if is_ragged:  # a line is one field, because no text holds this delimiter
            parse = arrow_csv.ParseOptions(delimiter="\x1e", quote_char=False)
        else:
            parse = arrow_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True)
        convert = arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(wanted, pa.string()),
            include_columns=wanted,
            null_values=[] if is_ragged else list(self.options.missing),
            strings_can_be_null=True,
        )
        try:
            with (
                reading(self.path),
                decoded_stream(self.path, self.options.encoding) as stream,
                arrow_csv.open_csv(stream, read, parse, convert) as reader,
            ):
                for batch in reader:
                    yield self._split(batch[LINE]) if is_ragged else pa.Table.from_batches([batch])
                    last_value = batch[wanted[-1]][-1].as_py() if len(batch) else last_value
        except UserError:
            if not is_ragged:
                self._check_lines()
            raise
        if last_value and "\n" in last_value:
            self._check_last_quote()

    def _split(self, lines: pa.Array) -> pa.Table:
        """Split lines into columns. The last column takes the rest of each line, or is missing."""
        count = len(self.names)
        # With a delimiter at its end, a line without the last column has an empty one.
        ended = pc.binary_join_element_wise(lines, "", self.delimiter)
        fields = pc.split_pattern(ended, self.delimiter, max_splits=count - 1)
        is_short = pc.less(pc.list_value_length(fields), count)
        if pc.any(is_short).as_py():
            line = lines.filter(is_short)[0].as_py()
            raise UserError(f"{self.path}: a line must have at least {count - 1} fields, is {line[:60]!r}")
        arrays = [pc.list_element(fields, i) for i in range(count)]
        arrays[-1] = pc.ascii_rtrim(arrays[-1], self.delimiter)
        missing = pa.array(self.options.missing, pa.string())
        arrays = [pc.if_else(pc.is_in(array, missing), None, array) for array in arrays]
        return pa.table(arrays, names=self.names)

    def _check_last_quote(self) -> None:
        """Raise UserError if the quotes around the last field, which holds line ends, are not closed."""
        end = b""
        with reading(self.path), decoded_stream(self.path, self.options.encoding) as stream:
            while block := stream.read(BLOCK_BYTES):
                end = (end + block)[-16:]
        if not end.rstrip(b" \r\n").endswith(b'"'):
            raise UserError(
                f"{self.path}: a quote in column {self.names[-1]} must be closed; the file ends before"
            )

    def _check_lines(self) -> None:
        """Raise UserError for the first line that has too few or too many fields, or is not text."""
        with reading(self.path), decoded_stream(self.path, self.options.encoding) as stream:
            file: IO[str] = io.TextIOWrapper(stream, encoding="utf-8", newline="")
            lines = csv.reader(file, delimiter=self.delimiter)
            try:
                for line in islice(filter(None, lines), int(self.options.header), None):
                    if len(line) != len(self.names):
                        rule = f"must have {len(self.names)} fields, has {len(line)}"
                        if len(line) > len(self.names):
                            rule += "; csv.ragged=true takes the rest of a line as its last field"
                        raise UserError(f"{self.path}, line {lines.line_num}: {rule}")
            except UnicodeDecodeError:
                rule = "must be UTF-8 text; csv.encoding names another encoding, such as latin-1"
                raise UserError(f"{self.path}, after line {lines.line_num}: {rule}") from None


def decoded_stream(path: str, encoding: str) -> pa.NativeFile:
    """Open the text of a file in UTF-8. A byte order mark overrides the encoding."""
    with open_stream(path) as stream:
        start = stream.read(4)
    found = next((name for mark, name in ENCODINGS.items() if start.startswith(mark)), encoding)
    stream = open_stream(path)
    is_utf8 = codecs.lookup(found).name in ("utf-8", "ascii")
    return stream if is_utf8 else pa.transcoding_input_stream(stream, found, "utf-8")
