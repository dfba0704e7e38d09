"""Measure training loops without Lightning, on the rows and the network of `experiment=census_paper`.

usage: PYTHONPATH=scripts python scripts/benchmarks/training_loops.py BATCH_SIZE SECONDS [overrides]

Prints the samples per second of each loop, and the numbers of training and validation batches in an epoch, as
JSON.

B batch, N rows, I inputs, O outputs of the first layer, E experts, T tasks, H expert width.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any

import pytorch_lightning as pl
import torch
from commands import compose_config
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from mmoe.build import build
from mmoe.training.preparation import build_learner

WARM_UP = 20  # steps
Step = Callable[[], int]  # runs one step of a loop, returns its number of rows


class LoopedMMoE(nn.Module):
    """MMoE in its usual form, with Python loops over experts, gates and towers."""

    def __init__(self, num_inputs: int, num_tasks: int, num_experts: int, width: int, tower: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(num_inputs, width) for _ in range(num_experts))
        self.gates = nn.ModuleList(nn.Linear(num_inputs, num_experts) for _ in range(num_tasks))
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, tower), nn.ReLU(), nn.Linear(tower, 1)) for _ in range(num_tasks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, T]."""
        experts = torch.stack([expert(x).relu() for expert in self.experts], dim=1)  # [B, E, H]
        logits = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = gate(x).softmax(-1)  # [B, E]
            logits.append(tower((weights[:, :, None] * experts).sum(1)))
        return torch.cat(logits, dim=1)


def bare_loop(learner: Any, data: Any) -> Step:
    """Our network and batches. The rows are encoded once before the loop, as in a training."""
    optimizer = torch.optim.Adam(learner.objective.parameters(), lr=3e-3, fused=True)
    loader = data.unencoded_train_loader()
    loader.encode_with(lambda rows: learner.network.encode_rows(rows, data.batch_size))
    batches = (batch for _ in itertools.count() for batch in loader)

    def step() -> int:
        batch = next(batches)
        optimizer.zero_grad()
        learner.objective(*batch).loss.backward()
        optimizer.step()
        return len(batch.labels)

    return step


def dense_loop(model: nn.Module, batches: Iterator[Sequence[Tensor]]) -> Step:
    """A model on batches of dense inputs. The model returns logits, or a tuple that begins with them."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)

    def step() -> int:
        x, labels = next(batches)
        optimizer.zero_grad()
        output = model(x)
        logits = output if isinstance(output, Tensor) else output[0]
        binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(0).sum().backward()
        optimizer.step()
        return len(labels)

    return step


def gathered(x: Tensor, labels: Tensor, batch_size: int) -> Iterator[Sequence[Tensor]]:
    """Shuffled batches of a dense table [N, I] and labels [N, T], epoch after epoch."""
    while True:
        for index in torch.randperm(len(labels)).split(batch_size):
            yield x.index_select(0, index), labels.index_select(0, index)


def products(x: Tensor, num_outputs: int) -> Step:
    """Only the dense products of the first layer: its output, and the gradient of its weight [I, O]."""
    weight, gradient = torch.randn(x.shape[1], num_outputs), torch.randn(len(x), num_outputs)

    def step() -> int:
        torch.mm(x, weight)
        torch.mm(x.T, gradient)
        return len(x)

    return step


def rate(step: Step, seconds: float) -> float:
    """Rows per second, after the warm-up."""
    for _ in range(WARM_UP):
        step()
    rows, elapsed, start = 0, 0.0, time.perf_counter()
    while elapsed < seconds:
        rows += step()
        elapsed = time.perf_counter() - start
    return rows / elapsed


def main() -> None:
    """Measure the loops one after the other."""
    torch.set_flush_denormal(True)  # as mmoe.train does
    batch_size, seconds, overrides = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    config = compose_config("experiment=census_paper", f"data.batch_size={batch_size}", *overrides)
    config.callbacks = None
    data = build(config, "data")
    learner = build_learner(config, data.schema)
    pl.seed_everything(0, verbose=False)
    rows, network = data.dataset.splits["train"], learner.objective.network
    model, labels = network.model, rows.labels
    x = network.inputs.dense(rows.levels, rows.numbers)  # [N, I]
    sizes = x.shape[1], labels.shape[1]
    options = {name: value for name, value in config.model.items() if name != "_target_"}
    looped = LoopedMMoE(*sizes, model.num_experts, options["expert_units"][0], options["tower_units"][0])
    loader = DataLoader(TensorDataset(x, labels), batch_size, shuffle=True)
    batches = (batch for _ in itertools.count() for batch in loader)
    steps = {
        "bare loop": bare_loop(learner, data),
        "bare loop, dense inputs": dense_loop(
            type(model)(*sizes, **options), gathered(x, labels, batch_size)
        ),
        "looped experts, DataLoader": dense_loop(looped, batches),
        "first layer's products alone": products(x[:batch_size].clone(), model.weight.shape[1]),
    }
    speeds = {name: rate(step, seconds) for name, step in steps.items()}
    batch_sizes = {"train": batch_size, "val": config.data.eval_batch_size}
    num_batches = {
        name: ceil(len(data.dataset.splits[name].labels) / size) for name, size in batch_sizes.items()
    }
    print(json.dumps({"samples_per_second": speeds, "batches": num_batches}))


if __name__ == "__main__":
    main()
