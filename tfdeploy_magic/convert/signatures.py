"""Putting a signature into a .tflite flatbuffer: converting a frozen graph drops it."""

from __future__ import annotations

from tfdeploy_magic.artifacts.signature import Signature


def put_signature(model: bytes, signature: Signature) -> bytes:
    """Return ``model`` with one SignatureDef for its first subgraph.

    Args:
        model: A .tflite file converted from a graph whose inputs and outputs stand in the signature's order.
        signature: ``TensorSpec.tensor`` names the graph's tensors, "x:0".

    Raises:
        ValueError: The file's inputs are not the signature's.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromPackedBuf(model, 0)
    subgraph = tree.subgraphs[0]
    definition = schema.SignatureDefT()
    definition.signatureKey = signature.name.encode()
    definition.subgraphIndex = 0
    definition.inputs = []
    definition.outputs = []
    # The converter keeps the order of inputs and outputs; the names of inputs are checked all the same.
    for spec, index in zip(signature.inputs, subgraph.inputs, strict=True):
        found = subgraph.tensors[index].name.decode()
        if found != spec.tensor.removesuffix(":0"):
            raise ValueError(f"input {spec.name} should be tensor {spec.tensor}, but the file has {found} there")
        definition.inputs.append(_mapping(schema, spec.name, index))
    for spec, index in zip(signature.outputs, subgraph.outputs, strict=True):
        definition.outputs.append(_mapping(schema, spec.name, index))
    tree.signatureDefs = [definition]
    builder = flatbuffers.Builder(len(model) + 1024)
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _mapping(schema: object, name: str, index: int) -> object:
    mapping = schema.TensorMapT()  # type: ignore[attr-defined]
    mapping.name = name.encode()
    mapping.tensorIndex = int(index)
    return mapping
