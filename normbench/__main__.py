"""``python -m normbench``."""

from normbench.cli.app import main

if __name__ == "__main__":
    main()
