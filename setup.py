"""The compiled part: engine/native, once for each set of instructions. Plain C entry points, called through ctypes, so
that neither Python's headers nor its version matter. Where no compiler is found the rest is installed all the same, and
models run on torch alone."""

import copy
import os
import platform
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"]
VARIANTS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64") and sys.platform == "linux":
    VARIANTS |= {"avx512_vnni": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"], "avx2": AVX2}
HEADERS = ("lanes", "lanes_avx512", "lanes_avx2", "lanes_portable", "team", "linear", "attention", "draw", "pack")


class BuildVariants(build_ext):
    """One source makes all of them: each has a folder of its own for what comes in between."""

    def build_extension(self, ext):
        own = copy.copy(self)
        own.build_temp = os.path.join(self.build_temp, ext.name)
        super(BuildVariants, own).build_extension(ext)


setup(
    cmdclass={"build_ext": BuildVariants},
    ext_modules=[
        Extension(
            f"engine.native._{name}",
            ["engine/native/forward.cpp"],
            depends=[f"engine/native/{part}.hpp" for part in HEADERS],
            extra_compile_args=["-O3", "-std=c++17", "-g0", "-fvisibility=hidden", "-Wno-psabi", *flags],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
        for name, flags in VARIANTS.items()
    ],
    options={"build_ext": {"parallel": 2}},
)
