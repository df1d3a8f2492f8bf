"""``python -m st3fx``."""

from st3fx.cli import main

if __name__ == "__main__":
    main(prog_name="st3fx")
