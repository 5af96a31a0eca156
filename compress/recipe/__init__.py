"""The recipe: what a YAML file may say, one file per section. Imports no torch, so a recipe is checked in a blink."""

from compress.recipe.document import load
from compress.recipe.recipe import Recipe

__all__ = ["Recipe", "load"]
