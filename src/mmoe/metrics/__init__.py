"""How good predictions are: exact metrics, metrics in bounded memory, and metrics of resamples."""

GROUPED_AUROC = "grouped_auroc"  # a metric that `group_by` adds
CALIBRATION_BINS = 15  # of equal width
SMALLEST = 1e-30  # smaller probabilities and counts are replaced by this before a logarithm
