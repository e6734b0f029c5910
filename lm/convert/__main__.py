"""Import and export Hugging Face checkpoints and GGUF files, and quantize models.

    python -m lm.convert import --from=HF_DIR --workdir=DIR [--mesh=fsdp=8]
    python -m lm.convert export --workdir=DIR --to=HF_DIR [--dtype=bfloat16 --max_shard_gb=5 --merge]
    python -m lm.convert export --from=HF_DIR --to=MODEL.gguf [--dtype=q8_0]
    python -m lm.convert import --from=MODEL.gguf --workdir=DIR
    python -m lm.convert export --workdir=DIR --to=MODEL.gguf [--dtype=q8_0 --merge]
    python -m lm.convert quantize --from=MODEL --workdir=DIR [--bits=8 --group=64 --targets=REGEX]
    python -m lm.convert import --from=PEFT_DIR --base=MODEL --workdir=DIR
    python -m lm.convert export --workdir=DIR --to=PEFT_DIR --adapter [--base=HF_DIR]
    python -m lm.convert explain HF_DIR

"import" reads a folder with config.json and safetensors, or a GGUF file, and writes a workdir at step 0. A folder can also be
used as it is: lm.load(HF_DIR), or python -m lm.generate --checkpoint=HF_DIR. Families: FAMILIES.

"export" writes the newest checkpoint of a workdir, trained or imported: for transformers and vLLM; with --to=NAME.gguf for
llama.cpp, Ollama and LM Studio, with a Modelfile beside it. --from=MODEL exports a folder or a GGUF file that is no workdir,
which is imported beside the target for a while. A reward model is a sequence classifier with one label. --adapter
writes the adapter alone, for PeftModel.from_pretrained(base, PEFT_DIR) or vLLM; --merge merges it into the weights.

"quantize" reads any model and writes a workdir whose weights are integers of 8 or 4 bits with scales (docs/adapt.md). To give
it to llama.cpp, export the model itself with --dtype=q8_0 instead.

"explain" reads config.json alone, and prints which ideas the model needs and which of them are missing here.

Output is written completely or not at all, and never over other files. See docs/convert.md.
"""

import difflib
import shutil
import sys
from pathlib import Path

from absl import flags

from data.text.hf_tokenizer import has_tokenizer
from lm import cli
from lm.cli import check_folder
from lm.convert.files import check_target, is_adapter
from lm.errors import UserError, no_model
from lm.files import compile_cache
from lm.files.gguf import SUFFIX
from lm.files.saving import check_free
from lm.runs.workdir import kind_of, read_config, steps_saved

FLAGS = flags.FLAGS

