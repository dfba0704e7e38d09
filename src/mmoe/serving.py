"""A trained network as one file for programs without mmoe: ONNX, or torch.export.

B batch, C categorical columns, M numeric columns, T tasks, E experts.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmoe import runs
from mmoe.atomic import write
from mmoe.data.schema import Schema
from mmoe.errors import UserError

TOLERANCE = 1e-5  # between the file's answers and the network's
BATCHES = (1, 3, 4096)  # at which they are compared


class Served(nn.Module):
    """A network that answers with probabilities, or with the numbers of regressions.

    Shape:
        codes: [B, C], int64, as `Rows` has them: the levels of all columns are numbered in one sequence; an
            unseen level is the number of all levels. numerics: [B, M], float32, as in the raw rows.
        output: predictions [B, T] and gate weights [B, T, E]; E is 0 for a model without gates.
    """

    is_binary: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, schema: Schema) -> None:
        super().__init__()
        self.network = network
        binary = torch.tensor([task.is_binary for task in schema.tasks])
        self.register_buffer("is_binary", binary)
        self.register_buffer("mean", torch.tensor([task.mean for task in schema.tasks]))
        self.register_buffer("std", torch.tensor([task.std for task in schema.tasks]))
        self._is_scaled = any(task.is_scaled for task in schema.tasks)

    def forward(self, codes: Tensor, numerics: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and gate weights."""
        logits, gates = self.network(codes, numerics)
        numbers = logits * self.std + self.mean if self._is_scaled else logits
        return torch.where(self.is_binary, logits.sigmoid(), numbers), gates


def export(
    folder: Path,
    format: str = "onnx",
    target: Path | None = None,
    checkpoint: str = "best",
    replica: int | None = None,
    trust: Sequence[str] = (),
) -> tuple[Path, float]:
    """Write the network of a run folder, with its schema, and compare the file's answers with its own.

    The schema (columns, vocabularies, tasks: what is needed to make codes of raw rows) travels in the file:
    as the metadata `schema` of ONNX, as the extra file `schema.json` of torch.export.

    Args:
        folder: the run folder.
        format: `onnx` (needs `pip install mmoe[export]`) or `torch_export`.
        target: the file, .onnx or .pt2, by default in the run folder; it appears when its answers are right.
        checkpoint: name of a file of checkpoints/.
        replica: which one, of a run with replicas.
        trust: packages of your own whose classes the network is built from.

    Returns:
        The file, and the largest difference between an answer of it and of the network.

    Raises:
        UserError: an argument is outside its range, a package is missing, or the answers differ.
    """
    writers: dict[str, tuple[str, Callable[..., Callable[..., Any]]]] = {
        "onnx": (".onnx", _onnx),
        "torch_export": (".pt2", _torch_export),
    }
    if format not in writers:
        raise UserError(f"format={format}: must be {' or '.join(writers)}")
    suffix, writer = writers[format]
    name = "network" if replica is None else f"network_{replica}"
    target = target or folder / f"{name}{suffix}"
    if target.suffix != suffix:
        raise UserError(f"out={target}: must end with {suffix}")
    schema = runs.read_schema(folder)
    served = Served(runs.load_network(folder, checkpoint, replica, trust), schema).eval()
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0: batch}, {0: batch})
    program = torch.export.export(served, rows(schema, 2), dynamic_shapes=shapes)
    largest = 0.0

    def save(scratch: Path) -> None:
        nonlocal largest
        answer = writer(program, schema, scratch)
        with torch.inference_mode():
            for size in BATCHES:
                given = rows(schema, size)
                for ours, theirs in zip(served(*given), answer(*given), strict=True):
                    # Relative to numbers above 1, which regressions have.
                    difference = (ours - torch.as_tensor(theirs)).abs() / ours.abs().clamp(min=1)
                    difference = difference.nan_to_num(torch.inf)
                    largest = max(largest, difference.max().item() if difference.numel() else 0.0)
        if not largest <= TOLERANCE:
            raise UserError(f"format={format}: the file's answers differ from the network's by {largest:.1e}")

    write(target, save)
    return target, largest


def rows(schema: Schema, count: int) -> tuple[Tensor, Tensor]:
    """Rows to compare with: random levels, unseen ones among them, and numbers beyond the bins."""
    random = torch.Generator().manual_seed(0)
    codes, offset = torch.empty(count, len(schema.categorical), dtype=torch.int64), 0
    for i, column in enumerate(schema.categorical):
        drawn = torch.randint(len(column.levels) + 1, (count,), generator=random) + offset
        offset += len(column.levels)
        codes[:, i] = torch.where(drawn == offset, schema.num_levels, drawn)
    low = torch.tensor([column.bins[0] for column in schema.numeric])
    high = torch.tensor([column.bins[-1] for column in schema.numeric])
    share = 1.2 * torch.rand(count, len(schema.numeric), generator=random) - 0.1
    return codes, low + share * (high - low)


def _torch_export(program: Any, schema: Schema, path: Path) -> Callable[..., Any]:
    torch.export.save(program, path, extra_files={"schema.json": schema.to_json()})
    answer: Callable[..., Any] = torch.export.load(path).module()
    return answer


def _onnx(program: Any, schema: Schema, path: Path) -> Callable[..., Any]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"format=onnx: needs {error.name}: pip install 'mmoe[export]'") from None
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            program,
            input_names=["codes", "numerics"],
            output_names=["predictions", "gates"],
            dynamo=True,
            verbose=False,
        )
    assert made is not None  # None is the TorchScript exporter's
    made.model.metadata_props["schema"] = schema.to_json()
    made.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def answer(codes: Tensor, numerics: Tensor) -> Any:
        return session.run(None, {"codes": codes.numpy(), "numerics": numerics.numpy()})

    return answer
