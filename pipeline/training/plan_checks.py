"""What can be told of a sharding plan before any worker starts."""

import difflib

from pipeline.config import ConfigError, Experiment
from pipeline.config.sharding import device_fault
from pipeline.data.transforms import FeatureTransforms


def check_plan(experiment: Experiment, transforms: FeatureTransforms, device: str) -> None:
    """Refuses what the device or the tables cannot do.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: names the key and the nearest that works.
    """
    sharding = experiment.sharding
    fault = device_fault(sharding, experiment.table_optimizer, device)
    if fault is not None:
        raise ConfigError(fault)
    tables = {table.name: table for table in transforms.tables}
    for name, own in sharding.tables.items():
        # single_task has a table of each name for every task, called table@task.
        table = tables.get(name.split("@")[0])
        if table is None:
            near = difflib.get_close_matches(name, tables, n=1, cutoff=0.0)
            raise ConfigError(
                f"sharding.tables.{name}: there is no such table; nearest: {', '.join(near)} "
                f"(all: {', '.join(tables)})"
            )
        if own.types and table.map is not None and "row_wise" not in own.types:
            raise ConfigError(
                f"sharding.tables.{name}.types: the table of a zero_collision feature is cut by "
                "buckets, which are rows; use row_wise"
            )
        if own.types == ("column_wise",) and table.dim % 8:
            raise ConfigError(
                f"sharding.tables.{name}.types: {table.dim} columns cannot be cut into parts of 4 "
                "and more; set its `dim` to a multiple of 8, or use row_wise"
            )
