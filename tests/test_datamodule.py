import pytest
import pytorch_lightning as pl
import torch
from conftest import config

from mmoe.build import build
from mmoe.data.batch import Batch
from mmoe.data.datamodule import DataModule
from mmoe.data.loader import RowLoader
from mmoe.data.splits import Dataset
from mmoe.models.network import Output
from mmoe.training.preparation import build_learner, load_schema

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 0,
}  # fmt: skip


def rows(count: int) -> Batch:
    number = torch.arange(count)
    return Batch(number[:, None].short(), number[:, None].float(), (number[:, None] % 2).float())


def order(loader: RowLoader) -> list[int]:
    return [int(i) for batch in loader for i in batch.levels[:, 0]]


def test_a_data_module_prints_its_rows():
    text = str(build(config("data.source=sample"), "data"))
    assert text == "CensusData: 20,000 train, 5,000 val, 5,000 test"


@pytest.mark.parametrize("batch_size", [1, 7, 32, 100, 1000])
def test_every_row_comes_once_an_epoch(batch_size: int):
    for seed in (None, 0):
        loader = RowLoader(rows(100), batch_size, seed)
        assert sorted(order(loader)) == list(range(100))
        assert len(list(loader)) == len(loader) == -(-100 // batch_size)


def test_the_parts_of_a_row_stay_together():
    for batch in RowLoader(rows(100), 8, seed=0):
        assert torch.equal(batch.levels.float(), batch.numbers)
        assert torch.equal(batch.levels.float() % 2, batch.labels)


def test_each_epoch_has_a_reproducible_order_of_its_own():
    loader = RowLoader(rows(100), 8, seed=0)
    orders = []
    for epoch in (0, 1, 2, 1):
        loader.set_epoch(epoch)
        orders.append(order(loader))
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == orders[3]
    assert orders[0] != list(range(100))
    other = RowLoader(rows(100), 8, seed=1)
    assert order(other) not in orders


def test_a_plain_loop_goes_through_the_epochs():
    loader, again = RowLoader(rows(100), 8, seed=0), RowLoader(rows(100), 8, seed=0)
    looped = [order(loader) for _ in range(3)]
    for epoch, found in enumerate(looped):
        again.set_epoch(epoch)
        assert order(again) == found
    assert looped[0] != looped[1] != looped[2]
    loader.set_epoch(1)
    assert order(loader) == looped[1]


class Seen(pl.Callback):
    """The batches of every training step, by epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[Batch]] = []

    def on_train_epoch_start(self, *_: object) -> None:
        self.epochs.append([])

    def on_train_batch_start(self, trainer: object, module: object, batch: Batch, _: int) -> None:
        self.epochs[-1].append(batch)


@pytest.mark.parametrize("data_set", ["data.source=sample", "data=synthetic"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_overfit_batches_are_the_same_in_every_epoch(data_set: str, replicas: int):
    small = ["data.rows=640", "data.eval_rows=64", "inputs=standard"] if "synthetic" in data_set else []
    c = config(data_set, *small, f"replicas={replicas}", "data.batch_size=32")
    data = build(c, "data")
    seen = Seen()
    trainer = pl.Trainer(max_epochs=3, overfit_batches=2, callbacks=[seen], **QUIET)
    trainer.fit(build_learner(c, data.schema), data)
    assert [len(batches) for batches in seen.epochs] == [2, 2, 2]
    for batches in seen.epochs[1:]:
        for one, other in zip(seen.epochs[0], batches, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


@pytest.mark.parametrize("replicas", [1, 2])
def test_lightning_can_predict(replicas: int):
    c = config("data.source=sample", f"replicas={replicas}", "data.eval_batch_size=600")
    data = build(c, "data")
    learner = build_learner(c, data.schema)
    predicted = torch.cat(pl.Trainer(**QUIET).predict(learner, data), dim=-2)
    rows = data.dataset.splits["test"]
    output = learner.eval()(rows)
    assert isinstance(output, Output)
    assert predicted.shape == output.logits.shape
    assert predicted.shape[-2:] == (5000, 2)
    torch.testing.assert_close(predicted, output.logits.double().sigmoid(), atol=1e-6, rtol=0)


def test_each_process_must_have_a_row(census_dir):
    data = build(config(f"data.dir={census_dir}"), "data")
    data.trainer = type("T", (), {"world_size": 601, "overfit_batches": 0})()
    with pytest.raises(ValueError, match="601 processes need at least 601 test rows, there are 300"):
        data.test_dataloader()


def test_rows_are_shared_on_their_own_device():
    """A GPU cannot index with positions in the CPU's memory; neither can the meta device."""
    for rank in range(2):
        loader = RowLoader(rows(10).map(lambda tensor: tensor.to("meta")), 3, None, rank, 2)
        assert [batch.labels.device.type for batch in loader] == ["meta"] * 2


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match=r"^data: got an unexpected keyword argument 'num_workers'"):
        build(config("+data.num_workers=4"), "data")


