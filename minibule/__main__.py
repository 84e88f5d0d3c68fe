"""`python -m minibule` says which commands there are."""

import minibule

if __name__ == "__main__":
    _, _, commands = (minibule.__doc__ or "").partition("Commands, ")
    print("Commands, " + commands.partition("\n\nThe code")[0])
