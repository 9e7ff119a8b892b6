"""What the jobs share: arguments, errors that end a job, the summary file."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.cluster.stopping import INTERRUPTED, RunStopped, leave


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """``--config``, dotted overrides, ``--print-config`` and ``--summary``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", required=True, metavar="FILE", help="the experiment (YAML)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings that replace those of the file, such as train.workers=1",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved experiment and exit"
    )
    add_summary_argument(parser)


def add_summary_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--summary", metavar="FILE", type=Path, help="write the outcome as JSON")


def quieten_libraries() -> None:
    """Keeps the notices of MLflow and torch out of a job's output; their warnings stay."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow sets the level of "mlflow" itself when it is imported, but not of those below it.
    for name in ("mlflow.pyfunc", "mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Importing torchrec makes torch advise its own developers.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def run_job(job: Callable[[], None]) -> int:
    """Runs a job; a fault of the user's or the machine's ends it with one line and status 1.

    Exit status: 0 done, 1 refused or failed with a reason, 3 stopped on request with a checkpoint
    from which ``--resume`` goes on, 130 interrupted before there was one.
    """
    return leave(_status_of(job))


def _status_of(job: Callable[[], None]) -> int:
    quieten_libraries()
    try:
        job()
    except RunStopped as stop:
        print(_with_notes(stop), file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, RuntimeError, OSError) as error:
        if not type(error).__module__.startswith(("pipeline.", "ple.", "jobs.")):
            raise
        print(f"error: {_with_notes(error)}", file=sys.stderr)
        return 1
    return 0


def _with_notes(error: BaseException) -> str:
    """What an error says, and what was noted on its way up."""
    return "; ".join([str(error), *getattr(error, "__notes__", [])])
