"""Arguments of modules: numpy numbers become plain Python numbers, and invalid values are refused."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mmoe import (
    AITM,
    ESMM,
    PLE,
    STEM,
    AdaTT,
    CrossStitch,
    DSelectK,
    L2Constrained,
    MMoE,
    OMoE,
    SharedBottom,
    SingleTask,
    TensorFactorization,
)
from mmoe.checks.arguments import as_names, check_finite, check_integers, check_probabilities, check_widths
from mmoe.errors import UserError
from mmoe.models.ensemble import Ensemble

MODELS = {
    "mmoe": MMoE, "omoe": OMoE, "ple": PLE, "ple of two levels": partial(PLE, num_levels=2),
    "shared_bottom": SharedBottom, "single_task": SingleTask, "cross_stitch": CrossStitch,
    "l2_constrained": L2Constrained, "tensor_factorization": TensorFactorization, "dselect_k": DSelectK,
    "static dselect_k": partial(DSelectK, is_static=True, entropy=0.1), "adatt": AdaTT, "stem": STEM,
    "aitm": AITM, "esmm": ESMM,
    "ensemble": partial(Ensemble, member=MMoE, size=2),
    "ensemble of factorizations": partial(Ensemble, member=TensorFactorization, size=2),
}  # fmt: skip


def is_plain(value: object) -> bool:
    """Whether a value contains nothing from numpy."""
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return not isinstance(value, np.generic | np.ndarray)


def test_numpy_numbers_become_plain_numbers():
    found = check_integers(1, a=np.int64(3), b=np.uint8(1), c=2)
    found += check_probabilities(d=np.float32(0.5), e=0) + check_finite(0, f=np.float64(2), g=np.int32(3))
    assert found == [3, 1, 2, 0.5, 0, 2, 3]
    widths = check_widths(1, a=(np.int64(3), 4), b=np.array([5, 6]), c=[7])
    assert widths == [[3, 4], [5, 6], [7]]
    assert is_plain([found, widths])


@pytest.mark.parametrize("value", [True, np.True_, 1.5, np.float64(2), "3", None, 0, [3]])
def test_bad_sizes(value: object):
    with pytest.raises(UserError, match=r"^size=.*: must be an integer of at least 1"):
        check_integers(1, size=value)


@pytest.mark.parametrize(
    "value", [True, "", "16", 16, np.int64(16), {}, [1.5], [True], [0], np.array([[1]]), None]
)
def test_bad_widths(value: object):
    with pytest.raises(UserError, match=r"^units=.*: must be a list of integers of at least 1"):
        check_widths(0, units=value)


@pytest.mark.parametrize("value", [True, np.True_, np.nan, np.float32(1), "0.5", None, -0.1])
def test_bad_probabilities(value: object):
    with pytest.raises(UserError, match=r"^dropout=.*: must be a number in"):
        check_probabilities(dropout=value)


@pytest.mark.parametrize("name", MODELS)
def test_models_accept_numpy_sizes_and_store_plain_ones(name: str):
    torch.manual_seed(0)
    model = MODELS[name](np.int64(10), np.int32(2))
    torch.manual_seed(0)
    x = torch.randn(3, 10)
    assert model(x).logits.shape[-2:] == (3, 2)
    for module in model.modules():
        assert is_plain({k: v for k, v in vars(module).items() if not k.startswith("_")})
    widths = MMoE(10, 2, np.int64(3), np.array([4, 5]), (np.int64(2),), [], dropout=np.float32(0.5))
    assert is_plain([v for module in widths.modules() for v in vars(module).values()])


@pytest.mark.parametrize("shape", [(10,), (4, 9), (4, 11), (2, 4, 10), (10, 4), ()])
@pytest.mark.parametrize("name", MODELS)
def test_inputs_of_a_wrong_shape_are_refused(name: str, shape: tuple[int, ...]):
    model = MODELS[name](10, 2)
    for mode in (True, False):
        with pytest.raises(UserError, match=r"^x of shape \[.*\]: must be \[B, 10\]"):
            model.train(mode)(torch.randn(shape))


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_batch_gives_empty_logits(name: str):
    model = MODELS[name](10, 2).eval()
    assert model(torch.randn(0, 10)).logits.shape == (0, 2)


@pytest.mark.parametrize(
    ("given", "names"),
    [("uid", ["uid"]), (3, ["3"]), (["a", 1], ["a", "1"]), ([], []), (None, []), (0, ["0"])],
)
def test_an_option_may_be_one_name_or_a_list(given: Any, names: list[str]):
    assert as_names(given) == names
