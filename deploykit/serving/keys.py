"""`python -m deploykit.serving.keys NAME` adds a key: the name that the model cards of packages give."""

from deploykit.serving.access.keys import main

if __name__ == "__main__":
    main()
