"""Estimate requests, bytes, time and cost of an epoch: python jobs/estimate.py URL|RECIPE"""

import sys

from stoker.cli import main

if __name__ == "__main__":
    main(["estimate", *sys.argv[1:]])
