"""Products in float32 of bfloat16 tensors: those of a processor that has bfloat16."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.runs import bfloat16
from benchmarks.runs.bfloat16 import ProductsInFloat32


class Seen(TorchDispatchMode):
    """Keeps the types of what products are computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in bfloat16._PRODUCTS:
            self.types |= {arg.dtype for arg in args if isinstance(arg, Tensor)}
        return func(*args, **kwargs or {})


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4)]
    return nn.Sequential(*layers)


def _gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    F.cross_entropy(logits.float(), torch.arange(len(x)) % 4).backward()
    return [logits, *(p.grad for p in model.parameters())]


def test_logits_and_gradients_are_those_of_bfloat16():
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    native = _gradients(_net(), x)
    with ProductsInFloat32():
        here = _gradients(_net(), x)
    for ours, theirs in zip(here, native, strict=True):
        assert ours.dtype == theirs.dtype
        # one step of bfloat16 is a part of 2 ** -8
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-8 * theirs.abs().max().item())


def test_a_product_is_rounded_once_from_the_exact_one():
    a, b = (torch.randn(40, 40).bfloat16() for _ in range(2))
    exact = a.double() @ b.double()
    with ProductsInFloat32():
        product = a @ b
    assert product.dtype == torch.bfloat16
    assert ((product.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()


def test_all_products_of_a_step_are_in_float32():
    seen = Seen()
    # modes are asked from the innermost on: Seen sees what is computed in the end
    with seen, ProductsInFloat32():
        _gradients(_net(), torch.randn(4, 3, 8, 8))
    assert seen.types == {torch.float32}
    assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


def test_only_where_a_processor_is_slow(monkeypatch):
    def wanted(capability: str, bf16: bool = True, device: str = "cpu") -> bool:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        return isinstance(ProductsInFloat32.where_slow(bf16, device), ProductsInFloat32)

    assert wanted("AVX2")
    assert not wanted("AVX512")
    assert not wanted("AVX2", bf16=False)
    assert not wanted("AVX2", device="cuda")
