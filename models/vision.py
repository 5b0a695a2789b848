"""torchvision, importable beside any torch. Everything of ours that needs torchvision takes it from here."""

from __future__ import annotations

import torch

__all__ = ["torchvision", "torchvision_transforms"]


def _make_torchvision_importable() -> None:
    """Let torchvision's Python half load beside a torch that its compiled operators do not fit.

    Importing torchvision registers shapes for two operators that only its compiled library declares; where that
    library cannot load (a CUDA build of torchvision beside a CPU build of torch), the import fails although the
    networks and transforms need no operator. Declaring both is enough; with a matching pair nothing is changed.
    """
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            return
        except OSError:
            pass
    operators = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _kept_alive.append(operators)
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        operators.define(schema)  # type: ignore[no-untyped-call]


_kept_alive: list[torch.library.Library] = []
_make_torchvision_importable()

import torchvision  # noqa: E402 - only importable after the line above
from torchvision.transforms import v2 as torchvision_transforms  # noqa: E402
