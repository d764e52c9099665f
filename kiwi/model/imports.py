"""Quick starts: what diffusers and transformers import, and the editor never uses, is put off until it is asked for.

Importing one transformer of diffusers imports all of its transformers and schedulers, scipy's statistics and
optimisation, and torch's compiler: a third of the time from the start of a process to its first step
(benchmarks/training.py compares both in one run). While `light_imports` lasts, stand-ins take their places. One that
is asked for anything but what importing needs gives way to the real module, and all are gone when the block ends.

Functions that a library marks for the compiler while its stand-in is there stay unmarked: whoever compiles an editor
later sets KIWI_LIGHT_IMPORTS=0, and nothing is put off.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

# Names that importing alone asks for. torch._dynamo's mark functions for a compiler that is not in use.
COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result")
CALLED_LATER = {
    "torch._dynamo.utils": ("is_compile_supported",),
    "torch._dynamo._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    "scipy.optimize": ("linear_sum_assignment",),
    "scipy.stats": (),
    "scipy.integrate": (),
}
SWITCH = "KIWI_LIGHT_IMPORTS"
TRANSFORMERS = "diffusers.models.transformers"  # a package that imports all of its modules
WAN = "transformer_wan"
_TABLE = threading.RLock()  # stand-ins leave sys.modules one at a time; nothing is imported under it


class StandIn(ModuleType):
    """A module that is imported when something is asked of it that it does not have."""

    def __init__(self, name: str, **known: Any) -> None:
        super().__init__(name)
        self.__dict__.update(known, __path__=[])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


class _Submodules(importlib.abc.MetaPathFinder):
    """Whoever imports a submodule of a stand-in gets the real one, of the real package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        parent = fullname.rpartition(".")[0]
        if not isinstance(sys.modules.get(parent), StandIn):
            return None
        package = _real(parent)
        if fullname in sys.modules:
            return importlib.util.spec_from_loader(fullname, _Found(sys.modules[fullname]))
        return importlib.machinery.PathFinder.find_spec(fullname, package.__path__)


class _Found(importlib.abc.Loader):
    """Hands over a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def light_imports(*, compiler: bool = True) -> Iterator[None]:
    """Puts off what is not needed while the block lasts; modules that are there already stay.

    Args:
        compiler: put off torch's compiler too; not where something is to be compiled in the block.
    """
    if switched_off():
        yield
        return
    names = [name for name in CALLED_LATER if not name.startswith(COMPILER)]
    put = [_stand_in(name) for name in names if name not in sys.modules]
    if compiler and COMPILER not in sys.modules:
        put += [_compiler(), *(_stand_in(name) for name in CALLED_LATER if name.startswith(COMPILER))]
    finder = _Submodules()
    sys.modules.update({module.__name__: module for module in put})
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for module in put:
            _drop(module)


def switched_off() -> bool:
    """Whether KIWI_LIGHT_IMPORTS is 0: everything is imported whole and at once."""
    return os.environ.get(SWITCH) == "0"


def import_parts() -> None:
    """Imports the stock classes that every editor is made of; where they are there already, it does nothing."""
    if switched_off() or ("peft" in sys.modules and f"{TRANSFORMERS}.{WAN}" in sys.modules):
        return
    with light_imports(), _nothing_collected():
        if TRANSFORMERS not in sys.modules:
            _import_wan_alone()
        from peft import inject_adapter_in_model  # noqa: F401
        from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration  # noqa: F401


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """What importing makes stays: the garbage collector would go through all of it again and again, in vain."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _import_wan_alone() -> None:
    """Imports Wan's transformer of diffusers without the seventy others."""
    import diffusers
    import diffusers.models

    package = ModuleType(TRANSFORMERS)
    package.__path__ = [f"{diffusers.models.__path__[0]}/transformers"]
    sys.modules[TRANSFORMERS] = package
    try:
        wan = importlib.import_module(f"{TRANSFORMERS}.{WAN}")
    finally:
        if sys.modules.get(TRANSFORMERS) is package:
            del sys.modules[TRANSFORMERS]
        if vars(diffusers.models).get("transformers") is package:
            del diffusers.models.transformers
    vars(diffusers)["WanTransformer3DModel"] = wan.WanTransformer3DModel  # where `from diffusers import` looks first


def _stand_in(name: str) -> StandIn:
    return StandIn(name, **{called: _later(name, called) for called in CALLED_LATER[name]})


def _compiler() -> StandIn:
    marks = dict.fromkeys(MARKS, _unchanged)
    return StandIn(COMPILER, **marks, disable=_disable, graph_break=_nothing)


def _later(module: str, name: str) -> Callable[..., Any]:
    def call(*inputs: Any, **named: Any) -> Any:
        return getattr(_real(module), name)(*inputs, **named)

    return call


def _unchanged(function: Any) -> Any:
    return function


def _disable(function: Any = None, recursive: bool = True, **_: Any) -> Any:
    """torch._dynamo.disable where nothing is compiled."""
    return _unchanged if function is None else function


def _nothing(*_: Any, **__: Any) -> None:
    """torch._dynamo.graph_break where nothing is compiled."""


def _real(name: str) -> ModuleType:
    """The module itself, its stand-in taken away; the compiler's parts stand and fall together."""
    own = COMPILER if name.startswith(COMPILER) else name
    for key, module in list(sys.modules.items()):  # a copy: other threads import too
        if key == own or key.startswith(f"{own}."):
            _drop(module)
    return importlib.import_module(name)


def _drop(module: ModuleType) -> None:
    """Takes a stand-in out of the table of modules and out of its package."""
    if not isinstance(module, StandIn):
        return
    package, _, name = module.__name__.rpartition(".")
    with _TABLE:
        if sys.modules.get(module.__name__) is module:
            del sys.modules[module.__name__]
        if vars(sys.modules.get(package, module)).get(name) is module:
            delattr(sys.modules[package], name)
