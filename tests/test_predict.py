"""`python -m mmoe.predict`: raw rows in, a score for each, in their order."""

import csv
import gzip
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import sample_lines

import mmoe
from mmoe import load
from mmoe.data.batch import Batch
from mmoe.data.census_files import COLUMNS, NUMERIC
from mmoe.data.raw_rows import read_ahead
from mmoe.errors import UserError
from mmoe.predict import Chunk, regroup_into_blocks
from mmoe.run import ROWS_PER_PASS

LINES = sample_lines("census-income.test")


@pytest.fixture
def predict(command):
    return command("predict")


def raw(lines: list[str]) -> pd.DataFrame:
    """The fields of official lines as a user's own tool would have them."""
    frame = pd.DataFrame([[field.strip() for field in line.split(",")] for line in lines], columns=COLUMNS)
    return frame.astype(dict.fromkeys(NUMERIC, float))


def write_lines(path: str, lines: list[str]) -> str:
    with gzip.open(path, "wt") if path.endswith(".gz") else Path(path).open("w") as file:
        file.write("".join(f"{line}\n" for line in lines))
    return path


def test_the_test_rows_have_the_predictions_of_training(predict, smoke_run: Path):
    trained = pd.read_parquet(smoke_run / "predictions.parquet")
    result = predict(f"run={smoke_run}", f"input={write_lines('all.csv', LINES)}", "output=out.parquet")
    assert result.code == 0, result.err
    assert f"{len(LINES):,} rows" in result.out
    scores = pd.read_parquet("out.parquet")
    assert list(scores) == ["income_probability", "marital_probability"]
    assert len(scores) == len(LINES)
    for name in scores:
        np.testing.assert_allclose(scores[name][trained["row"]], trained[name], atol=1e-6)


def test_every_format_has_the_same_scores(predict, smoke_run: Path):
    lines = LINES[:300]
    frame = raw(lines)
    inputs = {
        "labels.csv": write_lines("labels.csv", lines),
        "plain.csv.gz": write_lines("plain.csv.gz", [line.rpartition(",")[0] for line in lines]),
    }
    frame.to_parquet("text.parquet")
    frame.to_csv("header.csv")
    frame.to_csv("quoted.tsv.gz", sep="\t", quoting=csv.QUOTE_ALL, header=False, index=False)
    # As pandas would have read the file: levels as integers, levels as categories; columns in any order.
    shuffled = frame.drop(columns=["income", "education"])[sorted(set(COLUMNS) - {"income", "education"})]
    shuffled = shuffled.astype({"industry_code": int, "occupation_code": int, "sex": "category"})
    shuffled.to_parquet("pandas.parquet")
    found = []
    for source in (*inputs, "text.parquet", "pandas.parquet", "header.csv", "quoted.tsv.gz"):
        assert predict(f"run={smoke_run}", f"input={source}", "output=out.csv").code == 0, source
        found.append(pd.read_csv("out.csv"))
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0], other, check_exact=True)


def test_a_score_does_not_depend_on_the_chunks_or_the_neighbours(predict, smoke_run: Path):
    frame = raw(LINES)
    many = pd.concat([frame] * 7, ignore_index=True)  # 21,000 rows: three blocks
    many.to_parquet("many.parquet")
    scores = []
    for chunk in (1000, 8191, 65536):
        assert (
            predict(
                f"run={smoke_run}", "input=many.parquet", "output=out.parquet", f"chunk_rows={chunk}"
            ).code
            == 0
        )
        scores.append(pd.read_parquet("out.parquet"))
    pd.testing.assert_frame_equal(scores[0], scores[1], check_exact=True)
    pd.testing.assert_frame_equal(scores[0], scores[2], check_exact=True)
    for copy in range(7):
        part = scores[0][copy * len(frame) : (copy + 1) * len(frame)].reset_index(drop=True)
        pd.testing.assert_frame_equal(part, scores[0][: len(frame)], check_exact=True)
    frame[5:6].to_parquet("one.parquet")
    assert predict(f"run={smoke_run}", "input=one.parquet", "output=one.csv").code == 0
    one = pd.read_csv("one.csv")
    pd.testing.assert_frame_equal(one, scores[0][5:6].reset_index(drop=True), check_exact=True)


