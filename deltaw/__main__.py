"""`python -m deltaw` is the command `deltaw`."""

from deltaw.cli import run

if __name__ == "__main__":
    run()
