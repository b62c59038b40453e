"""The command line as `python -m curricle`."""

from curricle.cli.app import main

# Worker processes import this module again under another name.
if __name__ == "__main__":
    main()
