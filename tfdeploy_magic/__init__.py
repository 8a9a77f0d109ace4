"""From the TensorFlow model in your notebook to a deployment you can trust."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from tfdeploy_magic.commands.endpoint import Endpoint as Endpoint
    from tfdeploy_magic.commands.export import export as export
    from tfdeploy_magic.commands.inspect import inspect as inspect
    from tfdeploy_magic.commands.loadtest import loadtest as loadtest
    from tfdeploy_magic.commands.monitor import monitor as monitor
    from tfdeploy_magic.commands.predict import predict as predict
    from tfdeploy_magic.commands.quantize import quantize as quantize
    from tfdeploy_magic.commands.serve import serve as serve
    from tfdeploy_magic.commands.tfdeploy import tfdeploy as tfdeploy
    from tfdeploy_magic.commands.tflite_convert import tflite_convert as tflite_convert
    from tfdeploy_magic.commands.tune import tune as tune
    from tfdeploy_magic.quantization.config import QuantizationConfig as QuantizationConfig

__version__ = "0.1.0.dev0"
__all__ = [
    "Endpoint",
    "QuantizationConfig",
    "__version__",
    "export",
    "inspect",
    "load_ipython_extension",
    "loadtest",
    "monitor",
    "predict",
    "quantize",
    "serve",
    "tfdeploy",
    "tflite_convert",
    "tune",
    "unload_ipython_extension",
]
_VERBS = (
    *("export", "inspect", "loadtest", "monitor", "predict", "quantize", "serve", "tfdeploy", "tflite_convert", "tune"),
)
_HOMES = {
    "Endpoint": "commands.endpoint",
    "QuantizationConfig": "quantization.config",
    **{verb: f"commands.{verb}" for verb in _VERBS},
}

_loaded: dict[int, Any] = {}


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Do what ``%load_ext tfdeploy_magic`` asks for."""
    from tfdeploy_magic.notebook.magics import TFDeployMagics

    if id(shell) in _loaded:
        return
    magics = _loaded[id(shell)] = TFDeployMagics(shell)
    magics.install()
    print(magics.greeting())


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Do what ``%unload_ext tfdeploy_magic`` asks for."""
    if magics := _loaded.pop(id(shell), None):
        magics.uninstall()


def __getattr__(name: str) -> Any:
    # They are imported when they are first asked for: a kernel that never converts pays for none of them.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