flags.DEFINE_string("workdir", None, "A workdir: a new one for import and quantize, that of a run for export.")
flags.DEFINE_string(
    "from",
    None,
    "import: a Hugging Face folder (config.json and safetensors), a GGUF file, or a PEFT adapter. quantize: any model. "
    "export: a Hugging Face folder or a GGUF file, in place of --workdir.",
)
flags.DEFINE_string(
    "mesh", "fsdp=-1", "import, quantize: mesh axes to shard over, such as fsdp=4,tensor=2; -1: the remaining devices."
)
flags.DEFINE_string(
    "to", None, "export: a new folder for the Hugging Face checkpoint or the PEFT adapter, or a new file NAME.gguf."
)
flags.DEFINE_bool("adapter", False, "export: only the adapter, in PEFT's format.")
flags.DEFINE_string(
    "base",
    None,
    "import of an adapter: its model, a Hugging Face folder, a GGUF file or a workdir; none: the one named in its config. "
    "export --adapter: the model to name in its config; none: the model that the run started from.",
)
HF_DTYPES = ("as-is", "float32", "bfloat16")
GGUF_DTYPES = ("as-is", "f32", "bf16", "f16", "q8_0", "q4_1", "q4_0")
flags.DEFINE_enum(
    "dtype",
    "as-is",
    list(dict.fromkeys([*HF_DTYPES, *GGUF_DTYPES])),
    f"export: the tensors' dtype, {', '.join(HF_DTYPES)}; of a GGUF file {', '.join(GGUF_DTYPES)}. as-is: the stored dtype.",
)
flags.DEFINE_float("max_shard_gb", 5.0, "export: maximum size of a file in 10⁹ bytes.", lower_bound=1e-6)
flags.DEFINE_bool("merge", False, "export: merge an adapter into its weights, and dequantize quantised weights.")
flags.DEFINE_enum("bits", "8", ["8", "4"], "quantize: bits of a weight.")
flags.DEFINE_integer("group", 0, "quantize: inputs that share a scale; 0: all of an output's.", lower_bound=0)
flags.DEFINE_string("targets", ".*", "quantize: the matrices, a regular expression of their names (docs/adapt.md).")
COMMANDS = ("import", "quantize", "export", "explain")
# What each takes. The first two are required: what is read, and what is written.
TAKES = {
    "import": ("from", "workdir", "base", "mesh"),
    "quantize": ("from", "workdir", "mesh", "bits", "group", "targets"),
    "export without --adapter": ("workdir", "to", "dtype", "max_shard_gb", "merge", "adapter"),
    "export --adapter": ("workdir", "to", "adapter", "base"),
}
ALL = tuple(dict.fromkeys(name for names in TAKES.values() for name in names))
OTHER_FORMATS = (".onnx", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".ggml", ".tflite", ".stablehlo")


def main() -> None:
    command = next(iter(sys.argv[1:]), None)
    if command not in COMMANDS:
        near = difflib.get_close_matches(command or "", COMMANDS, n=1)
        what = "the command is missing" if (command or "-").startswith("-") else f"{command} is no command"
        hint = f"did you mean {near[0]}?" if near else f"begin with one of {', '.join(COMMANDS)}"
        raise UserError(f"{what}: {hint}; --help shows examples")
    if command == "explain":
        return _explain(cli.parse_flags([sys.argv[0], *sys.argv[2:]], takes_arguments=True)[1:])
    cli.parse_flags([sys.argv[0], *sys.argv[2:]])
    case = command if command != "export" else "export --adapter" if FLAGS.adapter else "export without --adapter"
    named = TAKES[case]
    if command == "export" and FLAGS["from"].present and not FLAGS.workdir and not FLAGS.adapter:
        named = ("from", *named[1:])  # a model that is no workdir
    for name in ALL:
        if name not in named and FLAGS[name].present:
            raise UserError(f"--{name} means nothing to {case}, which takes {', '.join(f'--{one}' for one in named)}")
    for name in named[:2]:
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing; --help lists the flags")
    compile_cache.switch_on()
    read, to = (Path(FLAGS[name].value).absolute() for name in named[:2])
    _check_target(command, to, named[1])
    if not read.is_dir() and not (named[0] == "from" and read.suffix == SUFFIX and read.is_file()):
        raise UserError(no_model(FLAGS[named[0]].value))
    is_published = read.is_file() or kind_of(read_config(read)) == "published" and not steps_saved(read)
    if is_published and FLAGS.adapter:
        raise UserError(
            f"--workdir={FLAGS.workdir} is a Hugging Face folder, which has no adapter of its own: leave out --adapter"
        )
    export = _export_published if is_published else _export
    {"import": _import, "quantize": _quantize, "export": export}[command](read, to)


def _explain(folders: list[str]) -> None:
    named = folders or [FLAGS["from"].value]
    if len(named) != 1 or not named[0]:
        raise UserError("explain takes one folder with a config.json: python -m lm.convert explain HF_DIR")
    from lm.convert.explain import explained

    folder = Path(named[0])
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json to explain")
    print(explained(read_config(folder)))


