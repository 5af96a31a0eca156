"""What a runtime prepares for each shape of call, and keeps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

STEP = 16
"""Of lengths: a new shape costs buffers and a recording, hundreds of times what sixteen positions do."""

Prepared = TypeVar("Prepared")


class Recent(OrderedDict[tuple[tuple[int, ...], ...], Prepared]):
    """What was prepared for the shapes of call that were used last."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def of(self, inputs: Mapping[str, Any], prepare: Callable[[], Prepared]) -> Prepared:
        """Args: inputs: arrays or tensors; prepare: called where none of their shapes was before."""
        shape = tuple(tuple(each.shape) for each in inputs.values())
        if shape not in self:
            self[shape] = prepare()
            if len(self) > self.most:
                self.popitem(last=False)
        self.move_to_end(shape)
        return self[shape]