def test_gates_sum_to_one(predict, smoke_run: Path):
    source = write_lines("rows.csv", LINES[:50])
    assert predict(f"run={smoke_run}", f"input={source}", "output=out.parquet", "gates=true").code == 0
    scores = pd.read_parquet("out.parquet")
    for task in ("income", "marital"):
        gates = scores[[f"{task}_gate_{e}" for e in range(8)]]
        np.testing.assert_allclose(gates.sum(axis=1), 1, atol=1e-5)
    assert scores.shape == (50, 18)


def test_a_census_run_reads_globs_and_copies_ids(predict, smoke_run: Path):
    Path("new").mkdir()
    frame = raw(LINES[:90])
    write_lines("new/a.csv.gz", LINES[:40])  # each file of text has its own layout
    frame[40:].to_csv("new/b.csv", sep=";", index=False)
    frame.to_parquet("all.parquet")
    outputs = []
    for source in ("new", "new/*", "all.parquet"):
        done = predict(f"run={smoke_run}", f"input={source}", "output=out.csv", "id=[age,instance_weight]")
        assert done.code == 0, done.err
        outputs.append(pd.read_csv("out.csv").astype(float))
        assert outputs[-1]["instance_weight"].tolist() == frame["instance_weight"].tolist()
    pd.testing.assert_frame_equal(outputs[0], outputs[1], check_exact=True)
    pd.testing.assert_frame_equal(outputs[0], outputs[2], check_exact=True)
    before = Path("new/b.csv").read_bytes()
    done = predict(f"run={smoke_run}", "input=new", "output=new/b.csv")
    assert (done.code, done.err) == (2, "error: output=new/b.csv: must not be the input\n")
    assert Path("new/b.csv").read_bytes() == before


def test_ids_stay_as_they_are_in_the_file_and_may_differ_in_case(predict, smoke_run: Path):
    frame = raw(LINES[:3]).assign(age=["007", "41.0", "1e1"])
    frame.to_csv("rows.csv", index=False)
    assert predict(f"run={smoke_run}", "input=rows.csv", "output=out.parquet", "id=[AGE]").code == 0
    assert pd.read_parquet("out.parquet")["AGE"].tolist() == ["007", "41.0", "1e1"]
    frame.rename(columns={"age": "AGE"}).to_parquet("spelt.parquet")
    frame.assign(SEX=[1, 2, 3]).to_parquet("both.parquet")  # SEX is another column than the input
    for source, name, expected in (("spelt", "AGE", ["007", "41.0", "1e1"]), ("both", "SEX", [1, 2, 3])):
        options = [f"input={source}.parquet", "output=out.parquet", f"id={name}"]
        assert predict(f"run={smoke_run}", *options).code == 0
        assert pd.read_parquet("out.parquet")[name].tolist() == expected


def test_a_run_predicts_frames_alone(smoke_run: Path):
    with pytest.raises(UserError, match=r"^frame: must be a DataFrame, is str; python -m mmoe.predict reads"):
        load(smoke_run).predict("new.csv")  # type: ignore[arg-type]


def test_a_run_warns_of_unseen_levels(smoke_run: Path, caplog: pytest.LogCaptureFixture):
    frame = raw(LINES[:3]).assign(sex=["Male", "male", "Female"])
    load(smoke_run).predict(frame)
    assert [record.getMessage() for record in caplog.records] == [
        "sex: 1 of 3 rows have no value, or one that training did not see"
    ]


def test_a_prediction_replaces_no_id(predict, smoke_run: Path):
    raw(LINES[:9]).assign(income_probability=0.5).to_parquet("rows.parquet")
    done = predict(f"run={smoke_run}", "input=rows.parquet", "output=out.csv", "id=income_probability")
    assert done.code == 2
    assert done.err == "error: id=income_probability: must not have the name of a prediction\n"
    assert not Path("out.csv").exists()


