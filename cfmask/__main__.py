"""``python -m cfmask``: the command ``cfmask``."""

from cfmask.commands.main import main

if __name__ == "__main__":
    main()
