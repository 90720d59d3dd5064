"""Builds the Cython extensions, in one of two ways; all else of the package is in pyproject.toml.

*release* (the default) is what runs. *debug* (``KPROXY_DEBUG=1``) is what the tests run as well: no
optimisation, bounds checks, assertions, line tracing, and undefined behaviour ends the process.
The two never share a generated C file or an object file, so either can be rebuilt at any time:

    python setup.py build_ext --inplace             # release: beside its source
    KPROXY_DEBUG=1 python setup.py build_ext        # debug: build/debug/kproxy/

A third is for tests/fuzz alone, the packet engine with an address sanitizer and a count of the
edges that it takes: ``KPROXY_FUZZ=1 python setup.py build_ext`` (build/fuzz/kproxy/).
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("KPROXY_DEBUG") == "1"
BUILD = "build/debug" if DEBUG else "build/release"

#: What -Wextra says about code that Cython writes and we cannot change.
OF_GENERATED_CODE = ["-Wno-missing-field-initializers", "-Wno-unused-parameter"]

WARNINGS = ["-Wall", "-Wextra", "-Wsign-compare", *OF_GENERATED_CODE]

FLAGS = {
    # The sanitizer stops at an unaligned load or an overlong shift, which x86 forgives.
    True: ["-O0", "-g", "-UNDEBUG", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"],
    False: ["-O3", "-g1"],
}
MACROS: dict[bool, list[tuple[str, str | None]]] = {
    True: [("KPROXY_DEBUG", "1"), ("CYTHON_TRACE", "1")],
    False: [("CYTHON_WITHOUT_ASSERTIONS", "1")],
}

MODULES = ["kproxy._fastpath", "kproxy._relay", "kproxy.bench._load"]

LINK = ["-fsanitize=undefined"] if DEBUG else []
FUZZ = os.environ.get("KPROXY_FUZZ") == "1"
if FUZZ:
    BUILD, MODULES = "build/fuzz", ["kproxy._fastpath"]
    SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    FLAGS[False] = ["-O1", "-g1", "-UNDEBUG", *SANITIZE, "-fsanitize-coverage=trace-pc"]
    MACROS[False] = [("KPROXY_DEBUG", "1"), ("KPROXY_FUZZ", "1")]
    # Our count of edges, not the empty one that the sanitizer's library has by the same name.
    LINK = [*SANITIZE, "-Wl,-Bsymbolic"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                name,
                [f"{name.replace('.', '/')}.pyx"],
                extra_compile_args=[*WARNINGS, *FLAGS[DEBUG]],
                extra_link_args=LINK,
                define_macros=MACROS[DEBUG],
            )
            for name in MODULES
        ],
        build_dir=f"{BUILD}/c",
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": DEBUG,
            "initializedcheck": DEBUG,
            "linetrace": DEBUG,
        },
    ),
    options={"build": {"build_base": BUILD, **({"build_lib": BUILD} if DEBUG or FUZZ else {})}},
)