def _check_target(command: str, to: Path, flag: str) -> None:
    """Raise UserError for a place that cannot be written or is not free, or a format or dtype that is not written."""
    if command != "export":
        check_folder(to, flag)
        check_free(to, flag)
        return
    gguf = to.suffix == SUFFIX
    if gguf and FLAGS.adapter:
        raise UserError("--adapter writes a folder in PEFT's format: for a GGUF file give --merge instead")
    if gguf and FLAGS["max_shard_gb"].present:
        raise UserError("--max_shard_gb means nothing to a GGUF file, which is one file")
    what, known = ("a GGUF file", GGUF_DTYPES) if gguf else ("a folder", HF_DTYPES)
    if FLAGS.dtype not in known:
        raise UserError(f"--dtype={FLAGS.dtype}: for {what}, choose one of {', '.join(known)}")
    if to.suffix in OTHER_FORMATS:
        raise UserError(f"--to={FLAGS.to}: {to.suffix} is not written; name a new folder or NAME{SUFFIX}")
    check_folder(to.parent if gguf else to, flag)
    if not gguf:
        check_target(to)


def _import(read: Path, to: Path) -> None:
    if read.is_dir() and kind_of(read_config(read)) not in ("published", ""):
        raise UserError(
            f"--from={FLAGS['from'].value} is a workdir already: use it as it is, as --checkpoint or --config.init_from"
        )
    from lm.convert.to_workdir import adapter_to_workdir, to_workdir
    from lm.parallel.mesh import make_mesh, mesh_sizes

    mesh = make_mesh(mesh_sizes(FLAGS.mesh))
    if FLAGS.base or is_adapter(read):
        adapter_to_workdir(read, FLAGS.base, to, mesh)
    else:
        to_workdir(read, to, mesh)
    if not has_tokenizer(to):
        print(f"{read} has no tokenizer: copy one into {to} before you generate text")


def _quantize(read: Path, to: Path) -> None:
    from lm.config import Quantization
    from lm.convert.to_workdir import quantized_to_workdir
    from lm.parallel.mesh import make_mesh, mesh_sizes

    quantization = Quantization(bits=int(FLAGS.bits), group=FLAGS.group, targets=FLAGS.targets)
    before, after = quantized_to_workdir(read, to, quantization, make_mesh(mesh_sizes(FLAGS.mesh)))
    print(f"{before / 1e6:,.1f} MB became {after / 1e6:,.1f} MB in {to}")


def _export(read: Path, to: Path) -> None:
    """Write a GGUF file, an adapter or a folder for transformers, as the flags say."""
    if to.suffix == SUFFIX:
        from lm.convert.to_gguf import to_gguf

        beside = to_gguf(read, to, dtype=FLAGS.dtype, merge=FLAGS.merge)
        print(f"{to} is written. In Ollama: ollama create NAME -f {beside}; in llama.cpp: llama-cli -m {to}")
    elif FLAGS.adapter:
        from lm.convert.to_published import to_adapter

        to_adapter(read, to, base=FLAGS.base)
    else:
        from lm.convert.to_published import to_published

        to_published(read, to, dtype=FLAGS.dtype, max_shard_gb=FLAGS.max_shard_gb, merge=FLAGS.merge)


def _export_published(read: Path, to: Path) -> None:
    """Export a model that is no workdir, by way of one beside the target, which is removed."""
    beside = to.with_name(f".{to.name}.imported")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    try:
        workdir = beside / (read.stem if read.is_file() else read.name)  # the file has its name
        _import(read, workdir)
        _export(workdir, to)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


if __name__ == "__main__":
    sys.argv[0] = "lm.convert"
    if cli.wants_help(sys.argv):
        from lm.convert.families import FAMILIES

        shown = (f"--{name}: {FLAGS[name].help}" + f" ({FLAGS[name].default})" * bool(FLAGS[name].default) for name in ALL)
        print("\n".join([__doc__.replace("FAMILIES", ", ".join(FAMILIES)), *shown]))
    else:
        with cli.guard():
            main()
