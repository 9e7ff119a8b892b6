"""Raw logs → dataset: Parquet shards by split, manifest, feature statistics, starter experiment.

python -m jobs.prepare RECIPE --output FOLDER [--source …] [options]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.common import add_summary_argument, check_summary, run_job, write_summary
from pipeline.config.locations import mask
from pipeline.data.manifest import MANIFEST_NAME, load_manifest
from pipeline.data.preparing.prepare import prepare
from pipeline.data.preparing.recipes.base import Recipe
from pipeline.data.preparing.recipes.census_income import census_income
from pipeline.data.preparing.recipes.clicklog import ClicklogOptions, clicklog
from pipeline.data.preparing.recipes.description import load_description
from pipeline.data.preparing.recipes.kuairand import kuairand
from pipeline.data.preparing.recipes.table import table
from pipeline.data.preparing.report import RowProgress, print_report, summary
from pipeline.data.preparing.sampling import KeepNegatives, with_sampled_negatives
from pipeline.data.preparing.shards import ROWS_PER_GROUP, ROWS_PER_SHARD
from pipeline.data.storage import open_store


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    return run_job(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Prepares one dataset."""
    if args.if_missing and open_store(args.output).exists(MANIFEST_NAME):
        kept = load_manifest(args.output)
        place = mask(args.output)
        print(f"{place} already holds dataset {kept.name!r}, made from {kept.source}: kept")
        write_summary(args.summary, {"kept": True, "rows": kept.all_rows, "digest": kept.digest})
        return
    check_summary(args.summary)
    recipe, sizes = _recipe(args), (args.rows_per_shard, args.rows_per_group)
    if args.keep_negatives is not None:
        recipe = with_sampled_negatives(recipe, KeepNegatives.parse(args.keep_negatives))
    with RowProgress(recipe.share) as progress:
        done = prepare(recipe, args.output, args.overwrite, *sizes, progress.advance)
    print_report(done, args.output)
    write_summary(args.summary, summary(done, args.output))


def _recipe(args: argparse.Namespace) -> Recipe:
    if args.recipe == "census-income":
        return census_income(args.source)
    if args.recipe == "kuairand":
        return kuairand(args.source)
    if args.recipe == "table":
        return table(args.source, load_description(args.columns))
    names = ("rows", "valid_rows", "test_rows", "seed", "tasks", "correlation", "users", "items")
    return clicklog(ClicklogOptions(**{name: getattr(args, name) for name in names}))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
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
    log.add_argument("--seed", type=int, default=0, help="everything random follows from it")
    log.add_argument("--tasks", type=_names, default=ClicklogOptions.tasks, help="comma-separated")
    log.add_argument("--correlation", type=float, default=-0.4, help="of click and like effects")
    log.add_argument("--users", type=int, help="distinct users; default: --rows / 200")
    log.add_argument("--items", type=int, help="distinct items; default: --rows / 400")
    for recipe in recipes.choices.values():
        recipe.add_argument("--output", required=True, help="folder of the dataset, or a URI")
        recipe.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
        recipe.add_argument("--if-missing", action="store_true", help="keep an existing dataset")
        recipe.add_argument("--rows-per-shard", type=int, default=ROWS_PER_SHARD)
        recipe.add_argument("--rows-per-group", type=int, default=ROWS_PER_GROUP)
        recipe.add_argument(
            "--keep-negatives", metavar="TASK=RATE", help="of its train rows with label 0 keep RATE"
        )
        add_summary_argument(recipe)
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
