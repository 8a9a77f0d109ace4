"""A loaded version of a model: a Session over the SavedModel, or LiteRT over ``model.tflite``, asked by name.

TensorFlow Serving's own way is LoadSavedModel and Session::Run; a Session's callable that runs in the thread that asks
costs a tenth of what calling the signature costs.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving import status, tryout
from tfdeploy_magic.serving.batching import Batched, Batcher, Rules
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.status import Code, Refusal
from tfdeploy_magic.sources import graphs
from tfdeploy_magic.sources.native import without_chatter

LITE_FILE = "model.tflite"
"""What a version directory holds that is served by ``--prefer_tflite_model``."""

NATURAL = Rules(max_batch_size=64, num_batch_threads=os.cpu_count() or 1)
"""Batching when nobody asked for any: only what waits anyway goes together."""

_LOOPS = frozenset(("While", "StatelessWhile", "For", "LoopCond"))
"""Operations that go on for as long as the data say."""

_HARMLESS = re.compile(
    r"VarHandleOp|Variable(V2)?|ReadVariableOp|VarIsInitializedOp|VariableShape|ResourceGather(Nd)?|If|While|Case|Assert"
    r"|StatefulPartitionedCall|XlaCallModule|(Mutable)?(Dense)?HashTable(OfTensors)?(V2)?|LookupTable(Find|Size|Export)(V2)?"
    r"|TensorArray.*|Stack(Push|Pop|Close)?(V2)?|IsVariableInitialized"
)
"""Operations that count as stateful and yet leave a model as it was."""


@dataclass(frozen=True)
class Settings:
    """How models are loaded and run.

    Args:
        tags: Of the graph to load.
        lite: Serve ``model.tflite`` where there is one.
        gpu: Use GPUs.
        intra_op_threads: Of the Session; 0 leaves the choice to TensorFlow.
        inter_op_threads: Of the Session; 0 leaves the choice to TensorFlow.
        rules: Batching parameters; None where batching was not asked for.
        session_config: A ``ConfigProto`` that the Session starts from.
        lite_interpreters: How many interpreters answer calls of one .tflite file.
    """

    tags: tuple[str, ...] = ("serve",)
    lite: bool = False
    gpu: bool = False
    intra_op_threads: int = 0
    inter_op_threads: int = 0
    rules: Rules | None = None
    session_config: Any = None
    lite_interpreters: int = 1


class Engine(Protocol):
    """What runs a model's graph."""

    @property
    def signatures(self) -> Mapping[str, Any]:
        """Key -> ``SignatureDef``."""

    @property
    def changes(self) -> bool:
        """Whether a call does more than answer: changes what the next one is answered, or writes somewhere."""

    @property
    def loops(self) -> bool:
        """Whether how long a call takes depends on what it is asked, and not on how much."""

    @property
    def idle(self) -> bool:
        """Whether a call would be run at once."""

    def run(self, call: Call, *, here: bool = False) -> Arrays:
        """Answer a call; ``here`` runs its operations in this thread too, where the engine has threads of its own.

        Raises:
            Refusal: It cannot be answered; nothing else is ever raised.
        """

    def close(self) -> None:
        """Give everything back."""


