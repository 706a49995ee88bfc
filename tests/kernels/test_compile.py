import importlib

import pytest

from forebay.kernels import compile as compiler
from forebay.kernels import sources

SOURCE = """#include "part.cuh"
KERNEL(64) twice(float* x) { x[threadIdx.x] *= FACTOR; }
"""
PART = """#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
"""

needs_compiler = pytest.mark.skipif(not compiler.is_available(), reason="cuda-core is not installed")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with one source in the place of csrc, and an empty cache."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "tiny.cu").write_text(SOURCE)
    (tmp_path / "csrc" / "part.cuh").write_text(PART)
    monkeypatch.setattr(sources, "FOLDER", tmp_path / "csrc")
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def compilations(monkeypatch):
    """Counts what is really compiled."""
    made, original = [], compiler._compile

    def counted(*args):
        made.append(args)
        return original(*args)

    monkeypatch.setattr(compiler, "_compile", counted)
    return made


def tiny(factor="2.0f", arch="sm_90"):
    return compiler.compile_source("tiny", {"FACTOR": factor}, arch=arch)


@needs_compiler
def test_a_source_is_compiled_once_for_each_text_macro_and_architecture(compilations, folder):
    first = tiny()
    assert tiny() == first
    assert len(compilations) == 1
    tiny("3.0f")
    tiny(arch="sm_80")
    (folder / "csrc" / "part.cuh").write_text(PART + "\n")
    tiny()
    assert len(compilations) == 4


@needs_compiler
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: b"",
        lambda data: data.replace(b"sha256", b"sha"),
        lambda data: b"\xff\n" + data,
    ],
    ids=["truncated", "empty", "header", "garbage"],
)
def test_a_damaged_file_is_compiled_anew(compilations, folder, damage):
    first = tiny()
    (path,) = (folder / "cache" / "kernels").glob("*.cubin")
    path.write_bytes(damage(path.read_bytes()))
    assert tiny().code == first.code
    assert len(compilations) == 2
    assert tiny().code == first.code
    assert len(compilations) == 2


@needs_compiler
def test_a_cache_that_cannot_be_written_costs_a_warning(folder):
    (folder / "cache").write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot be kept in .*set FOREBAY_CACHE"):
        assert tiny().code[:4] == b"\x7fELF"


@needs_compiler
def test_the_log_says_what_a_kernel_takes():
    found = compiler.resources(tiny().log)
    assert found["twice"].registers < 20
    assert found["twice"].spill_bytes == found["twice"].stack_bytes == found["twice"].shared_bytes == 0


def test_spills_and_shared_memory_are_read_from_the_log():
    log = """ptxas info    : Compiling entry function 'up' for 'sm_90'
ptxas info    : Function properties for up
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 5700 bytes smem"""
    assert compiler.resources(log) == {"up": compiler.Resources(40, 28, 8, 5700)}


def test_a_log_of_another_form_is_refused():
    with pytest.raises(compiler.CompileError, match="another form"):
        compiler.resources("Compiling entry function 'up' for 'sm_90'\nall went well")


@needs_compiler
def test_an_error_in_a_source_names_file_and_line():
    with pytest.raises(compiler.CompileError, match=r"(?s)refuses tiny.cu for sm_90.*tiny.cu\(2\).*nowhere"):
        tiny("nowhere")


def test_an_unknown_source_lists_the_known_ones():
    with pytest.raises(ValueError, match="no kernel source 'huge'; choose one of tiny"):
        sources.source("huge")


def test_without_cuda_core_the_error_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(compiler.importlib, "import_module", missing)
    with pytest.raises(compiler.CompileError, match=r"cuda-core is missing .*pip install 'forebay\[gpu\]'"):
        tiny()


@needs_compiler
def test_without_nvrtc_the_error_says_what_to_install(monkeypatch):
    original = importlib.import_module

    class Broken:
        @staticmethod
        def nvrtcVersion():
            raise RuntimeError("libnvrtc.so not found")

    monkeypatch.setattr(
        compiler.importlib, "import_module", lambda name: Broken if name == "cuda.bindings.nvrtc" else original(name)
    )
    with pytest.raises(compiler.CompileError, match=r"cannot be loaded .*pip install nvidia-cuda-nvrtc"):
        tiny()


def test_includes_are_put_in_place_once_with_their_line_numbers(folder):
    (folder / "csrc" / "twice.cu").write_text('#include "part.cuh"\n#include "part.cuh"\nint last;\n')
    text = sources.source("twice")
    assert text.count("#define KERNEL") == 1
    assert text.splitlines()[-3:] == ['#line 2 "twice.cu"', "", "int last;"]
    assert "#include" not in text


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert sources.cache_folder() == tmp_path / "cache" / "kernels"
    monkeypatch.delenv("FOREBAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert sources.cache_folder() == tmp_path / "xdg" / "forebay" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert sources.cache_folder() == tmp_path / "home" / ".cache" / "forebay" / "kernels"


@needs_compiler
def test_what_is_loaded_is_what_was_compiled():
    loaded = compiler.load("tiny", {"FACTOR": "2.0f"}, arch="sm_90")
    assert bytes(loaded.code) == tiny().code
