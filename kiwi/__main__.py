"""`python -m kiwi` is `kiwi`."""

from kiwi.cli import main

if __name__ == "__main__":
    main()
