"""Compute the metrics of checkpoints: `python -m mmoe.evaluate run=runs/... checkpoint=all split=val`."""

import json
from pathlib import Path

from omegaconf import DictConfig

from mmoe.atomic import write_text
from mmoe.checks.arguments import as_names, check_integers
from mmoe.cli.command import command


@command("evaluate")
def main(config: DictConfig) -> None:
    """Print the metrics of each checkpoint and write them as JSON."""
    from mmoe.run import load
    from mmoe.training import report
    from mmoe.training.run_folder import check_not_run_file

    check_integers(0, resamples=config.resamples)
    run = load(str(config.run), config.trust)
    changes = {str(key): value for key, value in config.data.items() if value is not None}
    names = [name for value in changes.values() for name in as_names(value)]
    suffix = "".join(f"_{Path(name).resolve().name}" for name in names)
    out = Path(config.out or run.folder / f"evaluation_{config.split}_{config.checkpoint}{suffix}.json")
    check_not_run_file(run.folder, "out", out)
    evaluation = run.evaluate(config.split, config.checkpoint, changes, config.resamples, config.seed)
    write_text(out, json.dumps(evaluation, indent=1) + "\n")
    report.show_evaluation(evaluation)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
