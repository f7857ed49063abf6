"""Evaluate a model version, a run or a file of weights: python jobs/evaluate.py digits@production"""

import sys

from stoker.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
