import pytest


@pytest.fixture(scope="session")
def kernel_cache(request):
    """Where what is compiled is kept from one run of the tests to the next."""
    return request.config.cache.mkdir("kernels")


@pytest.fixture
def host_kernels(kernel_cache, monkeypatch):
    """Lets a test build kernels for the host and keep them."""
    from suites.kernel_process import require_compiler

    require_compiler()
    monkeypatch.setenv("FOREBAY_CACHE", str(kernel_cache))
