"""Publish a finished run as a model version: python jobs/publish.py RUN MODEL [--alias production]"""

import sys

from stoker.cli import main

if __name__ == "__main__":
    main(["publish", *sys.argv[1:]])
