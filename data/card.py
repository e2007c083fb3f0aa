"""Print the figures of the data card: `python -m data.card`, with CREDIT_DATA for the whole set."""

from __future__ import annotations

import pandas as pd

from data import credit


def figures(frame: pd.DataFrame) -> str:
    """The figures of a data set as text: size, digest, class balance, codes and ranges."""
    share = frame[credit.TARGET].mean()
    lines = [
        f"clients: {len(frame):,}; SHA-256: {credit.digest(frame)}",
        f"default next month: {share:.2%}",
        f"the same in all but the ID as another client: {int(frame.drop(columns='ID').duplicated().sum()):,}",
        "",
    ]
    for name in credit.CODES:
        counts = frame[name].value_counts().sort_index()
        lines.append(f"{name:<10}" + "  ".join(f"{code}: {count:,}" for code, count in counts.items()))
    lines.append("")
    for name in credit.BOUNDS:
        column = frame[name]
        lines.append(f"{name:<10}{column.min():,} to {column.max():,}, median {column.median():,.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(figures(credit.load()))
