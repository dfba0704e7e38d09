"""Multi-gate mixture-of-experts (Ma et al., KDD 2018) in PyTorch Lightning."""

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.2.0"
_HERE = Path(__file__).resolve().parent
CONF_DIR = next(p for p in (_HERE / "conf", _HERE.parents[1] / "conf") if p.is_dir())

# Imported on first use, so that `python -m mmoe.train --help` does not wait for torch.
_PUBLIC = {
    "AITM": "mmoe.models.aitm",
    "AdaTT": "mmoe.models.adatt",
    "Batch": "mmoe.data.batch",
    "Binary": "mmoe.tasks",
    "Count": "mmoe.tasks",
    "CrossStitch": "mmoe.models.cross_stitch",
    "DSelectK": "mmoe.models.dselect_k",
    "DataModule": "mmoe.data.datamodule",
    "Dataset": "mmoe.data.splits",
    "ESMM": "mmoe.models.esmm",
    "Ensemble": "mmoe.models.ensemble",
    "Inputs": "mmoe.models.inputs",
    "L2Constrained": "mmoe.models.l2_constrained",
    "Learner": "mmoe.training.learner",
    "MMoE": "mmoe.models.mmoe",
    "Multiclass": "mmoe.tasks",
    "Network": "mmoe.models.network",
    "OMoE": "mmoe.models.mmoe",
    "Objective": "mmoe.training.objective",
    "Output": "mmoe.models.network",
    "PLE": "mmoe.models.ple",
    "Regression": "mmoe.tasks",
    "Replicas": "mmoe.models.replicas",
    "Run": "mmoe.run",
    "STEM": "mmoe.models.stem",
    "Schema": "mmoe.data.schema",
    "SharedBottom": "mmoe.models.shared_bottom",
    "SingleTask": "mmoe.models.single_task",
    "StackedLinear": "mmoe.models.layers",
    "Table": "mmoe.data.table",
    "Task": "mmoe.tasks",
    "TensorFactorization": "mmoe.models.tensor_factorization",
    "fit": "mmoe.api",
    "load": "mmoe.run",
}
__all__ = ["CONF_DIR", "__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
