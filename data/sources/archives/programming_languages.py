"""Names of programming languages by file name, as GitHub's linguist spells them."""

import os

_EXTENSIONS = {
    "Ada": "adb ads", "Agda": "agda", "Assembly": "asm s", "Awk": "awk", "Batchfile": "bat cmd", "C": "c h",
    "C#": "cs csx", "C++": "cc cpp cxx c++ hh hpp hxx ipp tpp", "CMake": "cmake", "CSS": "css",
    "Clojure": "clj cljs cljc", "COBOL": "cob cbl", "Common Lisp": "lisp lsp cl", "Crystal": "cr", "Cuda": "cu cuh",
    "D": "d", "Dart": "dart", "Elixir": "ex exs", "Elm": "elm", "Emacs Lisp": "el", "Erlang": "erl hrl",
    "F#": "fs fsi fsx", "Fortran": "f f77 f90 f95 f03 f08 for", "GLSL": "glsl vert frag", "Go": "go",
    "GraphQL": "graphql gql", "Groovy": "groovy gradle", "HCL": "tf hcl", "Haskell": "hs lhs", "Haxe": "hx",
    "INI": "ini cfg", "Idris": "idr", "Java": "java", "JavaScript": "js mjs cjs jsx", "Julia": "jl", "Kotlin": "kt kts",
    "LLVM": "ll", "Lean": "lean", "Less": "less", "Lua": "lua", "MATLAB": "matlab", "Makefile": "mk mak",
    "Markdown": "md markdown", "Meson": "meson", "Nim": "nim", "Nix": "nix", "OCaml": "ml mli", "Objective-C": "m",
    "Objective-C++": "mm", "PHP": "php", "Pascal": "pas pp", "Perl": "pl pm", "PowerShell": "ps1 psm1",
    "Prolog": "prolog", "Protocol Buffer": "proto", "Python": "py pyi pyx pxd", "R": "r", "Racket": "rkt",
    "Ruby": "rb rake", "Rust": "rs", "SCSS": "scss", "SQL": "sql", "Scala": "scala sc", "Scheme": "scm ss",
    "Shell": "sh bash zsh ksh", "Solidity": "sol", "Standard ML": "sml", "Stan": "stan", "Svelte": "svelte",
    "Swift": "swift", "SystemVerilog": "sv svh", "TOML": "toml", "Tcl": "tcl", "TeX": "tex sty cls bib", "Text": "txt",
    "TypeScript": "ts tsx mts cts", "VHDL": "vhd vhdl", "Verilog": "v", "Vim Script": "vim", "Visual Basic .NET": "vb",
    "Vue": "vue", "WebAssembly": "wat", "XSLT": "xsl xslt", "YAML": "yml yaml", "Zig": "zig", "reStructuredText": "rst",
}  # fmt: skip
_NAMES = {
    "makefile": "Makefile", "gnumakefile": "Makefile", "dockerfile": "Dockerfile", "cmakelists.txt": "CMake",
    "meson.build": "Meson", "rakefile": "Ruby", "gemfile": "Ruby", "build.bazel": "Starlark", "workspace": "Starlark",
}  # fmt: skip
_BY_EXTENSION = {ending: name for name, endings in _EXTENSIONS.items() for ending in endings.split()}
PROSE = frozenset({"Markdown", "Text", "reStructuredText", "TeX"})


def language_of(path: str) -> str | None:
    """Return the language of a file by its name, or None if the name tells none."""
    name = os.path.basename(path).lower()
    return _NAMES.get(name) or _BY_EXTENSION.get(name.rpartition(".")[2] if "." in name else "")
