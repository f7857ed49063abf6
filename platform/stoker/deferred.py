"""What imports need not cost a process: PyTorch's compiler where nothing compiles, and garbage collection.

The compiler is 4 to 5 s of a worker's 13 s of CPU time. Collecting garbage while torch and this package are imported,
which makes hardly any, is a fifth of the rest of these imports (:func:`importing`).

torchvision asks ``torch._dynamo`` for a function when it is imported, each optimiser and DistributedDataParallel for
one that marks code as not to be compiled, and ``torch.use_deterministic_algorithms`` tells ``torch._inductor``.
:func:`defer_compiler` puts stand-ins in place that answer these few questions as the compiler does where nothing
compiles. Whatever else is asked of them imports the real modules, which take their place, with what was set on them
until then; so code that does compile works as well, later.

``tests/contracts/test_deferred.py`` compares the answers with the real ones.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["defer_compiler", "importing"]

_DYNAMO, _INDUCTOR = "torch._dynamo", "torch._inductor"


def defer_compiler() -> None:
    """Import ``torch._dynamo`` and ``torch._inductor`` only once something asks for more than what is answered here.

    Call it before torchvision is imported; does nothing where the compiler is imported already.
    """
    if _DYNAMO in sys.modules or _INDUCTOR in sys.modules:
        return
    config = _StandIn(f"{_INDUCTOR}.config")
    rules = _StandIn(f"{_DYNAMO}.trace_rules", clear_lru_cache=lambda: None)
    utils = _StandIn(
        f"{_DYNAMO}.utils",
        is_compile_supported=_is_compile_supported,
        get_optimize_ddp_mode=lambda: "ddp_optimizer",
    )
    dynamo = _StandIn(_DYNAMO, disable=_disable, graph_break=_graph_break, utils=utils, trace_rules=rules)
    for module in (dynamo, utils, rules, _StandIn(_INDUCTOR, config=config), config):
        sys.modules[module.__name__] = module
    sys.meta_path.insert(0, _Finder())


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """A block that imports much: no garbage is collected in it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _StandIn(ModuleType):
    def __init__(self, name: str, **answers: Any) -> None:
        super().__init__(name)
        vars(self).update(answers, __path__=[])
        vars(self)["_answers"] = {*vars(self), "_answers"}

    def changes(self) -> dict[str, Any]:
        """What was set on it since it was made."""
        return {name: value for name, value in vars(self).items() if name not in self._answers}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of the import system
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


class _Finder(MetaPathFinder):
    """Finds what is below the packages and has no stand-in: in the real ones, which it imports."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith((f"{_DYNAMO}.", f"{_INDUCTOR}.")):
            return None
        _real(_DYNAMO)
        if (module := sys.modules.get(name)) is None:
            return importlib.util.find_spec(name)
        return ModuleSpec(name, _Imported(module))


class _Imported(Loader):
    """Loads a module that the import of its package has imported."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _real(name: str) -> ModuleType:
    """The real module ``name``, in the place of all stand-ins."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    standing = [module for module in list(sys.modules.values()) if isinstance(module, _StandIn)]
    for module in standing:
        del sys.modules[module.__name__]
    importlib.import_module(_DYNAMO)
    for module in standing:
        for key, value in module.changes().items():
            setattr(importlib.import_module(module.__name__), key, value)
    return importlib.import_module(name)


def _disable(fn: Any = None, recursive: bool = True, **_: Any) -> Any:
    """Nothing is compiled, so nothing has to be marked; as a decorator with arguments as well."""
    return fn if fn is not None else lambda decorated: decorated


def _graph_break(msg: str = "") -> None:
    pass


def _is_compile_supported(device_type: Any) -> bool:
    supported: Callable[[Any], bool] = _real(f"{_DYNAMO}.utils").is_compile_supported
    return supported(device_type)
