"""Rows of the throughput model: the experiment's methods, batches, bounds and the host."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from lowprec.kv import get_kv_method
from lowprec.study import kv_throughput as study
from lowprec.study import kv_throughput_host as host
from lowprec.throughput.architecture import get_architecture
from lowprec.throughput.cache import plain_cache
from lowprec.throughput.decode import largest_batch, step
from lowprec.throughput.devices import get_device, get_link
from lowprec.throughput.fit import Fit, fit, two_digits

CONFIG = tomllib.loads(
    (Path(__file__).parents[2] / "experiments" / "kv_throughput.toml").read_text()
)
LLAMA = get_architecture("llama_3_8b")
DEEPSEEK = get_architecture("deepseek_v3")
CONTEXTS = (4096, 32768)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    return fit()


@pytest.fixture(scope="module")
def methods() -> dict[str, study.Method]:
    return {x.name: x for x in study.methods(CONFIG)}


def rows(
    fitted: Fit, methods: dict[str, study.Method], *names: str, device: str = "h100"
) -> list[study.ThroughputRow]:
    return list(
        study.throughput_rows(
            get_device(device),
            LLAMA,
            [methods[name] for name in names],
            fitted,
            contexts=CONTEXTS,
            batch_context=32768,
        )
    )


def test_bytes_are_those_of_the_catalogue(methods: dict[str, study.Method]) -> None:
    h100 = get_device("h100")
    known = {"bf16": 16.0, "fp8_tensor": 8.0, "int8_token": 8.25, "nvfp4": 4.5,
             "int4_token_rht": 4.25, "turboquant_4bit": 4.1875}  # fmt: skip
    for name, bits in known.items():
        for context in CONTEXTS:
            cache = study.cost(methods[name], LLAMA, h100, context)
            assert 8 * cache.bytes_per_token_layer / LLAMA.cached_elements == bits
    for name in ("kivi_2bit", "kvquant_3bit"):
        own = get_kv_method(name).bytes_per_token(layers=1, kv_heads=8, dim=128, length=4096)
        assert study.cost(methods[name], LLAMA, h100, 4096).bytes_per_token_layer == own
    assert all(x.source for x in methods.values())
    assert all("bytes" not in entry for entry in [*CONFIG["method"], *CONFIG["form"]])


def test_windows_weigh_in_a_short_context(methods: dict[str, study.Method]) -> None:
    costs = [study.cost(methods["kivi_2bit"], LLAMA, get_device("h100"), x) for x in (1024, 131072)]
    # 128 keys' slots and 129 values' in 16 bits, beside codes of 3 bits for every token.
    window = (128 + 129) / 2 * LLAMA.cached_elements * 2
    for cache, context in zip(costs, (1024, 131072), strict=True):
        coded = LLAMA.cached_elements * 3 / 8
        assert cache.bytes_per_token_layer == pytest.approx(coded + window / context)
        share = 1 - cache.elements_per_token_layer / LLAMA.cached_elements
        assert share == pytest.approx((128 + 129) / 2 / context)


def test_latents_are_their_own(methods: dict[str, study.Method]) -> None:
    h800 = get_device("h800")
    for name, size in (("mla_bf16", 1152), ("mla_fp8_656", 656), ("mla_nvfp4", 432)):
        cache = study.cost(methods[name], DEEPSEEK, h800, 4096)
        assert cache.bytes_per_token_layer == size
        assert cache.elements_per_token_layer == pytest.approx(0 if name == "mla_bf16" else 512)
    rotary = dataclasses.replace(methods["mla_nvfp4"], kv=get_kv_method("mla_nvfp4_368"))
    assert study.cost(rotary, DEEPSEEK, h800, 4096).elements_per_token_layer == 576
    assert study.belongs(methods["mla_bf16"], DEEPSEEK)
    assert not study.belongs(methods["mla_bf16"], LLAMA)
    with pytest.raises(ValueError, match="mla_bf16 keeps latents, and llama_3_8b has others"):
        study.cost(methods["mla_bf16"], LLAMA, h800, 4096)


def test_costs_follow_the_generation(methods: dict[str, study.Method]) -> None:
    costs = [
        study.cost(methods["nvfp4"], LLAMA, get_device(name), 4096).cycles_per_element
        for name in ("h100", "b200")
    ]
    assert costs[0] > costs[1] > 0
    other = study.cost(methods["nvfp4"], get_architecture("qwen_2_5_7b"), get_device("h100"), 4096)
    assert other.bytes_per_token_layer == 1024 * 4.5 / 8


def test_batches_of_a_row(fitted: Fit, methods: dict[str, study.Method]) -> None:
    found = rows(fitted, methods, "bf16", "kivi_2bit")
    full = [x for x in found if (x.method, x.context) == ("bf16", 32768)]
    assert [(x.fill, x.batch) for x in full] == [
        ("one", 1),
        ("between", 2),
        ("between", 4),
        ("between", 8),
        ("largest", 13),
    ]
    short = [x for x in found if (x.method, x.context) == ("bf16", 4096)]
    assert [x.fill for x in short] == ["one", "largest"]
    for row in found:
        assert row.low <= row.tokens_per_second <= row.high
        assert row.tokens_per_second == two_digits(row.tokens_per_second)
    made = step(get_device("h100"), LLAMA, plain_cache(LLAMA), fitted.rates, batch=8, context=32768)
    assert full[3].tokens_per_second == two_digits(made.tokens_per_second)
    assert full[3].bound == made.bound and full[3].weights == two_digits(made.weights)


def test_one_sequence_that_fills_the_device_and_none(
    fitted: Fit, methods: dict[str, study.Method]
) -> None:
    found = rows(fitted, methods, "bf16", device="rtx_4090")
    at = [x for x in found if x.context == 32768]
    assert [(x.fill, x.batch) for x in at] == [("one", 1), ("largest", 1)]
    none = list(
        study.throughput_rows(
            get_device("rtx_4090"),
            LLAMA,
            [methods["bf16"]],
            fitted,
            contexts=[131072],
            batch_context=131072,
        )
    )
    (row,) = none
    assert (row.batch, row.tokens_per_second, row.bound) == (0, 0, "does not fit")


def test_a_bound_is_resolved_where_intervals_are_apart(
    fitted: Fit, methods: dict[str, study.Method]
) -> None:
    found = {
        (device, name): study.attention_row(
            get_device(device),
            LLAMA,
            study.cost(methods[name], LLAMA, get_device(device), 32768),
            fitted,
            context=32768,
        )
        for device in ("h100", "b200", "rtx_4090")
        for name in ("bf16", "int4_token_rht", "kivi_2bit")
    }
    assert found["h100", "bf16"].bound == "cache memory" and found["h100", "bf16"].resolved
    assert found["rtx_4090", "kivi_2bit"].bound == "cache memory"
    assert found["b200", "int4_token_rht"].bound == "dequantization"
    assert not found["h100", "kivi_2bit"].resolved
    for row in found.values():
        terms = (row.memory_ns, row.products_ns, row.dequantization_ns)
        assert row.ns == max(terms) and row.low <= row.ns <= row.high
        assert row.memory_low <= row.memory_ns <= row.memory_high
        assert row.high == max(row.memory_high, row.products_high, row.dequantization_high)


def test_forms_of_latent_attention(fitted: Fit) -> None:
    found = {
        (device, x.form): x
        for device in ("h800", "h20")
        for x in study.form_rows(CONFIG["form"], get_device(device), fitted, context=4096)
    }
    sizes = {name: (x.bytes, x.flop) for (device, name), x in found.items() if device == "h800"}
    assert sizes == {
        "128 heads, bf16": (81920, 81920),
        "8 KV heads, bf16": (4096, 65536),
        "8 KV heads, fp8 unpacked": (2048, 65536),
        "latent, bf16": (1152, 278528),
        "latent, fp8 656": (656, 278528),
        "latent, nvfp4 432": (432, 278528),
    }
    grouped, latent = "8 KV heads, bf16", "latent, bf16"
    assert found["h800", latent].ns < found["h800", grouped].ns / 2
    assert found["h20", latent].low > found["h20", grouped].ns
    assert found["h20", latent].bound == "attention products"
    assert found["h20", latent].resolved
    # Fewer bytes do nothing for an H20.
    assert found["h20", "latent, fp8 656"].ns == found["h20", latent].ns
    assert found["h800", latent].intensity == 240 and found["h20", latent].ridge == 37


def test_the_device_is_better_than_the_host_while_it_holds_all(
    fitted: Fit, methods: dict[str, study.Method]
) -> None:
    context, link, device = 131072, get_link("pcie_5"), get_device("h100")
    found = list(
        host.host_rows(
            device, link, LLAMA, [methods["kivi_2bit"]], fitted, context=context, read=context
        )
    )
    fits = largest_batch(device, LLAMA, plain_cache(LLAMA), context=context)
    spare = int(500e9 // (context * 131072))
    arms = {(x.place, x.stored, x.sent) for x in found}
    assert arms == {
        ("device", "bf16", ""),
        ("device", "kivi_2bit", ""),
        ("host", "bf16", "bf16"),
        ("host", "bf16", "kivi_2bit"),
    }
    for row in found:
        assert row.away == (0 if row.place == "device" else max(0, row.batch - fits))
        assert row.low <= row.tokens_per_second <= row.high
    last = {(x.place, x.sent): x for x in found if x.last and x.stored == "bf16"}
    assert last["device", ""].batch == fits
    raw, small = last["host", "bf16"], last["host", "kivi_2bit"]
    assert raw.batch == small.batch == fits + spare and raw.bound == "link"
    assert raw.tokens_per_second < small.tokens_per_second < last["device", ""].tokens_per_second
    # Nothing but the link counts there: the bytes of what crosses it.
    assert small.tokens_per_second / raw.tokens_per_second == pytest.approx(16 / 3, rel=0.1)


def test_fetching_gains_what_compression_saves(
    fitted: Fit, methods: dict[str, study.Method]
) -> None:
    found = list(
        host.recompute_rows(
            get_device("h100"),
            get_link("pcie_5"),
            LLAMA,
            [methods["bf16"], methods["fp8_tensor"]],
            fitted,
            prompts=[4096],
        )
    )
    plain, small = found
    assert small.gain == pytest.approx(2 * plain.gain, rel=0.1)
    assert plain.low <= plain.gain <= plain.high and plain.gain > 1
    assert plain.fetch_low < plain.fetch_seconds == plain.fetch_high
    assert plain.recompute_low <= plain.recompute_seconds <= plain.recompute_high


def test_published_and_constant_rows(fitted: Fit) -> None:
    found = list(study.published_rows(fitted))
    assert len(found) == len(fitted.misses)
    for row, miss in zip(found, fitted.misses, strict=True):
        assert row.miss == two_digits(miss.slower - 1)
        assert row.low <= row.high and row.unit
        assert row.predicted_low <= row.predicted <= row.predicted_high
    # What is published of whole steps and rates is within the interval of what is predicted.
    for row in (x for x in found if x.role == "held out"):
        low, high = 0.95 * row.predicted_low, 1.05 * row.predicted_high
        assert low <= row.published <= high, row.figure
    devices = [get_device("h20"), get_link("pcie_5")]
    constants = list(study.constant_rows(devices))
    assert {x.of for x in constants} == {"h20", "pcie_5"}
    inferred = [x for x in constants if x.evidence == "inferred"]
    assert inferred and all(x.note for x in inferred)
