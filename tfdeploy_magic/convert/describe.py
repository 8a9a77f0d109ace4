"""What a .tflite file says of itself, read off its flatbuffer in a job without running it."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.signature import Signature, TensorSpec


def describe(path: Path) -> dict[str, Any]:
    """Return the fields that :meth:`LiteFile.from_description` takes, as plain data.

    Args:
        path: A .tflite file that this package has just made.
    """
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    operators: Counter[str] = Counter()
    tensor_types: Counter[str] = Counter()
    codes = [_operator_name(schema, model.OperatorCodes(i)) for i in range(model.OperatorCodesLength())]
    for position in range(model.SubgraphsLength()):
        subgraph = model.Subgraphs(position)
        operators.update(codes[subgraph.Operators(i).OpcodeIndex()] for i in range(subgraph.OperatorsLength()))
        tensor_types.update(_dtype(schema, subgraph.Tensors(i).Type()) for i in range(subgraph.TensorsLength()))
    return {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "signatures": [_signature(schema, model, i).to_dict() for i in range(model.SignatureDefsLength())],
        "operators": dict(operators.most_common()),
        "tensor_types": dict(tensor_types.most_common()),
    }


def _signature(schema: Any, model: Any, position: int) -> Signature:
    definition = model.SignatureDefs(position)
    subgraph = model.Subgraphs(definition.SubgraphIndex())

    def spec(mapping: Any) -> TensorSpec:
        return _tensor_spec(schema, mapping.Name().decode(), subgraph.Tensors(mapping.TensorIndex()))

    return Signature(
        definition.SignatureKey().decode(),
        tuple(spec(definition.Inputs(i)) for i in range(definition.InputsLength())),
        tuple(spec(definition.Outputs(i)) for i in range(definition.OutputsLength())),
    )


def _tensor_spec(schema: Any, name: str, tensor: Any) -> TensorSpec:
    sizes = tensor.ShapeSignatureAsNumpy() if tensor.ShapeSignatureLength() else tensor.ShapeAsNumpy()
    shape = tuple(None if size < 0 else int(size) for size in np.atleast_1d(sizes)) if tensor.ShapeLength() else ()
    quantization = tensor.Quantization()
    quantized = quantization is not None and quantization.ScaleLength() == 1
    return TensorSpec(
        name,
        shape,
        _dtype(schema, tensor.Type()),
        float(quantization.Scale(0)) if quantized else 0.0,
        int(quantization.ZeroPoint(0)) if quantized else 0,
        tensor.Name().decode(),
    )


def _dtype(schema: Any, code: int) -> str:
    return _names(schema.TensorType)[code].lower()


def _operator_name(schema: Any, code: Any) -> str:
    # Operators above 127 did not fit the deprecated field; the larger of the two is the truth.
    builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = _names(schema.BuiltinOperator)[builtin]
    return f"CUSTOM {code.CustomCode().decode()}" if name == "CUSTOM" else name


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
