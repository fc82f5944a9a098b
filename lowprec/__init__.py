"""lowprec: bit-exact FP8, FP6 and FP4 numerics for JAX, from one number to whole GEMM recipes."""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING

from lowprec import metrics as metrics
from lowprec import throughput as throughput
from lowprec.engines import Engine as Engine
from lowprec.engines import get_engine as get_engine
from lowprec.engines import list_engines as list_engines
from lowprec.engines import matmul as matmul
from lowprec.gemm import Delayed as Delayed
from lowprec.gemm import OperandPair as OperandPair
from lowprec.gemm import Preparation as Preparation
from lowprec.gemm import Prepared as Prepared
from lowprec.gemm import Recipe as Recipe
from lowprec.gemm import gemm as gemm
from lowprec.gemm import get_recipe as get_recipe
from lowprec.gemm import linear as linear
from lowprec.gemm import list_recipes as list_recipes
from lowprec.gemm import prepare as prepare
from lowprec.kv import KVMethod as KVMethod
from lowprec.kv import Rope as Rope
from lowprec.kv import Schedule as Schedule
from lowprec.kv import get_kv_method as get_kv_method
from lowprec.kv import list_kv_methods as list_kv_methods
from lowprec.numerics import Format as Format
from lowprec.numerics import compiler_options as compiler_options
from lowprec.numerics import decode as decode
from lowprec.numerics import encode as encode
from lowprec.numerics import from_codes as from_codes
from lowprec.numerics import from_torch as from_torch
from lowprec.numerics import get_format as get_format
from lowprec.numerics import list_formats as list_formats
from lowprec.numerics import onnx_type as onnx_type
from lowprec.numerics import pack as pack
from lowprec.numerics import to_codes as to_codes
from lowprec.numerics import to_torch as to_torch
from lowprec.numerics import unpack as unpack
from lowprec.scaling import Block as Block
from lowprec.scaling import QTensor as QTensor
from lowprec.scaling import cast as cast
from lowprec.scaling import get_block as get_block
from lowprec.scaling import list_blocks as list_blocks
from lowprec.scaling import quantize as quantize

if _TYPE_CHECKING:
    from lowprec.models.quantized_files import load_tensors as load_tensors
    from lowprec.models.quantized_files import save_tensors as save_tensors
    from lowprec.study.ledger import ledger as ledger
else:
    _LATER = {
        "ledger": "lowprec.study.ledger",
        "load_tensors": "lowprec.models.quantized_files",
        "save_tensors": "lowprec.models.quantized_files",
    }

    def __getattr__(name: str) -> object:
        """Found when they are asked for: they read files, with packages of `report`."""
        if name in _LATER:
            return getattr(_importlib.import_module(_LATER[name]), name)
        raise AttributeError(f"module 'lowprec' has no attribute {name!r}")


__version__ = "0.1.0"
