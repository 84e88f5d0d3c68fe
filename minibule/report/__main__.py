"""`python -m minibule.report`."""

from minibule.errors import run
from minibule.report.sections import main

if __name__ == "__main__":
    run(main)
