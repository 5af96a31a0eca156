"""Where interactions come from, a file each: public data sets, one's own table, synthetic users.

Every source gives the same two tables and leaves judgement (thresholds, duplicates, cores) to `interactions`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from compress.data.sources.movielens import read_movielens
from compress.data.sources.movielens_small import read_movielens_small
from compress.data.sources.online_retail import read_online_retail
from compress.data.sources.reading import Raw
from compress.data.sources.synthetic import read_synthetic
from compress.data.sources.table import read_table
from compress.recipe.data import AnyData

__all__ = ["SOURCES", "Raw", "read"]


def read(section: AnyData) -> Raw:
    """All interactions of the source, unfiltered, a batch at a time.

    Raises: DataError, one line, if they cannot be fetched, read or understood.
    """
    return SOURCES[section.source](section)


SOURCES: Mapping[str, Callable[[Any], Raw]] = {
    "ml-100k": read_movielens,
    "ml-latest-small": read_movielens_small,
    "online-retail-ii": read_online_retail,
    "csv": read_table,
    "parquet": read_table,
    "synthetic": read_synthetic,
}