class LoadedVersion:
    """A version, ready to be asked (``calls.Servable``).

    Args:
        name: The model's.
        version: Its number.
        path: Its directory.
        settings: How it is loaded and run.
        batched: Told of each batch, as :class:`Batcher` has it.
        ran: Told of each run of the graph: microseconds.

    Raises:
        Refusal: It cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: Path,
        settings: Settings,
        batched: Batched = lambda *_: None,
        ran: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.name, self.version, self.path = name, version, path
        self._ran = ran
        rules = settings.rules or NATURAL
        self._engine = _load(path, settings)
        self._tried: dict[str, tryout.Trial] = {}
        if not rules.every_call and not self._engine.changes:  # what remembers must not remember our questions
            try:
                self._tried = tryout.try_out(self.signatures, self._engine.run, loops=self._engine.loops)
            except BaseException:
                self._engine.close()
                raise
        self._batcher = Batcher(self._run, rules, self.independent, batched)

    @property
    def signatures(self) -> Mapping[str, Any]:
        """Key -> ``SignatureDef``."""
        return self._engine.signatures

    @property
    def short(self) -> frozenset[str]:
        """The signatures whose calls are answered where they arrive."""
        return frozenset(key for key, trial in self._tried.items() if trial.short is not None)

    def inline(self, call: Call) -> bool:
        """Whether a call is so short that it is answered where it arrives."""
        trial = self._tried.get(call.signature)
        if trial is None or trial.short is None or not self._engine.idle:
            return False
        return sum(array.size for array in call.inputs.values()) <= trial.short

    def independent(self, call: Call) -> bool:
        """Whether the rows of a call are answered beside those of others as they are alone."""
        trial = self._tried.get(call.signature)
        return trial is not None and trial.independent

    def answer(self, call: Call) -> Arrays:
        """Answer a call, waiting for it."""
        return self._run(call, here=True) if self.inline(call) else self._batcher.submit(call).result()

    def submit(self, call: Call) -> Future[Arrays]:
        """Answer a call in another thread, together with others that wait."""
        return self._batcher.submit(call)

    def close(self) -> None:
        """Answer what waits, and unload."""
        self._batcher.close()
        self._tried = {}  # a call that comes too late is refused as one that is queued
        self._engine.close()

    def _run(self, call: Call, here: bool = False) -> Arrays:
        began = time.perf_counter()
        answers = self._engine.run(call, here=here)
        taken = time.perf_counter() - began
        if here and taken > 10 * tryout.SHORT_SECONDS:  # these were not short, whatever others were
            self._tried[call.signature] = replace(self._tried[call.signature], short=None)
        self._ran(taken * 1e6)
        return answers


def _load(path: Path, settings: Settings) -> Engine:
    lite = path / LITE_FILE
    try:
        if settings.lite and lite.exists():
            from tfdeploy_magic.serving.lite import LiteEngine

            return LiteEngine(lite, settings.lite_interpreters)
        return _SessionEngine(path, settings)
    except Refusal:
        raise
    except Exception as error:
        if (known := _from_tensorflow(error)) is not None:
            raise known from error
        said = str(error).strip() or type(error).__name__
        kind = Code.NOT_FOUND if isinstance(error, OSError) and "does not exist" in said else Code.INVALID_ARGUMENT
        raise Refusal(kind, f"Could not load the SavedModel at {path}: {said}") from error


class _SessionEngine:
    """A Session over a SavedModel of TF1 or TF2 style."""

    idle = True  # a Session runs any number of calls at once

    def __init__(self, path: Path, settings: Settings) -> None:
        import tensorflow as tf
        from tensorflow.core.protobuf import config_pb2

        # Private, and yet the loader that tf.compat.v1.saved_model.load warns about in favour of another kind of model.
        from tensorflow.python.saved_model.loader_impl import SavedModelLoader

        config = config_pb2.ConfigProto()
        if settings.session_config is not None:
            config.CopyFrom(settings.session_config)
        config.intra_op_parallelism_threads = settings.intra_op_threads or config.intra_op_parallelism_threads
        config.inter_op_parallelism_threads = settings.inter_op_threads or config.inter_op_parallelism_threads
        config.allow_soft_placement = True
        if settings.gpu:
            config.gpu_options.allow_growth = True
        else:
            config.device_count["GPU"] = 0
        if not ((path / "saved_model.pb").exists() or (path / "saved_model.pbtxt").exists()):
            raise Refusal(Code.NOT_FOUND, f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
                          f"{path}")  # fmt: skip
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        try:
            with graph.as_default(), without_chatter():
                meta = SavedModelLoader(str(path)).load(self._session, list(settings.tags))
            self.signatures = graphs.declared(meta)
            answering = _answering(meta, self.signatures)
            self.changes = _has_side_effects(answering)
            self.loops = not _LOOPS.isdisjoint(node.op for node in graphs.nodes(answering))
        except BaseException:
            self._session.close()
            raise
        self._options = config_pb2.CallableOptions
        self._callables: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def run(self, call: Call, *, here: bool = False) -> Arrays:
        """Answer a call, its operations in this thread one after another or in the Session's own."""
        key = (call.signature, tuple(call.inputs), call.outputs, here)
        try:
            found = self._callables.get(key) or self._callable(key)
            return dict(zip(call.outputs, found(*call.inputs.values()), strict=True))
        except Exception as error:
            raise _refusal_of(error) from error

    def close(self) -> None:
        """Close the Session; its variables go with it."""
        self._callables.clear()
        self._session.close()

    def _callable(self, key: tuple[Any, ...]) -> Callable[..., Any]:
        signature, inputs, outputs, here = key
        found = self.signatures[signature]
        options = self._options()
        options.feed.extend(found.inputs[name].name for name in inputs)
        options.fetch.extend(found.outputs[name].name for name in outputs)
        if here:
            options.run_options.inter_op_thread_pool = -1
        with self._lock:
            if key not in self._callables:
                self._callables[key] = self._session._make_callable_from_options(options)
            return self._callables[key]


def _from_tensorflow(error: Any) -> Refusal | None:
    """Return the status that a ``tf.errors.OpError`` carries; None where it is another exception."""
    return status.from_number(error.error_code, error.message) if hasattr(error, "error_code") else None


def _refusal_of(error: Exception) -> Refusal:
    if (known := _from_tensorflow(error)) is not None:
        return known
    if isinstance(error, TypeError | ValueError):
        return status.invalid(str(error))
    return Refusal(Code.INTERNAL, f"{type(error).__name__}: {error}")


def _answering(meta: Any, signatures: Mapping[str, Any]) -> Any:
    """Return the part of a graph that answers: what restores the variables assigns them, and is no part of it."""
    tensors = [info.name for signature in signatures.values() for info in signature.outputs.values() if info.name]
    return graphs.reachable(meta.graph_def, tensors)


def _has_side_effects(graph_def: Any) -> bool:
    """Whether a graph may change what it answers next, or write somewhere."""
    from tensorflow.python.framework import op_def_registry

    def may(op: str) -> bool:
        if op in own or _HARMLESS.fullmatch(op):
            return False
        known = op_def_registry.get(op)
        return known is None or known.is_stateful or any(each.is_ref for each in known.input_arg)

    own = {function.signature.name for function in graph_def.library.function}
    return any(may(op) for op in {node.op for node in graphs.nodes(graph_def)})
