"""``python -m p2pgrid_cli``."""

from p2pgrid_cli.main import main

if __name__ == "__main__":
    main()
