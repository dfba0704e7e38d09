"""Train the MMoE of DeepCTR-Torch and torch-rechub on the census rows, as their documentation shows.

usage: PYTHON scripts/peers.py DATA_DIR BATCH_SIZE EPOCHS [NAME]

PYTHON needs deepctr-torch, torch-rechub and scikit-learn. DATA_DIR holds census-income.data and
census-income.test, plain or gzipped. NAME: deepctr-torch or torch-rechub; without it, both are trained.

After each epoch, the script prints the time and the test AUROC of income as JSON; after the last one, a line
"NAME ... N samples/s" with the speed of training alone, without imports and the building of the model. The
inputs are the paper's columns: z-scores, and embeddings of size 4. The network is that of
`experiment=census_paper`: 8 experts of 16 units, towers of 8.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import LabelEncoder, StandardScaler

NUMERIC = [0, 5, 16, 17, 18, 30, 36, 38, 39, 40]
EDUCATION, MARITAL_STATUS, WEIGHT, INCOME = 4, 7, 24, 41  # not inputs
CATEGORICAL = [i for i in range(42) if i not in (*NUMERIC, EDUCATION, MARITAL_STATUS, WEIGHT, INCOME)]
TASKS = ["income", "marital"]
Inputs = dict[str, Any]  # an array [N] for each column
# Builds the model; then trains an epoch at each `next`, and gives a function that predicts the test rows.
Epochs = Iterator[Callable[[], Any] | None]


def read(folder: str, name: str) -> pd.DataFrame:
    """The columns of a census file, by number."""
    path = next(Path(folder).glob(f"{name}*"))
    return pd.read_csv(path, header=None, skipinitialspace=True, keep_default_na=False)


def deepctr_torch(train: Inputs, labels: Any, test: Inputs, sizes: dict[str, int], batch: int) -> Epochs:
    """DeepCTR-Torch's MMOE, trained by its own `fit`."""
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import MMOE

    features = [SparseFeat(name, size, 4) for name, size in sizes.items()]
    features += [DenseFeat(f"n{i}", 1) for i in NUMERIC]
    model = MMOE(
        features, num_experts=8, expert_dnn_hidden_units=(16,), tower_dnn_hidden_units=(8,),
        task_types=["binary"] * 2, task_names=TASKS, l2_reg_embedding=0, device="cpu",
    )  # fmt: skip
    model.compile("adam", loss=["binary_crossentropy"] * 2, metrics=[])
    yield None
    while True:
        model.fit(train, labels, batch_size=batch, epochs=1, verbose=0)
        yield lambda: model.predict(test, 8192)


def torch_rechub(train: Inputs, labels: Any, test: Inputs, sizes: dict[str, int], batch: int) -> Epochs:
    """torch-rechub's MMOE, trained by its own trainer."""
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    features = [SparseFeature(name, size, embed_dim=4) for name, size in sizes.items()]
    features += [DenseFeature(f"n{i}") for i in NUMERIC]
    kinds = ["classification"] * 2
    model = MMOE(features, kinds, 8, expert_params={"dims": [16]}, tower_params_list=[{"dims": [8]}] * 2)
    nothing = np.zeros((len(test["n0"]), 2), np.float32)
    loaders = DataGenerator(train, labels).generate_dataloader(
        x_val=test, y_val=nothing, x_test=test, y_test=nothing, batch_size=batch
    )
    optimizer = {"lr": 1e-3}
    trainer = MTLTrainer(model, kinds, optimizer_params=optimizer, n_epoch=1, model_path=tempfile.mkdtemp())

    def predict() -> Any:
        model.eval()
        with torch.no_grad():
            return torch.cat([model(x) for x, _ in loaders[2]]).numpy()

    yield None
    while True:
        trainer.train_one_epoch(loaders[0])
        yield predict


PROGRAMS = {"deepctr-torch": deepctr_torch, "torch-rechub": torch_rechub}


def main() -> None:
    """Train the programs, one after the other."""
    folder, batch, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    frames = [read(folder, name) for name in ("census-income.data", "census-income.test")]
    scaler = StandardScaler().fit(frames[0][NUMERIC].astype(float))
    both = pd.concat(frames)
    encoders = {i: LabelEncoder().fit(both[i].astype(str)) for i in CATEGORICAL}
    inputs: list[Inputs] = []
    labels = []
    for frame in frames:
        numbers = scaler.transform(frame[NUMERIC].astype(float)).astype("float32")
        columns = {f"n{i}": values for i, values in zip(NUMERIC, numbers.T, strict=True)}
        levels = {f"c{i}": encoders[i].transform(frame[i].astype(str)) for i in CATEGORICAL}
        inputs.append(columns | levels)
        is_never_married = frame[MARITAL_STATUS] == "Never married"
        labels.append(np.c_[frame[INCOME] == "50000+.", is_never_married].astype("float32"))
    sizes = {f"c{i}": len(encoders[i].classes_) for i in CATEGORICAL}
    for name in sys.argv[4:] or PROGRAMS:
        program = PROGRAMS[name](inputs[0], labels[0], inputs[1], sizes, batch)
        next(program)
        seconds = 0.0
        for _ in range(epochs):
            start = time.perf_counter()
            predict: Any = next(program)
            seconds += time.perf_counter() - start
            auroc = roc_auc_score(labels[1][:, 0], predict()[:, 0])
            print(json.dumps({"time": time.time(), "auroc": auroc}), flush=True)
        print(f"{name} B={batch} {len(frames[0]) * epochs / seconds:.0f} samples/s", flush=True)


if __name__ == "__main__":
    main()