def test_unseen_levels_are_counted(predict, smoke_run: Path):
    lines = [line.replace("Private", "Publican") for line in LINES[:200]]
    count = sum("Publican" in line for line in lines)
    result = predict(f"run={smoke_run}", f"input={write_lines('rows.csv', lines)}", "output=out.csv")
    assert result.code == 0
    assert (
        f"class_of_worker: {count} of 200 rows have no value, or one that training did not see" in result.out
    )


def test_one_replica_of_many(predict, train):
    options = ["trainer.max_epochs=1", "+trainer.limit_train_batches=3", "logger=none", "replicas=2"]
    assert train("experiment=smoke", *options, "hydra.run.dir=run").code == 0
    source = write_lines("rows.csv", LINES)
    refused = predict("run=run", f"input={source}", "output=out.parquet")
    assert refused.err.startswith("error: replica: must be 0 to 1, because the run has 2 replicas")
    assert predict("run=run", f"input={source}", "output=out.parquet", "replica=1").code == 0
    trained = pd.read_parquet("run/predictions.parquet")
    scores = pd.read_parquet("out.parquet")["income_probability"]
    np.testing.assert_allclose(scores[trained["row"]], trained["income_probability_1"], atol=1e-6)


def test_a_bit_that_flips_in_the_predictions_is_noticed(predict, smoke_run: Path):
    source = write_lines("rows.csv", LINES[:50])
    assert predict(f"run={smoke_run}", f"input={source}", "output=out.parquet").code == 0
    content = bytearray(Path("out.parquet").read_bytes())
    content[150] ^= 1  # in the first page
    Path("out.parquet").write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table("out.parquet", page_checksum_verification=True)


@pytest.mark.parametrize("name", ["rows.csv", "link.csv", "rows.parquet"])
def test_the_input_and_the_run_are_not_overwritten(predict, smoke_run: Path, name: str):
    write_lines("rows.csv", LINES[:50])
    raw(LINES[:50]).to_parquet("rows.parquet")
    Path("link.csv").symlink_to("rows.csv")
    before = Path(name).read_bytes()
    result = predict(f"run={smoke_run}", f"input={name}", f"output=./{name}")
    assert (result.code, result.err) == (2, f"error: output={name}: must not be the input\n")
    assert Path(name).read_bytes() == before
    own = smoke_run / "predictions.parquet"
    result = predict(f"run={smoke_run}", f"input={name}", f"output={own}")
    assert (result.code, result.err) == (2, f"error: output={own}: must not be a file of the run\n")


def test_an_error_ends_the_thread_and_closes_the_file(smoke_run: Path):
    before = threading.active_count()
    closed = []

    def parts() -> Generator[Chunk]:
        try:
            while True:
                rows = Batch(*(torch.zeros(ROWS_PER_PASS, 1) for _ in range(3)))
                yield Chunk(pa.table({}), rows)
        finally:
            closed.append(True)

    for part in (rows := regroup_into_blocks(read_ahead(parts()))):
        assert len(part.rows.levels) == ROWS_PER_PASS
        break
    rows.close()
    assert closed
    assert threading.active_count() == before


