"""Half precision for the network alone."""

from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.plugins import HalfPrecision

HALF = ("16-true", "bf16-true")


class HalfPrecisionNetwork(HalfPrecision):
    """Weights and activations in half precision, and batches as they are.

    Lightning's own plugin also rounds the batches: bfloat16 cannot hold a class number of 257, and float16
    has no number above 65,504. `Inputs` takes numbers in float32, and casts the inputs that it computes.
    """

    def convert_input(self, data: Any) -> Any:
        return data


def precision_arguments(config: DictConfig, plugins: list[Any]) -> dict[str, Any]:
    """The arguments of the trainer for its precision and these plugins."""
    precision = config.trainer.get("precision")
    if precision not in HALF:
        return {"plugins": plugins}
    return {"plugins": [*plugins, HalfPrecisionNetwork(precision)], "precision": None}
