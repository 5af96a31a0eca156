"""`python -m compress.recipe X.yaml` checks a recipe; `--schema` prints the JSON Schema that editors complete from."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from compress.errors import RecPressError
from compress.recipe import Recipe, load


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m compress.recipe", description=__doc__)
    parser.add_argument("recipes", nargs="*", type=Path, metavar="recipe.yaml")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of recipes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    if arguments.schema:
        print(json.dumps(Recipe.model_json_schema(), indent=2))
        return 0
    if not arguments.recipes:
        parser.error("name a recipe, or --schema")
    status = 0
    for path in arguments.recipes:
        try:
            recipe = load(path, arguments.overrides)
            print(f"{path}: {recipe.name}: {len(recipe.stages)} stages, seeds {list(recipe.seeds)}: valid")
        except RecPressError as error:
            print(error, file=sys.stderr)
            status = error.exit_code
    return status


if __name__ == "__main__":
    sys.exit(main())
