"""The runs of a sweep side by side: `python -m mmoe.compare <sweep folder>`."""

import argparse
from pathlib import Path

from mmoe.errors import one_line


def main() -> None:
    """Print the table of the runs below a folder, and write it and its figure there."""
    parser = argparse.ArgumentParser("python -m mmoe.compare", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="of a sweep, or any that has run folders below it")
    parser.add_argument("--key", help="what the figure is drawn against; by default the first that differs")
    arguments = parser.parse_args()
    with one_line():
        from mmoe.analysis.comparison import write_comparison

        write_comparison(arguments.folder, arguments.key)


if __name__ == "__main__":
    main()
