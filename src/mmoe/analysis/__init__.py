"""What a trained network does: pure functions from a run folder to a table or a figure.

Tables: `scored`, `gate_weights`, `gate_weights_by`, `gate_similarity`, `expert_ablation`,
`training_curves`, `roc`, `precision_recall`, `calibration`, `compare`. Each but the first has a figure,
`plot_<table>`; `plot_gate_distributions` shows the weights of all rows.
"""

from mmoe.analysis.ablation import expert_ablation
from mmoe.analysis.curve_figures import (
    plot_calibration,
    plot_precision_recall,
    plot_roc,
    plot_training_curves,
)
from mmoe.analysis.curves import calibration, precision_recall, roc, training_curves
from mmoe.analysis.gate_figures import (
    plot_expert_ablation,
    plot_gate_distributions,
    plot_gate_similarity,
    plot_gate_weights,
    plot_gate_weights_by,
)
from mmoe.analysis.gates import gate_similarity, gate_weights, gate_weights_by
from mmoe.analysis.rows import scored
from mmoe.analysis.sweep import compare
from mmoe.analysis.sweep_figures import plot_compare

__all__ = [
    "calibration",
    "compare",
    "expert_ablation",
    "gate_similarity",
    "gate_weights",
    "gate_weights_by",
    "plot_calibration",
    "plot_compare",
    "plot_expert_ablation",
    "plot_gate_distributions",
    "plot_gate_similarity",
    "plot_gate_weights",
    "plot_gate_weights_by",
    "plot_precision_recall",
    "plot_roc",
    "plot_training_curves",
    "precision_recall",
    "roc",
    "scored",
    "training_curves",
]
