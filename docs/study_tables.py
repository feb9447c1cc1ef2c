"""Print the result tables of docs/study.md from the output of a study: `python docs/study_tables.py OUT`.

With `--rewritten` that of docs/act.md: what the runs learned and forgot, as trained and written again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import pandas as pd

SHOWN = {
    "rate": "{:g}",
    "loss on target": "{:.3f}",
    "loss on source": "{:.3f}",
    "relative change": "{:.3f}",
    "rank_90": "{:.0f}",
    "of noise's": "{:.2f}",
    "shrinkage": "{:+.4f}",
}


def arms(out: Path) -> pd.DataFrame:
    """Each arm at its best rate, after all tokens: losses are means over seeds, the rest medians over matrices."""
    points = pd.read_csv(out / "points.csv")
    weights = pd.read_csv(out / "comparison" / "fingerprints.csv").set_index("group")
    rows = []
    for target, of_target in points.groupby("target", sort=False):
        for arm, part in of_target.groupby("arm", sort=False):
            found: dict[str, object] = {"target, arm": f"**{target}**: base" if arm == "base" else arm}
            if arm != "base":
                mine = weights.loc[f"{target}: {arm}"]
                rate = re.search(r"learning_rate = ([^,]+)", mine["setting"])
                assert rate is not None, mine["setting"]
                found |= {"rate": float(rate[1]), "relative change": mine["relative_change"]}
                found |= {"rank_90": mine["rank_90"], "of noise's": mine["rank_90_ratio"]}
                found["shrinkage"] = mine["shrinkage"]
                part = part[(part["learning_rate"] == float(rate[1])) & (part["tokens"] == part["tokens"].max())]
            found |= {"loss on target": part["target_loss"].mean(), "loss on source": part["source_loss"].mean()}
            rows.append(found)
    return pd.DataFrame(rows, columns=["target, arm", *SHOWN])


def rewritten(out: Path) -> pd.DataFrame:
    """By target, arm and way of writing it again: the losses, and how they differ from the run's own, by its runs.

    The interval is Student's, 95 %, over the runs of an arm (learning rates and seeds) that were written both ways.
    """
    from scipy.stats import t

    table = pd.read_csv(out / "rewritten.csv").dropna(subset=["target_loss"])
    rows = []
    for (target, arm), of_arm in table.groupby(["target", "arm"], sort=False):
        own = of_arm[of_arm["written"] == "as trained"].set_index("run")
        for written, part in of_arm.groupby("written", sort=False):
            trained = written == "as trained"
            found: dict[str, str] = {"target, arm": f"**{target}**: {arm}, as trained" if trained else str(written)}
            found["relative error"] = (
                "" if part["relative_error"].isna().all() else f"{part['relative_error'].mean():.3f}"
            )
            for axis in ("target", "source"):
                mine = part.set_index("run")[f"{axis}_loss"]
                found[f"loss on {axis}"] = f"{mine.mean():.3f}"
                by = mine - own.loc[mine.index, f"{axis}_loss"]
                half = t.ppf(0.975, len(by) - 1) * by.std() / len(by) ** 0.5 if len(by) > 1 else float("nan")
                found[f"by, {axis}"] = "" if trained else f"{by.mean():+.3f} ± {half:.3f}"
            rows.append(found | {"runs": str(len(part))})
    return pd.DataFrame(rows)


def claims(out: Path) -> pd.DataFrame:
    """The verdict on each claim, one column for each domain and kind of training."""
    table = pd.read_csv(out / "comparison" / "claims.csv", keep_default_na=False)
    table["about"] = table["about"].replace("", "across domains")
    wide = table.pivot_table(index="text", columns="about", values="verdict", aggfunc="first", sort=False)
    return wide.fillna("").rename_axis("claim").reset_index()


def markdown(table: pd.DataFrame) -> str:
    """A table of texts as Markdown."""
    lines = [list(table), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Parse the arguments and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rewritten", action="store_true", help="the table of docs/act.md instead")
    asked = parser.parse_args()
    out = asked.out
    if asked.rewritten:
        sys.stdout.write(markdown(rewritten(out)) + "\n")
        return
    table = arms(out)
    for column, form in SHOWN.items():
        table[column] = table[column].map(lambda v, form=form: "" if pd.isna(v) else form.format(v)).astype(str)
    about = json.loads((out / "study.json").read_text(encoding="utf-8"))
    learned = sum(bool(arm["fell"]) for arm in about["arms"])
    said = f"{learned} of {len(about['arms'])} arms learned: their held-out loss fell."
    sys.stdout.write("\n\n".join((markdown(table), said, markdown(claims(out)), "")))


if __name__ == "__main__":
    main()
