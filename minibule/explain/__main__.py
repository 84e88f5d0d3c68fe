"""`python -m minibule.explain`."""

from minibule.errors import run
from minibule.explain.story import main

if __name__ == "__main__":
    run(main)
