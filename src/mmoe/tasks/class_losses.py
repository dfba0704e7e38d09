"""What the losses of binary and multiclass tasks share: weights of classes, and the focal loss."""

from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmoe.checks.arguments import check_finite, is_number
from mmoe.errors import ArgumentError

BALANCED = "balanced"
ClassWeights = str | tuple[float, ...] | None


def check_class_weights(at: str, weights: Any, count: int | None) -> ClassWeights:
    """Check class weights; `count` is the number of classes, or None if it is not known yet.

    Raises:
        ArgumentError: they are not `balanced`, None or one number of at least 0 for each class, or all are 0.
    """
    if weights is None or weights == BALANCED:
        return weights  # type: ignore[no-any-return]
    where = f"{at}.class_weights"
    if not isinstance(weights, list | tuple) or not all(is_number(weight, Real) for weight in weights):
        raise ArgumentError(f"{where}={weights}: must be balanced, or a list with a number for each class")
    if count is not None and len(weights) != count:
        raise ArgumentError(f"{where}={list(weights)}: must have {count} numbers, one for each class")
    found = tuple(check_finite(0, **{where: weight})[0] for weight in weights)
    if not any(found):
        raise ArgumentError(f"{where}={list(weights)}: must have a number above 0")
    return found


def fit_class_weights(weights: ClassWeights, counts: np.ndarray) -> ClassWeights:
    """Replace `balanced` by numbers whose mean over the training rows is 1; `counts` are rows by class."""
    if weights != BALANCED:
        return weights
    return tuple((counts.sum() / (np.count_nonzero(counts) * counts.clip(1))).tolist())


def focal(entropy: Tensor, gamma: float) -> Tensor:
    """The focal loss for cross-entropies: (1 - p)^gamma x entropy, where p = exp(-entropy)."""
    if not gamma:
        return entropy
    # The clamp keeps the gradient of the power finite at p = 1.
    return (-torch.expm1(-entropy)).clamp_min(1e-6) ** gamma * entropy
