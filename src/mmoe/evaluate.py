"""Score a run's checkpoints: `python -m mmoe.evaluate run=runs/... checkpoint=all split=val`."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.cli import one_line_errors


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="evaluate")
@one_line_errors
def main(config: DictConfig) -> None:
    """Print and write the metrics of each checkpoint."""
    from mmoe import evaluation
    from mmoe.arguments import check_integers, check_seeds
    from mmoe.training import report

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    check_integers(0, bootstrap=config.bootstrap)
    check_seeds(seed=config.seed)
    found = evaluation.evaluate(
        Path(str(config.run)),
        config.checkpoint,
        config.split,
        config.data.dir,
        config.bootstrap,
        config.seed,
        config.trust,
    )
    evaluation.save(Path(config.out), found)
    report.show_evaluation(found)
    print(f"written: {config.out}")


if __name__ == "__main__":
    main()
