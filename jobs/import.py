"""Publish weights that were trained elsewhere as a model version: python jobs/import.py ARCHITECTURE MODEL"""

import sys

from stoker.cli import main

if __name__ == "__main__":
    main(["import", *sys.argv[1:]])
