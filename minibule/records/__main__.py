"""`python -m minibule.records`."""

from minibule.errors import run
from minibule.records.records import main

if __name__ == "__main__":
    run(main)
