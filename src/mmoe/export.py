"""Write a run's network for other programs: `python -m mmoe.export run=runs/... format=onnx`."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.cli import one_line_errors


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="export")
@one_line_errors
def main(config: DictConfig) -> None:
    """Write the file, and say how far its answers are from the network's."""
    from mmoe import serving

    out = Path(config.out) if config.out else None
    written, largest = serving.export(
        Path(str(config.run)),
        config.format,
        out,
        checkpoint=config.checkpoint,
        replica=config.replica,
        trust=config.trust,
    )
    print(f"{written}: its answers differ from the network's by {largest:.1e} at most")


if __name__ == "__main__":
    main()
