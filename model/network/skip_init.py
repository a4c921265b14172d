"""Construction of modules without initial weights, for weights that are loaded right afterwards."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode


class SkipInit(TorchFunctionMode):
    """Context manager that makes all functions of torch.nn.init return their tensor unchanged.

    The "meta" device would avoid the work too, but importing it loads sympy and torch's compiler, which takes 1 s.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))
