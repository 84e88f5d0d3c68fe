"""`python -m minibule.train`."""

from minibule.errors import run
from minibule.train.loop import main

if __name__ == "__main__":
    run(main)
