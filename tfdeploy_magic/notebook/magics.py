"""The magics: one for each command, all made by the same few lines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from traitlets import Bool
from traitlets.config import Configurable

from tfdeploy_magic import __version__, jobs
from tfdeploy_magic.commands import (  # noqa: F401  (importing registers them)
    export,
    inspect,
    loadtest,
    monitor,
    predict,
    quantize,
    serve,
    tfdeploy,
    tflite_convert,
    tune,
)
from tfdeploy_magic.commands.declaration import COMMANDS, FromKernel, Named, Options, marker
from tfdeploy_magic.errors import JobCancelled, TfdeployError
from tfdeploy_magic.notebook import discovery, namespace
from tfdeploy_magic.notebook.cells import ConverterCell
from tfdeploy_magic.notebook.completer import matcher_for
from tfdeploy_magic.notebook.display import Stage, brief, from_their_code, print_job_trace
from tfdeploy_magic.notebook.parser import CommandParser, Line
from tfdeploy_magic.sources.samples import NamedData


class TFDeployMagics(Configurable):
    """Convert, quantize and validate the model in this kernel."""

    progress = Bool(True, help="Show progress while a command runs.").tag(config=True)

    def __init__(self, shell: InteractiveShell) -> None:
        super().__init__(parent=shell)
        self.shell = shell
        self.parsers = {name: CommandParser(command) for name, command in COMMANDS.items()}
        self.matcher = matcher_for(self.parsers, shell)
        self._warm = False

    def install(self) -> None:
        """Register the magics, the completion, and the watch for a first model."""
        for name in self.parsers:
            kind = "line_cell" if COMMANDS[name].cell else "line"
            self.shell.magics_manager.register_function(self._magic(name), magic_kind=kind, magic_name=name)
        configurables: list[Any] = self.shell.configurables  # what %config lists
        configurables.append(self)
        self.shell.Completer.custom_matchers.append(self.matcher)
        self.shell.events.register("post_run_cell", self.warm_up_for_a_model)

    def uninstall(self) -> None:
        """Undo :meth:`install`."""
        for name in self.parsers:
            for kind in ("line", "cell"):
                self.shell.magics_manager.magics[kind].pop(name, None)
        configurables: list[Any] = self.shell.configurables
        configurables.remove(self)
        self.shell.Completer.custom_matchers.remove(self.matcher)
        self.shell.events.unregister("post_run_cell", self.warm_up_for_a_model)

    def warm_up_for_a_model(self, *_: object) -> None:
        """Start the fork server when a model appears, so that TensorFlow is imported before it is needed."""
        if not self._warm and namespace.models(self.shell.user_ns):
            self._warm = True
            jobs.warm_up()

    def greeting(self) -> str:
        """Return the one line that says what to type next."""
        models = namespace.models(self.shell.user_ns)
        name = models[-1] if models else "MODEL"
        return f"tfdeploy_magic {__version__}. Try: %tflite_convert {name} --int8    (help: %tflite_convert?)"

    def _magic(self, name: str) -> Callable[..., Any]:
        parser = self.parsers[name]

        def magic(line: str, cell: str | None = None) -> Any:
            parsed = parser.parse_line(line)
            try:
                if cell is None:
                    return self._run(parsed, parsed.values)
                return self._run_cell(parsed, cell)
            except TfdeployError as error:
                if parsed.debug:
                    print_job_trace(error)
                    raise
                raise brief(error, self.shell) from error.__cause__

        magic.__doc__ = parser.format_help()
        magic.__name__ = name
        return magic

    def _run_cell(self, line: Line, cell: str) -> Any:
        command = line.parser.command
        if command.cell is None:
            line.parser.error("it takes a line and no cell")
        if command.cell in command.options.model_fields:
            return self._run(line, {**line.values, command.cell: cell})

        def convert(values: dict[str, Any]) -> Any:
            return self._run(line, values)

        try:
            return ConverterCell(self.shell, line.values, convert).run(cell)
        except TfdeployError:
            raise
        except Exception as error:
            raise from_their_code(error, self.shell) from error.__cause__

    def _run(self, line: Line, values: dict[str, Any]) -> Any:
        command = line.parser.command
        stage = Stage(self.shell, show_progress=self.progress)
        try:
            result = command.run(self._resolved(line.parser, values), stage.listen)
        except KeyboardInterrupt:
            stage.clear()
            raise JobCancelled(
                f"%{command.name} was stopped",
                found="the stop button or Ctrl-C",
                wanted="to run to its end",
                cure="No half-written file is left and your variables are as they were; run it again when you like.",
            ) from None
        except BaseException:
            stage.clear()
            raise
        if line.variable is not None:
            self.shell.user_ns[line.variable] = result
        with contextlib.suppress(KeyboardInterrupt):  # while figures are drawn: the work itself is done
            if hasattr(result, "_repr_mimebundle_"):
                stage.show(result)
            else:  # a plain value, an array of answers: IPython shows it as any other
                stage.clear()
        return result

    def _resolved(self, parser: CommandParser, values: dict[str, Any]) -> Options:
        """Put kernel values in the place of names, and find the data that was not named."""
        values = dict(values)
        for name, field in parser.command.options.model_fields.items():
            kernel = marker(field, FromKernel)
            if kernel is not None and name in values:
                values[name] = self._kernel_value(kernel.kind, values[name])
        options: Options = parser.validated(values)
        found = self._found(options)
        return parser.validated({**values, **found}) if found else options

    def _kernel_value(self, kind: str, words: Any) -> Any:
        if not isinstance(words, str):
            return words  # a cell gives values, a line gives names
        user_ns = self.shell.user_ns
        if kind == "model":
            return Named(words, namespace.lookup_model(words, user_ns))
        if kind == "metric":
            value = user_ns.get(words)
            return Named(words, value) if callable(value) else words
        if kind == "value":
            return Named(words, namespace.lookup(words, user_ns, wanted="a variable in this kernel"))
        if kind == "function":
            return namespace.lookup_function(words, user_ns)
        if kind == "functions":
            return namespace.lookup_functions(words, user_ns)
        if kind == "endpoint":
            return namespace.lookup_endpoint(words, user_ns)
        data, labels = namespace.pair(words)
        value = namespace.lookup_data(data, user_ns, wanted="data in this kernel")
        if not labels:
            return NamedData(data, value)
        targets = namespace.lookup_data(labels, user_ns, wanted="labels in this kernel")
        return NamedData(f"{data}, {labels}", value, targets, labels)

    def _found(self, options: Options) -> dict[str, Any]:
        missing = [name for name in options.data_to_find() if getattr(options, name) is None]
        if not missing:
            return {}
        source = options.source()
        try:
            found: dict[str, Any] = (
                {"model": Named(source.name, source)} if "model" in type(options).model_fields else {}
            )
            kernel = discovery.Kernel(
                self.shell.user_ns, source.inputs, preprocess=getattr(options, "preprocess", None)
            )
            if "calib" in missing:
                found["calib"] = kernel.find_calibration()
            if "test" in missing:
                calibration = found.get("calib", getattr(options, "calib", None))
                found["test"] = kernel.find_test(calibration, getattr(options, "samples", 0))
            if "x" in missing:
                found["x"] = kernel.find_test(None, 0)
        except BaseException:
            source.close()
            raise
        return found
