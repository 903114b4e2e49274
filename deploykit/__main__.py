"""`python -m deploykit` is the command `deploykit`."""

from deploykit.cli import main

if __name__ == "__main__":
    main()
