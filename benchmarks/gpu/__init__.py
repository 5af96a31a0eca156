"""A recipe's models on a GPU: `python -m benchmarks.gpu recipe.yaml`, or `make gpu`."""