def parquet_with(column: str, values: list[object]) -> str:
    frame = raw(LINES[:3])
    frame[column] = values
    frame.to_parquet("bad.parquet")
    return "bad.parquet"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "nowhere.csv", "input=nowhere.csv: no such file"),
        (lambda: "nowhere.parquet", "input=nowhere.parquet: no such file"),
        (lambda: write_lines("empty.csv", []), "empty.csv: is empty"),
        (
            lambda: write_lines("header.csv", [",".join(COLUMNS)]),
            "header.csv: must have at least one row; has none",
        ),
        (lambda: write_lines("rows.xls", LINES), "input=rows.xls: must end with"),
        (
            lambda: write_lines("bad.csv", [*LINES[:20], "old" + LINES[20].lstrip("0123456789")]),
            "bad.csv, line 21, column 1 (age): must be a number, is 'old'",
        ),
        (
            lambda: write_lines("short.csv", [*LINES[:20], "1,2,3"]),
            "short.csv, line 21: must have 42 comma-separated fields, has 3",
        ),
        (
            lambda: parquet_with("age", [1.0, None, 2.0]),
            "bad.parquet, column age, row 2: must not be missing",
        ),
        (
            lambda: parquet_with("age", ["1", "2 years", "3"]),
            "bad.parquet, column age, row 2: must be a number, is '2 years'",
        ),
        (
            lambda: parquet_with("sex", [["Male"], [], ["Male"]]),
            "bad.parquet: column sex: must hold text, holds list",
        ),
        (
            lambda: parquet_with("sex", ["Male", "Male", None]),
            "bad.parquet, column sex, row 3: must not be",
        ),
        (
            lambda: parquet_with("sex", ["Male", " ", "Male"]),
            "bad.parquet, column sex, row 2: must not be",
        ),
    ],
)
def test_bad_rows(predict, smoke_run: Path, make, message: str):
    Path("out.parquet").write_text("before")
    result = predict(f"run={smoke_run}", f"input={make()}", "output=out.parquet")
    assert result.code == 2
    assert result.err.splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in result.err
    assert Path("out.parquet").read_text() == "before"
    assert not list(Path().glob(".out*"))


@pytest.mark.parametrize(
    ("column", "hint"),
    [("age", "it begins with ['class_of_worker', "), ("previous_region", "the nearest is 'previous_state'")],
)
def test_a_column_that_is_missing(predict, smoke_run: Path, column: str, hint: str):
    raw(LINES[:3]).drop(columns=column).to_parquet("bad.parquet")
    result = predict(f"run={smoke_run}", "input=bad.parquet", "output=out.parquet")
    last = result.err.splitlines()[-1]
    assert last.startswith(f"error: bad.parquet: must have a column '{column}'; {hint}")
    result = predict(f"run={smoke_run}", "input=bad.parquet", "output=out.xls")
    assert result.err == "error: output=out.xls: must end with .parquet, .csv or .csv.gz\n"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(smoke_run: Path):
    table = pa.Table.from_pandas(raw(LINES[:1000]))
    peaks = []
    for groups in (100, 700):
        with pq.ParquetWriter("big.parquet", table.schema) as writer:
            for _ in range(groups):
                writer.write_table(table)
        code = (
            "import resource; from mmoe import predict; predict.main();"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        arguments = [f"run={smoke_run}", "input=big.parquet", "output=big_out.parquet"]
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
        assert pq.ParquetFile("big_out.parquet").metadata.num_rows == groups * 1000
    assert peaks[1] - peaks[0] < 120  # MiB, for 600,000 rows more: all of them would take 160


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+nonsense=1", "nonsense: no such setting"),
        ("checkpont=last", "checkpont: no such setting; did you mean checkpoint?"),
        ("+csv.missing=[x]", "csv: no such setting"),
    ],
)
def test_settings_that_the_command_does_not_have_are_refused(
    command: Callable, smoke_run: Path, override: str, message: str
):
    given = [f"run={smoke_run}", "input=rows.csv", "output=scores.csv"]
    done = command("predict")(*given, override)
    assert (done.code, done.err) == (2, f"error: {message}\n")


def test_a_missing_number_that_training_did_not_see_is_reported(
    command: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    rows = pd.DataFrame({"x": np.arange(60.0), "some": np.arange(60.0), "click": np.arange(60) % 2})
    rows.loc[::5, "some"] = np.nan
    quick = ["trainer.max_epochs=1", "figures=false", "card=false", "logger=none"]
    run = mmoe.fit(mmoe.Table(rows, tasks=["click"]), tmp_path / "run", *quick)
    new = pd.DataFrame({"x": [1.0, np.nan], "some": [1.0, np.nan]})
    assert run.predict(new)["click_probability"].between(0, 1).all()
    assert "x: 1 of 2 rows have no value" in caplog.text
    assert "some: " not in caplog.text
