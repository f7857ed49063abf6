"""``python -m stoker``: the command ``stoker`` of this Python."""

from stoker.cli import main

if __name__ == "__main__":
    main()
