"""Make a data set of labelled images: stoker prepare SOURCE DEST

SOURCE is one of
    a folder               of one folder of images a class, or train/ and validation/ with such folders in each
    ImageNet's archives    a folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit
    Parquet                a file, a folder or a pattern, with a column of images and one of labels
    a list                 .csv or .jsonl with the columns path and label
    torchvision            torchvision://CIFAR10?root=FOLDER, any of its classification data sets that is on disk
DEST is where the WebDataset shards, their indexes and the manifest go. Paths or URLs (s3://...). Submitted to a
cluster (stoker submit prepare ...), the work is spread over it; called directly, it runs on this machine. Interrupted,
the same command resumes.
"""

from __future__ import annotations

import argparse

from stoker.dataset.prepare.command import add_arguments, prepare_command

__all__ = ["add_arguments", "run"]


def run(given: argparse.Namespace) -> None:
    print(prepare_command(given))
