"""What is said of PyTorch, GPUs and products, from what machines with and without them would tell."""

import pytest

from dalle.machine.devices import judged
from dalle.machine.probes import devices as probe

RIGHT = {"fp32": 1e-6, "bf16": 2e-3, "fp16": 3e-4}
TORCH = {"torch": "2.13.0", "cuda": "13.0", "hip": None, "threads": 4, "python": "3.11.7", "said": []}
CPU = {"cpu": {"off": RIGHT, "rates": {}}}
GPU = {
    "name": "NVIDIA A100-SXM4-40GB",
    "capability": [8, 0],
    "free_bytes": 39_000_000_000,
    "total_bytes": 42_000_000_000,
    "built_for": ["sm_80", "sm_90"],
    "off": RIGHT,
}


def _said(told, driver=None, has_headers=True):
    return {each.name: each for each in judged(told, driver, has_headers)}


def test_a_machine_with_two_gpus():
    said = _said({**TORCH, "gpu0": GPU, "gpu1": GPU | {"name": "another"}, "gpus": 2, **CPU}, "580.65")
    assert {each.verdict for each in said.values()} == {"ok"}
    assert list(said) == ["torch", "gpu 0", "gpu 1", "products"]
    for words in ("NVIDIA A100", "42.0 GB with 39.0 GB free", "compute capability 8.0", "driver 580.65", "bf16"):
        assert words in said["gpu 0"].fact
    assert "built for CUDA 13.0" in said["torch"].fact


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        ({"capability": [7, 5], "built_for": ["sm_75"]}, "warn", "--run.precision fp16"),
        ({"free_bytes": 4_000_000_000}, "warn", "CUDA_VISIBLE_DEVICES"),
        ({"total_bytes": 6_000_000_000, "free_bytes": 5_000_000_000}, "warn", "lower --run.batch_size"),
        (
            {"capability": [6, 1], "off": {"fp32": "no kernel image is available"}},
            "fail",
            "fp32 (no kernel image is available): install a torch that is built for sm_61 (this one: sm_80, sm_90)",
        ),
        ({"off": RIGHT | {"bf16": 0.4}}, "fail", "bf16 (off by 40.0%): reinstall torch and the driver"),
        ({"off": RIGHT | {"fp16": "is no number"}}, "fail", "fp16 (is no number)"),
    ],
)
def test_gpus_that_are_old_taken_or_broken(change, verdict, words):
    found = _said({**TORCH, "gpu0": GPU | change, "gpus": 1, **CPU})["gpu 0"]
    assert found.verdict == verdict and words in found.line()


def test_a_torch_that_does_not_load():
    (found,) = judged({"failed": "was ended by SIGSEGV"}, None)
    assert found.verdict == "fail" and "SIGSEGV" in found.fact and "pip install" in found.advice


@pytest.mark.parametrize(
    ("told", "driver", "verdict", "words"),
    [
        ({}, None, "ok", "the CPU trains"),
        ({"cuda": None}, "580.65", "warn", "install a torch for CUDA"),
        ({"said": ["CUDA initialization: the driver is too old"]}, "470.1", "fail", "the driver is too old"),
        ({}, "580.65", "fail", "no reason is given"),
    ],
)
def test_a_machine_whose_gpu_is_not_seen(told, driver, verdict, words):
    found = _said({**TORCH, **told, "gpus": 0, **CPU}, driver)["gpu"]
    assert found.verdict == verdict and words in found.line()


def test_pythons_headers_are_missed_with_a_gpu_alone():
    with_gpu, without = {**TORCH, "gpu0": GPU, "gpus": 1, **CPU}, {**TORCH, "gpus": 0, **CPU}
    assert "python3-dev" in _said(with_gpu, has_headers=False)["Python's headers"].advice
    assert "Python's headers" not in _said(without, has_headers=False)


@pytest.mark.parametrize(
    ("off", "rates", "verdict", "words"),
    [
        ({}, {"fp32": 1e11, "bf16": 3e11}, "ok", "fp32 at 100 GFLOP/s, bf16 at 3 times that"),
        ({}, {"fp32": 1e11, "bf16": 2e10}, "warn", "--run.precision fp32"),
        ({"bf16": 0.5}, {}, "fail", "train with --run.precision fp32"),
        ({"fp32": 0.5}, {}, "fail", "reinstall torch"),
    ],
)
def test_the_cpus_products(off, rates, verdict, words):
    found = _said({**TORCH, "gpus": 0, "cpu": {"off": RIGHT | off, "rates": rates}})["products"]
    assert found.verdict == verdict and words in found.line()


def test_a_process_that_ends_half_way_is_told_of():
    said = _said({**TORCH, "gpu0": GPU, "failed": "was ended by SIGKILL"})
    assert said["gpu 0"].verdict == "ok" and said["products"].verdict == "fail" and "SIGKILL" in said["products"].fact


def test_products_are_compared_with_fp64():
    """Right ones pass by their own rounding, and one that is wrong in a single precision is told by its size."""
    torch = pytest.importorskip("torch")
    off = probe._off(torch, "cpu")
    # fp32 sums 256 terms in 2⁻²⁴; the results of the others are rounded to 2⁻⁹ and 2⁻¹² of themselves
    assert 0 < off["fp32"] < 1e-6 and 2**-12 < off["bf16"] < 2**-8 and 2**-15 < off["fp16"] < 2**-10

    class Broken:
        float32, bfloat16, float16, float64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
        Generator = torch.Generator

        @staticmethod
        def randn(*shape, **options):
            return torch.randn(*shape, **options).as_subclass(Spoilt)

    class Spoilt(torch.Tensor):
        def __matmul__(self, other):
            found = super().__matmul__(other)
            if self.dtype == torch.float16:
                raise RuntimeError("no such\nproduct")
            return found * float("nan") if self.dtype == torch.bfloat16 else found

    off = probe._off(Broken, "cpu")
    assert (off["bf16"], off["fp16"]) == ("is no number", "no such product") and off["fp32"] < 1e-6
