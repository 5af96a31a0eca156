"""Online Retail II (Chen 2012, doi:10.24432/C5CG6D, CC BY 4.0): what registered customers of a gift shop bought.

Read from a local folder: `interactions.tsv` or `.tsv.xz` (user_id, item_id, timestamp, invoice, ...) and `items.tsv`
(item_id, title). The lines of an invoice are one moment: the order in which the shop listed them predicts the next
line twice as well as taste does, and is forgotten.
"""

from __future__ import annotations

import hashlib
import lzma

import polars as pl

from compress.data.sources.reading import Raw, one_line, shared, split
from compress.errors import DataError
from compress.recipe.data import OnlineRetailII

SHA256 = "a289bccc17ab7ff8820290c92f007308374a947b8fbc0eb2528ba6dca9589139"
"""Of `user,item,timestamp` lines, sorted as text, without the header."""

ITEMS_SHA256 = "215f2a7945e6e91f2edbd64b81513a11943bcea903ceb158077dec372225080d"
"""Of `item,text` lines in the file's order."""

FOLDER = "online_retail_ii"
FILES = ("interactions.tsv.xz", "interactions.tsv")


def read_online_retail(section: OnlineRetailII) -> Raw:
    folder = section.path or shared(FOLDER, FILES[::-1])
    packed = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if packed is None:
        raise DataError(f"{folder}: not Online Retail II: there is no {' or '.join(FILES)}")
    with one_line(packed):
        content = lzma.decompress(packed.read_bytes()) if packed.suffix == ".xz" else packed.read_bytes()
        lines = split(content, "\t", ["user", "item", "timestamp", "invoice"], header_lines=1)
        moment = pl.col("timestamp").cast(pl.Int64).min().over("user", "invoice")
        interactions = lines.select("user", "item", timestamp=moment).sort("user", "item", "timestamp")
    found = hashlib.sha256(interactions.write_csv(include_header=False).encode()).hexdigest()
    if found != SHA256:
        raise DataError(f"{packed}: not Online Retail II: the sha256 of its purchases is {found}, expected {SHA256}")
    with one_line(folder / "items.tsv"):
        items = split((folder / "items.tsv").read_bytes(), "\t", ["item", "text"], header_lines=1)
    titles = hashlib.sha256(items.write_csv(include_header=False).encode()).hexdigest()
    if titles != ITEMS_SHA256:
        raise DataError(f"{folder}: not Online Retail II: its titles' sha256 is {titles}, expected {ITEMS_SHA256}")
    return Raw.whole(interactions.with_columns(rating=pl.lit(None, pl.Float64)), items)
