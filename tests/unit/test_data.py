"""The data: what may stand in a file, who is held out, and what the card says."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from data import card, credit, fetch

SAMPLE_SHA256 = "14c025759d5a767d27a257e453835b860ba083c7e251d02787d7bf3c93da300f"

Change = Callable[[pd.DataFrame], pd.DataFrame]


def with_value(column: str, value: str | float | None) -> Change:
    """Put a value into the third row, which is line 4 of the file."""

    def change(frame: pd.DataFrame) -> pd.DataFrame:
        changed = frame.astype({column: object})
        changed.loc[changed.index[2], column] = value
        return changed

    return change


BROKEN_FILES: list[tuple[str, Change, str]] = [
    ("a code that cannot be", with_value("SEX", 3), "SEX must be one of 1, 2: line 4 has 3"),
    ("a payment code", with_value("PAY_0", 10), "PAY_0 must be one of -2, -1, 0, 1, 2"),
    ("a word", with_value("AGE", "old"), "AGE must be a whole number: line 4 has old"),
    ("nothing", with_value("AGE", None), "AGE must be a whole number: line 4 has nan"),
    ("a fraction", with_value("LIMIT_BAL", 0.5), "LIMIT_BAL must be a whole number: line 4 has 0.5"),
    (
        "a negative payment",
        with_value("PAY_AMT1", -1),
        "PAY_AMT1 must be from 0 to 100,000,000: line 4 has -1",
    ),
    ("an age of 17", with_value("AGE", 17), "AGE must be from 18 to 120: line 4 has 17"),
    (
        "a third outcome",
        with_value(credit.TARGET, 2),
        "default payment next month must be one of 0, 1: line 4",
    ),
    ("an ID twice", with_value("ID", 19), "ID stands in more than one row: line 2 has 19"),
    ("a column missing", lambda frame: frame.drop(columns="PAY_3"), "column PAY_3 is missing"),
    (
        "a column too many",
        lambda frame: frame.assign(HEIGHT=1),
        "column HEIGHT is not a column of the data set",
    ),
    ("columns in another order", lambda frame: frame[frame.columns[::-1]], "is not in its place"),
    ("no clients", lambda frame: frame.head(0), "holds no clients"),
]


@pytest.fixture(scope="module")
def sample() -> pd.DataFrame:
    return credit.load(credit.SAMPLE)


@pytest.mark.parametrize(
    ("change", "message"), [case[1:] for case in BROKEN_FILES], ids=[case[0] for case in BROKEN_FILES]
)
def test_a_broken_file_is_refused_by_column_line_and_rule(
    sample: pd.DataFrame, tmp_path: Path, change: Change, message: str
) -> None:
    path = tmp_path / "broken.csv"
    change(sample).to_csv(path, index=False)
    with pytest.raises(credit.BadData) as raised:
        credit.load(path)
    assert str(path) in str(raised.value)
    assert message in str(raised.value)


def test_many_errors_are_told_with_the_first_ten_and_their_number(
    sample: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "broken.csv"
    sample.assign(SEX=9).to_csv(path, index=False)
    with pytest.raises(credit.BadData) as raised:
        credit.load(path)
    lines = str(raised.value).splitlines()
    assert len(lines) == 12
    assert lines[-1].strip() == "… and 2,830 more"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b'a,b\n1,2,3\n"'], ids=["empty", "binary", "ragged"]
)
def test_a_file_that_is_no_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    with pytest.raises(credit.BadData, match=r"broken\.csv"):
        credit.load(path)


def test_the_sample_is_the_one_of_the_card(sample: pd.DataFrame) -> None:
    assert credit.digest(sample) == SAMPLE_SHA256
    figures = card.figures(sample)
    assert "clients: 2,840" in figures
    text = (credit.SAMPLE.parent / "README.md").read_text()
    assert "2,840" in text
    assert "21.48 %" in text
    assert "21.48%" in figures


def test_another_file_is_taken_where_the_environment_says_so(
    sample: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "half.csv"
    sample.head(1000).to_csv(path, index=False)
    monkeypatch.setenv("CREDIT_DATA", str(path))
    assert len(credit.load()) == 1000


def test_the_id_is_no_feature_and_neither_is_the_outcome() -> None:
    assert len(credit.FEATURES) == 23
    assert not {"ID", credit.TARGET} & set(credit.FEATURES)


def test_the_split_is_stratified_complete_and_always_the_same(sample: pd.DataFrame) -> None:
    training, held_out = credit.split(sample)
    assert sorted([*training["ID"], *held_out["ID"]]) == sorted(sample["ID"])
    assert len(held_out) == len(sample) // 4
    assert training[credit.TARGET].mean() == pytest.approx(held_out[credit.TARGET].mean(), abs=0.005)
    again, _ = credit.split(credit.load(credit.SAMPLE))
    assert list(again["ID"]) == list(training["ID"])


def test_what_the_publisher_sends_instead_of_the_data_is_refused() -> None:
    with pytest.raises(fetch.FetchFailed):
        fetch.normalised(b"<html>sorry</html>")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("readme.txt", "moved")
    with pytest.raises(fetch.FetchFailed):
        fetch.normalised(archive.getvalue())
