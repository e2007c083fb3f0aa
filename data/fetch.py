"""Get the whole data set from its publisher: `python -m data.fetch`.

The UCI Machine Learning Repository keeps it as data set 350 (DOI 10.24432/C55S3H, CC BY 4.0): a zip with
one workbook. It becomes the CSV that the loader takes, and must have the SHA-256 of ours.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import pandas as pd
import urllib3

from data import credit

PUBLISHER = "https://archive.ics.uci.edu/static/public/350/default+of+credit+card+clients.zip"
SHA256 = "4edce6da569b2c30788a85fd98a9bafb1a983e8ca1a7aac875dd7ff853cbd0bb"
DESTINATION = Path(__file__).resolve().parent.parent / "var" / "credit_default.csv"


class FetchFailed(Exception):
    """The data set could not be had, or is not the one that was asked for."""


def fetch() -> Path:
    """Download, normalise and check the whole set; returns where the CSV is.

    Nothing is written unless its digest is right.

    Raises:
        FetchFailed: no network, another answer than the data set, or another digest.
    """
    try:
        response = urllib3.request("GET", PUBLISHER, timeout=60.0)
        if response.status != 200:  # noqa: PLR2004
            raise FetchFailed(f"{PUBLISHER} answered {response.status}")
        frame = normalised(response.data)
    except urllib3.exceptions.HTTPError as error:
        raise FetchFailed(f"{PUBLISHER} cannot be reached: {error}") from error
    if (found := credit.digest(frame)) != SHA256:
        raise FetchFailed(f"the data set has SHA-256 {found}, expected {SHA256}: nothing was written")
    DESTINATION.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(DESTINATION, index=False, lineterminator="\n")
    return DESTINATION


def normalised(archive: bytes) -> pd.DataFrame:
    """The publisher's workbook as the loader's columns: its first row holds X1, X2, … above the names.

    Raises:
        FetchFailed: the archive is not a zip with one workbook of these columns.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            [name] = [name for name in files.namelist() if name.endswith(".xls")]
            frame = pd.read_excel(io.BytesIO(files.read(name)), header=1)
        return frame[["ID", *credit.FEATURES, credit.TARGET]].astype("int64")
    except (zipfile.BadZipFile, ValueError, KeyError) as error:
        raise FetchFailed(f"the publisher's archive is not what it was: {error}") from error


if __name__ == "__main__":
    try:
        path = fetch()
    except FetchFailed as failure:
        sys.exit(str(failure))
    print(f"{path} is there and checked. Use it: CREDIT_DATA={path} make run")
