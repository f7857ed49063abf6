"""Prepare a data set of labelled images: ray job submit --working-dir . -- python jobs/prepare.py SOURCE DEST

Reads the images at SOURCE and writes WebDataset shards, their indexes and a manifest to DEST; both are paths or URLs
(s3://...). Submitted to a cluster, the work is distributed over it; called directly, it runs on this machine. Run the
same command again to resume an interrupted preparation. docs/how-to/prepare-sources.md shows each kind of source in use.
"""

import argparse
import sys

from stoker.command import run_command
from stoker.dataset.prepare.command import add_arguments, prepare_command


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    sys.stdout.write(prepare_command(parser.parse_args(arguments)) + "\n")


if __name__ == "__main__":
    run_command(main)
