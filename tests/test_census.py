import logging
from pathlib import Path

import pytest
import torch
from conftest import config, sample_lines

from mmoe.build import build
from mmoe.data import census_download
from mmoe.data.batch import Batch
from mmoe.data.census_files import COLUMNS, NUMERIC, SAMPLE_DIR, find_census_files

# The number of levels by column in the official training file: 488 in 29 columns, and marital status.
OFFICIAL_LEVELS = {
    "class_of_worker": 9, "industry_code": 52, "occupation_code": 47, "education": 17,
    "enrolled_last_week": 3, "marital_status": 7, "major_industry": 24, "major_occupation": 15, "race": 5,
    "hispanic_origin": 10,
    "sex": 2, "union_member": 3, "unemployment_reason": 6, "full_or_part_time": 8, "tax_filer_status": 6,
    "previous_region": 6, "previous_state": 51, "household_and_family": 38, "household_summary": 8,
    "migration_msa": 10, "migration_region": 9, "migration_within_region": 10, "same_house": 3,
    "previous_sunbelt": 4, "family_under_18": 5, "country_of_father": 43, "country_of_mother": 43,
    "country_of_self": 43, "citizenship": 5, "veterans_questionnaire": 3,
}  # fmt: skip


def test_rows_are_encoded_in_memory_whatever_its_size(monkeypatch: pytest.MonkeyPatch):
    """`headerless_csv` reads the files of UCI in memory alone."""
    monkeypatch.setattr("mmoe.data.table_data.memory_size", lambda: 10_000)
    data = build(config("data.source=sample"), "data")
    assert isinstance(data.dataset.splits["train"], Batch)


@pytest.fixture
def official_levels(tmp_path: Path) -> Path:
    """Both files, with the official number of levels per column. The test file lacks a household level."""
    fixed = {
        "marital_status": ["Never married"],
        "hispanic_origin": ["NA"],
        "migration_msa": ["?"],
        "previous_state": ["?"],
        "income": ["- 50000.", "50000+."],
    }
    for name, rows in (("census-income.data", 120), ("census-income.test", 120)):
        lines = []
        for row in range(rows):
            fields = []
            for column in COLUMNS:
                if column in NUMERIC:
                    fields.append(str(row % 7))
                    continue
                count = OFFICIAL_LEVELS.get(column, 2)
                if column == "household_and_family" and name.endswith("test"):
                    count = 37
                levels = fixed.get(column, []) + [f"{column} {i}" for i in range(count)]
                fields.append(levels[row % count])
            lines.append(", ".join(fields))
        (tmp_path / name).write_text("\n".join(lines) + "\n", "latin-1")
    return tmp_path


def test_the_files_have_42_columns_of_which_11_are_numeric():
    assert len(COLUMNS) == 42
    assert len(NUMERIC) == 11
    assert len(sample_lines()[0].split(", ")) == 42


def test_the_features_of_paddlerec_give_499_inputs(official_levels: Path):
    c = config("features=paddlerec", "inputs=standard", f"data.dir={official_levels}")
    schema = build(c, "data").schema
    assert schema.num_codes == 488
    assert len(schema.numeric) == 11
    assert build(c, "inputs", schema=schema).num_outputs == 499


def test_the_paper_leaves_out_education_and_instance_weight(official_levels: Path):
    schema = build(config(f"data.dir={official_levels}"), "data").schema
    names = {column.name for column in (*schema.categorical, *schema.numeric)}
    assert set(COLUMNS) - names == {"income", "marital_status", "education", "instance_weight"}


def test_both_task_groups(census_dir: Path):
    first = build(config(f"data.dir={census_dir}"), "data").schema
    second = build(config("data=census_education", f"data.dir={census_dir}"), "data").schema
    assert {t.name: t.column for t in first.tasks} == {"income": "income", "marital": "marital_status"}
    assert {t.name: t.column for t in second.tasks} == {"marital": "marital_status", "education": "education"}
    college = next(t for t in second.tasks if t.name == "education").positive
    levels = {line.split(", ")[4] for line in sample_lines()}
    assert set(college) <= levels
    assert len(college) == 6
    assert [t.name for t in second.tasks] == ["education", "marital"]  # the main task comes first


def test_a_misspelt_level_is_refused(census_dir: Path):
    c = config(f"data.dir={census_dir}", "data.tasks.marital.positive=[Never married,Divorcd]")
    with pytest.raises(
        ValueError, match=r"^data\.tasks\.marital\.positive: 'Divorcd' is not a level of marital"
    ):
        build(c, "data").schema  # noqa: B018


def test_the_test_file_is_split_into_validation_and_test_rows(census_dir: Path):
    dataset = build(config(f"data.dir={census_dir}"), "data").dataset
    assert {name: len(rows.labels) for name, rows in dataset.splits.items()} == {
        "train": 1200,
        "val": 300,
        "test": 300,
    }
    both = torch.cat([dataset.positions["val"], dataset.positions["test"]])
    assert sorted(both.tolist()) == list(range(600))
    assert dataset.schema.num_rows == {"train": 1200, "val": 300, "test": 300}


def test_the_split_has_its_own_seed(census_dir: Path):
    def positions(*overrides: str) -> list[int]:
        c = config(f"data.dir={census_dir}", *overrides)
        return build(c, "data").dataset.positions["val"].tolist()

    assert positions() == positions("seed=7")
    assert positions() != positions("data.split_seed=7")


def test_labels_match_the_file(census_dir: Path):
    dataset = build(config(f"data.dir={census_dir}"), "data").dataset
    fields = [line.split(", ") for line in sample_lines("census-income.test")[:600]]
    for split in ("val", "test"):
        for position, label in zip(dataset.positions[split], dataset.splits[split].labels, strict=True):
            row = fields[position]
            assert label.tolist() == [row[41] == "50000+.", row[7] == "Never married"]


def test_compressed_and_plain_files_are_found(census_dir: Path):
    assert find_census_files(str(census_dir), "auto", "", Path()).train == census_dir / "census-income.data"
    assert find_census_files(str(SAMPLE_DIR), "auto", "", Path()).test == SAMPLE_DIR / "census-income.test.gz"


def test_the_schema_records_the_origin_of_the_rows(census_dir: Path, caplog: pytest.LogCaptureFixture):
    assert build(config(f"data.dir={census_dir}"), "data").schema.row_origin == "custom"
    assert build(config("data.source=sample"), "data").schema.row_origin == "sample"
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        fallen_back = build(config("data.url=http://127.0.0.1:9/none.zip"), "data").schema
    assert fallen_back.row_origin == "sample"
    assert "FALLING BACK TO THE BUNDLED SAMPLE" in caplog.text


def test_official_forbids_the_sample():
    with pytest.raises(ValueError, match=r"^data\.source=official: http.*give data.dir"):
        build(config("data.source=official", "data.url=http://127.0.0.1:9/none.zip"), "data").schema  # noqa: B018


def test_a_directory_is_not_replaced_by_a_download(census_dir: Path, monkeypatch: pytest.MonkeyPatch):
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(census_download, "fetch", fetch)
    (census_dir / "census-income.test").unlink()
    with pytest.raises(ValueError, match=r"census-income\.test: missing"):
        find_census_files(str(census_dir), "auto", "", Path())
    with pytest.raises(ValueError, match="must be a directory"):
        find_census_files(str(census_dir / "no"), "auto", "", Path())
