"""Finding KV methods in the catalogue."""

import functools

from lowprec import catalogue
from lowprec.kv.block_selection import BlockSelectionSpec
from lowprec.kv.blocks import BlocksSpec
from lowprec.kv.gear import GearSpec
from lowprec.kv.indexer import DsaSpec
from lowprec.kv.kivi import KiviSpec
from lowprec.kv.kvquant import KVQuantSpec
from lowprec.kv.latent import LatentSpec
from lowprec.kv.low_rank import LowRankSpec
from lowprec.kv.method import KVMethod, Spec
from lowprec.kv.pair import PairSpec
from lowprec.kv.polarquant import PolarQuantSpec
from lowprec.kv.qjl import QjlSpec
from lowprec.kv.selection import SelectionSpec
from lowprec.kv.transform_coding import TransformCodingSpec
from lowprec.kv.turboquant import TurboQuantSpec
from lowprec.numerics.format import Format, get_format
from lowprec.scaling.block import Block, get_block, get_format_or_block

FAMILIES: dict[str, type[Spec]] = {
    "block_selection": BlockSelectionSpec,
    "blocks": BlocksSpec,
    "dsa": DsaSpec,
    "gear": GearSpec,
    "kivi": KiviSpec,
    "kvquant": KVQuantSpec,
    "latent": LatentSpec,
    "low_rank": LowRankSpec,
    "polarquant": PolarQuantSpec,
    "qjl": QjlSpec,
    "selection": SelectionSpec,
    "transform_coding": TransformCodingSpec,
    "turboquant": TurboQuantSpec,
}
"""By the `family` of a file."""


def _latent_spec(name: str) -> LatentSpec:
    spec = get_kv_method(name).spec
    if not isinstance(spec, LatentSpec):
        raise ValueError(f"{name!r} is no KV method of family 'latent'; use one such as mla_bf16")
    return spec


def _pair_spec(name: str) -> PairSpec:
    spec = get_kv_method(name).spec
    if not isinstance(spec, PairSpec):
        raise ValueError(
            f"{name!r} is no KV method that keeps keys and values apart; use one such as bf16"
        )
    return spec


_RESOLVERS = {
    Format: get_format,
    Block: get_block,
    Format | Block: get_format_or_block,
    LatentSpec: _latent_spec,
    PairSpec: _pair_spec,
}


def list_kv_methods() -> tuple[str, ...]:
    """The names of the catalogue's KV methods, sorted.

    Example:
      >>> "kivi_2bit" in list_kv_methods()
      True
    """
    return catalogue.names("kv")


def get_kv_method(method: str | KVMethod) -> KVMethod:
    """Finds a KV method by name or path to a TOML file, or passes a `KVMethod` through.

    Raises:
      ValueError: no method has that name (near matches are listed), or its family is unknown.
      TypeError: `method` is neither a string nor a `KVMethod`.

    Example:
      >>> get_kv_method("kivi_2bit").bits_per_element()
      3.0
    """
    if isinstance(method, KVMethod):
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"`method` must be a KV method's name, a path to a TOML file or a KVMethod, "
            f"got {type(method)}"
        )
    return _read(method) if catalogue.is_path(method) else _catalogued(method)


@functools.cache
def _catalogued(name: str) -> KVMethod:
    return _read(name)


def _read(name: str) -> KVMethod:
    family = catalogue.raw_value("kv", name, "family")
    if family not in FAMILIES:
        raise ValueError(
            f"{name}: family = {family!r}; use one of {', '.join(map(repr, sorted(FAMILIES)))}"
        )
    return KVMethod(spec=catalogue.read("kv", name, FAMILIES[family], _RESOLVERS).value)
