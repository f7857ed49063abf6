"""Train a model on a cluster: ray job submit --working-dir . -- python jobs/train.py RECIPE [key=value ...]"""

import sys

from stoker.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
