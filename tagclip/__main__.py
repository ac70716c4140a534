"""``python -m tagclip``: the command of `tagclip.cli`."""

from tagclip.cli import main

if __name__ == "__main__":
    main()
