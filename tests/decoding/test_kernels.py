"""The fast kernels between the products against the plain ones, and what happens without a compiler."""

import math
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from dalle.decoding import native
from dalle.decoding.caches import LayerCache
from dalle.decoding.kernels import CompiledKernels, Kernels, NativeKernels, attend, kernels
from dalle.masks import cache_places

pytestmark = pytest.mark.usefixtures("two_threads")  # C++ and products share work among them
needs_compiler = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
# fp32: sums of at most 100 terms of size 1 in another order; bf16: the plain form rounds scores of up to 4 to 2⁻⁷, and
# weights and values to 2⁻⁹ of themselves
_TOLERANCE = {torch.float32: {"atol": 2e-6, "rtol": 1e-5}, torch.bfloat16: {"atol": 3e-2, "rtol": 1e-2}}


def _cache(kind, captions, candidates, heads, width, dtype, text_slots=9, grid=5):
    generator = torch.Generator().manual_seed(1)
    places = cache_places(kind, grid, 3)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    image = (captions * candidates, heads, places.size, width)
    text = (random(captions, heads, width, text_slots), random(captions, heads, text_slots, width))
    return LayerCache(places, *text, random(*image), random(*image))


@pytest.mark.parametrize("fast", [pytest.param(NativeKernels, marks=needs_compiler), CompiledKernels])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["row", "column", "conv", "dense"])
@pytest.mark.parametrize(("captions", "candidates", "width"), [(1, 7, 64), (2, 3, 12)])
def test_attention_is_that_of_the_plain_kernel(fast, dtype, kind, captions, candidates, width):
    if fast is CompiledKernels and (kind, captions, dtype) != ("column", 1, torch.bfloat16):
        pytest.skip("each takes torch.compile seconds: one is enough")
    expected, found = (_cache(kind, captions, candidates, 3, width, dtype) for _ in range(2))
    plain, fast = Kernels(), fast()
    for slot in (0, 1, 6, 13, 24):
        qkv = torch.randn(captions * candidates, 3, 3, width, generator=torch.Generator().manual_seed(slot)).to(dtype)
        slot_1 = torch.tensor([slot])
        values = [k.attend(qkv, c, slot_1, *c.places.sight(slot_1)) for k, c in ((plain, expected), (fast, found))]
        torch.testing.assert_close(values[1].float(), values[0].float(), **_TOLERANCE[dtype])
        # written to the same place, bit for bit
        assert torch.equal(expected.k_RHPK, found.k_RHPK) and torch.equal(expected.v_RHPK, found.v_RHPK)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_weights_of_far_apart_scores(dtype):
    """Scores of ±60 and more, where the exponential runs out of range."""
    caches = [_cache("row", 1, 4, 2, 64, dtype) for _ in range(2)]
    for cache in caches:
        cache.k_RHPK.mul_(8)
        cache.text_k_CHKT.mul_(8)
    qkv = 8 * torch.randn(4, 3, 2, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    slot_1 = torch.tensor([20])
    plain, fast = (
        k.attend(qkv, c, slot_1, *c.places.sight(slot_1))
        for k, c in zip((Kernels(), NativeKernels()), caches, strict=True)
    )
    # scores of some hundreds are rounded to 16 bits by the plain form, which moves their softmax
    torch.testing.assert_close(
        fast.float(),
        plain.float(),
        **({"atol": 1e-4, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 1.0, "rtol": 0.2}),
    )
    assert fast.isfinite().all()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_norm_is_that_of_the_plain_kernel(dtype):
    norm = torch.nn.LayerNorm(37)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, change = torch.randn(5, 37) * 3 + 100, torch.randn(5, 37).to(dtype)
    for given in (None, change):
        states = [x.clone(), x.clone()]
        with torch.no_grad():
            plain, fast = (
                k.add_norm(s, given, norm, dtype) for k, s in zip((Kernels(), NativeKernels()), states, strict=True)
            )
        assert torch.equal(states[0], states[1])
        # the mean is 100, of which fp32 has 2⁻¹⁷; bf16 rounds to 2⁻⁹
        atol = 5e-5 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(fast.float(), plain.float(), atol=atol, rtol=1e-2)


class _Sums(Kernels):
    """What PyTorch's compiler is given, as it is."""

    attention = staticmethod(partial(attend, sums=True))


# fp32: sums of at most 100 terms in another order. bf16: of a weighted mean of values of size 1 the result is rounded to 2⁻⁹
# of itself; the products round scores of up to 4 to 2⁻⁷, and weights to 2⁻⁹
_BOOK = {
    (Kernels, torch.float32): 1e-5,
    (_Sums, torch.float32): 1e-5,
    (_Sums, torch.bfloat16): 2e-2,
    (Kernels, torch.bfloat16): 3e-2,
}


@pytest.mark.parametrize(("kind", "dtype"), _BOOK)
def test_plain_attention_is_a_softmax_over_caption_and_image(kind, dtype):
    """By the book, in fp64, for one row and head at a time."""
    torch.manual_seed(0)
    cache = _cache("conv", 2, 3, 2, 8, dtype)
    qkv, slot_1 = torch.randn(6, 3, 2, 8).to(dtype), torch.tensor([17])
    visible, bias = cache.places.sight(slot_1)
    found = kind().attend(qkv, cache, slot_1, visible, bias)
    assert found.dtype == dtype
    for row in range(6):
        for head in range(2):
            places = visible[bias == 0]
            k = torch.cat([cache.text_k_CHKT[row // 3, head].T, cache.k_RHPK[row, head, places]])
            v = torch.cat([cache.text_v_CHTK[row // 3, head], cache.v_RHPK[row, head, places]])
            expected = (k.double() @ qkv[row, 0, head].double() / math.sqrt(8)).softmax(0) @ v.double()
            torch.testing.assert_close(found[row, head].double(), expected, atol=_BOOK[kind, dtype], rtol=0)


def test_many_small_weights_keep_their_sum():
    """A thousand equal weights, whose sum no 16-bit number could count up to."""
    cache = _cache("dense", 1, 2, 1, 8, torch.bfloat16, grid=32)
    for keys in (cache.text_k_CHKT, cache.k_RHPK):
        keys.zero_()
    for values in (cache.text_v_CHTK, cache.v_RHPK):
        values.fill_(1)
    slot_1, qkv = torch.tensor([1023]), torch.ones(2, 3, 1, 8, dtype=torch.bfloat16)
    for plain in (Kernels(), _Sums()):
        found = plain.attend(qkv, cache, slot_1, *cache.places.sight(slot_1))
        assert torch.equal(found, torch.ones_like(found))


_SMALL_NUMBERS = """
import threading, torch
from dalle.decoding import native


torch.set_num_threads(4)
small = torch.full((1 << 20,), 1e-40)  # of which a million are worked on by all threads

def survive():
    return bool((small * 1.0 == small).all()) and bool((small != 0).all())

def in_a_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(survive()))
    thread.start(); thread.join()
    return found[0]

assert survive(), "before"  # and PyTorch's threads are there
assert native.library() is not None
assert survive() and in_a_new_thread() and survive(), "after"
"""


@needs_compiler
def test_small_numbers_survive_in_the_whole_process():
    """In a process of its own: one that was told to flush them stays so. 1e-40 is below the least normal number of fp32."""
    done = subprocess.run([sys.executable, "-c", _SMALL_NUMBERS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_compiler_may_make_vectors_of_sums():
    """And is told so without the flags that link a start-up routine."""
    assert {"-O3", "-march=native", "-fno-trapping-math"} <= set(native._FLAGS)
    assert {"-fassociative-math", "-freciprocal-math", "-fno-signed-zeros"} <= set(native._FLAGS)
    assert not {"-Ofast", "-ffast-math", "-funsafe-math-optimizations"} & set(native._FLAGS)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spoilt", ["a key", "all keys", "the caption's"])
def test_a_score_that_is_no_number_shows(dtype, spoilt):
    """In the values of its row and head alone, as with the plain kernel."""
    caches = [_cache("row", 1, 4, 2, 64, dtype) for _ in range(2)]
    qkv, slot_1 = torch.randn(4, 3, 2, 64, generator=torch.Generator().manual_seed(0)).to(dtype), torch.tensor([20])
    for cache in caches:
        if spoilt == "the caption's":
            cache.text_k_CHKT[0, 1, 3, 5] = math.nan
        else:
            place = cache.places.place_I[20] if spoilt == "a key" else slice(None)
            cache.k_RHPK[2, 1, place] = math.nan
    if spoilt == "a key":
        qkv[2, 1, 1, 7] = math.nan
    plain, fast = (
        k.attend(qkv, c, slot_1, *c.places.sight(slot_1))
        for k, c in zip((Kernels(), NativeKernels()), caches, strict=True)
    )
    rows = [0, 1, 2, 3] if spoilt == "the caption's" else [2]
    expected = torch.zeros(4, 2, dtype=torch.bool)
    expected[rows, 1] = True
    for values in (plain, fast):
        assert torch.equal(values.isnan().any(dim=-1), expected)


def test_without_a_compiler_sampling_goes_on(tmp_path):
    """In a process of its own, whose compiler fails."""
    script = (
        "import torch, warnings; warnings.simplefilter('error');"
        "from dalle.decoding.kernels import Kernels, kernels\n"
        "try: kernels(torch.device('cpu'), True, 64)\n"
        "except UserWarning as told: print(told)\n"
        "warnings.simplefilter('ignore'); assert type(kernels(torch.device('cpu'), True, 64)) is Kernels"
    )
    for compiler in ("/bin/false", "/no/such/compiler"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={"CXX": compiler, "HOME": str(tmp_path), "PATH": "/usr/bin"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert f"{compiler} cannot compile native.cpp" in done.stdout


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """The user's cache, and the folder of temporary files; a compiler that counts its calls beside them."""
    for name in ("cache", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path / "temporary"))
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = -o ] && { echo . >> '
        + f"{tmp_path}/calls"
        + '; echo lib > "$2"; }; shift; done'
    )
    compiler.chmod(0o700)

    def compiled() -> tuple[str, int]:
        path = native._compiled(str(compiler), native._folder())
        assert path.read_text() == "lib\n" and path.stat().st_mode & 0o7777 == 0o700
        return str(path.parent.relative_to(tmp_path)), len((tmp_path / "calls").read_text().split())

    return compiled


@pytest.mark.parametrize("mask", [0o022, 0o002])
def test_the_library_is_compiled_once(caches, tmp_path, mask):
    before = os.umask(mask)
    try:
        assert caches() == caches() == ("cache/dalle", 1)
    finally:
        os.umask(before)
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("spoilt", ["writable for all", "writable for the group", "another user's", "a link", "a file"])
def test_a_cache_that_others_may_write_to_is_passed_by(caches, tmp_path, spoilt):
    """What lies there could be anybody's. And the folder that is taken instead is found again, so nothing is left of a run."""
    (folder := tmp_path / "cache/dalle").mkdir(mode=0o700)
    match spoilt:
        case "writable for all":
            folder.chmod(0o702)
        case "writable for the group":
            folder.chmod(0o770)
        case "another user's":
            if os.getuid():
                pytest.skip("NOT TESTED: another user's folder. Only root can give one away")
            os.chown(folder, 12345, -1)
        case "a link":
            folder.rename(tmp_path / "elsewhere")
            folder.symlink_to(tmp_path / "elsewhere")
        case "a file":
            folder.rmdir()
            folder.touch()
    own = f"dalle-{os.getuid()}"
    assert caches() == caches() == (f"temporary/{own}", 1)
    assert [path.name for path in (tmp_path / "temporary").iterdir()] == [own]
    assert (tmp_path / "temporary" / own).stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("spoilt", ["writable for others", "another user's", "a link"])
def test_a_library_that_is_not_the_users_own_is_not_loaded(caches, tmp_path, spoilt):
    caches()
    (library,) = (tmp_path / "cache/dalle").iterdir()
    match spoilt:
        case "writable for others":
            library.chmod(0o702)
        case "another user's":
            if os.getuid():
                pytest.skip("NOT TESTED: another user's file. Only root can give one away")
            os.chown(library, 12345, -1)
        case "a link":
            library.rename(tmp_path / "elsewhere")
            library.symlink_to(tmp_path / "elsewhere")
    assert caches() == caches() == ("cache/dalle", 2)


def test_without_a_folder_to_compile_into_sampling_goes_on(caches, tmp_path, monkeypatch):
    for name in ("cache/dalle", f"temporary/dalle-{os.getuid()}"):
        (tmp_path / name).touch()
    native.library.cache_clear()
    monkeypatch.setenv("CXX", "/bin/true")
    try:
        with pytest.warns(UserWarning, match=r"no folder for .*File exists \(\S+cache/dalle\).* takes? longer"):
            assert native.library() is None
    finally:
        native.library.cache_clear()


def test_plain_kernels_on_request():
    assert type(kernels(torch.device("cpu"), False, 64)) is Kernels
