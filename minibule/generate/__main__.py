"""`python -m minibule.generate`."""

from minibule.errors import run
from minibule.generate.decode import main

if __name__ == "__main__":
    run(main)
