"""Columns of dates: how they are written is found in the training rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import Command

import mmoe
from mmoe.data.column_options import column_options
from mmoe.data.columns import Numeric
from mmoe.data.encode import decode, encode
from mmoe.data.fit_schema import fit_schema
from mmoe.data.schema import Schema
from mmoe.data.table_data import TableData
from mmoe.errors import UserError
from mmoe.raw.dates import (
    AMBIGUOUS,
    DAY_FIRST,
    MONTH_FIRST,
    UNITS,
    DateFormat,
    dates_of,
    find_order,
    guess_format,
)  # fmt: skip

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


@pytest.mark.parametrize("written", ["%Y%m%d", "%d%m%Y", "%m%d%Y"])
def test_dates_without_separators_are_no_unix_times(written: str):
    values = pd.to_datetime(DAYS).dt.strftime(written).astype("int64").rename("when")
    with pytest.raises(UserError, match=r"^column when: numbers such as \d{7,8} look like dates without sep"):
        fit(values)
    assert fit(pd.concat([values, pd.Series([17], name="when")])).numeric[0].unit == "s"


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
        with pytest.raises(UserError, match=r"column when, row 0: must be a date, or missing, is '"):
            read(values, schema)
    missing = encode(pd.DataFrame({"when": [np.nan, np.nan]}), schema)
    assert missing.numbers.isnan().all()


def test_dates_and_times_of_arrow():
    expected = DAYS.to_numpy("datetime64[s]")
    for kind in (pa.timestamp("ms"), pa.timestamp("ns"), pa.timestamp("us", "UTC")):
        values = pd.Series(pa.array(DAYS).cast(kind), dtype=pd.ArrowDtype(kind))
        np.testing.assert_array_equal(dates_of(values, guess_format(values)), expected)


def test_blank_text_is_a_missing_date():
    values = pd.Series(["2020-01-01", "", " ", None], dtype=object, name="when")
    found = dates_of(values, DateFormat())
    assert np.isnat(found).tolist() == [False, True, True, True]
    with pytest.raises(UserError, match=r"row 2: must be a date, or missing, is '-'"):
        dates_of(pd.Series(["2020-01-01", "", "-"], dtype=object, name="when"), DateFormat())


def test_dates_of_a_frame_with_a_repeated_index():
    values = pd.Series(["31.12.2025", "1.2.2025", "2025-01-02"], [0, 0, 1], dtype=object, name="when")
    expected = ["2025-12-31", "2025-02-01", "2025-01-02"]
    assert (
        dates_of(values, DateFormat(day_first=True)).astype("datetime64[D]").astype(str).tolist() == expected
    )


@pytest.mark.parametrize(
    ("texts", "order"),
    [
        (["31.12.2025", "1.2.2025"], DAY_FIRST),
        (["1/2/25 10:30", " 13/2/25", None], DAY_FIRST),
        (["12/31/2025", "1/2/2025"], MONTH_FIRST),
        (["1/2/2025", "12-12-2025"], AMBIGUOUS),
        (["31/12/2025", "12/31/2025"], AMBIGUOUS),
        (["2025-12-31", "2025/12/31", "20251231", "1 Feb 2025"], ""),
        (["2025-12-31", "31/12/2025"], DAY_FIRST),
        ([], ""),
    ],
)
def test_the_order_of_day_and_month(texts: list[str], order: str):
    assert find_order(text for text in texts if text is not None) == order
    for values in (pd.Series(texts, dtype=object), pd.Series(texts, dtype=pd.ArrowDtype(pa.string()))):
        assert guess_format(values) == DateFormat(day_first=order == DAY_FIRST)
    assert guess_format(pd.Series(texts, dtype=object), True).day_first
    assert not guess_format(pd.Series(texts, dtype=object), False).day_first


def written(pattern: str) -> pd.Series:
    return DAYS.dt.strftime(pattern).rename("when")


@pytest.mark.parametrize("pattern", ["%d.%m.%Y", "%d/%m/%Y", "%d-%m-%y", "%d.%m.%Y %H:%M:%S"])
def test_dates_with_the_day_first_are_those_of_iso_dates(pattern: str):
    schema, expected = fit(written(pattern)), fit(DAYS if "H" in pattern else DAYS.dt.floor("D"))
    assert schema.numeric[0].day_first
    assert replace(schema.numeric[0], day_first=False) == expected.numeric[0]
    assert [c for c in schema.categorical if "hour" not in c.name] == [
        c for c in expected.categorical if "hour" not in c.name
    ]
    assert Schema.from_json(schema.to_json()) == schema
    # A new row alone does not show the order; other ways of writing a date are read as before.
    new = ["1/2/2025", "12/31/2025", "2025-02-01", "2025/2/1", "1 Feb 2025", "2.1.2025 10:30"]
    days = ["2025-02-01", "2025-12-31", "2025-02-01", "2025-02-01", "2025-02-01", "2025-01-02"]
    assert read(new, schema) == days
    assert read([pd.Timestamp("2025-02-01"), pd.Timestamp("2025-12-31")], schema) == days[:2]
    month_first = ["2025-01-02", *days[1:-1], "2025-02-01"]
    assert read(new, fit(written(pattern), day_first=False)) == month_first


def test_the_user_says_what_ambiguous_dates_mean():
    values = pd.Series(["1/2/2025", "3/4/2025"], name="when")
    assert read(values, fit(values)) == ["2025-01-02", "2025-03-04"]
    assert read(values, fit(values, day_first=True)) == ["2025-02-01", "2025-04-03"]
    with pytest.raises(UserError, match=r"^columns.when.day_first=yes: must be true or false"):
        fit(values, day_first="yes")
    with pytest.raises(UserError, match=r"^columns.x.day_first=True: a numeric column does not have it"):
        column_options("x", {"kind": "numeric", "day_first": True})


@pytest.mark.parametrize("day_first", [None, True, False])
def test_the_last_rows_by_dates_with_the_day_first(day_first: bool | None):
    dates = pd.date_range("2025-01-01", periods=12 if day_first else 300)
    rows = pd.DataFrame({"when": dates.strftime("%d/%m/%Y" if day_first is not False else "%m/%d/%Y")})
    rows.assign(y=np.arange(len(rows)) % 2).to_csv("rows.csv", index=False)
    rule = {"last": 0.25, "by": "when"}
    columns = {"when": {"kind": "datetime"} | ({} if day_first is None else {"day_first": day_first})}
    data = TableData(
        train="rows.csv",
        test=rule,
        validation={"fraction": 0.3},
        columns=columns,
        tasks={"t": {"column": "y"}},
    )
    found = data.dataset.positions["test"].tolist()
    assert found == list(range(len(rows) - len(found), len(rows)))
    assert len(found) == pytest.approx(len(rows) / 4, abs=1)


def test_an_exported_network_reads_dates_as_the_run_does():
    pytest.importorskip("onnxruntime")
    from mmoe.export import export
    from mmoe.models.onnx_scorer import OnnxScorer

    for day_first in (True, False):
        given = mmoe.Table(
            table(written("%d.%m.%Y" if day_first else "%m/%d/%Y")), {"t": "y"}, columns={"when": "datetime"}
        )
        quick = ["trainer.max_epochs=1", "logger=none", "figures=false"]
        run = mmoe.fit(given, f"run{day_first}", *quick)
        assert run.schema.numeric[0].day_first is day_first
        export(run)
        scorer = OnnxScorer(run.folder / "network.onnx")
        texts = ["1/2/2025", "12/31/2025", "31-12-2025", "2025-02-01", " 2.1.2025 10:30:05 ", None]
        expected = encode(pd.DataFrame({"when": texts}), run.input_schema)
        found = scorer.encode({"when": texts})
        np.testing.assert_array_equal(found["numbers"], expected.numbers)
        np.testing.assert_array_equal(found["levels"], expected.levels)
        with pytest.raises(ValueError, match=r"column when, row 0: must be a date: text such as 2024"):
            scorer.encode({"when": ["13/13/2025"]})


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
