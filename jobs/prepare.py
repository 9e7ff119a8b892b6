"""Raw logs → dataset: Parquet shards by split, manifest, feature statistics, starter experiment.

python -m jobs.prepare RECIPE --output FOLDER [--source …] [options]
"""

import argparse
import sys
from collections.abc import Sequence

from jobs.common import add_summary_argument, run_job
from jobs.summary import check_summary, write_summary
from pipeline.config.locations import mask
from pipeline.data.manifest import MANIFEST_NAME, load_manifest
from pipeline.data.preparing.prepare import prepare
from pipeline.data.preparing.recipes.command_line import add_recipes, recipe_of
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
    recipe, sizes = recipe_of(args), (args.rows_per_shard, args.rows_per_group)
    if args.keep_negatives is not None:
        recipe = with_sampled_negatives(recipe, KeepNegatives.parse(args.keep_negatives))
    with RowProgress(recipe.share) as progress:
        done = prepare(recipe, args.output, args.overwrite, *sizes, progress.advance)
    print_report(done, args.output)
    write_summary(args.summary, summary(done, args.output))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    recipes = parser.add_subparsers(dest="recipe", required=True, metavar="RECIPE")
    add_recipes(recipes)
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


if __name__ == "__main__":
    sys.exit(main())
