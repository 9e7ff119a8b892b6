"""UCI Census-Income (KDD): 31 categorical and 7 numeric columns, two labels.

The protocol of the MMoE and PLE papers: predict whether income exceeds 50K and whether the person
never married, with education and marital status removed from the inputs; the official test file
is split at random into halves for validation and test.
"""

import io
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.data.manifest import SPLITS, DatasetError
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.recipes.description import ColumnDescription, TableDescription
from pipeline.data.preparing.recipes.sources import RawRows, open_bytes
from pipeline.data.preparing.recipes.table import Assign, files_recipe, whole_file

ARCHIVE = "https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip"
TRAIN_FILE, TEST_FILE = "census-income.data", "census-income.test"
HALVES_SEED = 1

HEADER = [
    "age",
    "class_worker",
    "det_ind_code",
    "det_occ_code",
    "education",
    "wage_per_hour",
    "hs_college",
    "marital_stat",
    "major_ind_code",
    "major_occ_code",
    "race",
    "hisp_origin",
    "sex",
    "union_member",
    "unemp_reason",
    "full_or_part_emp",
    "capital_gains",
    "capital_losses",
    "stock_dividends",
    "tax_filer_stat",
    "region_prev_res",
    "state_prev_res",
    "det_hh_fam_stat",
    "det_hh_summ",
    "instance_weight",
    "mig_chg_msa",
    "mig_chg_reg",
    "mig_move_reg",
    "mig_same",
    "mig_prev_sunbelt",
    "num_emp",
    "fam_under_18",
    "country_father",
    "country_mother",
    "country_self",
    "citizenship",
    "own_or_self",
    "vet_question",
    "vet_benefits",
    "weeks_worked",
    "year",
    "income_50k",
]
NUMERIC = [
    "age",
    "wage_per_hour",
    "capital_gains",
    "capital_losses",
    "stock_dividends",
    "num_emp",
    "weeks_worked",
]
NOT_FEATURES = ("education", "marital_stat", "instance_weight", "income_50k")
LABELS = (
    ColumnDescription(name="income_50k", role="label", equals="50000+."),
    ColumnDescription(
        name="never_married", role="label", source="marital_stat", equals="Never married"
    ),
)


def census_income(source: str | Path | None) -> Recipe:
    """The two files in the folder `source` (plain, .gz, .bz2 or .xz), or the UCI archive.

    Raises:
        DatasetError: files not found, or no network.
    """
    folder = Path(source) if source is not None else download(Path("data/downloads/census-income"))
    train, test = (_find(folder, name) for name in (TRAIN_FILE, TEST_FILE))
    categorical = [n for n in HEADER if n not in NOT_FEATURES and n not in NUMERIC]
    description = TableDescription(
        name="census_income",
        header=HEADER,
        trim=True,
        missing=["?"],
        columns=[
            *(ColumnDescription(name=name, role="categorical") for name in categorical),
            *(ColumnDescription(name=name, role="numeric") for name in NUMERIC),
            ColumnDescription(name="instance_weight", role="weight"),
            *LABELS,
        ],
    )
    parts = [([train], whole_file("train")), ([test], _halves(test))]
    return files_recipe(description, parts, source={"recipe": "census-income"})


def download(folder: Path) -> Path:
    """Fetches the UCI archive (about 9 MB) once and unpacks the two files into `folder`."""
    if all((folder / name).exists() for name in (TRAIN_FILE, TEST_FILE)):
        return folder
    try:
        with urllib.request.urlopen(ARCHIVE, timeout=60) as response:
            archive = zipfile.ZipFile(io.BytesIO(response.read()))
    except (urllib.error.URLError, TimeoutError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"cannot download {ARCHIVE} ({error}); get {TRAIN_FILE} and {TEST_FILE} some other way "
            "(.gz, .bz2 and .xz are fine) and name their folder with --source"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive.read("census.tar.gz"))) as inner:
        for name in (TRAIN_FILE, TEST_FILE):
            inner.extract(name, folder, filter="data")
    return folder


def _find(folder: Path, name: str) -> Path:
    for suffix in ("", ".gz", ".bz2", ".xz"):
        path = folder / (name + suffix)
        if path.is_file():
            return path
    raise DatasetError(
        f"{folder}: has no {name} (also looked for .gz, .bz2, .xz); name the folder that holds the "
        "two UCI files with --source"
    )


def _halves(test: Path) -> Assign:
    """The first half of a seeded permutation of the file's rows is validation, the rest test."""
    with open_bytes(test) as (lines, _):
        count = sum(1 for line in lines if line.strip())
    order = np.random.default_rng(HALVES_SEED).permutation(count)
    splits = np.full(count, SPLITS.index("test"), dtype=np.int8)
    splits[order[: count // 2]] = SPLITS.index("valid")

    def assign(raw: RawRows, rows_before: int) -> npt.NDArray[np.int8]:
        return splits[rows_before : rows_before + raw.rows.num_rows]

    return assign
