"""Score new rows: `python -m mmoe.predict run=runs/... input=people.csv output=scores.parquet`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.cli import one_line_errors


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="predict")
@one_line_errors
def main(config: DictConfig) -> None:
    """Write a line for each row, and say how many there were."""
    from mmoe import prediction
    from mmoe.arguments import check_integers

    check_integers(1, chunk_rows=config.chunk_rows)
    count, seconds = prediction.predict(
        Path(str(config.run)),
        Path(str(config.input)),
        Path(str(config.output)),
        checkpoint=config.checkpoint,
        replica=config.replica,
        gates=config.gates,
        chunk_rows=config.chunk_rows,
        trust=config.trust,
    )
    print(f"{count:,} rows in {seconds:.1f} s ({count / seconds:,.0f} a second): {config.output}")


if __name__ == "__main__":
    main()
