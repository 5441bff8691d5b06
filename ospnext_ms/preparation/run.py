"""The run behind `prepare-data`."""

from pathlib import Path

from ospnext_ms.data import cache
from ospnext_ms.parallel.degrees import world_size
from ospnext_ms.preparation.prepare import prepare
from ospnext_ms.preparation.report import summary


def prepare_data(config, part=(0, 1)):
    """Makes the cache of a PrepareDataConfig, or part (i, n) of it, and returns lines that tell what is in it.

    Raises:
        As prepare does; ValueError too where msrun started several processes.
    """
    if world_size() > 1:
        raise ValueError("prepare-data does not run under msrun; start N processes with --part 1/N to N/N instead")
    report = prepare(config, part)
    if report is None:
        return [f"part {part[0] + 1}/{part[1]} is done; other parts are not yet"]
    return [summary(report), str(Path(config.output_dir) / cache.INDEX)]
