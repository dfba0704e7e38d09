"""Tables and figures that show what a trained network does.

Each table `<name>` of a run has a figure `plot_<name>`. The functions take a `Run` or its folder, except
`sweep_runs`, `sweep_table` and `plot_sweep`, which take the folder of a sweep.
"""

from mmoe.analysis.ablation import expert_ablation, plot_expert_ablation
from mmoe.analysis.balance import balance, plot_balance
from mmoe.analysis.dead_units import dead_units, plot_dead_units
from mmoe.analysis.gates import (
    gate_similarity,
    gate_weights,
    gate_weights_by,
    plot_gate_distributions,
    plot_gate_similarity,
    plot_gate_weights,
    plot_gate_weights_by,
)
from mmoe.analysis.probabilities import (
    calibration,
    plot_calibration,
    plot_precision_recall,
    plot_roc,
    precision_recall,
    roc,
)
from mmoe.analysis.sweep_results import plot_sweep, sweep_table
from mmoe.analysis.sweep_runs import sweep_runs
from mmoe.analysis.training_curves import plot_training_curves, training_curves

__all__ = [
    "balance", "calibration", "dead_units", "expert_ablation", "gate_similarity", "gate_weights",
    "gate_weights_by", "plot_balance", "plot_calibration", "plot_dead_units", "plot_expert_ablation",
    "plot_gate_distributions", "plot_gate_similarity", "plot_gate_weights", "plot_gate_weights_by",
    "plot_precision_recall", "plot_roc", "plot_sweep", "plot_training_curves", "precision_recall", "roc",
    "sweep_runs", "sweep_table", "training_curves",
]  # fmt: skip
