"""One replica of a run as an ordinary run folder: `python -m mmoe.extract run=runs/... replica=3`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.cli import one_line_errors


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="extract")
@one_line_errors
def main(config: DictConfig) -> None:
    """Write the folder and say where it is."""
    from mmoe import runs
    from mmoe.arguments import check_integers

    check_integers(0, replica=config.replica)
    runs.extract(Path(str(config.run)), config.replica, Path(str(config.out)), config.trust)
    print(f"run folder: {config.out}")


if __name__ == "__main__":
    main()
