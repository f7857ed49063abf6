"""Make a data set of an image folder: ray job submit --working-dir . -- python jobs/prepare.py SOURCE DEST

SOURCE holds one folder of images a class, or train/ and validation/ with such folders in each; DEST is where the
WebDataset shards, their indexes and the manifest go. Both are paths or URLs (s3://...). Submitted to a cluster, the
work is spread over it; called directly, it runs on this machine. Interrupted, the same command goes on.
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
