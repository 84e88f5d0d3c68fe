"""Progress bars of what a command does beside its main work."""

from functools import partial

from tqdm import tqdm

# Seen on a terminal only, where the work takes more than a second; gone when it is done.
passing_bar = partial(tqdm, delay=1, leave=False, disable=None)
