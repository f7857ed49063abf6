"""Make a data set of labelled images: ray job submit --working-dir . -- python jobs/prepare.py SOURCE DEST

SOURCE is one of
    a folder               of one folder of images a class, or train/ and validation/ with such folders in each
    ImageNet's archives    a folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit
    Parquet                a file, a folder or a pattern, with a column of images and one of labels
    a list                 .csv or .jsonl with the columns path and label
    torchvision            torchvision://CIFAR10?root=FOLDER, any of its classification data sets that is on disk
DEST is where the WebDataset shards, their indexes and the manifest go. Paths or URLs (s3://...). Submitted to a
cluster, the work is spread over it; called directly, it runs on this machine. Interrupted, the same command goes on.
docs/how-to/prepare.md shows each in use.
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
