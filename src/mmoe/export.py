"""Write a run's network for other programs: `python -m mmoe.export run=runs/... format=onnx`."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mmoe.atomic import write
from mmoe.cli.command import command
from mmoe.errors import UserError

if TYPE_CHECKING:
    from mmoe.data.schema import Schema
    from mmoe.run import Run

TOLERANCE = 1e-4  # rounding in a sum as large as 100 changes a logit by about 1e-5 at most
BATCH_SIZES = (1, 3, 4096)  # batch sizes for the comparison


@command("export")
def main(config: DictConfig) -> None:
    """Write the file and print how much its predictions differ from the network's."""
    from mmoe.run import load

    target = Path(config.out) if config.out else None
    run = load(str(config.run), config.trust)
    written, largest = export(run, config.format, target, config.checkpoint, config.replica)
    print(f"written: {written}; its predictions differ from the network's by at most {largest:.1e}")


def export(
    run: "Run",
    format: str = "onnx",
    target: Path | None = None,
    checkpoint: str = "best",
    replica: int | None = None,
) -> tuple[Path, float]:
    """Write a run's network and schema to one file, and compare the file's predictions with the network's.

    The schema is needed to encode raw rows, as `mmoe.models.onnx_scorer` does. ONNX stores it as the metadata
    `schema`, and torch.export as the extra file `schema.json`. `format` is `onnx` (needs
    `pip install mmoe[export]`) or `torch_export`. Without `target`, the file is written to the run folder.
    `checkpoint` and `replica` are as in `Run`.

    Returns:
        The file, and the largest difference between its predictions and the network's.

    Raises:
        UserError: an argument is invalid, a package is missing, or the difference is too large.
    """
    import torch

    from mmoe.models.exported import ExportedNetwork, random_inputs

    formats: dict[str, tuple[str, Callable[..., Callable[..., Any]]]] = {
        "onnx": (".onnx", write_onnx),
        "torch_export": (".pt2", write_torch_export),
    }
    if format not in formats:
        raise UserError(f"format={format}: must be {' or '.join(formats)}")
    suffix, write_file = formats[format]
    name = "network" if replica is None else f"network_{replica}"
    target = target or run.folder / f"{name}{suffix}"
    if target.suffix != suffix:
        raise UserError(f"out={target}: must end with {suffix}")
    served = ExportedNetwork(run.network(checkpoint, replica), run.schema).eval()
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0: batch}, {0: batch})
    program = torch.export.export(served, random_inputs(run.schema, 2), dynamic_shapes=shapes)
    largest = 0.0

    def save(scratch: Path) -> None:
        nonlocal largest
        predict = write_file(program, run.schema, scratch)
        with torch.inference_mode():
            for size in BATCH_SIZES:
                rows = random_inputs(run.schema, size)
                for ours, theirs in zip(served(*rows), predict(*rows), strict=True):
                    # Regressions may predict numbers above 1, for which the difference is relative.
                    difference = (ours - torch.as_tensor(theirs)).abs() / ours.abs().clamp(min=1)
                    difference = difference.nan_to_num(torch.inf)
                    largest = max(largest, difference.max().item() if difference.numel() else 0.0)
        if not largest <= TOLERANCE:
            raise UserError(f"format={format}: the predictions differ from the network's by {largest:.1e}")

    write(target, save)
    return target, largest


def write_torch_export(program: Any, schema: "Schema", path: Path) -> Callable[..., Any]:
    """Write a program of torch.export, and return a function that runs the written file."""
    import torch

    torch.export.save(program, path, extra_files={"schema.json": schema.to_json()})
    predict: Callable[..., Any] = torch.export.load(path).module()
    return predict


def write_onnx(program: Any, schema: "Schema", path: Path) -> Callable[..., Any]:
    """Write a program as ONNX, and return a function that runs the written file."""
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"format=onnx: needs {error.name}: pip install 'mmoe[export]'") from None
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.onnx.export(
            program,
            input_names=["levels", "numbers"],
            output_names=["predictions", "gates"],
            dynamo=True,
            verbose=False,
        )
    assert model is not None  # only the TorchScript exporter returns None
    model.model.metadata_props["schema"] = schema.to_json()
    model.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(levels: torch.Tensor, numbers: torch.Tensor) -> Any:
        return session.run(None, {"levels": levels.numpy(), "numbers": numbers.numpy()})

    return predict


if __name__ == "__main__":
    main()
