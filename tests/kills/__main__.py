"""`python -m tests.kills --moments N`: kill every command at random moments, and print what came of it."""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from tests.kills.cases import COMMANDS, kill_and_run_again, moments, undisturbed, write_inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=200, help="In all.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tried, killed = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="deltaw-kills-") as name:
        inputs, folder = Path(name) / "inputs", Path(name) / "work"
        write_inputs(inputs)
        honest = {}
        for command, moment in moments(options.seed, options.moments):
            if command not in honest:
                honest[command] = undisturbed(command, inputs, folder)
            tried[command] += 1
            killed[command] += kill_and_run_again(command, honest[command], inputs, folder, moment)
    print("| command | moments | killed before it ended |\n|---|---:|---:|")
    for command in COMMANDS:
        print(f"| {command} | {tried[command]} | {killed[command]} |")
    print(
        f"\n{sum(tried.values())} moments: every run after them gave what an undisturbed one gives, and left no more."
    )


if __name__ == "__main__":
    main()
