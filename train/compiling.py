"""torch.compile for the parts of a layer that see each token by itself: norms and feed-forward.

Attention stays as it is: its shapes are other ones for every packed row, and compiling it would begin anew with each
(docs/LOG.md has what both gain).
"""

from __future__ import annotations

from torch import nn

from factory.faults import FactoryError
from train.processes import layers


def compile_layers(model: nn.Module) -> None:
    """Compile them, in place, for any number of tokens; the first rows then take seconds longer. FactoryError: there is
    no compiler here."""
    _refuse_without_compiler(next(model.parameters()).device.type)
    for layer in layers(model):
        for name, part in layer.named_children():
            if "att" not in name or "norm" in name:
                part.compile(dynamic=True)


def _refuse_without_compiler(device: str) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as fault:
        raise FactoryError("compile needs a C++ compiler", todo="install g++ or clang, or leave compile out") from fault
    if device != "cpu" and not has_triton():
        raise FactoryError("compile needs Triton on this device", todo="pip install triton, or leave compile out")
