"""Columns of dates: how they are written is found in the training rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import Command

import mmoe
from mmoe.data.column_options import column_options
from mmoe.data.dates import UNITS, DateFormat, dates_of, guess_format
from mmoe.data.encode import decode, encode
from mmoe.data.fit_schema import fit_schema
from mmoe.data.schema import Numeric, Schema
from mmoe.errors import UserError

DAYS = pd.Series(pd.date_range("2001-01-01", "2025-12-31", periods=500), name="when").dt.floor("s")
FACTORS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def unix(dates: Any, unit: str) -> pd.Series:
    seconds = (pd.Series(dates) - pd.Timestamp(0)) // pd.Timedelta("1s")
    return (seconds * FACTORS[unit]).rename("when")


def fit(values: pd.Series, rows: np.ndarray | None = None, **options: Any) -> Schema:
    columns = {"when": column_options("when", {"kind": "datetime"} | options)}
    return fit_schema(values.to_frame(), columns, [], 8, rows)


def read(values: Any, schema: Schema) -> list[str]:
    """The days that a schema reads from a column."""
    rows = decode(encode(pd.DataFrame({"when": values}), schema), schema)
    return [str(np.datetime64(int(day), "D")) for day in np.floor(rows["when"])]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dtype", ["int64", "float64", "int64[pyarrow]", "object"])
def test_the_unit_of_unix_times_comes_from_the_training_rows(unit: str, dtype: str):
    training = unix(DAYS, unit).astype(dtype)
    schema = fit(training)
    assert schema.numeric[0].unit == unit
    assert schema == Schema.from_json(schema.to_json())
    assert fit(DAYS).categorical == schema.categorical
    # Alone, 5e9 could be seconds of the year 2128; in milliseconds it is a day of 1970.
    small = pd.Series([5 * 86400 * FACTORS[unit]])
    assert read(small.astype(dtype), schema) == ["1970-01-06"]
    assert read(small.astype(str), schema) == ["1970-01-06"]  # as prediction reads a CSV file
    assert read(["2020-02-29", "1970-01-01 05:00"], schema) == ["2020-02-29", "1970-01-01"]
    assert read([pd.Timestamp("2020-02-29")], schema) == ["2020-02-29"]
    too_large = 2 * 10**11 * FACTORS[unit]
    if too_large < 2**63:
        with pytest.raises(UserError, match=f"column when, row 0: must be a date, or a Unix time in {unit} "):
            read(pd.Series([too_large]), schema)


def test_only_training_rows_count():
    values = pd.Series([1e12, 1.6e12, 1e9, 1.6e9], name="when")
    assert fit(values, np.array([0, 1])).numeric[0].unit == "ms"
    assert fit(values, np.array([1, 2, 3])).numeric[0].unit == "ms"
    with pytest.raises(UserError, match="row 0: must be a date, or a Unix time in s as in the training rows"):
        fit(values, np.array([2, 3]))
    assert guess_format(pd.Series([np.nan, np.nan])).unit == "s"
    assert guess_format(DAYS) == guess_format(DAYS.astype(str)) == DateFormat()


def test_numbers_are_no_dates_if_the_training_rows_had_none():
    schema = fit(DAYS)
    for values in ([1.6e9, 5], pd.Series([5], dtype="int64[pyarrow]")):
        with pytest.raises(UserError, match=r"column when, row 0: must be a date, is '"):
            read(values, schema)
    missing = encode(pd.DataFrame({"when": [np.nan, np.nan]}), schema)
    assert missing.numbers.isnan().all()


def test_dates_and_times_of_arrow():
    expected = DAYS.to_numpy("datetime64[s]")
    for kind in (pa.timestamp("ms"), pa.timestamp("ns"), pa.timestamp("us", "UTC")):
        values = pd.Series(pa.array(DAYS).cast(kind), dtype=pd.ArrowDtype(kind))
        np.testing.assert_array_equal(dates_of(values, guess_format(values)), expected)


def test_the_unit_is_one_of_four():
    with pytest.raises(UserError, match=r"numeric.when.unit=h: must be one of s, ms, us, ns, or empty"):
        Numeric("when", 0.0, 1.0, (0.0, 1.0), is_datetime=True, unit="h")


def table(written: Any) -> pd.DataFrame:
    return pd.DataFrame({"when": written, "y": np.arange(len(DAYS)) % 2})


def test_one_row_of_a_file_is_read_like_the_training_rows(command: Callable[[str], Command]):
    tables = mmoe.Table(table(unix(DAYS, "ms")), {"t": "y"}, columns={"when": "datetime"})
    run = mmoe.fit(tables, "run", "trainer.max_epochs=1", "logger=none", "figures=false")
    new = pd.DataFrame({"when": [50_000_000_000]})
    expected = run.predict(pd.DataFrame({"when": ["1971-08-02 16:53:20"]}))
    assert run.predict(new).equals(expected)
    new.to_csv("new.csv", index=False)
    new.to_parquet("new.parquet")
    for source in ("new.csv", "new.parquet"):
        assert command("predict")("run=run", f"input={source}", "output=out.parquet").code == 0
        pd.testing.assert_frame_equal(pd.read_parquet("out.parquet"), expected)
    assert Path("run/schema.json").read_text().count('"unit": "ms"') == 1
