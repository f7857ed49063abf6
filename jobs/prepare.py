"""Make a data set on a cluster: ray job submit --working-dir . -- python jobs/prepare.py SOURCE DEST"""

import sys

from stoker.cli import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
