"""The model inside the package, and a copy of it that has a chat template."""

from __future__ import annotations

from pathlib import Path

from lola_cpp import Model

DEFAULT = Model.default(threads=1)
ADAPTER = DEFAULT.path.replace("tiny.gguf", "tiny-lola.gguf")
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def with_template(path: Path) -> str:
    """The small model with a chat template in its file."""
    import gguf

    reader = gguf.GGUFReader(DEFAULT.path)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value_type = field.types[0]
        sub_type = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), value_type, sub_type=sub_type)
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)