def test_without_a_seed_rows_come_in_order():
    assert order(RowLoader(rows(100), 8)) == list(range(100))


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("count", [96, 97, 98, 99, 100])
def test_ranks_share_every_global_batch(count: int, seed: int | None):
    loaders = [RowLoader(rows(count), 8, seed, rank, 4) for rank in range(4)]
    assert len({len(list(loader)) for loader in loaders}) == 1
    assert sorted(i for loader in loaders for i in order(loader)) == list(range(count))


@pytest.mark.parametrize("block", [1, 16, 40])
def test_blocks_of_batches_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch):
    whole = [order(RowLoader(rows(99), 8, 3, rank, 2)) for rank in range(2)]
    monkeypatch.setattr("mmoe.data.loader.BLOCK", block)
    for rank in range(2):
        loader = RowLoader(rows(99), 8, 3, rank, 2)
        assert order(loader) == whole[rank]
        loader.load_state_dict({"epoch": 0, "step": 2})  # resumes in the middle of a block
        assert order(loader) == whole[rank][16:]


def test_the_module_serves_the_three_splits(census_dir):
    data = build(config(f"data.dir={census_dir}", "data.batch_size=64"), "data")
    assert len(data.train_dataloader()) == 19
    assert next(iter(data.train_dataloader())).labels.shape == (64, 2)
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        (batch,) = loader
        assert torch.equal(batch.levels, data.dataset.splits[split].levels)


def test_the_rows_of_all_loaders_are_encoded(census_dir):
    data = build(config(f"data.dir={census_dir}", "data.eval_batch_size=100"), "data")
    plain = data.dataset.splits
    assert torch.equal(data.train_dataloader().rows.labels, plain["train"].labels)
    sizes = []

    def encode(rows: Batch, batch_size: int) -> Batch:
        sizes.append(batch_size)
        return rows.map(lambda tensor: tensor + 1)

    data.encode_inputs_with(encode)
    assert torch.equal(data.train_dataloader().rows.labels, plain["train"].labels + 1)
    assert torch.equal(data.val_dataloader().rows.labels, plain["val"].labels + 1)
    assert torch.equal(data.test_dataloader().rows.labels, plain["test"].labels + 1)
    assert sizes == [256, 100, 100]
    assert torch.equal(data.unencoded_train_loader().rows.labels, plain["train"].labels)


def test_a_bug_in_reading_keeps_its_message():
    def load() -> Dataset:
        raise AttributeError("a bug")

    with pytest.raises(AttributeError, match=r"^a bug$"):
        load_schema(DataModule(load), "mine.Data")


@pytest.mark.parametrize(
    "override", ["seed=null", "data.seed=-1", "data.batch_size=1.5", "data.batch_size=abc"]
)
def test_seeds_and_sizes_are_integers(override: str):
    key, value = override.split("=")
    key = key if key.startswith("data.") else f"data.{key}"
    with pytest.raises(ValueError, match=f"^{key}={value.replace('null', 'None')}: must be an integer"):
        build(config(override), "data")


@pytest.mark.parametrize("key", ["batch_size", "eval_batch_size"])
def test_a_batch_has_at_least_one_row(key: str):
    with pytest.raises(ValueError, match=f"^data.{key}=0: must be an integer of at least 1"):
        build(config(f"data.{key}=0"), "data")
