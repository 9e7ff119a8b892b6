"""The recipes on the command line of `jobs.prepare`: their options, and what is made of them."""

import argparse
import re
from pathlib import Path
from typing import Any

from pipeline.data.manifest import DatasetError
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.recipes.census_income import census_income
from pipeline.data.preparing.recipes.clicklog import ClicklogOptions, clicklog
from pipeline.data.preparing.recipes.description import load_description
from pipeline.data.preparing.recipes.kuairand import kuairand
from pipeline.data.preparing.recipes.simulate import load_schema, simulate
from pipeline.data.preparing.recipes.sinusoid import sinusoid
from pipeline.data.preparing.recipes.table import table


def add_recipes(recipes: Any) -> None:
    """Adds a subcommand for every recipe; ``recipes`` comes from ``add_subparsers``."""
    census = recipes.add_parser("census-income", help="the UCI Census-Income (KDD) files")
    census.add_argument("--source", type=Path, help="folder of the two files; absent = download")
    kuai = recipes.add_parser("kuairand", help="KuaiRand explicit feedback with its side tables")
    kuai.add_argument("--source", type=Path, required=True, help="folder that holds the files")
    any_table = recipes.add_parser("table", help="any CSV or Parquet files")
    any_table.add_argument("--source", required=True, help="file, folder or glob")
    any_table.add_argument("--columns", type=Path, required=True, help="YAML that describes them")
    log = recipes.add_parser("clicklog", help="a generated click log with a known best AUC")
    log.add_argument("--rows", type=int, default=400_000, help="train rows (default %(default)s)")
    log.add_argument("--valid-rows", type=int, help="default: an eighth of --rows")
    log.add_argument("--test-rows", type=int, help="default: an eighth of --rows")
    log.add_argument("--seed", type=int, default=0, help="everything random follows from it")
    log.add_argument("--tasks", type=_names, default=ClicklogOptions.tasks, help="comma-separated")
    log.add_argument("--correlation", type=float, default=-0.4, help="of click and like effects")
    log.add_argument("--users", type=int, help="distinct users; default: --rows / 200")
    log.add_argument("--items", type=int, help="distinct items; default: --rows / 400")
    shape = recipes.add_parser("simulate", help="a generated log in the shape of a schema file")
    shape.add_argument("--schema", type=Path, required=True, help="YAML; see configs/schemas")
    shape.add_argument("--rows", type=int, default=400_000, help="train rows (default %(default)s)")
    shape.add_argument("--seed", type=int, default=0, help="everything random follows from it")
    waves = recipes.add_parser("sinusoid", help="two regression tasks of a chosen correlation")
    waves.add_argument("--rows", type=int, default=50_000, help="train rows (default %(default)s)")
    waves.add_argument("--correlation", type=float, default=0.5, help="0 to 1")
    waves.add_argument("--dimensions", type=int, default=512, help="number columns")
    waves.add_argument("--seed", type=int, default=0, help="everything random follows from it")


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe that the parsed arguments name.

    Raises:
        DatasetError: raw logs that are not files of this machine. Their location is not repeated:
            it may hold credentials.
    """
    # A path has made one slash of the two.
    if re.match(r"\w+:/", str(getattr(args, "source", None))):
        raise DatasetError(
            "--source: raw logs are read from local files; copy them here, or train on Parquet "
            "files where they lie (data.splits)"
        )
    if args.recipe == "census-income":
        return census_income(args.source)
    if args.recipe == "kuairand":
        return kuairand(args.source)
    if args.recipe == "table":
        return table(args.source, load_description(args.columns))
    if args.recipe == "simulate":
        return simulate(load_schema(args.schema), args.rows, args.seed)
    if args.recipe == "sinusoid":
        return sinusoid(args.rows, args.correlation, args.dimensions, args.seed)
    names = ("rows", "valid_rows", "test_rows", "seed", "tasks", "correlation", "users", "items")
    return clicklog(ClicklogOptions(**{name: getattr(args, name) for name in names}))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))
