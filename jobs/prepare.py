"""Raw logs → dataset: `python -m jobs.prepare RECIPE --output FOLDER [options]`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.manifest import DatasetError, load_manifest
from pipeline.data.preparation import prepare
from pipeline.data.preparation_report import RowProgress, print_report, summary
from pipeline.data.recipes.base import Recipe
from pipeline.data.recipes.census_income import census_income
from pipeline.data.recipes.clicklog import ClicklogOptions, clicklog
from pipeline.data.recipes.description import load_description
from pipeline.data.recipes.kuairand import kuairand
from pipeline.data.recipes.table import table
from pipeline.data.writer import ROWS_PER_GROUP, ROWS_PER_SHARD


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares one dataset; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.if_missing and (options.output / "manifest.json").exists():
        rows = load_manifest(options.output).rows("train")
        print(f"{options.output} already holds a dataset ({rows:,} train rows): nothing to do")
        return 0
    try:
        recipe = _recipe(options)
        with RowProgress(recipe.rows) as progress:
            done = prepare(
                recipe,
                options.output,
                options.overwrite,
                options.rows_per_shard,
                options.rows_per_group,
                progress.advance,
            )
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_report(done, options.output)
    if options.summary is not None:
        options.summary.write_text(json.dumps(summary(done, options.output), indent=1) + "\n")
    return 0


def _recipe(options: argparse.Namespace) -> Recipe:
    if options.recipe == "census-income":
        return census_income(options.source)
    if options.recipe == "kuairand":
        return kuairand(options.source)
    if options.recipe == "table":
        return table(options.source, load_description(options.columns))
    names = ("rows", "valid_rows", "test_rows", "seed", "tasks", "correlation", "users", "items")
    return clicklog(ClicklogOptions(**{name: getattr(options, name) for name in names}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.prepare", description=__doc__)
    recipes = parser.add_subparsers(dest="recipe", required=True, metavar="RECIPE")
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
    log.add_argument("--seed", type=int, default=0)
    log.add_argument("--tasks", type=_names, default=ClicklogOptions.tasks, help="click,convert,like")
    log.add_argument("--correlation", type=float, default=-0.4, help="of click and like effects")
    log.add_argument("--users", type=int, help="distinct users; default: 1/200 of --rows")
    log.add_argument("--items", type=int, help="distinct items; default: 1/400 of --rows")
    for recipe in recipes.choices.values():
        recipe.add_argument("--output", type=Path, required=True, help="folder of the dataset")
        recipe.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
        recipe.add_argument("--if-missing", action="store_true", help="keep an existing dataset")
        recipe.add_argument("--rows-per-shard", type=int, default=ROWS_PER_SHARD)
        recipe.add_argument("--rows-per-group", type=int, default=ROWS_PER_GROUP)
        recipe.add_argument("--summary", type=Path, help="write a JSON summary to this file")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
